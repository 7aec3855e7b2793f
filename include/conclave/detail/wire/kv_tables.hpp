// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<range_request> {
  using type =
      fields<field<1, &range_request::key>, field<2, &range_request::range_end>,
             field<3, &range_request::limit>, field<4, &range_request::revision>,
             field<5, &range_request::sort_order>, field<6, &range_request::sort_target>,
             field<7, &range_request::serializable>, field<8, &range_request::keys_only>,
             field<9, &range_request::count_only>, field<10, &range_request::min_mod_revision>,
             field<11, &range_request::max_mod_revision>, field<12, &range_request::min_create_revision>,
             field<13, &range_request::max_create_revision>>;
};

template <>
struct table<range_response> {
  using type = fields<field<1, &range_response::header>, field<2, &range_response::kvs>,
                      field<3, &range_response::more>, field<4, &range_response::count>>;
};

template <>
struct table<put_request> {
  using type = fields<field<1, &put_request::key>, field<2, &put_request::value>,
                      field<3, &put_request::lease>, field<4, &put_request::prev_kv>,
                      field<5, &put_request::ignore_value>, field<6, &put_request::ignore_lease>>;
};

template <>
struct table<put_response> {
  using type = fields<field<1, &put_response::header>, field<2, &put_response::prev_kv>>;
};

template <>
struct table<delete_range_request> {
  using type = fields<field<1, &delete_range_request::key>, field<2, &delete_range_request::range_end>,
                      field<3, &delete_range_request::prev_kv>>;
};

template <>
struct table<delete_range_response> {
  using type = fields<field<1, &delete_range_response::header>, field<2, &delete_range_response::deleted>,
                      field<3, &delete_range_response::prev_kvs>>;
};

template <>
struct table<compaction_request> {
  using type = fields<field<1, &compaction_request::revision>, field<2, &compaction_request::physical>>;
};

template <>
struct table<compaction_response> {
  using type = fields<field<1, &compaction_response::header>>;
};

}  // namespace conclave::detail::wire
