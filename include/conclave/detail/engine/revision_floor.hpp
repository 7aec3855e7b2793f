// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// The highest revision that any answer has told of. The store never goes back, so an up-to-date answer below it
/// is stale, or the store is not what it was: wiped, restored, or another one at the same address. Any thread.
class revision_floor {
public:
  /// What is known when a call is sent: only what was known before can contradict its answer.
  struct mark {
    revision floor = 0;
    std::uint64_t cluster = 0;
    std::uint64_t epoch = 0;
  };
  enum class verdict {
    good,
    below,  ///< Stale, or the store was reset.
    reset,  ///< Another cluster, or one that was reset since the call was sent.
  };

  [[nodiscard]] mark now() const noexcept {
    const std::lock_guard lock{mutex_};
    return known_;
  }

  /// Learns from an answer to a call that was sent at `sent`. Only an `up_to_date` one is judged by its
  /// revision: others may come from a member that lags behind.
  verdict judge(const response_header& answer, const mark& sent, bool up_to_date) noexcept {
    const std::lock_guard lock{mutex_};
    if (known_.epoch != sent.epoch) return verdict::reset;
    if (answer.cluster_id != 0 && known_.cluster != 0 && answer.cluster_id != known_.cluster)
      return verdict::reset;
    if (up_to_date && answer.revision != 0 && answer.revision < sent.floor) return verdict::below;
    if (known_.cluster == 0) known_.cluster = answer.cluster_id;
    known_.floor = std::max(known_.floor, answer.revision);
    return verdict::good;
  }

  /// Starts anew from the store as it is now. False if somebody else has, since `sent`.
  bool reset(const response_header& answer, const mark& sent) noexcept {
    const std::lock_guard lock{mutex_};
    if (known_.epoch != sent.epoch) return false;
    known_ = {answer.revision, answer.cluster_id, known_.epoch + 1};
    return true;
  }

private:
  mutable std::mutex mutex_;
  mark known_;
};

}  // namespace conclave::detail::engine
