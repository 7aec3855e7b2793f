// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/detail/rpc/clock.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// Real time: `std::chrono::steady_clock` and Asio's timers.
class steady_clock final : public clock {
public:
  [[nodiscard]] time_point now() const noexcept override { return std::chrono::steady_clock::now(); }

  [[nodiscard]] std::int64_t unix_nanoseconds() const noexcept override {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
  }

  // The device may take tens of microseconds, as much as the rest of a call: it is asked once. From there on it
  // is splitmix64, which gives no number twice.
  [[nodiscard]] std::uint64_t entropy() override {
    auto out = next_.fetch_add(0x9e37'79b9'7f4a'7c15U, std::memory_order_relaxed);
    out = (out ^ (out >> 30U)) * 0xbf58'476d'1ce4'e5b9U;
    out = (out ^ (out >> 27U)) * 0x94d0'49bb'1331'11ebU;
    return out ^ (out >> 31U);
  }

  [[nodiscard]] std::unique_ptr<timer> make_timer(const asio::any_io_executor& executor) override {
    return std::make_unique<asio_timer>(executor);
  }

private:
  static std::uint64_t from_device() {
    std::random_device device;
    return (std::uint64_t{device()} << 32U) | device();
  }

  class asio_timer final : public timer {
  public:
    explicit asio_timer(const asio::any_io_executor& executor) : timer_(executor) {}

    void expire_at(time_point when, std::function<void()> done) override {
      ++*round_;
      timer_.expires_at(when);
      // A handler that is queued already when the timer is moved or stopped must not run: it belongs to an
      // older round.
      timer_.async_wait([round = round_, mine = *round_, done = std::move(done)](asio_error_code failed) {
        if (!failed && *round == mine) done();
      });
    }

    void stop() noexcept override {
      ++*round_;
      try {
        timer_.cancel();
      } catch (...) {  // the round has moved on: the handler does nothing
      }
    }

    ~asio_timer() override { ++*round_; }

  private:
    asio::steady_timer timer_;
    std::shared_ptr<std::uint64_t> round_ = std::make_shared<std::uint64_t>(0);
  };

  std::atomic<std::uint64_t> next_{from_device()};
};

}  // namespace conclave::detail::rpc
