// SPDX-License-Identifier: BSL-1.0

// Where coroutines are resumed, how fast a cancelled wait ends, and that things may be destroyed in any order,
// with calls under way. Over real gRPC, towards a port where nobody listens: no server is needed.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/session.hpp>
#include <conclave/testing/loopback.hpp>

#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(CONCLAVE_USE_BOOST_ASIO)
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_future.hpp>
#else
#include <asio/bind_cancellation_slot.hpp>
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_future.hpp>
#endif

#include "support/async_test.hpp"
#include "support/catch.hpp"

namespace {

namespace asio = conclave::asio;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using namespace std::chrono_literals;

// A port of this machine where nobody listens.
std::string dead_endpoint() {
  static const conclave::testing::reserved_port port;
  return "http://127.0.0.1:" + std::to_string(port.number());
}

client_options impatient() { return client_options{}.endpoints(dead_endpoint()).connect_timeout(50ms); }
client_options patient() {
  return client_options{}.endpoints(dead_endpoint()).connect_timeout(1h).request_timeout(1h);
}

// What an operation failed with, and what ran on the same executor meanwhile.
struct report {
  std::error_code code;
  std::vector<std::string> order;
  bool on_executor = false;
};

// One read through `c`, which is to fail, and where it was resumed.
template <class Executor>
asio::awaitable<void> read_once(client c, Executor expected, std::shared_ptr<report> into) {
  const auto here = co_await asio::this_coro::executor;
  asio::post(here, [into] { into->order.push_back("posted before the call"); });
  try {
    (void)co_await c.get("key");
  } catch (const std::system_error& e) {
    into->code = e.code();
  }
  into->on_executor = expected.running_in_this_thread();
  into->order.push_back("resumed");
}

const std::vector<std::string> not_inline{"posted before the call", "resumed"};

// Each of the awaitables that would wait for ever (or an hour) where nobody listens.
struct endless {
  const char* what;
  asio::awaitable<void> (*start)(client);
};

asio::awaitable<void> wait_deleted(client c) { (void)co_await c.wait_deleted("key"); }
asio::awaitable<void> get(client c) { (void)co_await c.get("key"); }
asio::awaitable<void> put(client c) { (void)co_await c.put("key", "value"); }
asio::awaitable<void> open_session(client c) { (void)co_await conclave::session::open(c); }
asio::awaitable<void> watch_now(client c) { (void)co_await c.watch("key"); }
asio::awaitable<void> watch_next(client c) {
  conclave::watch_options options;
  options.start_revision = 1;
  auto watching = co_await c.watch("key", options);
  (void)co_await watching.next();
}

const endless all_endless[] = {
    {"wait_deleted", wait_deleted},  {"get", get},         {"put", put},
    {"session::open", open_session}, {"watch", watch_now}, {"watcher::next", watch_next}};

}  // namespace

TEST_CASE("an operation completes on its caller's executor, by a post") {
  asio::io_context library;
  asio::io_context caller;
  const client c{library.get_executor(), impatient()};
  const auto work = asio::make_work_guard(library);
  std::thread runs_library{[&] { library.run(); }};
  const auto result = std::make_shared<report>();
  asio::co_spawn(caller, read_once(c, caller.get_executor(), result), asio::detached);
  caller.run();
  library.stop();
  runs_library.join();
  CHECK(result->code == errc::unavailable);
  CHECK(result->on_executor);
  CHECK(result->order == not_inline);
}

TEST_CASE("an operation completes on its caller's strand, whichever thread runs that") {
  asio::thread_pool library{2};
  asio::thread_pool caller{2};
  const client c{library.get_executor(), impatient()};
  std::vector<std::shared_ptr<report>> results;
  for (int i = 0; i < 8; ++i) {
    const auto strand = asio::make_strand(caller.get_executor());
    results.push_back(std::make_shared<report>());
    asio::co_spawn(strand, read_once(c, strand, results.back()), asio::detached);
  }
  caller.join();
  for (const auto& each : results) {
    CHECK(each->code == errc::unavailable);
    CHECK(each->on_executor);
    CHECK(each->order == not_inline);
  }
}

TEST_CASE("an operation of one thread alone completes there, and is never resumed within the call") {
  asio::io_context context;
  const client c{context.get_executor(), impatient()};
  const auto result = std::make_shared<report>();
  asio::co_spawn(context, read_once(c, context.get_executor(), result), asio::detached);
  context.run();
  CHECK(result->code == errc::unavailable);
  CHECK(result->order == not_inline);
}

TEST_CASE("a cancelled operation ends at once, though nobody answers") {
  for (const auto& each : all_endless) {
    CAPTURE(each.what);
    asio::io_context context;
    const client c{context.get_executor(), patient()};
    asio::cancellation_signal signal;
    std::error_code code;
    bool ended = false;
    auto done = [&](std::exception_ptr failed) {
      ended = true;
      try {
        if (failed) std::rethrow_exception(failed);
      } catch (const std::system_error& e) {
        code = e.code();
      }
      context.stop();
    };
    asio::co_spawn(context, each.start(c), asio::bind_cancellation_slot(signal.slot(), done));
    for (int i = 0; i < 100; ++i) context.poll();
    REQUIRE_FALSE(ended);
    signal.emit(asio::cancellation_type::terminal);
    conclave::test::detail::watchdog dog{30s};  // the operations' own limit is an hour
    context.restart();
    context.run();
    CHECK(ended);
    CHECK(code == condition::cancelled);
  }
}

