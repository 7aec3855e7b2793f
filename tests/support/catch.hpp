// SPDX-License-Identifier: BSL-1.0
#pragma once

// Catch2 3 or 2.13, whichever the build found: tests write what both understand.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <string>

namespace conclave::test {

/// REQUIRE_THROWS_WITH(expression, contains("text")) and CHECK_THAT(string, contains("text")).
inline auto contains(const std::string& text) {
#if __has_include(<catch2/catch_all.hpp>)
  return Catch::Matchers::ContainsSubstring(text);
#else
  return Catch::Matchers::Contains(text);
#endif
}

}  // namespace conclave::test
