// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/asio.hpp>

#if defined(CONCLAVE_USE_BOOST_ASIO)
#include <boost/asio/io_context.hpp>
#else
#include <asio/io_context.hpp>
#endif

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

namespace conclave::test {

namespace detail {

/// Ends the program with a message when its time is over: nothing that hangs can be asked to stop politely.
class watchdog {
public:
  explicit watchdog(std::chrono::milliseconds limit) : thread_{[this, limit] { watch(limit); }} {}
  watchdog(const watchdog&) = delete;
  watchdog& operator=(const watchdog&) = delete;
  ~watchdog() {
    {
      const std::lock_guard lock{mutex_};
      stopped_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  /// What the message will say.
  void now(const char* phase) {
    const std::lock_guard lock{mutex_};
    phase_ = phase;
  }

private:
  void watch(std::chrono::milliseconds limit) {
    std::unique_lock lock{mutex_};
    if (wake_.wait_for(lock, limit, [this] { return stopped_; })) return;
    std::fprintf(stderr, "\nconclave::test::run: over its limit of %lld ms: %s\n",
                 static_cast<long long>(limit.count()), phase_);
    std::fflush(stderr);
    std::abort();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  const char* phase_{"the test's coroutine has not finished"};
  bool stopped_{false};
  std::thread thread_;
};

}  // namespace detail

/// Runs the coroutine that `make` returns on `context`, then whatever is left on `context` until it has no
/// work, and throws what the coroutine threw. `make` is a function of nothing, of the io_context, or the
/// coroutine itself; it lives until the end, so that a capturing lambda is safe here. Over the limit the
/// program is aborted; the message tells a test that hangs from one that leaves work behind.
template <class Make>
void run_on(asio::io_context& context, Make&& make,
            std::chrono::milliseconds limit = std::chrono::seconds{30}) {
  detail::watchdog dog{limit};
  std::exception_ptr failure;
  auto start = [&]() -> asio::awaitable<void> {
    if constexpr (std::is_same_v<std::decay_t<Make>, asio::awaitable<void>>) {
      return std::move(make);
    } else if constexpr (std::is_invocable_v<Make&, asio::io_context&>) {
      return make(context);
    } else {
      return make();
    }
  };
  asio::co_spawn(context, start(), [&](std::exception_ptr error) {
    failure = std::move(error);
    dog.now(
        "the test's coroutine has finished, but the io_context still has work: something was left behind");
  });
  context.restart();
  context.run();
  if (failure) std::rethrow_exception(failure);
}

/// The same on an io_context of its own.
///
/// ```
/// TEST_CASE("a lock is free again after unlock") {
///   conclave::test::run([]() -> conclave::asio::awaitable<void> { … });
/// }
/// ```
template <class Make>
void run(Make&& make, std::chrono::milliseconds limit = std::chrono::seconds{30}) {
  asio::io_context context{1};
  run_on(context, std::forward<Make>(make), limit);
}

}  // namespace conclave::test
