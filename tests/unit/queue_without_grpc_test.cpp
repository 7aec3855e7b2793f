// SPDX-License-Identifier: BSL-1.0

// Queues on virtual time and against an etcd in memory: what they ask for, and what becomes of items when calls and
// answers get lost.

#include <conclave/client.hpp>
#include <conclave/priority_queue.hpp>
#include <conclave/queue.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/scripted_transport.hpp"

namespace {

using conclave::basic_queue;
using conclave::client;
using conclave::condition;
using conclave::errc;
using conclave::priority_queue;
using conclave::queue;
using conclave::test::fate;
using conclave::test::task;
using conclave::test::world;
using items = std::vector<std::string>;
using namespace std::chrono_literals;

const items five{"a", "b", "c", "d", "e"};

/// A client that has a waiting consumer's watch and lease, so that what comes next is a claim alone.
void warm_up(world& w, const queue& on) {
  auto waiting = w.start(on.dequeue());
  w.settle();
  w.get(on.enqueue("warm"));
  w.settle();
  REQUIRE(waiting.value() == "warm");
}

void fill(world& w, const queue& q, int from, int to) {
  for (int i = from; i < to; ++i) w.get(q.enqueue(std::to_string(i)));
}

items sorted(items of) {
  std::sort(of.begin(), of.end());
  return of;
}

items left_in(world& w, const std::string& prefix) {
  items out;
  for (const auto& [key, kv] : w.etcd().keys())
    if (key.starts_with(prefix)) out.push_back(kv.value);
  return out;
}

}  // namespace

TEST_CASE("producers that have the same time take no item from each other") {
  world w;
  const client left = w.connect();
  const client right = w.connect();
  const queue lq{left, "jobs"};
  const queue rq{right, "jobs"};
  items put;
  for (int i = 0; i < 5; ++i) {
    for (const queue* each : {&lq, &rq}) {
      put.push_back("item " + std::to_string(put.size()));
      w.get(each->enqueue(put.back()));
    }
  }
  const items all{"all 1", "all 2"};
  w.get(lq.enqueue_all(all));
  put.insert(put.end(), all.begin(), all.end());
  CHECK(left_in(w, "jobs/").size() == put.size());
  items got;
  for (std::size_t i = 0; i < put.size(); ++i) got.push_back(w.get(rq.dequeue()));
  CHECK(got == put);
}

TEST_CASE("a claim whose answer is lost is found out, and its item delivered once") {
  world w;
  const client c = w.connect();
  const queue q{c, "jobs"};
  warm_up(w, q);
  auto waiting = w.start(q.dequeue());
  w.settle();
  bool late = false;
  SECTION("it was applied") { w.server().next("KV.Txn", fate::answer_lost); }
  SECTION("it was refused") { w.server().next("KV.Txn", fate::refused); }
  SECTION("it never arrived") { w.server().next("KV.Txn", fate::never_arrives); }
  SECTION("it arrives later") {
    w.server().next("KV.Txn", fate::arrives_late);
    late = true;
  }
  SECTION("it was applied, and the answer to the first inquiry is lost as well") {
    w.server().next("KV.Txn", fate::answer_lost);
    w.server().next("KV.Txn", fate::answer_lost);
  }
  SECTION("it never arrived, and the answer to the first inquiry is lost") {
    w.server().next("KV.Txn", fate::never_arrives);
    w.server().next("KV.Txn", fate::answer_lost);
  }
  SECTION("it was applied, and what it took cannot be read at first") {
    w.server().next("KV.Txn", fate::answer_lost);
    w.server().next("KV.Range", fate::answer_lost);
  }
  w.get(q.enqueue("a"));
  w.advance(15s);
  REQUIRE(waiting.done());
  CHECK(waiting.value() == "a");
  CHECK(left_in(w, "jobs/").empty());

  w.get(q.enqueue("b"));
  CHECK(w.server().answer_late_ones() == (late ? 1 : 0));  // and changes nothing
  CHECK(left_in(w, "jobs/") == items{"b"});
  auto next = w.start(q.dequeue());
  w.advance(1s);
  CHECK(next.value() == "b");
}

