// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <conclave/client_options.hpp>
#include <conclave/detail/engine/lease_keeper.hpp>
#include <conclave/detail/engine/linger.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/watch_hub.hpp>
#include <conclave/detail/engine/write_combiner.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::client {

/// What all copies of a client share. The last handle's end closes the streams, behind itself.
class client_state {
public:
  explicit client_state(std::shared_ptr<engine::runtime> on)
      : runtime_(std::move(on)),
        keeper_(std::make_shared<engine::lease_keeper>(runtime_)),
        hub_(std::make_shared<engine::watch_hub>(runtime_)),
        writes_(std::make_shared<engine::write_combiner>(runtime_)),
        lingering_(std::make_shared<engine::linger_list>(runtime_, standing_watch_time)) {
    // Leases end first: what lives by them is not to start over on the watches' end.
    runtime_->run([on = runtime_, keeper = std::weak_ptr(keeper_), hub = std::weak_ptr(hub_)] {
      on->observe(keeper);
      on->observe(hub);
    });
  }

  /// How long a watch stands after its last use: opening one costs two round trips and a slower first
  /// hand-over.
  static constexpr std::chrono::seconds standing_watch_time{30};

  client_state(const client_state&) = delete;
  client_state& operator=(const client_state&) = delete;

  ~client_state() {
    auto close = [keeper = std::move(keeper_), hub = std::move(hub_), lingering = std::move(lingering_)] {
      lingering->close();
      keeper->close();
      hub->close();
    };
    try {
      runtime_->run(std::move(close));
    } catch (...) {  // out of memory: the context's end closes them
    }
  }

  [[nodiscard]] const std::shared_ptr<engine::runtime>& runtime() const noexcept { return runtime_; }
  [[nodiscard]] const std::shared_ptr<engine::lease_keeper>& keeper() const noexcept { return keeper_; }
  [[nodiscard]] const std::shared_ptr<engine::watch_hub>& hub() const noexcept { return hub_; }
  /// For writes that are independent of all others.
  [[nodiscard]] const std::shared_ptr<engine::write_combiner>& writes() const noexcept { return writes_; }
  [[nodiscard]] const std::shared_ptr<engine::linger_list>& lingering() const noexcept { return lingering_; }

  /// What the local users of one name share: found, or made by `make`, and kept as long as somebody uses it.
  /// On the strand.
  template <class T, class Make>
  std::shared_ptr<T> shared(const std::string& name, Make make) {
    if (auto found = find_shared<T>(name)) return found;
    std::shared_ptr<T> made = make();  // which may share something else
    shared_[name] = made;
    if (++inserted_ % 256 == 0)
      std::erase_if(shared_, [](const auto& each) { return each.second.expired(); });
    return made;
  }

  /// The same if it is in use, or null.
  template <class T>
  std::shared_ptr<T> find_shared(const std::string& name) const {
    const auto found = shared_.find(name);
    return found == shared_.end() ? nullptr : std::static_pointer_cast<T>(found->second.lock());
  }

  /// Digits for naming a key that nobody else will: a time in nanoseconds, which grows from each to the next, and a
  /// random number of 64 bits, so that no server has to be asked whether the name is free. Any thread.
  std::string unique_number() {
    const auto now = runtime_->clock().unix_nanoseconds();
    auto last = last_time_.load(std::memory_order_relaxed);
    while (!last_time_.compare_exchange_weak(last, std::max(now, last + 1), std::memory_order_relaxed)) {
    }
    const auto random = std::to_string(runtime_->seed());
    constexpr std::size_t width = 20;
    return std::to_string(std::max(now, last + 1)) + std::string(width - random.size(), '0') + random;
  }

private:
  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::lease_keeper> keeper_;
  std::shared_ptr<engine::watch_hub> hub_;
  std::shared_ptr<engine::write_combiner> writes_;
  std::shared_ptr<engine::linger_list> lingering_;
  std::unordered_map<std::string, std::weak_ptr<void>> shared_;
  std::size_t inserted_ = 0;
  std::atomic<std::int64_t> last_time_{0};
};

}  // namespace conclave::detail::client
