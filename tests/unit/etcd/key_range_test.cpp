// SPDX-License-Identifier: BSL-1.0

#include <conclave/etcd/key_range.hpp>

#include <string>

#include "support/catch.hpp"

namespace conclave::test {
namespace {

using namespace std::string_literals;

TEST_CASE("prefix_end is the first key above all keys with the prefix", "[etcd]") {
  const struct {
    std::string prefix;
    std::string end;
  } rows[] = {
      {"a", "b"},
      {"locks/", "locks0"},
      {"a\xff", "b"},
      {"a\xff\xff\xff", "b"},
      {"a\xff"
       "b",
       "a\xff"
       "c"},
      {"a\xfe", "a\xff"},
      {"\x7f", "\x80"},
      {"\0"s, "\1"s},
      {"a\0"s, "a\1"s},
      {"\0\xff"s, "\1"s},
      {"\xff", "\0"s},
      {"\xff\xff", "\0"s},
      {"", "\0"s},
  };
  for (const auto& row : rows) {
    CAPTURE(row.prefix);
    REQUIRE(prefix_end(row.prefix) == row.end);
  }
}

}  // namespace
}  // namespace conclave::test
