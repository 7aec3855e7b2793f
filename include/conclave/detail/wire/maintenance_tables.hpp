// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/etcd/maintenance.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

template <>
struct table<status_request> {
  using type = fields<>;
};

template <>
struct table<downgrade_info> {
  using type = fields<field<1, &downgrade_info::enabled>, field<2, &downgrade_info::target_version>>;
};

template <>
struct table<status_response> {
  using type =
      fields<field<1, &status_response::header>, field<2, &status_response::version>,
             field<3, &status_response::db_size>, field<4, &status_response::leader>,
             field<5, &status_response::raft_index>, field<6, &status_response::raft_term>,
             field<7, &status_response::raft_applied_index>, field<8, &status_response::errors>,
             field<9, &status_response::db_size_in_use>, field<10, &status_response::is_learner>,
             field<11, &status_response::storage_version>, field<12, &status_response::db_size_quota>,
             field<13, &status_response::downgrade_info>>;
};

}  // namespace conclave::detail::wire
