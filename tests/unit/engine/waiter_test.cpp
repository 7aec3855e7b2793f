// SPDX-License-Identifier: BSL-1.0

#include <conclave/asio.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/waiter.hpp>
#include <conclave/detail/rpc/steady_clock.hpp>

#include "support/catch.hpp"

#ifdef CONCLAVE_USE_BOOST_ASIO
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#else
#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace {

namespace asio = conclave::asio;
namespace engine = conclave::detail::engine;
namespace rpc = conclave::detail::rpc;

using waiting = std::shared_ptr<engine::waiter<int>>;

std::shared_ptr<engine::runtime> runtime_on(asio::io_context& context) {
  return engine::runtime::make(context.get_executor(), {}, std::make_shared<rpc::steady_clock>(),
                               engine::key_space{}, {});
}

/// Those who wait, each of which keeps it: a circle until the wait ends.
struct room {
  std::vector<waiting> all;
};

/// Counts what becomes of coroutines.
struct fates {
  std::thread::id home;
  std::atomic<int> resumed{0};
  std::atomic<int> dropped{0};
  std::atomic<int> dropped_elsewhere{0};
};

/// Of a coroutine's frame.
class witness {
public:
  explicit witness(fates& all) : all_(all) {}
  ~witness() {
    if (done_) return;
    ++all_.dropped;
    if (std::this_thread::get_id() != all_.home) ++all_.dropped_elsewhere;
  }
  witness(const witness&) = delete;
  witness& operator=(const witness&) = delete;
  void resumed() {
    done_ = true;
    ++all_.resumed;
  }

private:
  fates& all_;
  bool done_ = false;
};

asio::awaitable<void> wait_in(std::shared_ptr<engine::runtime> on, std::shared_ptr<room> in, fates& all) {
  witness mine{all};
  auto start = [in](waiting who) {
    in->all.push_back(who);
    who->on_cancel(in, [where = in.get(), whose = who.get()] {
      std::erase_if(where->all, [whose](const waiting& each) { return each.get() == whose; });
    });
  };
  (void)co_await engine::wait<int>(std::move(on), std::move(start));
  mine.resumed();
}

}  // namespace

TEST_CASE("a wait keeps nothing when its context goes first and the strand's goes without having run again") {
  fates all;
  std::optional<asio::io_context> strands{std::in_place};
  std::optional<asio::io_context> callers{std::in_place};
  auto on = runtime_on(*strands);
  auto in = std::make_shared<room>();
  for (int i = 0; i < 3; ++i) asio::co_spawn(*callers, wait_in(on, in, all), asio::detached);
  callers->poll();
  strands->poll();
  REQUIRE(in->all.size() == 3);
  const std::weak_ptr<room> kept = in;
  in.reset();
  on.reset();

  SECTION("the strand does not hear of it") {}
  SECTION("the strand hears of it") {
    callers.reset();
    strands->restart();
    strands->poll();
    CHECK(kept.expired());
  }
  SECTION("the other way round") { strands.reset(); }
  callers.reset();
  strands.reset();
  CHECK(all.dropped == 3);
  CHECK(kept.expired());
}

TEST_CASE("a context may go at the very moment at which the strand ends the waits of its coroutines") {
  constexpr int rounds = 1000;
  constexpr int each_round = 30;
  fates all;
  all.home = std::this_thread::get_id();
  asio::io_context strands;
  auto work = asio::make_work_guard(strands);
  std::thread runs{[&] { strands.run(); }};
  const auto on = runtime_on(strands);
  std::weak_ptr<room> kept;
  for (int i = 0; i < rounds; ++i) {
    std::optional<asio::io_context> callers{std::in_place};
    const auto in = std::make_shared<room>();
    kept = in;
    for (int k = 0; k < each_round; ++k) asio::co_spawn(*callers, wait_in(on, in, all), asio::detached);
    callers->poll();
    std::atomic<bool> lined_up{false};
    std::atomic<bool> ended{false};
    on->post([&] { lined_up = true; });
    while (!lined_up) std::this_thread::yield();
    // From the front, where the context begins, and from behind.
    on->post([&, in, reverse = i % 2 == 0] {
      auto whose = std::exchange(in->all, {});
      if (reverse) std::reverse(whose.begin(), whose.end());
      lined_up = false;
      for (auto& each : whose) {
        each->complete(1);
        each.reset();
      }
      ended = true;
    });
    while (lined_up) std::this_thread::yield();
    callers.reset();
    while (!ended) std::this_thread::yield();
  }
  work.reset();
  runs.join();
  CHECK(all.resumed + all.dropped == rounds * each_round);
  CHECK(all.dropped_elsewhere == 0);
  CHECK(kept.expired());
}
