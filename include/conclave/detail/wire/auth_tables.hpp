// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/etcd/auth.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<authenticate_request> {
  using type = fields<field<1, &authenticate_request::name>, field<2, &authenticate_request::password>>;
};

template <>
struct table<authenticate_response> {
  using type = fields<field<1, &authenticate_response::header>, field<2, &authenticate_response::token>>;
};

}  // namespace conclave::detail::wire
