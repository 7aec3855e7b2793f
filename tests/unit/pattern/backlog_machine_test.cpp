// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/pattern/backlog_machine.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using conclave::event;
using conclave::event_type;
using conclave::key_value;
using conclave::revision;
using conclave::detail::pattern::backlog_grammar;
using conclave::detail::pattern::backlog_machine;
using order = backlog_grammar::order;

std::string padded(std::uint64_t number, std::size_t width) {
  const auto digits = std::to_string(number);
  return std::string(width - std::min(width, digits.size()), '0') + digits;
}

std::string plain(std::uint64_t time) { return "q/" + padded(time, 19); }
std::string priority(unsigned which, std::uint64_t number) {
  return "q/" + padded(which, 5) + "/" + padded(number, 16);
}

key_value kv(std::string key, revision mod, std::string value = {}) {
  key_value out;
  out.key = std::move(key);
  out.mod_revision = mod;
  out.value = std::move(value);
  return out;
}

event put(std::string key, revision mod, std::string value = {}) {
  event out;
  out.kv = kv(std::move(key), mod, std::move(value));
  return out;
}

event removed(std::string key, revision mod) {
  event out;
  out.type = event_type::delete_;
  out.kv = kv(std::move(key), mod);
  return out;
}

using keys = std::vector<std::string>;

keys window(const backlog_machine& of) {
  keys out;
  for (const auto& each : of.first(of.size(), of.size())) out.push_back(each.key);
  return out;
}

backlog_machine plain_machine(std::size_t most_items = 100, std::size_t most_bytes = 1000) {
  return backlog_machine{backlog_grammar{"q", order::by_commit}, most_items, most_bytes};
}

backlog_machine priority_machine(std::size_t most_items = 100, std::size_t most_bytes = 1000) {
  return backlog_machine{backlog_grammar{"q", order::by_key}, most_items, most_bytes};
}

}  // namespace

TEST_CASE("the keys of a plain queue are those that etcd's Go package writes") {
  const backlog_grammar jobs{"jobs", order::by_commit};
  CHECK(jobs.prefix() == "jobs/");
  CHECK(jobs.is_item("jobs/1700000000123456789"));
  CHECK(jobs.is_item("jobs/1"));
  for (const auto* foreign :
       {"jobs/", "jobs", "jobs/x", "jobs/x/1700000000123456789", "jobs2/1700000000123456789", "jobs/17x",
        "jobs/-17", "jobs/1700000000123456789/", "jobs/00005/0000000000000001", "__jobs/00005",
        "other/1700000000123456789", ""}) {
    CAPTURE(foreign);
    CHECK_FALSE(jobs.is_item(foreign));
  }
  CHECK_FALSE(jobs.is_item(std::string{"jobs/1\0", 7}));

  const backlog_grammar nested{"jobs/x", order::by_commit};
  CHECK(nested.is_item("jobs/x/1700000000123456789"));
  CHECK_FALSE(nested.is_item("jobs/1700000000123456789"));
}

TEST_CASE("the keys of a priority queue are those that etcd's Go package writes") {
  const backlog_grammar jobs{"jobs", order::by_key};
  CHECK(jobs.is_item("jobs/00000/0000000000000000"));
  CHECK(jobs.is_item("jobs/65535/0000000000000042"));
  CHECK(jobs.is_item("jobs/65535/00000000000000420"));  // one that was put back behind another
  for (const auto* foreign :
       {"jobs/1700000000123456789", "jobs/00000/000000000000000", "jobs/0000/0000000000000000",
        "jobs/000000/0000000000000000", "jobs/00000/", "jobs/00000/000000000000000x",
        "jobs/0000x/0000000000000000", "jobs2/00000/0000000000000000", "__jobs/00000",
        "jobs/x/00000/0000000000000000", "jobs/0000000000000000000000"}) {
    CAPTURE(foreign);
    CHECK_FALSE(jobs.is_item(foreign));
  }
}