TEST_CASE("a claim that arrives after it was asked about takes nothing") {
  world w;
  const client c = w.connect();
  const queue q{c, "jobs"};
  warm_up(w, q);
  w.get(q.enqueue("a"));
  w.server().next("KV.Txn", fate::arrives_late);
  auto first = w.start(q.dequeue());
  w.server().next("KV.Txn", fate::answered);  // the inquiry
  w.server().next("KV.Txn", fate::refused);   // the claim after it, once
  w.advance(5s);
  REQUIRE_FALSE(first.done());
  REQUIRE(left_in(w, "jobs/") == items{"a"});
  CHECK(w.server().answer_late_ones() == 1);
  CHECK(left_in(w, "jobs/") == items{"a"});
  w.advance(1s);
  CHECK(first.value() == "a");
  CHECK(left_in(w, "jobs/").empty());
}

TEST_CASE("whichever call of a queue's consumers fails, and how, each item is delivered once, in order") {
  // Each call that is made, and each two of them, in each way.
  const bool by_priority = GENERATE(false, true);
  constexpr fate ways[] = {fate::answered, fate::refused, fate::answer_lost, fate::never_arrives,
                           fate::arrives_late};
  constexpr int calls = 7;
  int runs = 0;
  std::size_t late_ones = 0;
  for (int first = 0; first < calls; ++first) {
    for (int second = first + 1; second < calls; ++second) {
      for (const auto first_way : ways) {
        for (const auto second_way : ways) {
          INFO("call " << first << " has fate " << static_cast<int>(first_way) << ", call " << second
                       << " fate " << static_cast<int>(second_way));
          world w{static_cast<std::uint64_t>(++runs)};
          const client producer = w.connect();
          std::optional<client> consumer{w.connect()};
          std::optional<queue> plain;
          std::optional<priority_queue> sorting;
          if (by_priority) {
            const priority_queue theirs{producer, "jobs"};
            for (const auto& each : five) w.get(theirs.enqueue(each, 3));
            sorting.emplace(*consumer, "jobs");
          } else {
            const queue theirs{producer, "jobs"};
            w.get(theirs.enqueue_all(five));
            plain.emplace(*consumer, "jobs");
          }
          const basic_queue& q = by_priority ? static_cast<const basic_queue&>(*sorting) : *plain;
          int made = 0;
          w.server().rule = [&](const std::string&) {
            const int number = made++;
            return number == first ? first_way : number == second ? second_way : fate::answered;
          };
          items got;
          // One after the other, then two at a time: claims of one item and of several.
          for (int i = 0; i < 3; ++i) {
            auto one = w.start(q.dequeue());
            for (int patience = 0; !one.done() && patience < 60; ++patience) w.advance(1s);
            REQUIRE(one.done());
            got.push_back(one.value());
          }
          auto fourth = w.start(q.dequeue());
          auto fifth = w.start(q.dequeue());
          for (int patience = 0; !(fourth.done() && fifth.done()) && patience < 60; ++patience) w.advance(1s);
          REQUIRE(fourth.done());
          REQUIRE(fifth.done());
          got.push_back(fourth.value());
          got.push_back(fifth.value());
          CHECK(got == five);
          late_ones += w.server().answer_late_ones();
          CHECK(left_in(w, "jobs/").empty());

          plain.reset();
          sorting.reset();
          consumer.reset();
          w.advance(70s);
          CHECK(w.etcd().leases() == 0);
          CHECK(left_in(w, "__jobs/receipt/").empty());
        }
      }
    }
  }
  CHECK(late_ones > 0);
}

