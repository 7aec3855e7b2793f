// SPDX-License-Identifier: BSL-1.0

// The helpers that all other asynchronous tests trust.

#include "support/async_test.hpp"

#include <conclave/testing/child_process.hpp>

#include "support/catch.hpp"
#include "support/eventually.hpp"

namespace {

namespace asio = conclave::asio;
using conclave::test::contains;
using conclave::test::eventually;
using conclave::test::run;
using namespace std::chrono_literals;

asio::awaitable<void> wait_for_ever() {
  asio::steady_timer timer{co_await asio::this_coro::executor, asio::steady_timer::time_point::max()};
  co_await timer.async_wait(asio::use_awaitable);
}

asio::awaitable<void> leave_work_behind() {
  asio::co_spawn(co_await asio::this_coro::executor, wait_for_ever(), asio::detached);
}

// Runs `body` in a forked process with its error output in a file; how it ended and what it said.
template <class Body>
std::string death_of(Body body) {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto output = folder.path() / "output";
  const pid_t child = ::fork();
  if (child == 0) {
    std::freopen(output.c_str(), "w", stderr);
    std::signal(SIGABRT, SIG_DFL);  // Catch2's handler would report a failed test
    body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT));
  return conclave::testing::file_tail(output, 20);
}

}  // namespace

TEST_CASE("run runs the coroutine to its end and passes its exception on") {
  bool done = false;
  run([&]() -> asio::awaitable<void> {
    asio::steady_timer timer{co_await asio::this_coro::executor, 1ms};
    co_await timer.async_wait(asio::use_awaitable);
    done = true;
  });
  CHECK(done);
  CHECK_THROWS_WITH(run([]() -> asio::awaitable<void> {
                      throw std::runtime_error{"from the test"};
                      co_return;
                    }),
                    "from the test");
}

TEST_CASE("run hands out its io_context and finishes what the coroutine started") {
  bool later = false;
  run([&](asio::io_context& context) -> asio::awaitable<void> {
    asio::post(context, [&] { later = true; });
    co_return;
  });
  CHECK(later);
}

TEST_CASE("run aborts a test that hangs, and one that leaves work behind, and tells which") {
  CHECK_THAT(death_of([] { run(wait_for_ever(), 100ms); }), contains("has not finished"));
  CHECK_THAT(death_of([] { run(leave_work_behind(), 100ms); }), contains("still has work"));
}

TEST_CASE("eventually waits for a condition, awaited or not, and names what did not come") {
  run([]() -> asio::awaitable<void> {
    int looks = 0;
    co_await eventually("three looks", [&] { return ++looks == 3; });
    CHECK(looks == 3);
    auto five = [&]() -> asio::awaitable<bool> { co_return ++looks == 5; };
    co_await eventually("five looks", five);
    CHECK(looks == 5);
  });
  CHECK_THROWS_WITH(run([]() -> asio::awaitable<void> {
                      co_await eventually(
                          "pigs fly", [] { return false; }, 20ms);
                    }),
                    contains("20 ms") && contains("pigs fly"));
}