TEST_CASE("a wait on another executor than the client's is cancelled at once") {
  asio::thread_pool library{1};
  asio::io_context caller;
  const client c{library.get_executor(), patient()};
  for (const auto& each : all_endless) {
    CAPTURE(each.what);
    asio::cancellation_signal signal;
    std::error_code code;
    auto done = [&](std::exception_ptr failed) {
      try {
        if (failed) std::rethrow_exception(failed);
      } catch (const std::system_error& e) {
        code = e.code();
      }
    };
    asio::co_spawn(caller, each.start(c), asio::bind_cancellation_slot(signal.slot(), done));
    asio::post(caller, [&] { asio::post(caller, [&] { signal.emit(asio::cancellation_type::terminal); }); });
    conclave::test::detail::watchdog dog{30s};
    caller.restart();
    caller.run();
    CHECK(code == condition::cancelled);
  }
}

TEST_CASE("a future works, for those without coroutines") {
  asio::thread_pool pool{1};
  const client c{pool.get_executor(), impatient()};
  auto future = asio::co_spawn(pool, c.get("key"), asio::use_future);
  try {
    (void)future.get();
    FAIL("nobody can have answered");
  } catch (const conclave::error& e) {
    CHECK(e.code() == errc::unavailable);
    CHECK_THAT(e.what(), conclave::test::contains(dead_endpoint()));
  }
}

TEST_CASE("things may be destroyed in any order, with calls and waits under way") {
  conclave::test::detail::watchdog dog{50s};
  for (const auto& each : all_endless) {
    for (const int polls : {0, 1, 2, 100}) {
      CAPTURE(each.what, polls);
      std::optional<asio::io_context> context{std::in_place};
      std::optional<client> c{std::in_place, context->get_executor(), patient()};
      bool ended = false;
      asio::co_spawn(*context, each.start(*c), [&](std::exception_ptr) { ended = true; });
      for (int i = 0; i < polls; ++i) context->poll_one();

      // The test's handle first, though the coroutine has a copy; and then the other way round.
      context->restart();
      c.reset();
      context.reset();
      CHECK_FALSE(ended);

      context.emplace();
      c.emplace(context->get_executor(), patient());
      asio::co_spawn(*context, each.start(*c), [&](std::exception_ptr) { ended = true; });
      for (int i = 0; i < polls; ++i) context->poll_one();
      context.reset();
      c.reset();
      CHECK_FALSE(ended);
    }
  }
}

TEST_CASE("a context that several threads run may be stopped and destroyed with everything under way") {
  conclave::test::detail::watchdog dog{50s};
  for (int round = 0; round < 20; ++round) {
    auto pool = std::make_unique<asio::thread_pool>(2);
    std::optional<client> c{std::in_place, pool->get_executor(), patient()};
    for (const auto& each : all_endless) asio::co_spawn(*pool, each.start(*c), asio::detached);
    if (round % 2 == 0) std::this_thread::yield();
    if (round % 4 < 2) c.reset();
    pool->stop();
    pool->join();
    pool.reset();
  }
  SUCCEED("nothing crashed or hung");
}

TEST_CASE("a coroutine's own context may be destroyed before the client's") {
  conclave::test::detail::watchdog dog{50s};
  asio::thread_pool library{1};
  const client c{library.get_executor(), patient()};
  for (const auto& each : all_endless) {
    asio::io_context caller;
    asio::co_spawn(caller, each.start(c), asio::detached);
    for (int i = 0; i < 10; ++i) caller.poll();
  }
  SUCCEED("nothing crashed or hung");
}

TEST_CASE("the client's context may be destroyed before the coroutine's, which then ends or is dropped") {
  conclave::test::detail::watchdog dog{50s};
  for (const auto& each : all_endless) {
    CAPTURE(each.what);
    asio::io_context caller;
    std::optional<asio::io_context> library{std::in_place};
    std::optional<client> c{std::in_place, library->get_executor(), patient()};
    asio::co_spawn(caller, each.start(*c), asio::detached);
    for (int i = 0; i < 10; ++i) {
      caller.poll();
      library->poll();
    }
    library.reset();
    caller.poll();
    c.reset();
  }
  SUCCEED("nothing crashed or hung");
}

TEST_CASE("a client whose context is gone refuses calls") {
  std::optional<asio::io_context> context{std::in_place};
  const client c{context->get_executor(), impatient()};
  context.reset();
  asio::io_context other;
  std::error_code code;
  asio::co_spawn(other, get(c), [&](std::exception_ptr failed) {
    try {
      if (failed) std::rethrow_exception(failed);
    } catch (const std::system_error& e) {
      code = e.code();
    }
  });
  other.run();
  CHECK(code == errc::client_closed);
}
