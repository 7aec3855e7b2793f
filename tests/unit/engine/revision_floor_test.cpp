// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/revision_floor.hpp>

#include "support/catch.hpp"

namespace {

using conclave::response_header;
using conclave::revision;
using conclave::detail::engine::revision_floor;
using verdict = revision_floor::verdict;

response_header at(revision now, std::uint64_t cluster = 1) {
  response_header out;
  out.cluster_id = cluster;
  out.revision = now;
  return out;
}

}  // namespace

TEST_CASE("an up-to-date answer must not lie below what was known when its call was sent") {
  revision_floor floor;
  const auto nothing = floor.now();
  CHECK(floor.judge(at(10), nothing, true) == verdict::good);
  const auto ten = floor.now();
  CHECK(floor.judge(at(20), ten, true) == verdict::good);
  CHECK(floor.judge(at(15), ten, true) == verdict::good);  // overtaken on the way
  const auto twenty = floor.now();
  CHECK(twenty.floor == 20);
  CHECK(floor.judge(at(20), twenty, true) == verdict::good);
  CHECK(floor.judge(at(19), twenty, true) == verdict::below);
}

TEST_CASE("an answer that may lag raises the floor and is not held against it") {
  revision_floor floor;
  const auto nothing = floor.now();
  CHECK(floor.judge(at(10), nothing, false) == verdict::good);
  const auto ten = floor.now();
  CHECK(floor.judge(at(5), ten, false) == verdict::good);
  CHECK(floor.now().floor == 10);
  CHECK(floor.judge(at(0), ten, true) == verdict::good);  // a header without a revision
}

TEST_CASE("another cluster is a reset, whatever its revision") {
  revision_floor floor;
  const auto nothing = floor.now();
  CHECK(floor.judge(at(10, 1), nothing, true) == verdict::good);
  const auto ten = floor.now();
  CHECK(floor.judge(at(100, 2), ten, false) == verdict::reset);
  CHECK(floor.judge(at(100, 0), ten, true) == verdict::good);  // one that does not say
}

TEST_CASE("a reset happens once, and calls from before it are not judged by what is known after") {
  revision_floor floor;
  const auto nothing = floor.now();
  CHECK(floor.judge(at(10), nothing, true) == verdict::good);
  const auto before = floor.now();
  CHECK(floor.reset(at(2), before));
  CHECK_FALSE(floor.reset(at(3), before));
  CHECK(floor.now().floor == 2);
  CHECK(floor.judge(at(11), before, true) == verdict::reset);
  CHECK(floor.judge(at(3), floor.now(), true) == verdict::good);
}
