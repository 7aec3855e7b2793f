// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

using time_point = std::chrono::steady_clock::time_point;
using duration = std::chrono::steady_clock::duration;

/// A timer of a `clock`. Used from one strand.
class timer {
public:
  virtual ~timer() = default;
  /// Calls `done` on the executor that the timer was made for, once `when` is reached. A later call replaces
  /// it.
  virtual void expire_at(time_point when, std::function<void()> done) = 0;
  /// `done` is not called any more.
  virtual void stop() noexcept = 0;
};

/// The library's only source of time.
class clock {
public:
  virtual ~clock() = default;
  [[nodiscard]] virtual time_point now() const noexcept = 0;
  /// Nanoseconds since 1970, for names that sort by time; never for deciding anything.
  [[nodiscard]] virtual std::int64_t unix_nanoseconds() const noexcept = 0;
  /// A seed for jitter and identities.
  [[nodiscard]] virtual std::uint64_t entropy() = 0;
  [[nodiscard]] virtual std::unique_ptr<timer> make_timer(const asio::any_io_executor& executor) = 0;
};

}  // namespace conclave::detail::rpc