TEST_CASE("two clients that lose answers take each item once between them") {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    world w{seed};
    const client producer = w.connect();
    const queue theirs{producer, "jobs"};
    items put;
    for (int i = 0; i < 24; ++i) put.push_back("item " + std::to_string(i));
    w.get(theirs.enqueue_all(put));
    const client left = w.connect();
    const client right = w.connect();
    const queue lq{left, "jobs"};
    const queue rq{right, "jobs"};
    std::uint64_t state = seed * 0x9e3779b97f4a7c15ULL;
    w.server().rule = [&](const std::string&) {
      state ^= state << 13U;
      state ^= state >> 7U;
      state ^= state << 17U;
      switch (state % 12) {
        case 0:
          return fate::answer_lost;
        case 1:
          return fate::arrives_late;
        case 2:
          return fate::refused;
        default:
          return fate::answered;
      }
    };
    items got;
    std::vector<task<std::string>> waiting;
    for (int i = 0; i < 12; ++i) {
      waiting.push_back(w.start(lq.dequeue()));
      waiting.push_back(w.start(rq.dequeue()));
      w.settle();
      if (i % 3 == 0) w.server().answer_late_ones();
    }
    w.advance(3min);
    for (auto& each : waiting) {
      REQUIRE(each.done());
      got.push_back(each.value());
    }
    w.server().answer_late_ones();
    CHECK(sorted(got) == sorted(put));
    CHECK(left_in(w, "jobs/").empty());
  }
}

TEST_CASE("a try whose claim's answer is lost gets its item; one that cannot be found out about is told") {
  world w;
  const client c = w.connect();
  const queue q{c, "jobs"};
  warm_up(w, q);
  w.get(q.enqueue("a"));
  w.server().next("KV.Txn", fate::answer_lost);
  SECTION("the inquiry is answered") {
    auto trying = w.start(q.try_dequeue());
    w.advance(1s);
    REQUIRE(trying.done());
    CHECK(trying.value() == "a");
  }
  SECTION("no server is there for the inquiry: the item goes to the next consumer") {
    bool claimed = false;
    w.server().rule = [&](const std::string& name) {
      // Everything after the claim.
      if (name == "KV.Txn" && !std::exchange(claimed, true)) return fate::answered;
      return claimed ? fate::never_arrives : fate::answered;
    };
    auto trying = w.start(q.try_dequeue());
    w.advance(20s);
    REQUIRE(trying.done());
    CHECK((trying.error() == condition::timed_out || trying.error() == condition::outcome_unknown ||
           trying.error() == condition::unavailable));
    w.server().rule = nullptr;
    auto next = w.start(q.dequeue());
    w.advance(20s);
    REQUIRE(next.done());
    CHECK(next.value() == "a");
  }
  CHECK(left_in(w, "jobs/").empty());
}

TEST_CASE("a claim whose receipt has ended with its lease is an unknown outcome only if the item is gone") {
  world w;
  const client c = w.connect();
  const queue q{c, "jobs"};
  warm_up(w, q);
  w.get(q.enqueue("a"));
  auto cut_off = [&](fate how) {
    w.server().next("KV.Txn", how);
    auto taking = w.start(q.dequeue());
    w.settle();
    w.server().stop();
    w.advance(90s);
    REQUIRE_FALSE(taking.done());
    w.etcd().expire(w.now());
    w.server().start();
    w.advance(20s);
    return taking;
  };
  SECTION("it is there") {
    w.server().rule = [&](const std::string& name) {
      return name == "KV.Txn" ? fate::never_arrives : fate::answered;
    };
    auto taking = w.start(q.dequeue());
    w.settle();
    w.server().stop();
    w.server().rule = nullptr;
    w.advance(90s);
    REQUIRE_FALSE(taking.done());
    w.etcd().expire(w.now());
    w.server().start();
    w.advance(20s);
    REQUIRE(taking.done());
    CHECK(taking.value() == "a");
  }
  SECTION("it was taken") {
    // Frozen behind the claim, so that the inquiry is not answered before the lease is over.
    auto taking = cut_off(fate::lost_late);
    REQUIRE(taking.done());
    CHECK(taking.error() == condition::outcome_unknown);
  }
  CHECK(left_in(w, "jobs/").empty());
}

