// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace conclave::inline CONCLAVE_ABI {

/// Asks a member for its state.
struct status_request {
  status_request() = default;

  friend bool operator==(const status_request&, const status_request&) = default;
};

/// A downgrade of the cluster that is under way.
struct downgrade_info {
  bool enabled = false;
  std::string target_version;

  friend bool operator==(const downgrade_info&, const downgrade_info&) = default;
};

/// The state of the member that answers. Sizes are bytes. Fields marked with a version are empty
/// in answers of older servers.
struct status_response {
  response_header header;

  /// The server's version, such as "3.5.17".
  std::string version;

  /// Size of the database file.
  std::int64_t db_size = 0;

  /// The member that this one takes for the leader; 0 if it knows none.
  std::uint64_t leader = 0;

  std::uint64_t raft_index = 0;
  std::uint64_t raft_term = 0;
  std::uint64_t raft_applied_index = 0;

  /// Alarms and faults, such as a missing leader.
  std::vector<std::string> errors;

  /// The part of db_size that is not free space.
  std::int64_t db_size_in_use = 0;

  /// The member does not vote yet.
  bool is_learner = false;

  /// Version of the database's format, its largest size, and a downgrade under way (all 3.6).
  std::string storage_version;
  std::int64_t db_size_quota = 0;
  std::optional<conclave::downgrade_info> downgrade_info;

  friend bool operator==(const status_response&, const status_response&) = default;
};

static_assert(!std::is_aggregate_v<status_request>);

}  // namespace conclave
