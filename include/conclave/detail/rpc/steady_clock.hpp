// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/detail/rpc/clock.hpp>

namespace conclave::detail::rpc {

/// Real time: `std::chrono::steady_clock` and Asio's timers.
class steady_clock final : public clock {
public:
  [[nodiscard]] time_point now() const noexcept override { return std::chrono::steady_clock::now(); }

  [[nodiscard]] std::int64_t unix_nanoseconds() const noexcept override {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
  }

  [[nodiscard]] std::uint64_t entropy() override {
    const std::lock_guard lock{mutex_};
    return (std::uint64_t{device_()} << 32U) | device_();
  }

  [[nodiscard]] std::unique_ptr<timer> make_timer(const asio::any_io_executor& executor) override {
    return std::make_unique<asio_timer>(executor);
  }

private:
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

  std::mutex mutex_;
  std::random_device
      device_;  ///< To make one takes longer than to ask it: on some machines it is no plain instruction.
};

}  // namespace conclave::detail::rpc