TEST_CASE("a full store lets items be taken, and loses none") {
  world w;
  const client c = w.connect();
  const queue q{c, "jobs"};
  warm_up(w, q);
  w.get(q.enqueue_all(five));
  w.etcd().full = true;
  items got;
  for (int i = 0; i < 5; ++i) {
    auto one = w.start(q.dequeue());
    w.advance(3s);
    REQUIRE(one.done());
    got.push_back(one.value());
  }
  CHECK(got == five);
}

TEST_CASE("the queues of a client share one lease, which ends with their client") {
  world w;
  std::optional<client> c{w.connect()};
  {
    const queue q{*c, "jobs"};
    const queue other{*c, "other"};
    auto one = w.start(q.dequeue());
    auto two = w.start(other.dequeue());
    w.get(q.enqueue("a"));
    w.get(other.enqueue("b"));
    w.settle();
    CHECK(one.value() == "a");
    CHECK(two.value() == "b");
    CHECK(w.etcd().leases() == 1);
    CHECK(left_in(w, "__jobs/receipt/") == items{"claim"});
    CHECK(left_in(w, "__other/receipt/") == items{"claim"});
    SECTION("it is kept alive") {
      auto three = w.start(q.dequeue());
      const int claims = w.server().count("Lease.LeaseGrant");
      w.advance(10min);
      CHECK(w.etcd().leases() == 1);
      CHECK(w.server().count("Lease.LeaseGrant") == claims);
      w.get(q.enqueue("c"));
      CHECK(three.value() == "c");
    }
    SECTION("it is given back when no queue has been used for a while") {
      w.advance(40s);
      CHECK(w.etcd().leases() == 0);
      w.get(q.enqueue("c"));
      auto three = w.start(q.dequeue());
      w.settle();
      CHECK(three.value() == "c");
    }
  }
  c.reset();
  w.settle();
  CHECK(w.etcd().leases() == 0);
  CHECK(left_in(w, "__").empty());
}

TEST_CASE("where no lease is granted, claims go without receipts") {
  world w;
  const client c = w.connect();
  const queue q{c, "jobs"};
  w.server().rule = [](const std::string& name) {
    return name == "Lease.LeaseGrant" ? fate::not_served : fate::answered;
  };
  auto one = w.start(q.dequeue());
  w.get(q.enqueue("a"));
  w.advance(1s);
  CHECK(one.value() == "a");
  CHECK(left_in(w, "__").empty());
}

TEST_CASE(
    "whichever call of a priority queue's producer fails, and how, it knows whether its item is there") {
  constexpr fate ways[] = {fate::answered, fate::refused, fate::answer_lost, fate::never_arrives,
                           fate::arrives_late};
  constexpr int calls = 6;
  int runs = 0;
  std::size_t late_ones = 0;
  int untold = 0;
  for (int first = 0; first < calls; ++first) {
    for (int second = first + 1; second < calls; ++second) {
      for (const auto first_way : ways) {
        for (const auto second_way : ways) {
          INFO("call " << first << " has fate " << static_cast<int>(first_way) << ", call " << second
                       << " fate " << static_cast<int>(second_way));
          world w{static_cast<std::uint64_t>(++runs)};
          const client mine = w.connect();
          const client others = w.connect();
          const priority_queue q{mine, "jobs"};
          const priority_queue theirs{others, "jobs"};
          w.get(theirs.enqueue("x", 3));
          int made = 0;
          bool counting = true;
          w.server().rule = [&](const std::string&) {
            if (!counting) return fate::answered;
            const int number = made++;
            return number == first ? first_way : number == second ? second_way : fate::answered;
          };
          items put{"x"};
          const auto one_more = [&](const std::string& item) {
            auto adding = w.start(q.enqueue(item, 3));
            for (int patience = 0; !adding.done() && patience < 60; ++patience) w.advance(1s);
            REQUIRE(adding.done());
            // Never an unknown outcome: an item that cannot be told to be there is certainly not.
            const auto why = adding.error();
            CHECK((!why || why == condition::timed_out || why == condition::unavailable));
            if (!why) put.push_back(item);
            if (why) ++untold;
          };
          one_more("a");
          one_more("b");
          counting = false;  // somebody else comes in between
          w.get(theirs.enqueue("y", 3));
          put.emplace_back("y");
          counting = true;
          one_more("c");
          CHECK(left_in(w, "jobs/") == put);
          late_ones += w.server().answer_late_ones();
          CHECK(left_in(w, "jobs/") == put);
        }
      }
    }
  }
  CHECK(late_ones > 0);
  CHECK(untold < runs / 4);  // a read before the write, on a silent server
}