TEST_CASE("a listing makes the backlog live, in the order of commits, and counts foreign keys") {
  auto machine = plain_machine();
  CHECK_FALSE(machine.live());
  machine.begin();
  CHECK_FALSE(machine.live());
  REQUIRE(
      machine.snapshot({kv(plain(30), 5), kv("q/config", 6), kv(plain(10), 7), kv(plain(20), 9)}, false, 12));
  CHECK(machine.live());
  CHECK(machine.complete());
  CHECK(machine.applied() == 12);
  CHECK(machine.foreign() == 1);
  CHECK(window(machine) == keys{plain(30), plain(10), plain(20)});
}

TEST_CASE("items of one revision are in the order of their keys, whatever the server's order") {
  auto machine = plain_machine();
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(3), 5), kv(plain(1), 5), kv(plain(2), 5)}, false, 5));
  CHECK(window(machine) == keys{plain(1), plain(2), plain(3)});
}

TEST_CASE("a priority queue's order is that of the keys, whatever the revisions") {
  auto machine = priority_machine();
  machine.begin();
  REQUIRE(
      machine.snapshot({kv(priority(0, 7), 9), kv(priority(2, 0), 4), kv(priority(65535, 0), 2)}, false, 9));
  machine.events({put(priority(1, 0), 10, "x"), put(priority(2, 1), 11, "y")});
  CHECK(window(machine) ==
        keys{priority(0, 7), priority(1, 0), priority(2, 0), priority(2, 1), priority(65535, 0)});
}

TEST_CASE("events that come before the listing are applied after it, unless it knows of them") {
  auto machine = plain_machine();
  machine.begin();
  machine.events({put(plain(1), 5), put(plain(2), 6)});
  machine.events({removed(plain(1), 7), put(plain(3), 8, "three")});
  CHECK_FALSE(machine.live());
  // Read at revision 6: 1 and 2 are in it, the deletion and 3 are not.
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, false, 6));
  CHECK(window(machine) == keys{plain(2), plain(3)});
  CHECK(machine.applied() == 8);
  const auto items = machine.first(2, 2);
  CHECK_FALSE(items[0].value);
  CHECK(items[1].value == "three");
}

TEST_CASE("what came before a listing was begun does not count") {
  auto machine = plain_machine();
  machine.events({put(plain(1), 5)});
  machine.begin();
  REQUIRE(machine.snapshot({}, false, 7));
  CHECK(machine.empty());
}

TEST_CASE("a listing that was begun before a gap in the events is worthless") {
  auto machine = plain_machine();
  machine.begin();
  machine.forget();  // the watch is new: what happened between the two watches is known to nobody
  CHECK_FALSE(machine.snapshot({kv(plain(1), 5)}, false, 5));
  CHECK_FALSE(machine.live());
  machine.begin();
  CHECK(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, false, 6));
  CHECK(machine.live());
  CHECK(window(machine) == keys{plain(1), plain(2)});
}

TEST_CASE("events that are older than the view, or come twice, change nothing") {
  auto machine = plain_machine();
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(2), 9)}, false, 10));
  machine.events({put(plain(1), 5), removed(plain(2), 8)});
  CHECK(window(machine) == keys{plain(2)});
  machine.events({put(plain(3), 11)});
  machine.events({removed(plain(3), 12)});
  machine.events({put(plain(3), 11)});
  CHECK(window(machine) == keys{plain(2)});
  CHECK(machine.applied() == 12);
}

TEST_CASE("the events of one revision may come in parts") {
  auto machine = plain_machine();
  machine.begin();
  REQUIRE(machine.snapshot({}, false, 10));
  machine.events({put(plain(1), 11)});
  machine.events({put(plain(2), 11)});
  CHECK(window(machine) == keys{plain(1), plain(2)});
}

TEST_CASE(
    "an item that is put anew goes to the end of a plain queue and stays in its place in a priority queue") {
  auto machine = plain_machine();
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, false, 6));
  machine.events({put(plain(1), 7, "anew")});
  CHECK(window(machine) == keys{plain(2), plain(1)});
  const auto items = machine.first(2, 2);
  CHECK(items[1].mod_revision == 7);
  CHECK(items[1].value == "anew");

  auto by_key = priority_machine();
  by_key.begin();
  REQUIRE(by_key.snapshot({kv(priority(1, 0), 5), kv(priority(2, 0), 6)}, false, 6));
  by_key.events({put(priority(1, 0), 7, "anew")});
  CHECK(window(by_key) == keys{priority(1, 0), priority(2, 0)});
  CHECK(by_key.first(1, 0).at(0).mod_revision == 7);
}

