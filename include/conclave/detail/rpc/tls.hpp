// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>

#include <conclave/detail/rpc/secret.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// What an encrypted connection is made with, as PEM.
struct tls_credentials {
  /// Whom to trust; empty: gRPC's own list of authorities.
  std::string ca;
  /// Who we are; both empty: nobody in particular.
  std::string certificate;
  secret key;
  /// The name that the server's certificate must have; empty: the endpoint's own.
  std::string server_name;
};

}  // namespace conclave::detail::rpc
