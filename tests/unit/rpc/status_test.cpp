// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/rpc/methods.hpp>
#include <conclave/detail/rpc/status.hpp>

#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::errc;
using conclave::detail::rpc::call_kind;
using conclave::detail::rpc::classify;
using conclave::detail::rpc::method;
using conclave::detail::rpc::status;
using conclave::detail::rpc::status_code;
using conclave::detail::rpc::worth_retrying;

struct row {
  status_code code;
  const char* text;
  errc read;
  errc write;
};

// etcd's texts as its servers send them (api/v3rpc/rpctypes/error.go), gRPC's as gRPC C++ 1.51 says them.
const std::vector<row> table{
    // The request never reached a server that could do anything with it.
    {status_code::unavailable, "failed to connect to all addresses; last error: UNKNOWN: Connection refused",
     errc::unavailable, errc::unavailable},
    {status_code::unavailable, "connections to all backends failing", errc::unavailable, errc::unavailable},
    {status_code::unavailable, "etcdserver: no leader", errc::unavailable, errc::unavailable},
    {status_code::unavailable, "etcdserver: not capable", errc::unavailable, errc::unavailable},
    {status_code::unavailable, "etcdserver: rpc not supported for learner", errc::unavailable,
     errc::unavailable},
    {status_code::failed_precondition, "etcdserver: rpc not supported for learner", errc::unavailable,
     errc::unavailable},
    // It may have been applied.
    {status_code::unavailable, "Socket closed", errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "keepalive watchdog timeout", errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "etcdserver: request timed out", errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "etcdserver: request timed out, possibly due to previous leader failure",
     errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "etcdserver: request timed out, possibly due to connection lost",
     errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "etcdserver: leader changed", errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "etcdserver: server stopped", errc::unavailable, errc::outcome_unknown},
    {status_code::unavailable, "", errc::unavailable, errc::outcome_unknown},
    {status_code::deadline_exceeded, "Deadline Exceeded", errc::timed_out, errc::outcome_unknown},
    {status_code::internal, "Received RST_STREAM with error code 2", errc::server_error,
     errc::outcome_unknown},
    {status_code::unknown, "Stream removed", errc::server_error, errc::outcome_unknown},
    {status_code::aborted, "", errc::server_error, errc::outcome_unknown},
    {status_code::data_loss, "etcdserver: corrupt cluster", errc::server_error, errc::outcome_unknown},
    {status_code::cancelled, "CANCELLED", errc::cancelled, errc::cancelled},
    // Leases.
    {status_code::not_found, "etcdserver: requested lease not found", errc::lease_not_found,
     errc::lease_not_found},
    {status_code::unknown, "etcdserver: requested lease not found", errc::lease_not_found,
     errc::lease_not_found},
    {status_code::not_found, "etcdserver: member not found", errc::server_error, errc::server_error},
    {status_code::failed_precondition, "etcdserver: lease already exists", errc::lease_exists,
     errc::lease_exists},
    {status_code::out_of_range, "etcdserver: too large lease TTL", errc::invalid_argument,
     errc::invalid_argument},
    // Revisions.
    {status_code::out_of_range, "etcdserver: mvcc: required revision has been compacted", errc::compacted,
     errc::compacted},
    {status_code::out_of_range, "etcdserver: mvcc: required revision is a future revision",
     errc::future_revision, errc::future_revision},
    // Requests that are wrong.
    {status_code::invalid_argument, "etcdserver: key is not provided", errc::invalid_argument,
     errc::invalid_argument},
    {status_code::invalid_argument, "etcdserver: request is too large", errc::request_too_large,
     errc::request_too_large},
    {status_code::invalid_argument, "etcdserver: too many operations in txn request",
     errc::too_many_operations, errc::too_many_operations},
    {status_code::invalid_argument, "etcdserver: duplicate key given in txn request", errc::duplicate_key,
     errc::duplicate_key},
    {status_code::already_exists, "", errc::invalid_argument, errc::invalid_argument},
    // Limits.
    {status_code::resource_exhausted, "etcdserver: mvcc: database space exceeded", errc::no_space,
     errc::no_space},
    {status_code::resource_exhausted, "etcdserver: too many requests", errc::too_many_requests,
     errc::too_many_requests},
    {status_code::resource_exhausted, "Received message larger than max (5000000 vs. 4194304)",
     errc::response_too_large, errc::response_too_large},
    {status_code::resource_exhausted, "grpc: received message larger than max (2000000 vs. 1572864)",
     errc::request_too_large, errc::request_too_large},
    {status_code::resource_exhausted, "", errc::too_many_requests, errc::too_many_requests},
    // Who may do what.
    {status_code::permission_denied, "etcdserver: permission denied", errc::permission_denied,
     errc::permission_denied},
    {status_code::unauthenticated, "etcdserver: invalid auth token", errc::unauthenticated,
     errc::unauthenticated},
    {status_code::invalid_argument, "etcdserver: user name is empty", errc::unauthenticated,
     errc::unauthenticated},
    {status_code::invalid_argument, "etcdserver: authentication failed, invalid user ID or password",
     errc::unauthenticated, errc::unauthenticated},
    {status_code::invalid_argument, "etcdserver: revision of auth store is old", errc::unauthenticated,
     errc::unauthenticated},
    // No etcd, or not one that offers this.
    {status_code::unimplemented, "unknown service etcdserverpb.KV", errc::unimplemented, errc::unimplemented},
    {status_code::unimplemented, "No message returned for unary request", errc::malformed_response,
     errc::malformed_response},
    {status_code::failed_precondition, "etcdserver: authentication is not enabled", errc::server_error,
     errc::server_error},
};

}  // namespace

