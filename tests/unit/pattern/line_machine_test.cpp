// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/pattern/line_machine.hpp>

#include <cstddef>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::event;
using conclave::event_type;
using conclave::key_value;
using conclave::lease_id;
using conclave::revision;
using conclave::detail::pattern::line_grammar;
using conclave::detail::pattern::line_machine;
using keys = std::vector<std::string>;

key_value stands(std::string key, revision create_revision) {
  key_value out;
  out.key = std::move(key);
  out.create_revision = create_revision;
  out.mod_revision = create_revision;
  return out;
}

event put(std::string key, revision at) {
  return {event_type::put, stands(std::move(key), at), std::nullopt};
}

event deleted(std::string key, revision at) {
  event out{event_type::delete_, key_value{}, std::nullopt};
  out.kv->key = std::move(key);
  out.kv->mod_revision = at;
  return out;
}

line_machine line() { return line_machine{line_grammar{"a"}}; }

// The line a/1, a/2, a/3, created at 11, 12 and 13, as read at revision 20.
line_machine line_of_three() {
  line_machine out = line();
  out.begin();
  out.snapshot({stands("a/1", 11), stands("a/2", 12), stands("a/3", 13)}, 20);
  return out;
}

}  // namespace

// ---- grammar --------------------------------------------------------------------------------------------

TEST_CASE(
    "a place in line is the lease id in lower-case hexadecimal without leading zeros, as Go writes it") {
  const line_grammar grammar{"lock"};
  CHECK(grammar.prefix() == "lock/");
  CHECK(grammar.key(1) == "lock/1");
  CHECK(grammar.key(0x0abc) == "lock/abc");
  CHECK(grammar.key(0x694d81417acd4702) == "lock/694d81417acd4702");  // as in etcd's own documentation
  CHECK(grammar.key(std::numeric_limits<lease_id>::max()) == "lock/7fffffffffffffff");
}

TEST_CASE("the name of a line may contain slashes and any other byte") {
  const line_grammar grammar{std::string("a//b\0\xff", 6)};
  CHECK(grammar.key(255) == std::string("a//b\0\xff/ff", 9));
  CHECK(grammar.is_participant(std::string("a//b\0\xff/ff", 9)));
}

TEST_CASE("a participant is the prefix and 1 to 16 lower-case hexadecimal digits") {
  const line_grammar grammar{"a"};
  for (const auto* key :
       {"a/1", "a/f", "a/12ab", "a/694d81417acd4702", "a/7fffffffffffffff", "a/ffffffffffffffff"}) {
    CAPTURE(key);
    CHECK(grammar.is_participant(key));
  }
}

TEST_CASE("whatever else stands below the prefix, or beside it, is no participant") {
  const line_grammar grammar{"a"};
  for (const auto* key : {"a/", "a", "", "b/1", "ab/1", "a1", "a/b/12ab", "a/zz", "a/12AB", "a/12aB", "a/0x1",
                          "a/12345678901234567", "a/1 ", "a/-1", "a/1/", "a//1", "a/read/1", "a/1g"}) {
    CAPTURE(key);
    CHECK_FALSE(grammar.is_participant(key));
  }
  CHECK_FALSE(grammar.is_participant(std::string("a/1\0", 4)));
}

TEST_CASE("the lines a and a/b do not touch") {
  const line_grammar outer{"a"};
  const line_grammar inner{"a/b"};
  CHECK_FALSE(outer.is_participant(inner.key(0xab)));
  CHECK_FALSE(inner.is_participant(outer.key(0xab)));
}

TEST_CASE("every key that a lease can have is a participant") {
  std::mt19937_64 random{7};
  const line_grammar grammar{"a"};
  for (int i = 0; i < 1000; ++i) {
    const auto id = static_cast<lease_id>(random() >> 1U >> (random() % 62)) | 1;
    CAPTURE(id);
    REQUIRE(grammar.is_participant(grammar.key(id)));
  }
}

// ---- the machine ----------------------------------------------------------------------------------------

TEST_CASE("nothing is known before the first snapshot") {
  auto m = line();
  CHECK_FALSE(m.knows(0));
  m.begin();
  CHECK_FALSE(m.knows(0));
  CHECK(m.events({put("a/1", 5)}).empty());
  CHECK_FALSE(m.stands("a/1", 5));
  CHECK(m.size() == 0);
}

TEST_CASE("a snapshot tells who stands in line, and knows up to its revision") {
  const auto m = line_of_three();
  CHECK(m.size() == 3);
  CHECK(m.knows(20));
  CHECK_FALSE(m.knows(21));
  CHECK(m.stands("a/2", 12));
  CHECK_FALSE(m.stands("a/4", 12));
}

