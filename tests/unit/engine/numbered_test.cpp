// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/numbered.hpp>

#include "support/catch.hpp"

#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <utility>

using conclave::detail::engine::numbered;

TEST_CASE("values are numbered from 1, and each is taken once") {
  numbered<std::unique_ptr<int>> all;
  CHECK(all.next() == 1);
  CHECK(all.push_back(std::make_unique<int>(10)) == 1);
  CHECK(all.push_back(std::make_unique<int>(20)) == 2);
  CHECK(all.next() == 3);

  const auto second = all.take(2);
  REQUIRE(second);
  CHECK(**second == 20);
  CHECK_FALSE(all.take(2));
  REQUIRE(all.take(1));
  CHECK_FALSE(all.take(1));
}

TEST_CASE("a number that nothing has, or has had, finds nothing") {
  numbered<int> all;
  for (const std::uint64_t which : {std::uint64_t{0}, std::uint64_t{1}, UINT64_MAX})
    CHECK_FALSE(all.take(which));
  all.push_back(1);
  CHECK_FALSE(all.take(0));
  CHECK_FALSE(all.take(2));
  CHECK(all.take(1) == 1);
  CHECK_FALSE(all.take(1));
  CHECK(all.push_back(2) == 2);
  CHECK_FALSE(all.take(1));
  CHECK(all.take(2) == 2);
}

TEST_CASE("nothing has the numbers that were left out") {
  numbered<int> all;
  all.insert(3, 30);
  CHECK(all.next() == 4);
  CHECK(all.push_back(40) == 4);
  all.insert(7, 70);
  for (const std::uint64_t which : {1U, 2U, 5U, 6U, 8U}) CHECK_FALSE(all.take(which));
  CHECK(all.take(7) == 70);
  CHECK(all.take(3) == 30);
  CHECK(all.take(4) == 40);
  CHECK(all.next() == 8);
  all.insert(8, 80);
  CHECK(all.take(8) == 80);
}

TEST_CASE("numbers that were left out while there was no value take no place") {
  numbered<int> all;
  for (const std::uint64_t which : {std::uint64_t{1} << 40, std::uint64_t{1} << 50}) {
    all.insert(which, 1);
    CHECK(all.next() == which + 1);
    CHECK_FALSE(all.take(which - 1));
    CHECK_FALSE(all.take(1));
    CHECK(all.push_back(2) == which + 1);
    CHECK(all.take(which) == 1);
    CHECK(all.take(which + 1) == 2);
  }
}

TEST_CASE("values that go in any order are found under their numbers until they do") {
  numbered<int> all;
  std::map<std::uint64_t, int> expected;
  std::mt19937 random{7};
  for (int step = 0; step < 20000; ++step) {
    // Grows to some hundred, and is emptied from time to time.
    if (step % 1000 < 900 && random() % 2 == 0) {
      expected.emplace(all.push_back(step), step);
    } else if (!expected.empty()) {
      auto which = expected.begin();
      std::advance(which, static_cast<int>(random() % expected.size()));
      CHECK(all.take(which->first) == which->second);
      CHECK_FALSE(all.take(which->first));
      expected.erase(which);
    }
  }
  for (const auto& [number, value] : expected) CHECK(all.take(number) == value);
}
