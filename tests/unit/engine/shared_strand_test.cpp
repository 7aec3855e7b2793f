// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/shared_strand.hpp>

#if defined(CONCLAVE_USE_BOOST_ASIO)
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#else
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#endif

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"

namespace {

namespace asio = conclave::asio;
using conclave::detail::engine::shared_strand;
using namespace std::chrono_literals;

}  // namespace

TEST_CASE("a strand in an any_io_executor is that strand, whatever is asked of it") {
  asio::io_context context;
  const auto strand = shared_strand::over(context.get_executor());
  const asio::any_io_executor any{strand};
  REQUIRE(any.target<shared_strand>() != nullptr);
  CHECK(*any.target<shared_strand>() == strand);
  CHECK(&asio::query(any, asio::execution::context) == &context);

  const auto never = asio::require(any, asio::execution::blocking.never);
  const auto busy = asio::prefer(any, asio::execution::outstanding_work.tracked);
  const auto idle = asio::prefer(busy, asio::execution::outstanding_work.untracked);
  for (const auto& each : {never, busy, idle}) CHECK(each == any);
  CHECK(asio::query(*never.target<shared_strand>(), asio::execution::blocking) ==
        asio::execution::blocking.never);
  CHECK(asio::query(*any.target<shared_strand>(), asio::execution::blocking) ==
        asio::execution::blocking.possibly);
  CHECK(asio::query(*busy.target<shared_strand>(), asio::execution::outstanding_work) ==
        asio::execution::outstanding_work.tracked);
  CHECK(asio::query(*idle.target<shared_strand>(), asio::execution::outstanding_work) ==
        asio::execution::outstanding_work.untracked);
  CHECK(asio::any_io_executor{shared_strand::over(context.get_executor())} != any);
}

TEST_CASE("on a strand a dispatch runs at once, and a post later, in order") {
  asio::io_context context;
  const asio::any_io_executor strand{shared_strand::over(context.get_executor())};
  std::vector<int> order;
  asio::post(strand, [&] {
    asio::post(strand, [&] { order.push_back(3); });
    asio::dispatch(strand, [&] { order.push_back(1); });
    asio::post(strand, [&] { order.push_back(4); });
    order.push_back(2);
  });
  CHECK(order.empty());
  context.run();
  CHECK(order == std::vector<int>{1, 2, 3, 4});
}

TEST_CASE("a strand of an executor that never runs anything at once does so all the same") {
  asio::io_context context;
  const asio::any_io_executor never{asio::require(context.get_executor(), asio::execution::blocking.never)};
  const asio::any_io_executor strand{shared_strand::over(never)};
  std::vector<int> order;
  asio::post(strand, [&] {
    asio::dispatch(strand, [&] { order.push_back(1); });
    order.push_back(2);
  });
  context.run();
  CHECK(order == std::vector<int>{1, 2});
}

TEST_CASE("what many threads give a strand runs one by one, what each gives in its order") {
  constexpr int threads = 4;
  constexpr int each = 2000;
  asio::thread_pool pool{threads};
  const asio::any_io_executor strand{shared_strand::over(pool.get_executor())};
  std::atomic<int> inside{0};
  std::atomic<int> overlaps{0};
  std::vector<int> last(threads, -1);  // written on the strand alone
  int out_of_order = 0;
  std::vector<std::thread> givers;
  for (int t = 0; t < threads; ++t)
    givers.emplace_back([&, t] {
      for (int i = 0; i < each; ++i) {
        auto work = [&, t, i] {
          if (++inside != 1) ++overlaps;
          if (std::exchange(last[static_cast<std::size_t>(t)], i) != i - 1) ++out_of_order;
          --inside;
        };
        if (i % 2 == 0)
          asio::post(strand, work);
        else
          asio::dispatch(strand, work);
      }
    });
  for (auto& each_one : givers) each_one.join();
  pool.join();
  CHECK(overlaps == 0);
  CHECK(out_of_order == 0);
  CHECK(last == std::vector<int>(threads, each - 1));
}

TEST_CASE("a context has work as long as somebody tracks it through a strand") {
  asio::io_context context;
  const asio::any_io_executor strand{shared_strand::over(context.get_executor())};
  CHECK(context.run() == 0);  // a strand alone is none
  std::optional<asio::any_io_executor> first{asio::prefer(strand, asio::execution::outstanding_work.tracked)};
  std::optional<asio::any_io_executor> second{
      asio::prefer(strand, asio::execution::outstanding_work.tracked)};
  std::optional<asio::any_io_executor> copy{*first};
  context.restart();
  auto ended = std::async(std::launch::async, [&] { context.run(); });
  first.reset();
  CHECK(ended.wait_for(0s) == std::future_status::timeout);
  second.reset();
  CHECK_FALSE(context.stopped());
  // The last one goes; so does what runs the context.
  copy.reset();
  ended.get();
  CHECK(context.stopped());

  SECTION("and again") {
    auto third = asio::prefer(strand, asio::execution::outstanding_work.tracked);
    context.restart();
    bool ran = false;
    asio::post(strand, [&, held = std::move(third)] { ran = true; });
    context.run();
    CHECK(ran);
    CHECK(context.stopped());
  }
}

TEST_CASE("a coroutine on a strand keeps its context running until it ends") {
  asio::io_context context;
  const auto strand = shared_strand::over(context.get_executor());
  std::vector<int> order;
  auto work = [&]() -> asio::awaitable<void> {
    order.push_back(1);
    auto timer = asio::steady_timer{co_await asio::this_coro::executor, 1ms};
    co_await timer.async_wait(asio::use_awaitable);
    order.push_back(2);
  };
  asio::co_spawn(strand, work, asio::detached);
  context.run();
  CHECK(order == std::vector<int>{1, 2});
}