TEST_CASE("the order in line is that of creation, not that of keys, nor of later writes") {
  auto m = line();
  m.begin();
  auto rewritten = stands("a/1", 30);
  rewritten.mod_revision = 99;
  m.snapshot({rewritten, stands("a/2", 10), stands("a/3", 20)}, 100);
  CHECK(m.is_first("a/2"));
  CHECK_FALSE(m.is_first("a/1"));
  CHECK_FALSE(m.is_first("a/3"));

  auto again = put("a/2", 101);
  again.kv->create_revision = 10;
  m.events({again});
  CHECK(m.is_first("a/2"));
  CHECK(m.stands("a/2", 10));
}

TEST_CASE("nobody is first in an empty line") {
  auto m = line();
  m.begin();
  m.snapshot({}, 5);
  CHECK_FALSE(m.is_first("a/1"));
  CHECK(m.knows(5));
}

TEST_CASE("whether somebody else stands in line is said of what is known now") {
  auto m = line();
  CHECK_FALSE(m.shows_other_than("a/1"));
  m.begin();
  m.snapshot({stands("a/1", 10), stands("a/zz", 11)}, 20);
  CHECK_FALSE(m.shows_other_than("a/1"));
  CHECK(m.shows_other_than("a/2"));
  m.events({put("a/2", 21)});
  CHECK(m.shows_other_than("a/1"));
  CHECK(m.shows_other_than("a/2"));
  m.events({deleted("a/1", 22)});
  CHECK(m.shows_other_than("a/1"));
  CHECK_FALSE(m.shows_other_than("a/2"));
  m.begin();  // what was known may be long past
  CHECK_FALSE(m.shows_other_than("a/1"));
}

TEST_CASE("keys of another form are counted and stand in nobody's way") {
  auto m = line();
  m.begin();
  m.snapshot({stands("a/b/12ab", 1), stands("a/zz", 2), stands("a/AB", 3), stands("a/1", 10)}, 20);
  CHECK(m.foreign() == 3);
  CHECK(m.size() == 1);
  CHECK(m.is_first("a/1"));
  CHECK(m.events({put("a/b/1", 21), deleted("a/zz", 22)}) == keys{"a/1"});  // only who is first is told
  CHECK(m.size() == 1);
  CHECK(m.knows(22));
}

TEST_CASE("events that came before the snapshot are kept for it, and what it includes is dropped") {
  auto m = line();
  m.begin();
  CHECK(m.events({put("a/1", 10), put("a/2", 11)}).empty());
  CHECK(m.events({deleted("a/1", 12)}).empty());
  CHECK(m.events({put("a/3", 13)}).empty());
  SECTION("a snapshot of an older state") {
    m.snapshot({stands("a/1", 10)}, 10);
    CHECK(m.size() == 2);
    CHECK(m.is_first("a/2"));
    CHECK(m.knows(13));
  }
  SECTION("a snapshot that includes some of them") {
    m.snapshot({stands("a/2", 11)}, 12);
    CHECK(m.size() == 2);
    CHECK(m.since("a/1") == 0);
    CHECK(m.is_first("a/2"));
  }
  SECTION("a snapshot newer than all: what it does not show has gone again") {
    m.snapshot({stands("a/3", 13)}, 20);
    CHECK(m.size() == 1);
    CHECK(m.is_first("a/3"));
    CHECK(m.knows(20));
  }
}

TEST_CASE("events that the snapshot includes are dropped also when they come after it") {
  auto m = line_of_three();
  m.events({deleted("a/1", 20)});  // an older incarnation
  CHECK(m.is_first("a/1"));
  CHECK(m.events({put("a/4", 14)}) == keys{"a/1"});
  CHECK(m.since("a/4") == 0);
}

TEST_CASE("who leaves makes room for the next, and both are told") {
  auto m = line_of_three();
  CHECK(m.events({deleted("a/1", 21)}) == keys{"a/1", "a/2"});
  CHECK(m.is_first("a/2"));
  CHECK_FALSE(m.stands("a/1", 11));
  CHECK(m.knows(21));
}

TEST_CASE("who leaves from the middle changes nothing for the first") {
  auto m = line_of_three();
  CHECK(m.events({deleted("a/2", 21)}) == keys{"a/2", "a/1"});
  CHECK(m.is_first("a/1"));
  CHECK(m.events({deleted("a/1", 22)}) == keys{"a/1", "a/3"});
}

TEST_CASE("a transaction that ends several places at one revision is applied whole") {
  auto m = line_of_three();
  CHECK(m.events({deleted("a/1", 21), deleted("a/2", 21), put("a/4", 21)}) ==
        keys{"a/1", "a/2", "a/4", "a/3"});
  CHECK(m.is_first("a/3"));
  CHECK(m.size() == 2);
}

