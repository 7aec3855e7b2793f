// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/backoff.hpp>

#include <chrono>
#include <cstdint>
#include <set>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::detail::engine::backoff;
using namespace std::chrono_literals;

bool within_a_quarter(backoff::duration delay, backoff::duration base) {
  return delay >= base * 75 / 100 && delay <= base * 125 / 100;
}

}  // namespace

TEST_CASE("delays double from the first to the longest, each within a quarter") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    backoff pause{50ms, 1s, seed};
    for (const auto base : {50ms, 100ms, 200ms, 400ms, 800ms, 1000ms, 1000ms, 1000ms})
      REQUIRE(within_a_quarter(pause.next(), base));
  }
}

TEST_CASE("a reset begins anew") {
  backoff pause{20ms, 1s, 7};
  for (int i = 0; i < 10; ++i) (void)pause.next();
  pause.reset();
  CHECK(within_a_quarter(pause.next(), 20ms));
  CHECK(within_a_quarter(pause.next(), 40ms));
}

TEST_CASE("clients with different seeds do not come back at the same moment") {
  std::set<backoff::duration> delays;
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    backoff pause{1000ms, 1s, seed * 0x9e3779b97f4a7c15ULL};
    delays.insert(pause.next());
  }
  CHECK(delays.size() == 51);  // every whole percent from 75 to 125
}

TEST_CASE("the same seed gives the same delays") {
  backoff one{20ms, 1s, 42};
  backoff other{20ms, 1s, 42};
  for (int i = 0; i < 20; ++i) CHECK(one.next() == other.next());
}
