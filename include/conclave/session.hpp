// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <memory>
#include <system_error>
#include <type_traits>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/client.hpp>
#include <conclave/kept_lease.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

struct session_options {
  /// For how long what the session holds outlives a crash of this process or a cut from the cluster. The
  /// server may raise it (to 2 s by default); below 5 s a change of etcd's leader may cost the session.
  std::chrono::seconds ttl{15};
};
static_assert(std::is_trivially_destructible_v<session_options>);

/// One participant of the cluster: a lease that is kept alive, and what hangs on it. Locks and places in line
/// belong to a session; when it is lost every wait and every hold made under it ends at once. Lost is lost
/// for good: open a new one, whose locks have new tokens.
///
/// A cheap handle: copies share the session and may be used from any coroutine and any thread at a time.
/// Guards keep it too. The end of the last one closes it behind itself, without blocking.
class session {
public:
  using time_point = kept_lease::time_point;

  /// Opens a session. One round trip, one proposal; it is then kept alive on a stream of the client at a
  /// third of the TTL. Errors: those of the client; a grant whose answer got lost is asked for again under
  /// the same id. Cancellation: a lease that may have been granted is revoked behind the caller.
  static asio::awaitable<session> open(client on, session_options options = {});

  /// The lease that everything of this session hangs on; a client's own keys may be put under it too.
  [[nodiscard]] conclave::lease_id lease_id() const noexcept { return lease_.id(); }

  /// The time to live granted.
  [[nodiscard]] std::chrono::milliseconds ttl() const noexcept { return lease_.ttl(); }

  /// Until when the session is certain to exist, if nobody revokes its lease; moves on with every keepalive
  /// that is answered. It passes here before it passes on the server.
  [[nodiscard]] time_point valid_until() const noexcept { return lease_.valid_until(); }

  /// Whether the session is believed to exist now.
  [[nodiscard]] bool alive() const noexcept { return lease_.alive(); }

  /// Completes when the session has ended, with `session_lost` or `session_closed`; at the latest at
  /// `valid_until`. Cancellation leaves nothing behind. No round trip.
  asio::awaitable<std::error_code> lost() const;

  /// Ends the session: every wait and hold under it ends with `session_closed`, and all its keys are deleted
  /// at one revision. One round trip, one proposal. Errors: `unavailable`, `outcome_unknown` when no server
  /// said so in time; closing then goes on behind the caller, as after a cancellation.
  asio::awaitable<void> close();

private:
  friend class mutex;

  explicit session(kept_lease lease) : lease_(std::move(lease)) {}

  [[nodiscard]] const std::shared_ptr<detail::client::lease_owner>& owner() const noexcept {
    return lease_.owner_;
  }

  kept_lease lease_;
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/session.ipp>
#endif
