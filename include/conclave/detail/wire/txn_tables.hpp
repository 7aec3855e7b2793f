// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/detail/wire/kv_tables.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<compare> {
  using type = fields<field<1, &compare::result>, field<2, &compare::target>, field<3, &compare::key>,
                      oneof<&compare::target_union, 4, 5, 6, 7, 8>, field<64, &compare::range_end>>;
};

template <>
struct table<request_op> {
  using type = fields<oneof<&request_op::request, 1, 2, 3, 4>>;
};

template <>
struct table<response_op> {
  using type = fields<oneof<&response_op::response, 1, 2, 3, 4>>;
};

template <>
struct table<txn> {
  using type = fields<field<1, &txn::compare>, field<2, &txn::success>, field<3, &txn::failure>>;
};

template <>
struct table<txn_response> {
  using type = fields<field<1, &txn_response::header>, field<2, &txn_response::succeeded>,
                      field<3, &txn_response::responses>>;
};

}  // namespace conclave::detail::wire
