// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <cstdint>
#include <optional>
#include <string>

/// etcd's v3 API as plain structs. Each message of the protocol has a struct of the same name in
/// snake_case, with the same fields; keys and values are byte strings and may hold any byte, NUL
/// included. A default-constructed message has every field absent, which the server reads as
/// zero, false or empty.

namespace conclave::inline CONCLAVE_ABI {

/// Identifies a lease; 0 means "no lease". Chosen by the client or by the server.
using lease_id = std::int64_t;

/// A point in the history of the key-value store. Every transaction that writes raises it by one;
/// 0 means "now" in a request.
using revision = std::int64_t;

/// What every answer says about the member that gave it.
struct response_header {
  std::uint64_t cluster_id = 0;
  std::uint64_t member_id = 0;

  /// The store's revision when the request was applied; 0 where the store was not involved. In a
  /// watch's progress answer: every later event on the stream has a higher revision.
  conclave::revision revision = 0;

  std::uint64_t raft_term = 0;

  friend bool operator==(const response_header&, const response_header&) = default;
};

/// A key, its value and its history.
struct key_value {
  std::string key;

  /// The revision that created the key. It stays the same until the key is deleted, so a key that
  /// was deleted and created anew has another one.
  revision create_revision = 0;

  /// The revision of the last write. For a deleted key in an event: that of the deletion.
  revision mod_revision = 0;

  /// Number of writes since the key was created, 1 for the first; 0 stands for a missing key.
  std::int64_t version = 0;

  std::string value;

  /// The lease that takes the key with it when it ends, or 0.
  lease_id lease = 0;

  friend bool operator==(const key_value&, const key_value&) = default;
};

/// What happened to a key. A server newer than this library may send other numbers.
enum class event_type : std::int32_t { put = 0, delete_ = 1 };

/// One change of one key. Expiry of a lease shows up as `delete_`.
struct event {
  event_type type = event_type::put;

  /// The key after the change; for a deletion only its key and mod_revision are set.
  std::optional<key_value> kv;

  /// The key before the change, if the watch asked for it and the server still had it.
  std::optional<key_value> prev_kv;

  friend bool operator==(const event&, const event&) = default;
};

}  // namespace conclave
