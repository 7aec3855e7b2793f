// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<response_header> {
  using type = fields<field<1, &response_header::cluster_id>, field<2, &response_header::member_id>,
                      field<3, &response_header::revision>, field<4, &response_header::raft_term>>;
};

template <>
struct table<key_value> {
  using type = fields<field<1, &key_value::key>, field<2, &key_value::create_revision>,
                      field<3, &key_value::mod_revision>, field<4, &key_value::version>,
                      field<5, &key_value::value>, field<6, &key_value::lease>>;
};

template <>
struct table<event> {
  using type = fields<field<1, &event::type>, field<2, &event::kv>, field<3, &event::prev_kv>>;
};

}  // namespace conclave::detail::wire