TEST_CASE("an item that is put anew behind what the window shows leaves the window") {
  auto machine = plain_machine(2);
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, true,
                           9));  // 2 is dropped: its revision may be split
  REQUIRE(window(machine) == keys{plain(1)});
  machine.events({put(plain(1), 10)});
  CHECK(machine.empty());
  CHECK_FALSE(machine.complete());
}

TEST_CASE("what is taken leaves the window, unless it is a later item under the same key") {
  auto machine = plain_machine();
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, false, 6));
  machine.taken(plain(1), 5);
  CHECK(window(machine) == keys{plain(2)});
  machine.events({removed(plain(1), 7), put(plain(1), 8)});
  machine.taken(plain(1), 5);  // a late word of the first one
  CHECK(window(machine) == keys{plain(2), plain(1)});
  machine.taken(plain(9), 5);
  CHECK(machine.size() == 2);
}

TEST_CASE("a full window drops its end and knows that there is more behind it") {
  auto machine = plain_machine(2);
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, false, 6));
  CHECK(machine.complete());
  machine.events({put(plain(3), 7)});
  CHECK(window(machine) == keys{plain(1), plain(2)});
  CHECK_FALSE(machine.complete());

  // What comes now is behind what is hidden.
  machine.taken(plain(1), 5);
  machine.events({put(plain(4), 9)});
  CHECK(window(machine) == keys{plain(2)});
  machine.taken(plain(2), 6);
  CHECK(machine.empty());
  CHECK_FALSE(machine.complete());
  machine.events({put(plain(5), 10)});
  CHECK(machine.empty());

  // The next listing starts over.
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(3), 7), kv(plain(4), 9)}, true, 10));
  CHECK(window(machine) == keys{plain(3)});
}

TEST_CASE("a full window of a priority queue makes room for a better item and drops the worst") {
  auto machine = priority_machine(2);
  machine.begin();
  REQUIRE(machine.snapshot({kv(priority(5, 0), 5), kv(priority(6, 0), 6)}, true, 9));
  machine.events({put(priority(1, 0), 10)});
  CHECK(window(machine) == keys{priority(1, 0), priority(5, 0)});
  machine.events({put(priority(6, 0), 11)});  // behind what is known: something hidden may go before it
  CHECK(window(machine) == keys{priority(1, 0), priority(5, 0)});
}

TEST_CASE("a page that ends within a revision does not split it") {
  auto machine = plain_machine(3);
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(4), 6), kv(plain(3), 6)}, true, 9));
  CHECK(window(machine) == keys{plain(1)});
  CHECK_FALSE(machine.complete());

  SECTION("the last page is whole") {
    machine.begin();
    REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(4), 6), kv(plain(3), 6)}, false, 9));
    CHECK(window(machine) == keys{plain(1), plain(3), plain(4)});
  }
  SECTION("a priority queue has no such trouble") {
    auto by_key = priority_machine(3);
    by_key.begin();
    REQUIRE(by_key.snapshot({kv(priority(1, 0), 6), kv(priority(2, 0), 6)}, true, 9));
    CHECK(by_key.size() == 2);
  }
}

TEST_CASE("values are kept as long as there is room for them") {
  auto machine = plain_machine(100, 10);
  machine.begin();
  REQUIRE(machine.snapshot({}, false, 4));
  machine.events({put(plain(1), 5, "123456"), put(plain(2), 6, "1234567"), put(plain(3), 7, ""),
                  put(plain(4), 8, "1234")});
  CHECK(machine.value_bytes() == 10);
  auto items = machine.first(4, 4);
  REQUIRE(items.size() == 4);
  CHECK(items[0].value == "123456");
  CHECK_FALSE(items[1].value);
  CHECK(items[2].value == "");
  CHECK(items[3].value == "1234");

  machine.taken(plain(1), 5);
  CHECK(machine.value_bytes() == 4);
  machine.events({put(plain(5), 9, "123456")});
  CHECK(machine.value_bytes() == 10);
  machine.begin();
  REQUIRE(machine.snapshot({}, false, 10));
  CHECK(machine.value_bytes() == 0);
}

