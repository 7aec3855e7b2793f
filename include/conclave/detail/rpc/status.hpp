// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>
#include <string_view>

#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// gRPC's status codes, by their numbers on the wire.
enum class status_code {
  ok = 0,
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  already_exists = 6,
  permission_denied = 7,
  resource_exhausted = 8,
  failed_precondition = 9,
  aborted = 10,
  out_of_range = 11,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  data_loss = 15,
  unauthenticated = 16,
};

/// How a call ended.
struct status {
  status_code code = status_code::ok;
  std::string message;

  [[nodiscard]] bool ok() const noexcept { return code == status_code::ok; }
};

/// Whether a call changes the store: decides what a lost answer means.
enum class call_kind { read, write };

namespace impl {

inline bool contains(std::string_view text, std::string_view part) noexcept {
  return text.find(part) != std::string_view::npos;
}

/// An etcd server (or gRPC, for a call that never left the process) says `unavailable` before it did
/// anything.
inline bool certainly_not_applied(std::string_view text) noexcept {
  return contains(text, "etcdserver: no leader") || contains(text, "rpc not supported for learner") ||
         contains(text, "etcdserver: not capable") || contains(text, "failed to connect to all addresses") ||
         contains(text, "connections to all backends failing");
}

}  // namespace impl

/// What a failed call means to whoever made it. Where the code alone does not tell, etcd's texts do: they
/// have been stable since 3.0.
inline errc classify(const status& failed, call_kind kind) noexcept {
  const std::string_view text = failed.message;
  const bool write = kind == call_kind::write;
  using impl::contains;
  switch (failed.code) {
    case status_code::ok:
      return errc::server_error;
    case status_code::cancelled:
      return errc::cancelled;
    case status_code::invalid_argument:
      if (contains(text, "request is too large")) return errc::request_too_large;
      if (contains(text, "too many operations")) return errc::too_many_operations;
      if (contains(text, "duplicate key")) return errc::duplicate_key;
      if (contains(text, "user name is empty") || contains(text, "authentication failed") ||
          contains(text, "revision of auth store is old"))
        return errc::unauthenticated;
      return errc::invalid_argument;
    case status_code::deadline_exceeded:
      return write ? errc::outcome_unknown : errc::timed_out;
    case status_code::not_found:
      return contains(text, "lease") ? errc::lease_not_found : errc::server_error;
    case status_code::already_exists:
      return errc::invalid_argument;
    case status_code::permission_denied:
      return errc::permission_denied;
    case status_code::resource_exhausted:
      if (contains(text, "database space exceeded")) return errc::no_space;
      if (contains(text, "too many requests")) return errc::too_many_requests;
      // The side that refuses says which: the client says "Received message larger than max".
      if (contains(text, "Received message larger than max")) return errc::response_too_large;
      if (contains(text, "larger than max")) return errc::request_too_large;
      return errc::too_many_requests;
    case status_code::failed_precondition:
      if (contains(text, "not supported for learner")) return errc::unavailable;  // another member can
      return contains(text, "lease already exists") ? errc::lease_exists : errc::server_error;
    case status_code::out_of_range:
      if (contains(text, "has been compacted")) return errc::compacted;
      if (contains(text, "future revision")) return errc::future_revision;
      return errc::invalid_argument;
    case status_code::unimplemented:
      // Generated stubs of a server answer so to an unknown method; gRPC to an answer without a message.
      return contains(text, "No message returned") ? errc::malformed_response : errc::unimplemented;
    case status_code::unavailable:
      return write && !impl::certainly_not_applied(text) ? errc::outcome_unknown : errc::unavailable;
    case status_code::unauthenticated:
      return errc::unauthenticated;
    case status_code::internal:
    case status_code::unknown:
    case status_code::aborted:
    case status_code::data_loss:
      break;
  }
  if (contains(text, "requested lease not found")) return errc::lease_not_found;
  return write ? errc::outcome_unknown : errc::server_error;
}

/// Whether the same request may be sent again without asking anybody: nothing has happened, or a read.
inline bool worth_retrying(errc code) noexcept {
  return code == errc::unavailable || code == errc::too_many_requests || code == errc::timed_out ||
         code == errc::outcome_unknown;
}

}  // namespace conclave::detail::rpc
