// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/etcd/watch.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<watch_create_request> {
  using type = fields<field<1, &watch_create_request::key>, field<2, &watch_create_request::range_end>,
                      field<3, &watch_create_request::start_revision>,
                      field<4, &watch_create_request::progress_notify>,
                      field<5, &watch_create_request::filters>, field<6, &watch_create_request::prev_kv>,
                      field<7, &watch_create_request::watch_id>, field<8, &watch_create_request::fragment>>;
};

template <>
struct table<watch_cancel_request> {
  using type = fields<field<1, &watch_cancel_request::watch_id>>;
};

template <>
struct table<watch_progress_request> {
  using type = fields<>;
};

template <>
struct table<watch_request> {
  using type = fields<oneof<&watch_request::request_union, 1, 2, 3>>;
};

template <>
struct table<watch_response> {
  using type = fields<field<1, &watch_response::header>, field<2, &watch_response::watch_id>,
                      field<3, &watch_response::created>, field<4, &watch_response::canceled>,
                      field<5, &watch_response::compact_revision>, field<6, &watch_response::cancel_reason>,
                      field<7, &watch_response::fragment>, field<11, &watch_response::events>>;
};

}  // namespace conclave::detail::wire