TEST_CASE("a place given up and taken again is another one, at the end of the line") {
  auto m = line_of_three();
  m.events({deleted("a/1", 21), put("a/1", 22)});
  CHECK(m.since("a/1") != 0);
  CHECK_FALSE(m.stands("a/1", 11));
  CHECK(m.stands("a/1", 22));
  CHECK(m.is_first("a/2"));
  CHECK(m.size() == 3);
}

TEST_CASE("an incarnation whose end went unseen is replaced by the one that is seen") {
  auto m = line_of_three();
  m.events({put("a/1", 25)});
  CHECK(m.size() == 3);
  CHECK(m.stands("a/1", 25));
  CHECK(m.is_first("a/2"));
}

TEST_CASE("events that come twice are applied once") {
  auto m = line_of_three();
  m.events({deleted("a/1", 21), put("a/1", 22), put("a/4", 23)});
  m.events({deleted("a/1", 21)});
  CHECK(m.stands("a/1", 22));
  CHECK(m.size() == 4);
}

TEST_CASE("after a gap nothing is known until the next snapshot, which replaces all") {
  auto m = line_of_three();
  m.begin();
  CHECK_FALSE(m.knows(0));
  CHECK(m.events({deleted("a/3", 31)}).empty());
  m.snapshot({stands("a/3", 13), stands("a/zz", 29), stands("a/5", 28)}, 30);
  CHECK(m.size() == 1);
  CHECK(m.is_first("a/5"));
  CHECK(m.foreign() == 1);
  CHECK(m.knows(31));
}

TEST_CASE("who is not in a later reading is gone, though no event has told of it") {
  auto m = line_of_three();  // at 20
  m.events({put("a/4", 30)});
  CHECK(m.confirm({stands("a/2", 12), stands("a/3", 13)}, 25) == keys{"a/1", "a/2"});
  CHECK(m.size() == 3);
  CHECK(m.is_first("a/2"));
  CHECK(m.stands("a/4", 30));  // who came after the reading
  CHECK(m.knows(30));
  CHECK(m.confirm({stands("a/2", 12), stands("a/3", 13)}, 25).empty());
}

TEST_CASE("a reading that is ahead of the events stands for them") {
  auto m = line_of_three();
  CHECK(m.confirm({stands("a/1", 25), stands("a/3", 13), stands("a/4", 22), stands("a/zz", 23)}, 26) ==
        keys{"a/1", "a/2", "a/4", "a/1", "a/3"});
  CHECK(m.size() == 3);
  CHECK(m.stands("a/1", 25));
  CHECK(m.is_first("a/3"));
  CHECK(m.knows(26));
  // They come late, and change nothing.
  CHECK(m.events({put("a/4", 22), deleted("a/1", 24), put("a/1", 25), deleted("a/2", 26)}) == keys{"a/3"});
  CHECK(m.size() == 3);
  CHECK(m.events({deleted("a/3", 27)}) == keys{"a/3", "a/4"});
}

TEST_CASE("a reading means nothing before the first snapshot, or after a gap") {
  auto m = line();
  CHECK(m.confirm({stands("a/1", 10)}, 20).empty());
  m.begin();
  CHECK(m.confirm({stands("a/1", 10)}, 20).empty());
  CHECK_FALSE(m.knows(0));
  CHECK(m.size() == 0);
}

TEST_CASE("in random histories the line is that of the store at every revision it knows") {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random{seed};
    std::map<std::string, revision> store;  // key → create revision
    auto m = line();
    revision now = 10;
    bool live = false;
    int compared = 0;
    for (int step = 0; step < 300; ++step) {
      CAPTURE(step);
      const auto dice = random() % 20;
      if (dice == 0) {
        m.begin();
        live = false;
      } else if (dice < 4 && !live) {
        std::vector<key_value> found;
        for (const auto& [key, created] : store) found.push_back(stands(key, created));
        m.snapshot(found, now);
        live = true;
      } else {
        std::vector<event> batch;
        ++now;
        for (auto i = random() % 3 + 1; i != 0; --i) {
          const std::string key = "a/" + std::to_string(i) + std::to_string(random() % 3);
          if (store.erase(key) != 0) {
            batch.push_back(deleted(key, now));
          } else {
            store[key] = now;
            batch.push_back(put(key, now));
          }
        }
        m.events(batch);
      }
      REQUIRE(m.knows(now) == live);
      if (!live) continue;
      ++compared;
      REQUIRE(m.size() == store.size());
      std::string first;
      for (const auto& [key, created] : store) {
        REQUIRE(m.stands(key, created));
        if (first.empty() || created < store.at(first)) first = key;  // equal ones are ordered by key
      }
      if (!first.empty()) REQUIRE(m.is_first(first));
    }
    REQUIRE(compared > 20);
  }
}
