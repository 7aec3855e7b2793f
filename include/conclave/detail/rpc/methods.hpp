// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <variant>

#include <conclave/detail/rpc/status.hpp>
#include <conclave/etcd/auth.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/lease.hpp>
#include <conclave/etcd/maintenance.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// What a request is called on the wire, what answers it, and whether it changes the store.
template <class Request>
struct method;

template <class Response, call_kind Kind>
struct method_of_kind {
  using response = Response;
  template <class Request>
  static call_kind kind(const Request&) noexcept {
    return Kind;
  }
};

template <>
struct method<range_request> : method_of_kind<range_response, call_kind::read> {
  static constexpr const char* path = "/etcdserverpb.KV/Range";
  static constexpr const char* name = "KV.Range";
};

template <>
struct method<put_request> : method_of_kind<put_response, call_kind::write> {
  static constexpr const char* path = "/etcdserverpb.KV/Put";
  static constexpr const char* name = "KV.Put";
};

template <>
struct method<delete_range_request> : method_of_kind<delete_range_response, call_kind::write> {
  static constexpr const char* path = "/etcdserverpb.KV/DeleteRange";
  static constexpr const char* name = "KV.DeleteRange";
};

template <>
struct method<txn> {
  using response = txn_response;
  static constexpr const char* path = "/etcdserverpb.KV/Txn";
  static constexpr const char* name = "KV.Txn";

  /// A transaction whose branches only read is a read.
  static call_kind kind(const txn& request) noexcept {
    const auto reads = [](const request_op& each) {
      if (const auto* nested = std::get_if<txn>(&each.request)) return kind(*nested) == call_kind::read;
      return std::holds_alternative<range_request>(each.request);
    };
    const bool only_reads = std::all_of(request.success.begin(), request.success.end(), reads) &&
                            std::all_of(request.failure.begin(), request.failure.end(), reads);
    return only_reads ? call_kind::read : call_kind::write;
  }
};

template <>
struct method<compaction_request> : method_of_kind<compaction_response, call_kind::write> {
  static constexpr const char* path = "/etcdserverpb.KV/Compact";
  static constexpr const char* name = "KV.Compact";
};

template <>
struct method<lease_grant_request> : method_of_kind<lease_grant_response, call_kind::write> {
  static constexpr const char* path = "/etcdserverpb.Lease/LeaseGrant";
  static constexpr const char* name = "Lease.LeaseGrant";
};

template <>
struct method<lease_revoke_request> : method_of_kind<lease_revoke_response, call_kind::write> {
  static constexpr const char* path = "/etcdserverpb.Lease/LeaseRevoke";
  static constexpr const char* name = "Lease.LeaseRevoke";
};

template <>
struct method<lease_time_to_live_request> : method_of_kind<lease_time_to_live_response, call_kind::read> {
  static constexpr const char* path = "/etcdserverpb.Lease/LeaseTimeToLive";
  static constexpr const char* name = "Lease.LeaseTimeToLive";
};

template <>
struct method<lease_leases_request> : method_of_kind<lease_leases_response, call_kind::read> {
  static constexpr const char* path = "/etcdserverpb.Lease/LeaseLeases";
  static constexpr const char* name = "Lease.LeaseLeases";
};

template <>
struct method<authenticate_request> : method_of_kind<authenticate_response, call_kind::read> {
  static constexpr const char* path = "/etcdserverpb.Auth/Authenticate";
  static constexpr const char* name = "Auth.Authenticate";
};

template <>
struct method<status_request> : method_of_kind<status_response, call_kind::read> {
  static constexpr const char* path = "/etcdserverpb.Maintenance/Status";
  static constexpr const char* name = "Maintenance.Status";
};

template <class Request>
using response_of = typename method<Request>::response;

inline constexpr const char* watch_path = "/etcdserverpb.Watch/Watch";
inline constexpr const char* lease_keep_alive_path = "/etcdserverpb.Lease/LeaseKeepAlive";

}  // namespace conclave::detail::rpc
