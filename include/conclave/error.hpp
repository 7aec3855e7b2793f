// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

namespace conclave::inline CONCLAVE_ABI {

/// What went wrong, exactly. Programs usually decide by a `condition` instead: several codes share one.
enum class errc {
  cancelled = 1,        ///< The caller cancelled the operation.
  timed_out,            ///< No answer within the time given; nothing was written.
  unavailable,          ///< No server could be reached or none can serve; certainly not applied.
  outcome_unknown,      ///< A write was sent and its answer got lost: it may have been applied.
  session_lost,         ///< The session's lease expired or was revoked.
  session_closed,       ///< The session was closed by its owner.
  lock_lost,            ///< The key that stood for the lock, or for the place in line, was deleted.
  lease_not_found,      ///< The server does not know the lease.
  lease_exists,         ///< A lease with this id exists already.
  permission_denied,    ///< The user may not do this.
  unauthenticated,      ///< The credentials or the token were refused.
  invalid_argument,     ///< An argument was refused, here or by the server.
  request_too_large,    ///< The request is larger than the server takes (1.5 MiB unless configured).
  too_many_operations,  ///< A transaction has more operations than the server takes (128 a level).
  duplicate_key,        ///< A transaction writes one key twice.
  no_space,             ///< The store is full: writes are refused until space is made and the alarm disarmed.
  compacted,            ///< The revision asked for has been compacted away.
  future_revision,      ///< The revision asked for is newer than the store.
  too_many_requests,    ///< The server is overloaded and refused the request; not applied.
  response_too_large,   ///< The answer is larger than the client's receive limit.
  client_closed,        ///< The client, or the context that it runs on, is being destroyed.
  malformed_response,   ///< The server's bytes are not a valid message.
  unexpected_response,  ///< A valid message which makes no sense here.
  unimplemented,        ///< The server does not offer this call.
  server_error,         ///< Any other error that the server reports.
  certificate_refused,  ///< The server's TLS certificate is not trusted, expired, or made out to another name.
  cluster_reset,  ///< The store went back in time, or is another one: data wiped, or restored from a backup.
};

/// What a program decides by; compare with any `std::error_code` of this library:
/// `if (e.code() == conclave::condition::ownership_lost) …`
enum class condition {
  cancelled = 1,     ///< Cancelled by the caller (also Asio's `operation_aborted`), or the client was closed.
  timed_out,         ///< The time given was not enough.
  unavailable,       ///< Try again later: certainly not applied.
  outcome_unknown,   ///< May have been applied: read before trying again.
  ownership_lost,    ///< Lock, lease, session or claim is gone.
  refused,           ///< Credentials or permissions: trying again does not help.
  invalid_argument,  ///< The request itself is wrong.
  protocol,          ///< The server sent nonsense, or is no etcd.
};

}  // namespace conclave

template <>
struct std::is_error_code_enum<conclave::errc> : std::true_type {};
template <>
struct std::is_error_condition_enum<conclave::condition> : std::true_type {};

namespace conclave::inline CONCLAVE_ABI {

namespace detail {

class error_category_type final : public std::error_category {
public:
  const char* name() const noexcept override { return "conclave"; }

  std::string message(int value) const override {
    switch (static_cast<errc>(value)) {
      case errc::cancelled:
        return "operation cancelled";
      case errc::timed_out:
        return "no answer in time";
      case errc::unavailable:
        return "no etcd server available";
      case errc::outcome_unknown:
        return "outcome unknown: the write may have been applied";
      case errc::session_lost:
        return "session lost: its lease expired or was revoked";
      case errc::session_closed:
        return "session closed";
      case errc::lock_lost:
        return "lock lost: its key was deleted";
      case errc::lease_not_found:
        return "lease not found";
      case errc::lease_exists:
        return "lease exists already";
      case errc::permission_denied:
        return "permission denied";
      case errc::unauthenticated:
        return "credentials or token refused";
      case errc::invalid_argument:
        return "invalid argument";
      case errc::request_too_large:
        return "request too large for the server";
      case errc::too_many_operations:
        return "too many operations in one transaction";
      case errc::duplicate_key:
        return "one transaction writes a key twice";
      case errc::no_space:
        return "the store is full";
      case errc::compacted:
        return "the revision has been compacted";
      case errc::future_revision:
        return "the revision is in the future";
      case errc::too_many_requests:
        return "the server is overloaded";
      case errc::response_too_large:
        return "answer larger than the receive limit";
      case errc::client_closed:
        return "client closed";
      case errc::malformed_response:
        return "malformed answer from the server";
      case errc::unexpected_response:
        return "unexpected answer from the server";
      case errc::unimplemented:
        return "the server does not offer this call";
      case errc::server_error:
        return "the server reported an error";
      case errc::certificate_refused:
        return "the server's certificate is refused";
      case errc::cluster_reset:
        return "the cluster was reset: its store went back in time, or is another one";
    }
    return "unknown conclave error " + std::to_string(value);
  }

