// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/etcd/lease.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<lease_grant_request> {
  using type = fields<field<1, &lease_grant_request::ttl>, field<2, &lease_grant_request::id>>;
};

template <>
struct table<lease_grant_response> {
  using type = fields<field<1, &lease_grant_response::header>, field<2, &lease_grant_response::id>,
                      field<3, &lease_grant_response::ttl>, field<4, &lease_grant_response::error>>;
};

template <>
struct table<lease_revoke_request> {
  using type = fields<field<1, &lease_revoke_request::id>>;
};

template <>
struct table<lease_revoke_response> {
  using type = fields<field<1, &lease_revoke_response::header>>;
};

template <>
struct table<lease_keep_alive_request> {
  using type = fields<field<1, &lease_keep_alive_request::id>>;
};

template <>
struct table<lease_keep_alive_response> {
  using type = fields<field<1, &lease_keep_alive_response::header>, field<2, &lease_keep_alive_response::id>,
                      field<3, &lease_keep_alive_response::ttl>>;
};

template <>
struct table<lease_time_to_live_request> {
  using type = fields<field<1, &lease_time_to_live_request::id>, field<2, &lease_time_to_live_request::keys>>;
};

template <>
struct table<lease_time_to_live_response> {
  using type =
      fields<field<1, &lease_time_to_live_response::header>, field<2, &lease_time_to_live_response::id>,
             field<3, &lease_time_to_live_response::ttl>, field<4, &lease_time_to_live_response::granted_ttl>,
             field<5, &lease_time_to_live_response::keys>>;
};

template <>
struct table<lease_leases_request> {
  using type = fields<>;
};

template <>
struct table<lease_status> {
  using type = fields<field<1, &lease_status::id>>;
};

template <>
struct table<lease_leases_response> {
  using type = fields<field<1, &lease_leases_response::header>, field<2, &lease_leases_response::leases>>;
};

}  // namespace conclave::detail::wire
