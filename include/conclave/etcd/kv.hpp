// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/key_range.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

/// Requests and responses of the key-value service, and functions that build the requests:
///
///     put("config/limit", "17", {.lease = id})
///     range_prefix("config/", {.limit = 100, .order = sort_order::ascend})
///     delete_key("config/limit")
///
/// Request structs are not aggregates: temporaries of aggregates are destroyed twice when GCC 12
/// finds them in an expression with co_await. The option structs, which are written as braced
/// lists, are trivially destructible for the same reason.

namespace conclave::inline CONCLAVE_ABI {

enum class sort_order : std::int32_t { none = 0, ascend = 1, descend = 2 };

/// What a range is sorted by. `none` with `key` means ascending keys.
enum class sort_target : std::int32_t { key = 0, version = 1, create = 2, mod = 3, value = 4 };

/// Reads one key or a range of keys.
struct range_request {
  range_request() = default;

  std::string key;
  std::string range_end;

  /// Greatest number of keys to return; 0 for all.
  std::int64_t limit = 0;

  /// Reads the store as it was then; 0 or less for now. Fails once it has been compacted.
  conclave::revision revision = 0;

  conclave::sort_order sort_order = conclave::sort_order::none;
  conclave::sort_target sort_target = conclave::sort_target::key;

  /// Lets the member answer from its own, possibly stale, state. Without it the read is
  /// linearizable.
  bool serializable = false;

  bool keys_only = false;
  bool count_only = false;

  /// Keys outside these bounds (inclusive; 0 for none) are left out of the answer, but not out of
  /// its count.
  conclave::revision min_mod_revision = 0;
  conclave::revision max_mod_revision = 0;
  conclave::revision min_create_revision = 0;
  conclave::revision max_create_revision = 0;

  friend bool operator==(const range_request&, const range_request&) = default;
};

struct range_response {
  response_header header;
  std::vector<key_value> kvs;

  /// There are more keys in the range than `limit` let through.
  bool more = false;

  /// Number of keys in the whole range, whatever the limit and the bounds on revisions.
  std::int64_t count = 0;

  friend bool operator==(const range_response&, const range_response&) = default;
};

/// Writes one key.
struct put_request {
  put_request() = default;

  std::string key;
  std::string value;
  lease_id lease = 0;

  /// Return what the key was before.
  bool prev_kv = false;

  /// Keep the present value (or lease) and change the rest; the key must exist, and the field
  /// that is kept must be left empty here.
  bool ignore_value = false;
  bool ignore_lease = false;

  friend bool operator==(const put_request&, const put_request&) = default;
};

struct put_response {
  response_header header;
  std::optional<key_value> prev_kv;

  friend bool operator==(const put_response&, const put_response&) = default;
};

/// Deletes one key or a range of keys. Keys that do not exist are no error.
struct delete_range_request {
  delete_range_request() = default;

  std::string key;
  std::string range_end;

  /// Return what the keys were before.
  bool prev_kv = false;

  friend bool operator==(const delete_range_request&, const delete_range_request&) = default;
};

struct delete_range_response {
  response_header header;

  /// Number of keys that were deleted.
  std::int64_t deleted = 0;

  std::vector<key_value> prev_kvs;

  friend bool operator==(const delete_range_response&, const delete_range_response&) = default;
};

/// Drops the history below a revision. Reads and watches that start there fail from then on.
struct compaction_request {
  compaction_request() = default;

  conclave::revision revision = 0;

  /// Answer only when the history is also gone from the disk.
  bool physical = false;

  friend bool operator==(const compaction_request&, const compaction_request&) = default;
};

struct compaction_response {
  response_header header;

  friend bool operator==(const compaction_response&, const compaction_response&) = default;
};

/// What a put may be told besides its key and value; see put_request.
struct put_options {
  lease_id lease = 0;
  bool prev_kv = false;
  bool ignore_value = false;
  bool ignore_lease = false;
};

/// What a read may be told besides its keys; see range_request.
struct range_options {
  std::int64_t limit = 0;
  conclave::revision revision = 0;
  sort_order order = sort_order::none;
  sort_target target = sort_target::key;
  bool serializable = false;
  bool keys_only = false;
  bool count_only = false;
  conclave::revision min_mod_revision = 0;
  conclave::revision max_mod_revision = 0;
  conclave::revision min_create_revision = 0;
  conclave::revision max_create_revision = 0;
};

/// What a deletion may be told besides its keys; see delete_range_request.
struct delete_options {
  bool prev_kv = false;
};

/// Writes `value` to `key`.
[[nodiscard]] inline put_request put(std::string key, std::string value, put_options options = {}) {
  put_request request;
  request.key = std::move(key);
  request.value = std::move(value);
  request.lease = options.lease;
  request.prev_kv = options.prev_kv;
  request.ignore_value = options.ignore_value;
  request.ignore_lease = options.ignore_lease;
  return request;
}

/// Reads one key.
[[nodiscard]] inline range_request range(std::string key, range_options options = {}) {
  range_request request;
  request.key = std::move(key);
  request.limit = options.limit;
  request.revision = options.revision;
  request.sort_order = options.order;
  request.sort_target = options.target;
  request.serializable = options.serializable;
  request.keys_only = options.keys_only;
  request.count_only = options.count_only;
  request.min_mod_revision = options.min_mod_revision;
  request.max_mod_revision = options.max_mod_revision;
  request.min_create_revision = options.min_create_revision;
  request.max_create_revision = options.max_create_revision;
  return request;
}

/// Reads every key that starts with `prefix`; all keys if it is empty.
[[nodiscard]] inline range_request range_prefix(std::string prefix, range_options options = {}) {
  range_request request = range(std::move(prefix), options);
  detail::select_prefix(request);
  return request;
}

/// Reads the keys in [begin, end). An empty `begin` is the lowest key, an `end` of one NUL byte
/// means no upper bound.
/// \throws std::invalid_argument if `end` is empty.
[[nodiscard]] inline range_request range_interval(std::string begin, std::string end,
                                                  range_options options = {}) {
  range_request request = range(std::move(begin), options);
  detail::select_interval(request, std::move(end));
  return request;
}

/// Deletes one key.
[[nodiscard]] inline delete_range_request delete_key(std::string key, delete_options options = {}) {
  delete_range_request request;
  request.key = std::move(key);
  request.prev_kv = options.prev_kv;
  return request;
}

/// Deletes every key that starts with `prefix`; all keys if it is empty.
[[nodiscard]] inline delete_range_request delete_prefix(std::string prefix, delete_options options = {}) {
  delete_range_request request = delete_key(std::move(prefix), options);
  detail::select_prefix(request);
  return request;
}

/// Deletes the keys in [begin, end), with the bounds of range_interval().
/// \throws std::invalid_argument if `end` is empty.
[[nodiscard]] inline delete_range_request delete_interval(std::string begin, std::string end,
                                                          delete_options options = {}) {
  delete_range_request request = delete_key(std::move(begin), options);
  detail::select_interval(request, std::move(end));
  return request;
}

static_assert(std::is_trivially_destructible_v<put_options> && std::is_aggregate_v<put_options>);
static_assert(std::is_trivially_destructible_v<range_options> && std::is_aggregate_v<range_options>);
static_assert(std::is_trivially_destructible_v<delete_options> && std::is_aggregate_v<delete_options>);
static_assert(!std::is_aggregate_v<put_request> && !std::is_aggregate_v<range_request>);
static_assert(!std::is_aggregate_v<delete_range_request> && !std::is_aggregate_v<compaction_request>);

}  // namespace conclave