TEST_CASE("the oldest items are given up to a number, and up to a number whose value is unknown") {
  auto machine = plain_machine();
  machine.begin();
  REQUIRE(machine.snapshot({kv(plain(1), 5), kv(plain(2), 6)}, false, 6));
  machine.events({put(plain(3), 7, "known"), put(plain(4), 8, "known")});
  const auto count = [&](std::size_t most, std::size_t unknown) {
    return machine.first(most, unknown).size();
  };
  CHECK(count(3, 10) == 3);
  CHECK(count(10, 10) == 4);
  CHECK(count(10, 2) == 4);
  CHECK(count(10, 1) == 1);
  CHECK(count(10, 0) == 0);
  CHECK(count(0, 10) == 0);
}

namespace {

/// A store with one queue, all that ever happened to it, and a watch that lags behind.
class model {
public:
  explicit model(order sorted) : grammar_{"q", sorted} {}

  using content = std::map<std::string, key_value>;
  using entry = std::tuple<revision, std::string, revision>;  ///< Its rank, its key, its mod revision.

  revision now() const { return now_; }

  /// One transaction.
  void write(const std::set<std::string>& puts, const std::set<std::string>& removals,
             const std::string& value) {
    ++now_;
    std::vector<event> batch;
    for (const auto& key : puts) {
      batch.push_back(put(key, now_, value));
      content_[key] = kv(key, now_, value);
    }
    for (const auto& key : removals)
      if (!puts.contains(key) && content_.erase(key) != 0) batch.push_back(removed(key, now_));
    if (batch.empty()) return;
    history_.push_back(batch);
    pending_.push_back(std::move(batch));
  }

  const content& content_now() const { return content_; }

  /// The next events of the watch, whole revisions.
  std::vector<event> deliver(std::size_t revisions) {
    std::vector<event> out;
    for (; revisions > 0 && !pending_.empty(); --revisions) {
      for (auto& each : pending_.front()) out.push_back(std::move(each));
      pending_.pop_front();
    }
    return out;
  }

  /// The watch breaks, and is there again: what was on its way is lost.
  void reconnect() { pending_.clear(); }

  /// What a server answers to a listing.
  template <class Random>
  std::pair<std::vector<key_value>, bool> list(std::size_t limit, Random& random) const {
    std::vector<key_value> all;
    for (const auto& [key, each] : content_) all.push_back(kv(key, each.mod_revision));
    if (grammar_.sorted() == order::by_commit) {
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.end(),
                [](const auto& a, const auto& b) { return a.mod_revision < b.mod_revision; });
    }
    const bool more = all.size() > limit;
    if (more) all.resize(limit);
    return {std::move(all), more};
  }

  /// The queue as it was at a revision, without what the machine has been told is taken.
  std::vector<std::pair<entry, std::string>> items_at(revision when) const {
    content then;
    for (const auto& batch : history_) {
      if (batch.front().kv->mod_revision > when) break;
      for (const auto& each : batch) {
        if (each.type == event_type::put)
          then[each.kv->key] = *each.kv;
        else
          then.erase(each.kv->key);
      }
    }
    std::vector<std::pair<entry, std::string>> out;
    for (const auto& [key, each] : then) {
      if (!grammar_.is_item(key) || taken_.contains({key, each.mod_revision})) continue;
      out.push_back({{grammar_.sorted() == order::by_commit ? each.mod_revision : 0, key, each.mod_revision},
                     each.value});
    }
    std::sort(out.begin(), out.end());
    return out;
  }

  void taken(const std::string& key, revision mod) { taken_.emplace(key, mod); }

private:
  backlog_grammar grammar_;
  revision now_ = 1;
  content content_;
  std::vector<std::vector<event>> history_;
  std::deque<std::vector<event>> pending_;
  std::set<std::pair<std::string, revision>> taken_;
};

struct coverage {
  int whole = 0;
  int partial = 0;
  int ran_empty = 0;
  int worthless = 0;
  int claims_lost = 0;
  int known_values = 0;
};

