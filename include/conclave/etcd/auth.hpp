// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <string>
#include <type_traits>

namespace conclave::inline CONCLAVE_ABI {

/// Trades a user's name and password for a token.
struct authenticate_request {
  authenticate_request() = default;

  std::string name;
  std::string password;

  friend bool operator==(const authenticate_request&, const authenticate_request&) = default;
};

struct authenticate_response {
  response_header header;

  /// Goes with every later call as metadata. It is a secret, and it expires.
  std::string token;

  friend bool operator==(const authenticate_response&, const authenticate_response&) = default;
};

static_assert(!std::is_aggregate_v<authenticate_request>);

}  // namespace conclave
