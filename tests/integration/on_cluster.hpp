// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the tests with several servers share.

#include <conclave/client.hpp>
#include <conclave/testing/etcd_cluster.hpp>

#include <cstddef>
#include <string>
#include <utility>

namespace conclave::test {

/// A list that begins with one member, so that a client asks it first.
inline std::string from(const testing::etcd_cluster& cluster, std::size_t first) {
  std::string list;
  for (std::size_t i = 0; i < cluster.size(); ++i)
    list += (i == 0 ? "" : ",") + cluster.endpoint((first + i) % cluster.size());
  return list;
}

inline client connect_to(asio::io_context& context, std::string endpoints, client_options options = {}) {
  options.endpoints(std::move(endpoints));
  return client{context.get_executor(), options};
}

}  // namespace conclave::test
