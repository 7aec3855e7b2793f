// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include <conclave/detail/rpc/clock.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// The servers of one cluster, and which of them is asked: one, for as long as it serves. A server that was
/// silent, or that said it cannot serve, is left for a while although its connection stands. Any thread.
class server_list {
public:
  using server = std::shared_ptr<rpc::transport>;

  /// How long a server is left to itself. By then its connection is closed by a ping without an answer, or it
  /// is well again.
  static constexpr std::chrono::seconds quarantine{15};

  explicit server_list(std::vector<server> servers)
      : servers_(std::move(servers)), suspect_until_(servers_.size()) {
    for (auto& each : suspect_until_) each.store(rpc::time_point::min().time_since_epoch().count());
  }

  [[nodiscard]] std::size_t size() const noexcept { return servers_.size(); }

  /// Whom to ask now: connected and not suspect, or else connected, or else whoever's turn it is.
  server pick(rpc::time_point now) noexcept {
    const auto first = current_.load(std::memory_order_relaxed);
    for (const bool trust : {true, false}) {
      for (std::size_t i = 0; i < servers_.size(); ++i) {
        const auto at = (first + i) % servers_.size();
        if (!servers_[at]->ready() || (trust && is_suspect(at, now))) continue;
        if (i != 0) current_.store(at, std::memory_order_relaxed);
        return servers_[at];
      }
    }
    return servers_[first % servers_.size()];
  }

  /// It could not be reached: the next one's turn.
  void pass(const rpc::transport& one) noexcept {
    auto now = current_.load(std::memory_order_relaxed);
    if (servers_[now % servers_.size()].get() == &one)
      current_.compare_exchange_strong(now, (now + 1) % servers_.size(), std::memory_order_relaxed);
  }

  /// It is connected and of no use. False if there is no other to turn to.
  bool suspect(const rpc::transport& one, rpc::time_point now) noexcept {
    for (std::size_t i = 0; i < servers_.size(); ++i) {
      if (servers_[i].get() == &one)
        suspect_until_[i].store((now + quarantine).time_since_epoch().count(), std::memory_order_relaxed);
    }
    pass(one);
    return servers_.size() > 1;
  }

  [[nodiscard]] bool all_failing() const noexcept {
    return std::all_of(servers_.begin(), servers_.end(), [](const server& each) { return each->failing(); });
  }

private:
  [[nodiscard]] bool is_suspect(std::size_t at, rpc::time_point now) const noexcept {
    return now.time_since_epoch().count() < suspect_until_[at].load(std::memory_order_relaxed);
  }

  std::vector<server> servers_;
  std::vector<std::atomic<rpc::duration::rep>> suspect_until_;
  std::atomic<std::size_t> current_{0};
};

}  // namespace conclave::detail::engine
