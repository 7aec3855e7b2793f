// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <memory>
#include <unordered_map>
#include <utility>

#include <conclave/detail/engine/runtime.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Something that is worth keeping for a while after its last use, such as a standing watch.
class lingering {
public:
  virtual ~lingering() = default;
  [[nodiscard]] virtual bool in_use() const = 0;
  /// It has not been used for the whole time.
  virtual void on_forgotten() {}

private:
  friend class linger_list;
  time_point idle_since_;
};

/// Keeps what is not in use for a while. On the strand.
class linger_list final : public std::enable_shared_from_this<linger_list> {
public:
  explicit linger_list(std::shared_ptr<runtime> on, duration time) : runtime_(std::move(on)), time_(time) {}

  /// Call it when the last user has gone.
  void idle(const std::shared_ptr<lingering>& each) {
    if (closed_) {
      each->on_forgotten();
      return;
    }
    each->idle_since_ = runtime_->now();
    if (kept_.contains(each.get())) return;
    kept_.emplace(each.get(), entry{each, arm(each.get(), each->idle_since_ + time_)});
  }

  void close() {
    closed_ = true;
    for (auto& [raw, each] : std::exchange(kept_, {})) {
      runtime_->cancel(each.timer);
      if (!each.what->in_use()) each.what->on_forgotten();
    }
  }

private:
  struct entry {
    std::shared_ptr<lingering> what;
    runtime::timer_id timer;
  };

  runtime::timer_id arm(lingering* raw, time_point when) {
    return runtime_->at(when, [weak = weak_from_this(), raw] {
      if (const auto self = weak.lock()) self->check(raw);
    });
  }

  void check(lingering* raw) {
    const auto found = kept_.find(raw);
    if (found == kept_.end()) return;
    const auto what = found->second.what;
    const bool used = what->in_use();
    const auto over = what->idle_since_ + time_;
    if (!used && runtime_->now() < over) {
      found->second.timer = arm(raw, over);
      return;
    }
    kept_.erase(found);  // in use: whoever ends that says so again
    if (!used) what->on_forgotten();
  }

  std::shared_ptr<runtime> runtime_;
  duration time_;
  std::unordered_map<lingering*, entry> kept_;
  bool closed_ = false;
};

}  // namespace conclave::detail::engine