TEST_CASE("a priority queue's item whose answer is lost is found though others have written since") {
  world w;
  const client mine = w.connect();
  const client others = w.connect();
  const priority_queue q{mine, "jobs"};
  const priority_queue theirs{others, "jobs"};
  w.get(q.enqueue("first", 3));
  bool applied = false;
  SECTION("it was applied") {
    applied = true;
    w.server().next("KV.Txn", fate::lost_late);
  }
  SECTION("it was not") { w.server().next("KV.Txn", fate::never_arrives); }
  auto adding = w.start(q.enqueue("mine", 3));
  w.settle();
  for (int i = 0; i < 3; ++i) w.get(theirs.enqueue("theirs", 3));
  w.advance(20s);
  REQUIRE(adding.done());
  CHECK(adding.value() > 0);
  const items expected = applied ? items{"first", "mine", "theirs", "theirs", "theirs"}
                                 : items{"first", "theirs", "theirs", "theirs", "mine"};
  CHECK(left_in(w, "jobs/") == expected);
}

TEST_CASE("a queue is watched from when a consumer has to wait") {
  world w;
  const client producer = w.connect();
  const client consumer = w.connect();
  const queue to{producer, "q"};
  const queue from{consumer, "q"};
  const auto watch_requests = [&w] { return w.server().count("Watch"); };

  fill(w, to, 0, 5);
  for (int i = 0; i < 5; ++i) CHECK(w.get(from.dequeue()) == std::to_string(i));
  CHECK(watch_requests() == 0);
  CHECK(w.server().count("KV.Range") == 1);
  CHECK(w.server().count("KV.Txn") == 5);

  // None is left: the watch stands before the second look, so that nothing can come unseen.
  auto waiting = w.start(from.dequeue());
  w.settle();
  CHECK_FALSE(waiting.done());
  CHECK(watch_requests() == 1);
  CHECK(w.server().count("KV.Range") == 2);
  fill(w, to, 5, 60);
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value() == "5");
  for (int i = 6; i < 60; ++i) {
    w.advance(1s);
    CHECK(w.get(from.dequeue()) == std::to_string(i));
  }
  CHECK(watch_requests() == 1);
  CHECK(w.server().count("KV.Range") == 2);
  CHECK(w.server().count("KV.Txn") == 60);
}

TEST_CASE("a queue is watched when a consumer that does not wait has found nothing for the second time") {
  world w;
  const client c = w.connect();
  const queue q{c, "q"};
  const auto reads = [&w] { return w.server().count("KV.Range"); };
  CHECK_FALSE(w.get(q.try_dequeue()).has_value());
  CHECK(w.server().count("Watch") == 0);
  CHECK(reads() == 1);
  CHECK_FALSE(w.get(q.try_dequeue()).has_value());
  w.settle();
  CHECK(w.server().count("Watch") == 1);
  // Each "nothing" is of a read of its own; an item is told of.
  CHECK_FALSE(w.get(q.try_dequeue()).has_value());
  const auto before = reads();
  for (int i = 0; i < 5; ++i) {
    w.get(q.enqueue(std::to_string(i)));
    CHECK(w.get(q.try_dequeue()) == std::to_string(i));
  }
  CHECK(reads() == before);
  CHECK(w.server().count("Watch") == 1);
}

