// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

/// Requests and responses of the lease service. All times are whole seconds.

namespace conclave::inline CONCLAVE_ABI {

/// Creates a lease.
struct lease_grant_request {
  lease_grant_request() = default;

  /// The time to live asked for; the server may raise it.
  std::int64_t ttl = 0;

  /// The id wanted, or 0 for one of the server's choice. An id in use is refused, which makes a
  /// repeated request harmless.
  lease_id id = 0;

  friend bool operator==(const lease_grant_request&, const lease_grant_request&) = default;
};

struct lease_grant_response {
  response_header header;
  lease_id id = 0;

  /// The time to live granted.
  std::int64_t ttl = 0;

  std::string error;

  friend bool operator==(const lease_grant_response&, const lease_grant_response&) = default;
};

/// Ends a lease and deletes its keys, at one revision.
struct lease_revoke_request {
  lease_revoke_request() = default;

  lease_id id = 0;

  friend bool operator==(const lease_revoke_request&, const lease_revoke_request&) = default;
};

struct lease_revoke_response {
  response_header header;

  friend bool operator==(const lease_revoke_response&, const lease_revoke_response&) = default;
};

/// Renews a lease; sent and answered on a stream.
struct lease_keep_alive_request {
  lease_keep_alive_request() = default;

  lease_id id = 0;

  friend bool operator==(const lease_keep_alive_request&, const lease_keep_alive_request&) = default;
};

struct lease_keep_alive_response {
  response_header header;
  lease_id id = 0;

  /// The time to live from now; 0 or less if the lease no longer exists.
  std::int64_t ttl = 0;

  friend bool operator==(const lease_keep_alive_response&, const lease_keep_alive_response&) = default;
};

/// Asks how long a lease has left, and optionally which keys it holds.
struct lease_time_to_live_request {
  lease_time_to_live_request() = default;

  lease_id id = 0;
  bool keys = false;

  friend bool operator==(const lease_time_to_live_request&, const lease_time_to_live_request&) = default;
};

struct lease_time_to_live_response {
  response_header header;
  lease_id id = 0;

  /// What is left, rounded down; -1 if the lease does not exist.
  std::int64_t ttl = 0;

  /// What each renewal gives.
  std::int64_t granted_ttl = 0;

  std::vector<std::string> keys;

  friend bool operator==(const lease_time_to_live_response&, const lease_time_to_live_response&) = default;
};

/// Asks for all leases of the cluster.
struct lease_leases_request {
  lease_leases_request() = default;

  friend bool operator==(const lease_leases_request&, const lease_leases_request&) = default;
};

struct lease_status {
  lease_id id = 0;

  friend bool operator==(const lease_status&, const lease_status&) = default;
};

struct lease_leases_response {
  response_header header;
  std::vector<lease_status> leases;

  friend bool operator==(const lease_leases_response&, const lease_leases_response&) = default;
};

static_assert(!std::is_aggregate_v<lease_grant_request> && !std::is_aggregate_v<lease_revoke_request>);
static_assert(!std::is_aggregate_v<lease_keep_alive_request>);
static_assert(!std::is_aggregate_v<lease_time_to_live_request> && !std::is_aggregate_v<lease_leases_request>);

}  // namespace conclave
