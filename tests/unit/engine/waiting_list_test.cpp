// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/waiting_list.hpp>

#include "support/catch.hpp"

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

using conclave::detail::engine::waiting_list;

namespace {

std::vector<int> drain(waiting_list<int>& list) {
  std::vector<int> out;
  while (!list.empty()) out.push_back(list.pop_front());
  return out;
}

}  // namespace

TEST_CASE("a waiting list is served in the order of arrival, those who were put ahead first") {
  waiting_list<int> list;
  list.push_back(1);
  list.push_back(2);
  list.push_front(3);
  list.push_front(4);
  list.push_back(5);
  CHECK(list.size() == 5);
  CHECK(list.front() == 4);
  CHECK(drain(list) == std::vector<int>{4, 3, 1, 2, 5});
  CHECK(list.size() == 0);
}

TEST_CASE("who leaves a waiting list out of turn takes nobody along") {
  waiting_list<std::string> list;
  const auto a = list.push_back("a");
  const auto b = list.push_back("b");
  const auto c = list.push_front("c");
  list.push_back("d");
  CHECK(list.remove(b) == "b");
  CHECK(list.remove(b) == std::nullopt);
  CHECK(list.remove(c) == "c");
  CHECK(list.pop_front() == "a");
  CHECK(list.remove(a) == std::nullopt);
  CHECK(list.pop_front() == "d");
}

TEST_CASE("a handle of a waiting list is never used again") {
  waiting_list<int> list;
  const auto back = list.push_back(1);
  const auto front = list.push_front(2);
  list.take_all();
  list.push_back(3);
  list.push_front(4);
  CHECK_FALSE(list.remove(back));
  CHECK_FALSE(list.remove(front));
  CHECK(drain(list) == std::vector<int>{4, 3});
}

TEST_CASE("a waiting list gives up some, or all, in their order") {
  waiting_list<int> list;
  for (int i = 0; i < 10; ++i) list.push_back(i);
  CHECK(list.take_if([](int each) { return each % 3 == 0; }) == std::vector<int>{0, 3, 6, 9});
  int asked = 0;
  CHECK(list.any_of([&](int each) {
    ++asked;
    return each == 4;
  }));
  CHECK(asked == 3);
  CHECK_FALSE(list.any_of([](int each) { return each == 3; }));
  CHECK(list.take_all() == std::vector<int>{1, 2, 4, 5, 7, 8});
  CHECK(list.empty());
  CHECK_FALSE(list.any_of([](int) { return true; }));
}

TEST_CASE("a waiting list holds what can only be moved, and lets go of it at once") {
  waiting_list<std::shared_ptr<int>> list;
  const auto kept = std::make_shared<int>(1);
  const auto first = list.push_back(kept);
  list.push_back(kept);
  CHECK(kept.use_count() == 3);
  list.remove(first);
  CHECK(kept.use_count() == 2);
  list.pop_front();
  CHECK(kept.use_count() == 1);

  waiting_list<std::unique_ptr<int>> unique;
  const auto place = unique.push_back(std::make_unique<int>(1));
  unique.push_back(std::make_unique<int>(2));
  CHECK(**unique.remove(place) == 1);
  CHECK(*unique.pop_front() == 2);
}

TEST_CASE("hundreds of thousands leave a waiting list promptly, from wherever they stand") {
  // Were each looked for, this would take hours.
  constexpr std::size_t count = 300'000;
  waiting_list<std::size_t> list;
  std::vector<waiting_list<std::size_t>::handle> places;
  for (std::size_t i = 0; i < count; ++i) places.push_back(list.push_back(i));
  for (std::size_t i = 0; i < count; ++i) {
    const auto each = (i + count / 2) % count;
    REQUIRE(list.remove(places[each]) == each);
  }
  CHECK(list.empty());
}
