// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/rpc/steady_clock.hpp>

#include "support/catch.hpp"

#include <cstdint>
#include <set>

TEST_CASE("a clock's numbers do not come twice, nor do those of another") {
  conclave::detail::rpc::steady_clock one;
  conclave::detail::rpc::steady_clock other;
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 10'000; ++i) {
    seen.insert(one.entropy());
    seen.insert(other.entropy());
  }
  CHECK(seen.size() == 20'000);
}
