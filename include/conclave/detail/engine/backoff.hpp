// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Growing delays with jitter, so that many clients do not come back at the same moment.
class backoff {
public:
  using duration = std::chrono::steady_clock::duration;

  /// Delays grow from `first` to `most`, each within ± 25 %; `seed` decides the jitter.
  backoff(duration first, duration most, std::uint64_t seed) noexcept
      : first_(first), most_(most), next_(first), random_(seed | 1U) {}

  [[nodiscard]] duration next() noexcept {
    const auto base = next_;
    next_ = std::min(most_, next_ * 2);
    random_ ^= random_ << 13U;
    random_ ^= random_ >> 7U;
    random_ ^= random_ << 17U;
    const auto percent = static_cast<std::int64_t>(75 + random_ % 51);
    return base * percent / 100;
  }

  void reset() noexcept { next_ = first_; }

private:
  duration first_;
  duration most_;
  duration next_;
  std::uint64_t random_;
};

}  // namespace conclave::detail::engine
