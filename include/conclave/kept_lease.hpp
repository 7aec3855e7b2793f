// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <memory>
#include <system_error>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/detail/client/lease_state.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// A lease that the client keeps alive, made by `client::keep_lease`: what a session is built on, and what to
/// build one's own recipe on. Copies share the lease; the last one's end revokes it behind itself. Any
/// thread.
class kept_lease {
public:
  using time_point = std::chrono::steady_clock::time_point;

  /// Chosen by the client, random; put keys under it.
  [[nodiscard]] lease_id id() const noexcept { return state().id(); }

  /// The time to live that the server granted; it may be longer than asked for.
  [[nodiscard]] std::chrono::milliseconds ttl() const noexcept {
    return std::chrono::duration_cast<std::chrono::milliseconds>(state().ttl());
  }

  /// Until when the lease is certain to exist, if nobody revokes it: counted from when the last answered
  /// keepalive was sent, less a margin, so that it is over here before it is on the server.
  [[nodiscard]] time_point valid_until() const noexcept { return state().valid_until(); }

  /// Whether the lease is believed to exist now.
  [[nodiscard]] bool alive() const noexcept { return state().alive(); }

  /// Completes when the lease has ended, with why: `session_lost` or `session_closed`. At once if it has.
  /// Does not wait longer than `valid_until`, whatever the network does. Cancellation leaves nothing behind.
  /// No round trip.
  asio::awaitable<std::error_code> lost() const;

  /// Revokes the lease and so deletes all its keys, at one revision. One round trip, one proposal; a lease
  /// that is gone already is a success. Errors: `unavailable`, `outcome_unknown` when the server did not say;
  /// and then, as after a cancellation, revoking goes on behind the caller until the lease's time is over.
  asio::awaitable<void> revoke();

private:
  friend class client;
  friend class session;
  explicit kept_lease(std::shared_ptr<detail::client::lease_owner> owner) : owner_(std::move(owner)) {}

  [[nodiscard]] const detail::client::lease_state& state() const noexcept { return *owner_->state(); }

  std::shared_ptr<detail::client::lease_owner> owner_;
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/kept_lease.ipp>
#endif