void play(order sorted, std::uint64_t seed, coverage& seen) {
  std::mt19937_64 random{seed};
  const auto below = [&random](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>{0, n - 1}(random);
  };
  const std::size_t most_items = 4 + below(5);  // a revision has at most three items: no page is of one alone
  const std::size_t most_bytes = below(30);
  backlog_machine machine{backlog_grammar{"q", sorted}, most_items, most_bytes};
  model store{sorted};
  const auto some_key = [&]() -> std::string {
    if (below(10) == 0) return "q/foreign" + std::to_string(below(3));
    if (sorted == order::by_commit) return plain(below(14));
    return priority(static_cast<unsigned>(below(3)), below(5));
  };
  bool reading = false;
  std::pair<std::vector<key_value>, bool> answer;
  revision answered_at = 0;

  for (int step = 0; step < 400; ++step) {
    switch (below(9)) {
      case 0:
      case 1:
        store.write({some_key()}, {}, std::string(below(8), 'v'));
        break;
      case 2:
        store.write({some_key(), some_key(), some_key()}, {some_key()}, "batch");
        break;
      case 3:
        store.write({}, {some_key(), some_key()}, "");
        break;
      case 4:
      case 5:
        machine.events(store.deliver(1 + below(3)));
        break;
      case 6:  // a claim: what it finds unchanged is deleted
        if (machine.live()) {
          std::set<std::string> won;
          const auto items = machine.first(1 + below(3), 3);
          for (const auto& each : items) {
            const auto found = store.content_now().find(each.key);
            if (found != store.content_now().end() && found->second.mod_revision == each.mod_revision)
              won.insert(each.key);
            else
              ++seen.claims_lost;
          }
          store.write({}, won, "");
          for (const auto& each : items) {
            machine.taken(each.key, each.mod_revision);
            store.taken(each.key, each.mod_revision);
          }
        }
        break;
      case 7:  // a listing: begun, served and answered at different times
        if (!reading) {
          machine.begin();
          reading = true;
          answered_at = 0;
        } else if (answered_at == 0) {
          answer = store.list(most_items, random);
          answered_at = store.now();
        } else {
          if (!machine.snapshot(answer.first, answer.second, answered_at)) ++seen.worthless;
          reading = false;
        }
        break;
      default:
        if (below(6) == 0) {
          store.reconnect();
          machine.forget();
        }
        break;
    }

    CAPTURE(step, most_items, most_bytes);
    REQUIRE(machine.size() <= most_items);
    REQUIRE(machine.value_bytes() <= most_bytes);
    if (!machine.live()) continue;
    const auto expected = store.items_at(machine.applied());
    const auto items = machine.first(machine.size(), machine.size());
    REQUIRE(items.size() == machine.size());
    REQUIRE(items.size() <= expected.size());
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      REQUIRE(items[i].key == std::get<1>(expected[i].first));
      REQUIRE(items[i].mod_revision == std::get<2>(expected[i].first));
      if (!items[i].value) continue;
      REQUIRE(*items[i].value == expected[i].second);
      bytes += items[i].value->size();
      ++seen.known_values;
    }
    REQUIRE(machine.value_bytes() == bytes);
    if (machine.complete()) {
      REQUIRE(items.size() == expected.size());
      seen.whole += items.empty() ? 0 : 1;
    } else {
      ++(items.empty() ? seen.ran_empty : seen.partial);
    }
  }
}

}  // namespace

TEST_CASE("whenever the backlog is live, it shows the oldest items of that revision") {
  const auto sorted = GENERATE(order::by_commit, order::by_key);
  coverage seen;
  const auto first_seed = std::uint64_t{std::random_device{}()};
  for (std::uint64_t run = 0; run < 150; ++run) {
    const auto seed = first_seed + run;
    CAPTURE(seed);
    play(sorted, seed, seen);
  }
  CAPTURE(first_seed);
  CHECK(seen.whole > 100);
  CHECK(seen.partial > 100);
  CHECK(seen.ran_empty > 10);
  CHECK(seen.worthless > 10);
  CHECK(seen.claims_lost > 10);
  CHECK(seen.known_values > 100);
}
