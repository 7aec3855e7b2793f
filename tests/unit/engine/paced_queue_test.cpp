// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/paced_queue.hpp>

#include "support/catch.hpp"

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <vector>

using conclave::detail::engine::paced_queue;
using namespace std::chrono_literals;

namespace {

using time_point = paced_queue::time_point;
const time_point start{1h};

}  // namespace

TEST_CASE("a paced queue does the first at once, and the next after a while") {
  paced_queue queue{20ms};
  std::vector<int> done;
  for (int i = 0; i < 3; ++i)
    queue.push([&done, i] {
      done.push_back(i);
      return true;
    });
  CHECK(queue.run(start) == start + 20ms);
  CHECK(done == std::vector<int>{0});
  CHECK(queue.run(start + 19ms) == start + 20ms);
  CHECK(done == std::vector<int>{0});
  CHECK(queue.run(start + 20ms) == start + 40ms);
  CHECK(queue.run(start + 50ms) == std::nullopt);
  CHECK(done == std::vector<int>{0, 1, 2});
  // Whoever comes soon after the last waits as well; after a pause nobody does.
  queue.push([] { return true; });
  CHECK(queue.run(start + 60ms) == start + 70ms);
  CHECK(queue.run(start + 70ms) == std::nullopt);
  queue.push([] { return true; });
  CHECK(queue.run(start + 100ms) == std::nullopt);
}

TEST_CASE("what need not be done any more takes no time in a paced queue") {
  paced_queue queue{20ms};
  int asked = 0;
  int done = 0;
  for (int i = 0; i < 1000; ++i)
    queue.push([&asked, &done, i] {
      ++asked;
      if (i % 100 != 99) return false;
      ++done;
      return true;
    });
  CHECK(queue.run(start) == start + 20ms);
  CHECK(asked == 100);
  CHECK(done == 1);
  CHECK(queue.run(start + 20ms) == start + 40ms);
  CHECK(asked == 200);
}

TEST_CASE("however many ask again and again, a paced queue lets them have so many turns, and each its turn") {
  paced_queue queue{20ms};
  constexpr int count = 10'000;
  std::map<int, int> turns;
  // Each asks again 20 s after its turn.
  std::multimap<time_point, int> asking;
  for (int i = 0; i < count; ++i) asking.emplace(start + std::chrono::milliseconds{i}, i);
  time_point now = start;
  std::map<std::chrono::seconds, int> in_second;
  for (; now < start + 1000s; now += 10ms) {
    while (!asking.empty() && asking.begin()->first <= now) {
      const int who = asking.extract(asking.begin()).mapped();
      queue.push([&, who] {
        ++turns[who];
        ++in_second[std::chrono::floor<std::chrono::seconds>(now - start)];
        asking.emplace(now + 20s, who);
        return true;
      });
    }
    (void)queue.run(now);
  }
  for (const auto& [second, number] : in_second) CHECK(number <= 50);
  CHECK(in_second.size() == 1000);
  CHECK(turns.size() == count);
  for (const auto& [who, number] : turns) CHECK(number == 5);
}
