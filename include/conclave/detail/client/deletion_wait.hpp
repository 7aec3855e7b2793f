// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/watch_hub.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::client {

/// Waits until a key is gone: watches from now, then reads; whatever happens after that read reaches the
/// watch. On the strand.
class deletion_wait final : public engine::watch_listener,
                            public std::enable_shared_from_this<deletion_wait> {
public:
  using waiter = std::shared_ptr<engine::waiter<revision>>;

  /// `incarnation`: the create revision of the key meant; zero for the one that is found first.
  deletion_wait(std::shared_ptr<client_state> of, std::string key, revision incarnation, waiter done)
      : client_(std::move(of)), key_(std::move(key)), incarnation_(incarnation), done_(std::move(done)) {}

  void start() {
    done_->on_cancel(shared_from_this(), [this] { stop(); });
    engine::watch_hub::spec what;
    what.key = key_;
    what.filters.push_back(watch_filter::no_put);
    watch_ = client_->hub()->add(std::move(what), weak_from_this());
    plan_look();
  }

  void on_created() override { client_->runtime()->spawn(read(shared_from_this())); }

  void on_events(std::vector<event> batch) override {
    for (const auto& each : batch)
      if (each.type == event_type::delete_ && each.kv->key == key_) finish(each.kv->mod_revision);
  }

  void on_compacted(revision) override { fail(std::make_exception_ptr(error(errc::compacted))); }

  void on_failed(errc code, const std::string& reason) override {
    fail(std::make_exception_ptr(error(code, "Watch.Watch", "", 0, reason)));
  }

private:
  /// See `runtime::look_later`.
  void plan_look() {
    look_timer_ = client_->runtime()->look_later([weak = weak_from_this()] {
      const auto self = weak.lock();
      if (!self || !self->done_->waiting()) return false;
      self->plan_look();
      self->client_->runtime()->spawn(read(self));
      return true;
    });
  }

  static asio::awaitable<void> read(std::shared_ptr<deletion_wait> self);

  void finish(revision at) {
    stop();
    done_->complete(at);
  }
  void fail(std::exception_ptr why) {
    stop();
    done_->fail(std::move(why));
  }
  void stop() {
    if (watch_ != 0) client_->hub()->remove(std::exchange(watch_, 0));
    if (look_timer_) client_->runtime()->cancel(*std::exchange(look_timer_, std::nullopt));
  }

  std::shared_ptr<client_state> client_;
  std::string key_;
  revision incarnation_;
  waiter done_;
  engine::watch_hub::handle watch_ = 0;
  std::optional<engine::runtime::timer_id> look_timer_;
};

}  // namespace conclave::detail::client

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/client/impl/deletion_wait.ipp>
#endif