TEST_CASE("what a failed call means follows from its status, its text and whether it writes") {
  std::set<status_code> seen;
  for (const auto& each : table) {
    CAPTURE(static_cast<int>(each.code), each.text);
    CHECK(classify(status{each.code, each.text}, call_kind::read) == each.read);
    CHECK(classify(status{each.code, each.text}, call_kind::write) == each.write);
    seen.insert(each.code);
  }
  CHECK(seen.size() == 16);  // all of gRPC's but OK
}

TEST_CASE("a read never has an unknown outcome") {
  for (const auto& each : table) {
    CAPTURE(static_cast<int>(each.code), each.text);
    CHECK(classify(status{each.code, each.text}, call_kind::read) != errc::outcome_unknown);
  }
}

TEST_CASE("a write is reported as not applied only by who certainly did not apply it") {
  for (const auto* text :
       {"", "Socket closed", "some text that is not known", "etcdserver: request timed out"}) {
    CAPTURE(text);
    CHECK(classify(status{status_code::unavailable, text}, call_kind::write) == errc::outcome_unknown);
    CHECK(classify(status{status_code::deadline_exceeded, text}, call_kind::write) == errc::outcome_unknown);
  }
}

TEST_CASE("only what may pass by itself is worth another try") {
  for (const auto code : {errc::unavailable, errc::too_many_requests, errc::timed_out, errc::outcome_unknown})
    CHECK(worth_retrying(code));
  for (const auto code :
       {errc::cancelled, errc::permission_denied, errc::lease_not_found, errc::invalid_argument,
        errc::no_space, errc::compacted, errc::server_error, errc::client_closed})
    CHECK_FALSE(worth_retrying(code));
}

TEST_CASE("a transaction writes if any branch of it does, however deep") {
  using conclave::range;
  using conclave::txn;
  const auto kind = [](const txn& each) { return method<txn>::kind(each); };
  CHECK(kind(txn{}) == call_kind::read);
  CHECK(kind(txn{}.then(range("a")).otherwise(range("b"))) == call_kind::read);
  CHECK(kind(txn{}.then(range("a"), conclave::put("a", ""))) == call_kind::write);
  CHECK(kind(txn{}.otherwise(conclave::delete_key("a"))) == call_kind::write);
  CHECK(kind(txn{}.then(txn{}.then(range("a")))) == call_kind::read);
  CHECK(kind(txn{}.then(txn{}.otherwise(conclave::put("a", "")))) == call_kind::write);
}