  std::error_condition default_error_condition(int value) const noexcept override;
};

class condition_category_type final : public std::error_category {
public:
  const char* name() const noexcept override { return "conclave.condition"; }

  std::string message(int value) const override {
    switch (static_cast<condition>(value)) {
      case condition::cancelled:
        return "cancelled";
      case condition::timed_out:
        return "timed out";
      case condition::unavailable:
        return "unavailable, not applied";
      case condition::outcome_unknown:
        return "outcome unknown, may have been applied";
      case condition::ownership_lost:
        return "ownership lost";
      case condition::refused:
        return "refused";
      case condition::invalid_argument:
        return "invalid argument";
      case condition::protocol:
        return "protocol violated";
    }
    return "unknown conclave condition " + std::to_string(value);
  }

  bool equivalent(const std::error_code& code, int value) const noexcept override {
    if (static_cast<condition>(value) == condition::cancelled) {
      if (code.default_error_condition() == std::errc::operation_canceled) return true;
      // Standalone Asio 1.22 has a category of its own for system errors, and does not map it.
      if (code.value() == ECANCELED && std::string_view{code.category().name()} == "asio.system") return true;
    }
    return code.default_error_condition() == std::error_condition{value, *this};
  }
};

}  // namespace detail

/// The category of `errc`.
inline const std::error_category& error_category() noexcept {
  static const detail::error_category_type instance;
  return instance;
}

/// The category of `condition`.
inline const std::error_category& condition_category() noexcept {
  static const detail::condition_category_type instance;
  return instance;
}

inline std::error_code make_error_code(errc value) noexcept {
  return {static_cast<int>(value), error_category()};
}

inline std::error_condition make_error_condition(condition value) noexcept {
  return {static_cast<int>(value), condition_category()};
}

inline std::error_condition detail::error_category_type::default_error_condition(int value) const noexcept {
  switch (static_cast<errc>(value)) {
    case errc::cancelled:
    case errc::client_closed:
      return condition::cancelled;
    case errc::timed_out:
      return condition::timed_out;
    case errc::unavailable:
    case errc::too_many_requests:
      return condition::unavailable;
    case errc::outcome_unknown:
      return condition::outcome_unknown;
    case errc::session_lost:
    case errc::session_closed:
    case errc::lock_lost:
    case errc::lease_not_found:
    case errc::cluster_reset:
      return condition::ownership_lost;
    case errc::permission_denied:
    case errc::unauthenticated:
    case errc::certificate_refused:
      return condition::refused;
    case errc::invalid_argument:
    case errc::request_too_large:
    case errc::too_many_operations:
    case errc::duplicate_key:
    case errc::lease_exists:
    case errc::future_revision:
      return condition::invalid_argument;
    case errc::malformed_response:
    case errc::unexpected_response:
    case errc::unimplemented:
      return condition::protocol;
    case errc::no_space:
    case errc::compacted:
    case errc::response_too_large:
    case errc::server_error:
      break;
  }
  return {value, *this};
}

/// The exception that every failure of the library is thrown as. `code()` is an `errc`; the rest says where
/// it came from, for logs. No secret ever appears in its text.
class error : public std::system_error {
public:
  explicit error(errc code) : std::system_error(make_error_code(code)) {}

  /// `text` names the cause, for failures that were found without asking a server.
  error(errc code, const std::string& text) : std::system_error(make_error_code(code), text) {}

  /// A failed call: `rpc` is its name ("KV.Range"), `endpoint` the server asked, `grpc_status` gRPC's numeric
  /// status and `server_text` what came with it.
  error(errc code, std::string_view rpc, std::string_view endpoint, int grpc_status,
        std::string_view server_text)
      : std::system_error(make_error_code(code), describe(rpc, endpoint, grpc_status, server_text)),
        rpc_(rpc),
        endpoint_(endpoint),
        server_text_(server_text),
        grpc_status_(grpc_status) {}

  /// The call that failed, as "KV.Range"; empty when no call was made.
  const std::string& rpc() const noexcept { return rpc_; }
  /// The server that was asked; empty when none was.
  const std::string& endpoint() const noexcept { return endpoint_; }
  /// What the server, or gRPC for it, said.
  const std::string& server_text() const noexcept { return server_text_; }
  /// gRPC's status code; 0 when no call was made.
  int grpc_status() const noexcept { return grpc_status_; }

private:
  static std::string describe(std::string_view rpc, std::string_view endpoint, int status,
                              std::string_view text) {
    std::string out{rpc};
    if (!endpoint.empty()) {
      out += " at ";
      out += endpoint;
    }
    if (!text.empty()) {
      out += ": ";
      out += text;
    }
    if (status != 0) {
      out += " (gRPC status ";
      out += std::to_string(status);
      out += ")";
    }
    return out;
  }

  std::string rpc_;
  std::string endpoint_;
  std::string server_text_;
  int grpc_status_ = 0;
};

}  // namespace conclave
