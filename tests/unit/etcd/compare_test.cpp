// SPDX-License-Identifier: BSL-1.0

#include <conclave/etcd/compare.hpp>

#include <stdexcept>
#include <string>
#include <variant>

#include "support/catch.hpp"

namespace conclave::test {
namespace {

using namespace std::string_literals;

template <compare_target Target>
compare expected(compare_result result, typename compare_operand<Target>::type operand) {
  compare condition;
  condition.result = result;
  condition.target = Target;
  condition.key = "k";
  condition.target_union = compare_operand<Target>{operand};
  return condition;
}

TEST_CASE("each property of a key compares with an operand of its kind", "[etcd]") {
  const bool version_ok = (version("k") == 3) == expected<compare_target::version>(compare_result::equal, 3);
  const bool create_ok =
      (create_revision("k") == 3) == expected<compare_target::create>(compare_result::equal, 3);
  const bool mod_ok = (mod_revision("k") == 3) == expected<compare_target::mod>(compare_result::equal, 3);
  const bool value_ok =
      (value("k") == "x\0y"s) == expected<compare_target::value>(compare_result::equal, "x\0y"s);
  const bool lease_ok = (lease("k") == -3) == expected<compare_target::lease>(compare_result::equal, -3);
  CHECK(version_ok);
  CHECK(create_ok);
  CHECK(mod_ok);
  CHECK(value_ok);
  CHECK(lease_ok);
}

TEST_CASE("the four operators are the server's four", "[etcd]") {
  CHECK((mod_revision("k") == 1).result == compare_result::equal);
  CHECK((mod_revision("k") != 1).result == compare_result::not_equal);
  CHECK((mod_revision("k") < 1).result == compare_result::less);
  CHECK((mod_revision("k") > 1).result == compare_result::greater);
}

TEST_CASE("a comparison may cover a range of keys", "[etcd]") {
  const compare below = create_revision("jobs/").prefix() < 9;
  CHECK(below.key == "jobs/");
  CHECK(below.range_end == "jobs0");
  CHECK(below.result == compare_result::less);

  const compare until = version("a").until("c") == 0;
  CHECK(until.key == "a");
  CHECK(until.range_end == "c");

  const compare everything = version("").prefix() == 0;
  CHECK(everything.key == "\0"s);
  CHECK(everything.range_end == "\0"s);

  REQUIRE_THROWS_AS(version("a").until(""), std::invalid_argument);
}

TEST_CASE("existence is a comparison of the create revision", "[etcd]") {
  const bool exists = key_exists("k") == expected<compare_target::create>(compare_result::greater, 0);
  const bool missing = key_missing("k") == expected<compare_target::create>(compare_result::equal, 0);
  CHECK(exists);
  CHECK(missing);
}

}  // namespace
}  // namespace conclave::test
