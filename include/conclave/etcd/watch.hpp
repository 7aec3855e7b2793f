// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

/// Requests and responses of the watch service: one stream carries many watches, each with an id
/// that is unique on its stream.

namespace conclave::inline CONCLAVE_ABI {

/// Kinds of events that the server shall leave out.
enum class watch_filter : std::int32_t { no_put = 0, no_delete = 1 };

/// Starts a watch.
struct watch_create_request {
  watch_create_request() = default;

  std::string key;
  std::string range_end;

  /// The first revision to report, or 0 for whatever happens from now on.
  revision start_revision = 0;

  /// Send an answer without events now and then while nothing happens.
  bool progress_notify = false;

  std::vector<watch_filter> filters;

  /// Report what the key was before each change.
  bool prev_kv = false;

  /// The id wanted, or 0 for one of the server's choice. An id in use on the stream is refused.
  std::int64_t watch_id = 0;

  /// Allow a large answer to be split; see watch_response::fragment.
  bool fragment = false;

  friend bool operator==(const watch_create_request&, const watch_create_request&) = default;
};

/// Ends a watch.
struct watch_cancel_request {
  watch_cancel_request() = default;

  std::int64_t watch_id = 0;

  friend bool operator==(const watch_cancel_request&, const watch_cancel_request&) = default;
};

/// Asks how far the stream has got. The answer carries the watch id -1.
struct watch_progress_request {
  watch_progress_request() = default;

  friend bool operator==(const watch_progress_request&, const watch_progress_request&) = default;
};

/// What a client sends on the stream. Each kind of request converts to it.
struct watch_request {
  watch_request() = default;
  watch_request(watch_create_request request) : request_union{std::move(request)} {}
  watch_request(watch_cancel_request request) : request_union{request} {}
  watch_request(watch_progress_request request) : request_union{request} {}

  std::variant<std::monostate, watch_create_request, watch_cancel_request, watch_progress_request>
      request_union;

  friend bool operator==(const watch_request&, const watch_request&) = default;
};

/// What the server sends on the stream.
struct watch_response {
  response_header header;
  std::int64_t watch_id = 0;

  /// Acknowledges the creation of the watch.
  bool created = false;

  /// The watch has ended: on request, on an error, or because its revision was compacted.
  bool canceled = false;

  /// If not 0: the watch fell behind the history, whose oldest revision is now this one. What
  /// lies between is lost.
  revision compact_revision = 0;

  std::string cancel_reason;

  /// More answers follow for the same revision; the events of a revision are complete only with
  /// an answer that lacks this mark.
  bool fragment = false;

  std::vector<event> events;

  friend bool operator==(const watch_response&, const watch_response&) = default;
};

static_assert(!std::is_aggregate_v<watch_request> && !std::is_aggregate_v<watch_create_request>);
static_assert(!std::is_aggregate_v<watch_cancel_request> && !std::is_aggregate_v<watch_progress_request>);

}  // namespace conclave