TEST_CASE("a consumer that finds an item taken by another looks again, once, and watches from then on") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const queue mine{one, "q"};
  const queue theirs{other, "q"};
  fill(w, mine, 0, 100);
  CHECK(w.get(mine.dequeue()) == "0");
  for (int i = 1; i < 90; ++i) CHECK(w.get(theirs.dequeue()) == std::to_string(i));

  const auto before = w.server().count("KV.Txn");
  SECTION("waiting") { CHECK(w.get(mine.dequeue()) == "90"); }
  SECTION("not waiting") { CHECK(w.get(mine.try_dequeue()) == "90"); }
  SECTION("several at a time") { CHECK(w.get(mine.dequeue_up_to(3)) == items{"90", "91", "92"}); }
  CHECK(w.server().count("KV.Txn") == before + 2);
  w.settle();
  CHECK(w.server().count("Watch") == 1);
}

TEST_CASE("a priority queue is watched from the first consumer on: what comes may go before what is known") {
  world w;
  const client c = w.connect();
  const client other = w.connect();
  const priority_queue q{c, "q"};
  const priority_queue to{other, "q"};
  w.get(to.enqueue("later", 5));
  w.get(to.enqueue("last", 5));
  CHECK(w.get(q.dequeue()) == "later");
  CHECK(w.server().count("Watch") == 1);
  w.get(to.enqueue("first", 1));
  CHECK(w.get(q.dequeue()) == "first");
  CHECK(w.get(q.dequeue()) == "last");
}

TEST_CASE("an item that was taken unheard of is asked for once, by whoever watches too") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const queue mine{one, "q"};
  const queue theirs{other, "q"};
  warm_up(w, mine);
  fill(w, mine, 0, 3);
  w.settle();
  w.server().tells_events = false;
  CHECK(w.get(theirs.dequeue()) == "0");
  const auto before = w.server().count("KV.Txn");
  CHECK(w.get(mine.dequeue()) == "1");
  CHECK(w.server().count("KV.Txn") == before + 2);
}

TEST_CASE("a receipt that somebody else has written to costs no item, and not its place") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const queue q{one, "q"};
  warm_up(w, q);
  fill(w, q, 0, 3);
  CHECK(w.get(q.dequeue()) == "0");
  const auto receipts = w.etcd().line("__q/receipt/");
  REQUIRE(receipts.size() == 1);
  w.get(other.put(receipts.front(), "somebody else's"));
  CHECK(w.get(q.dequeue()) == "1");
  CHECK(w.get(q.dequeue()) == "2");
}

TEST_CASE("after the store was restored a queue gives what is there, in its order, watched or not") {
  const bool watched = GENERATE(false, true);
  world w;
  const client c = w.connect();
  const queue q{c, "q"};
  if (watched) warm_up(w, q);
  fill(w, q, 0, 6);
  const auto backup = w.etcd();
  for (int i = 0; i < 3; ++i) CHECK(w.get(q.dequeue()) == std::to_string(i));
  CHECK((w.server().count("Watch") == 1) == watched);
  w.server().stop();
  w.settle();
  w.etcd() = backup;
  w.server().start();
  w.advance(5s);
  auto told = w.start(c.get("k"));
  w.advance(1s);
  for (int i = 0; i < 6; ++i) {
    auto item = w.start(q.dequeue());
    w.advance(5s);
    if (item.error() == errc::cluster_reset) item = w.start(q.dequeue());
    w.advance(5s);
    CHECK(item.value() == std::to_string(i));
  }
}

TEST_CASE("a consumer that comes while no server answers waits for one, and may leave meanwhile") {
  const bool watched = GENERATE(false, true);
  world w;
  const client c = w.connect();
  const client other = w.connect();
  const queue q{c, "q"};
  if (watched) warm_up(w, q);
  fill(w, queue{other, "q"}, 0, 2);
  w.server().stop();
  w.settle();
  auto leaves = w.start(q.dequeue());
  auto stays = w.start(q.dequeue());
  w.advance(30s);
  CHECK_FALSE(leaves.done());
  CHECK_FALSE(stays.done());
  leaves.cancel();
  w.settle();
  CHECK(leaves.error() == condition::cancelled);
  w.server().start();
  w.advance(10s);
  REQUIRE(stays.done());
  CHECK(stays.value() == "0");
  CHECK(w.get(q.dequeue()) == "1");
}
