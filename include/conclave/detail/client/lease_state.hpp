// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>

#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/waiting_list.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::client {

/// Of our own choice, so that asking twice for a lease cannot leave two behind.
inline lease_id new_lease_id(engine::runtime& on) {
  return static_cast<lease_id>((on.seed() & 0x7fff'ffff'ffff'ffffULL) | 1ULL);
}

/// Ends a lease behind whoever let go of it: tries until the server agrees or the lease's time is over
/// anyway. A grant that was given up may be applied shortly after the revocation which follows it, since a
/// server works on both at a time: `not_yet` times an unknown lease is revoked again.
CONCLAVE_DECL asio::awaitable<void> revoke_behind(std::shared_ptr<engine::runtime> on, lease_id id,
                                                  engine::time_point over, int not_yet = 0);

/// Something that lives by a lease: hears of its end, on the strand, once.
class lease_part {
public:
  virtual ~lease_part() = default;
  virtual void on_lease_end(errc why) = 0;
};

/// A lease that is kept alive, and who has to hear of its end. Unless said otherwise, members are for the
/// strand.
class lease_state final : public std::enable_shared_from_this<lease_state> {
public:
  enum class phase { alive, lost, reset, closed };

  lease_state(std::shared_ptr<client_state> of, lease_id id, engine::duration ttl, engine::time_point granted)
      : client_(std::move(of)),
        id_(id),
        ttl_(ttl),
        granted_(granted),
        valid_until_(engine::lease_keeper_machine::validity(granted, ttl).time_since_epoch().count()) {}

  // Any thread.
  [[nodiscard]] const std::shared_ptr<client_state>& client() const noexcept { return client_; }
  [[nodiscard]] const std::shared_ptr<engine::runtime>& runtime() const noexcept {
    return client_->runtime();
  }
  [[nodiscard]] lease_id id() const noexcept { return id_; }
  [[nodiscard]] engine::duration ttl() const noexcept { return ttl_; }
  [[nodiscard]] engine::time_point valid_until() const noexcept {
    return engine::time_point{engine::duration{valid_until_.load(std::memory_order_acquire)}};
  }
  /// Alive, and not past its time, whether or not anybody has been told yet.
  [[nodiscard]] bool alive() const noexcept {
    return phase_.load(std::memory_order_acquire) == phase::alive && runtime()->now() < valid_until();
  }
  [[nodiscard]] phase now_in() const noexcept { return phase_.load(std::memory_order_acquire); }
  [[nodiscard]] errc why_ended() const noexcept {
    switch (now_in()) {
      case phase::closed:
        return errc::session_closed;
      case phase::reset:
        return errc::cluster_reset;
      case phase::alive:
      case phase::lost:
        break;
    }
    return errc::session_lost;
  }

  void start() {
    engine::lease_keeper::listener to;
    to.on_renewed = [weak = weak_from_this()](engine::time_point until) {
      if (const auto self = weak.lock())
        self->valid_until_.store(until.time_since_epoch().count(), std::memory_order_release);
    };
    to.on_lost = [weak = weak_from_this()](engine::lease_keeper_machine::loss why) {
      const bool reset = why == engine::lease_keeper_machine::loss::cluster_reset;
      if (const auto self = weak.lock()) self->end(reset ? phase::reset : phase::lost);
    };
    client_->keeper()->add(id_, ttl_, granted_, std::move(to));
  }

  /// The lease is gone, whoever found out: every wait and hold under it ends. Any thread.
  void mark_lost() { end(phase::lost); }

  /// Something that lives by the lease is gone: if the lease is, too, that should be known soon.
  void doubt() { client_->keeper()->renew(id_); }

  /// The owner lets go; the server has yet to be told. Any thread.
  void mark_closed() { end(phase::closed); }

  using end_waiter = std::shared_ptr<engine::waiter<std::error_code>>;
  /// Completes with why the lease ended.
  void await_end(end_waiter each) {
    if (now_in() != phase::alive) {
      each->complete(make_error_code(why_ended()));
      return;
    }
    const auto place = waiting_.push_back(each);
    each->on_cancel(shared_from_this(), [this, place] { waiting_.remove(place); });
  }

  /// What recipes keep beside the lease, found by name, or made by `make`.
  template <class T, class Make>
  std::shared_ptr<T> part(const std::string& name, Make make) {
    if (const auto found = parts_.find(name); found != parts_.end())
      return std::static_pointer_cast<T>(found->second);
    std::shared_ptr<T> made = make();
    parts_.emplace(name, made);
    return made;
  }
  void drop_part(const std::string& name) { parts_.erase(name); }

private:
  /// Any thread: what is asked from now on says so. Who waits is told on the strand.
  void end(phase how) {
    auto alive = phase::alive;
    if (!phase_.compare_exchange_strong(alive, how)) return;
    runtime()->run([self = shared_from_this()] { self->tell_end(); });
  }

  void tell_end() {
    client_->keeper()->remove(id_);
    const auto why = why_ended();
    for (const auto& [name, part] : std::exchange(parts_, {})) part->on_lease_end(why);
    for (const auto& each : waiting_.take_all()) each->complete(make_error_code(why));
  }

  std::shared_ptr<client_state> client_;
  lease_id id_;
  engine::duration ttl_;
  engine::time_point granted_;
  std::atomic<engine::duration::rep> valid_until_;
  std::atomic<phase> phase_{phase::alive};
  engine::waiting_list<end_waiter> waiting_;
  std::unordered_map<std::string, std::shared_ptr<lease_part>> parts_;
};

/// Ends a kept lease for its owner: at once here, and on the server while the caller waits. When the server
/// does not say, or the caller is cancelled, the attempts go on behind it.
CONCLAVE_DECL asio::awaitable<void> revoke(std::shared_ptr<lease_state> state);

/// What a handle to a kept lease owns: the last one's end revokes the lease behind itself.
class lease_owner {
public:
  explicit lease_owner(std::shared_ptr<lease_state> of) : state_(std::move(of)) {}
  lease_owner(const lease_owner&) = delete;
  lease_owner& operator=(const lease_owner&) = delete;

  ~lease_owner() {
    try {
      const auto on = state_->runtime();
      on->run([state = std::move(state_)] {
        if (state->now_in() != lease_state::phase::alive) return;
        const auto over = state->valid_until();
        state->mark_closed();
        state->runtime()->spawn(revoke_behind(state->runtime(), state->id(), over));
      });
    } catch (...) {  // out of memory: the lease ends by itself
    }
  }

  [[nodiscard]] const std::shared_ptr<lease_state>& state() const noexcept { return state_; }

private:
  std::shared_ptr<lease_state> state_;
};

/// Whether a refusal proves that nothing was done. An answer that makes no sense does not.
inline bool certainly_not_granted(errc code) noexcept {
  switch (code) {
    case errc::unavailable:
    case errc::too_many_requests:
    case errc::invalid_argument:
    case errc::lease_exists:
    case errc::permission_denied:
    case errc::unauthenticated:
    case errc::certificate_refused:
    case errc::unimplemented:
      return true;
    default:
      return false;
  }
}

/// Grants a lease and keeps it.
CONCLAVE_DECL asio::awaitable<std::shared_ptr<lease_owner>> grant_and_keep(std::shared_ptr<client_state> of,
                                                                           std::chrono::seconds ttl);

}  // namespace conclave::detail::client

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/client/impl/lease_state.ipp>
#endif
