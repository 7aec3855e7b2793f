// SPDX-License-Identifier: BSL-1.0

#include <conclave/etcd/kv.hpp>

#include <stdexcept>
#include <string>

#include "support/catch.hpp"

namespace conclave::test {
namespace {

using namespace std::string_literals;

TEST_CASE("put carries its key, value and options", "[etcd]") {
  put_request expected;
  expected.key = "k";
  expected.value = "v";
  REQUIRE(put("k", "v") == expected);

  expected.lease = 7;
  expected.prev_kv = true;
  expected.ignore_value = true;
  expected.ignore_lease = true;
  REQUIRE(put("k", "v", {.lease = 7, .prev_kv = true, .ignore_value = true, .ignore_lease = true}) ==
          expected);
}

TEST_CASE("range reads one key and carries its options", "[etcd]") {
  range_request expected;
  expected.key = "k";
  REQUIRE(range("k") == expected);

  expected.limit = 1;
  expected.revision = 2;
  expected.sort_order = sort_order::descend;
  expected.sort_target = sort_target::mod;
  expected.serializable = true;
  expected.keys_only = true;
  expected.count_only = true;
  expected.min_mod_revision = 3;
  expected.max_mod_revision = 4;
  expected.min_create_revision = 5;
  expected.max_create_revision = 6;
  REQUIRE(range("k", {.limit = 1,
                      .revision = 2,
                      .order = sort_order::descend,
                      .target = sort_target::mod,
                      .serializable = true,
                      .keys_only = true,
                      .count_only = true,
                      .min_mod_revision = 3,
                      .max_mod_revision = 4,
                      .min_create_revision = 5,
                      .max_create_revision = 6}) == expected);
}

TEST_CASE("prefixes and intervals select ranges of keys", "[etcd]") {
  const range_request some = range_prefix("jobs/", {.limit = 3});
  REQUIRE(some.key == "jobs/");
  REQUIRE(some.range_end == "jobs0");
  REQUIRE(some.limit == 3);

  const range_request all = range_prefix("");
  REQUIRE(all.key == "\0"s);
  REQUIRE(all.range_end == "\0"s);

  const range_request interval = range_interval("a\0"s, "b\xff", {.keys_only = true});
  REQUIRE(interval.key == "a\0"s);
  REQUIRE(interval.range_end == "b\xff");
  REQUIRE(interval.keys_only);

  REQUIRE(range_interval("", "b").key == "\0"s);
  REQUIRE(range_interval("a", "\0"s).range_end == "\0"s);
}

TEST_CASE("deletions select keys as reads do", "[etcd]") {
  const delete_range_request one = delete_key("k", {.prev_kv = true});
  REQUIRE(one.key == "k");
  REQUIRE(one.range_end.empty());
  REQUIRE(one.prev_kv);
  REQUIRE_FALSE(delete_key("k").prev_kv);

  REQUIRE(delete_prefix("k\xff").range_end == "l");
  REQUIRE(delete_prefix("").key == "\0"s);
  REQUIRE(delete_interval("a", "b", {.prev_kv = true}).range_end == "b");
  REQUIRE(delete_interval("a", "b", {.prev_kv = true}).prev_kv);
}

TEST_CASE("an interval without an end is refused: the server would take it for one key", "[etcd]") {
  REQUIRE_THROWS_AS(range_interval("a", ""), std::invalid_argument);
  REQUIRE_THROWS_AS(delete_interval("a", ""), std::invalid_argument);
}

}  // namespace
}  // namespace conclave::test
