// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/stream_link.hpp>
#include <conclave/detail/engine/watch_hub_machine.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Who hears of a watch. Called on the strand; the listener may add and remove watches meanwhile.
class watch_listener {
public:
  virtual ~watch_listener() = default;
  /// See `watch_hub_machine::created`: whoever watches from now reads the state now.
  virtual void on_created() = 0;
  virtual void on_events(std::vector<event> batch) = 0;
  virtual void on_progress(revision) {}
  virtual void on_compacted(revision oldest) = 0;
  virtual void on_failed(errc code, const std::string& reason) = 0;
};

/// Drives the watches of a client, all on one stream. On the strand.
class watch_hub final : public runtime_observer, public std::enable_shared_from_this<watch_hub> {
public:
  using handle = watch_hub_machine::handle;
  using spec = watch_hub_machine::spec;

  explicit watch_hub(std::shared_ptr<runtime> on) : runtime_(std::move(on)), machine_(runtime_->seed()) {}

  /// Starts a watch; the key is the client's, without its prefix. A listener that is gone hears nothing.
  handle add(spec what, std::weak_ptr<watch_listener> to) {
    runtime_->keys().enter(what.key, what.range_end);
    const handle id = ++last_;
    listeners_.emplace(id, std::move(to));
    act(machine_.add(id, std::move(what), runtime_->now()));
    return id;
  }

  void remove(handle id) {
    if (listeners_.erase(id) != 0) act(machine_.remove(id));
  }

  [[nodiscard]] std::size_t size() const noexcept { return machine_.size(); }

  void close() {
    closed_ = true;
    if (timer_) runtime_->cancel(*timer_);
    if (link_) std::exchange(link_, nullptr)->close();
    listeners_.clear();
  }

  void on_cluster_reset() override {
    if (closed_) return;
    if (link_) std::exchange(link_, nullptr)->close();
    act(machine_.on_stream_closed(runtime_->now(), errc::cluster_reset));
  }

private:
  void act(watch_hub_machine::actions what) {
    for (auto& each : what) {
      if (closed_) return;
      std::visit([this](auto& action) { apply(action); }, each);
    }
    if (closed_) return;
    if (timer_) runtime_->cancel(*std::exchange(timer_, std::nullopt));
    if (const auto when = machine_.next_wakeup()) {
      timer_ = runtime_->at(*when, [weak = weak_from_this()] {
        const auto self = weak.lock();
        if (!self || self->closed_) return;
        self->timer_.reset();
        self->act(self->machine_.on_timer(self->runtime_->now()));
      });
    }
  }

  std::shared_ptr<watch_listener> listener(handle id, bool ends = false) {
    const auto found = listeners_.find(id);
    if (found == listeners_.end()) return nullptr;
    auto out = found->second.lock();
    if (ends) listeners_.erase(found);
    return out;
  }

  void apply(watch_hub_machine::open_stream&) {
    stream_link::events events;
    events.on_open = [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->opened();
    };
    events.on_message = [weak = weak_from_this()](const std::string& bytes) {
      if (const auto self = weak.lock()) self->receive(bytes);
    };
    events.on_closed = [weak = weak_from_this()](const rpc::status& ended) {
      if (const auto self = weak.lock()) self->ended(ended);
    };
    link_ = std::make_shared<stream_link>(runtime_, std::move(events));
    link_->open(rpc::watch_path);
  }

  void apply(watch_hub_machine::close_stream&) {
    if (link_) std::exchange(link_, nullptr)->close(true);
  }
  void apply(watch_hub_machine::send& action) {
    if (link_) link_->send(wire::encode(action.request));
  }
  void apply(watch_hub_machine::created& action) {
    if (const auto to = listener(action.watch)) to->on_created();
  }
  void apply(watch_hub_machine::events& action) {
    const auto to = listener(action.watch);
    if (!to) return;
    for (auto& each : action.batch) runtime_->keys().leave(each);
    to->on_events(std::move(action.batch));
  }
  void apply(watch_hub_machine::progress& action) {
    if (const auto to = listener(action.watch)) to->on_progress(action.upto);
  }
  void apply(watch_hub_machine::compacted& action) {
    if (const auto to = listener(action.watch, true)) to->on_compacted(action.oldest);
  }
  void apply(watch_hub_machine::failed& action) {
    if (const auto to = listener(action.watch, true)) to->on_failed(action.code, action.reason);
  }

  void opened() {
    // A store that went back in time takes a watch of its future, and is silent: so the revision is looked at.
    const auto key = machine_.resuming();
    act(machine_.on_stream_open(runtime_->now()));
    if (key && !closed_) runtime_->spawn(look(runtime_, *key));
  }

  static asio::awaitable<void> look(std::shared_ptr<runtime> on, std::string key);

  /// Whether a watch was refused for what may only be an old token: a token goes with a stream once, when it is
  /// opened, and older servers do not tell one that has expired from one that may not.
  bool refused_for_age(const watch_response& message) const {
    if (!message.canceled || runtime_->user() == nullptr || !link_) return false;
    if (runtime_->now() - link_->signed_by().since < authenticator::young) return false;
    const auto why = watch_hub_machine::reason_code(message.cancel_reason);
    return why == errc::unauthenticated || why == errc::permission_denied;
  }

  void receive(const std::string& bytes) {
    watch_response message;
    if (wire::decode(bytes, message) != wire::decode_error::none) {
      if (link_) std::exchange(link_, nullptr)->close(true);
      act(machine_.on_stream_closed(runtime_->now()));
      return;
    }
    if (refused_for_age(message)) {
      runtime_->user()->refuse(link_->signed_by().generation);
      std::exchange(link_, nullptr)->close();
      act(machine_.on_stream_closed(runtime_->now()));
      return;
    }
    act(machine_.on_message(std::move(message), runtime_->now()));
  }

  void ended(const rpc::status& how) {
    link_.reset();
    std::optional<errc> fatal;
    switch (how.code) {
      case rpc::status_code::permission_denied:
        fatal = errc::permission_denied;
        break;
      case rpc::status_code::unauthenticated:
        fatal = errc::unauthenticated;
        break;
      case rpc::status_code::unimplemented:
        fatal = errc::unimplemented;
        break;
      default:
        break;
    }
    act(machine_.on_stream_closed(runtime_->now(), fatal, how.message));
  }

  std::shared_ptr<runtime> runtime_;
  watch_hub_machine machine_;
  std::unordered_map<handle, std::weak_ptr<watch_listener>> listeners_;
  std::shared_ptr<stream_link> link_;
  std::optional<runtime::timer_id> timer_;
  handle last_ = 0;
  bool closed_ = false;
};

}  // namespace conclave::detail::engine

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/engine/impl/watch_hub.ipp>
#endif
