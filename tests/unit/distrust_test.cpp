// SPDX-License-Identifier: BSL-1.0

// What a client does about servers that are not to be believed: a store that went back in time, stale answers,
// events that never come. On virtual time, against an etcd in memory.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/scripted_transport.hpp"

namespace {

using conclave::client;
using conclave::condition;
using conclave::errc;
using conclave::mutex;
using conclave::queue;
using conclave::session;
using conclave::watcher;
using conclave::test::world;
using namespace std::chrono_literals;

session open(world& w, const client& on) { return w.get(session::open(on, conclave::session_options{60s})); }

/// Writes, so that the store has something to forget.
void grow(world& w, const client& on, int writes = 10) {
  for (int i = 0; i < writes; ++i) (void)w.get(on.put("grown", std::to_string(i)));
}

void lose_the_disk(world& w) {
  w.server().stop();
  w.settle();
  w.server().start_empty();
  w.advance(5s);
}

}  // namespace

TEST_CASE(
    "a store that lost its data ends every wait, hold, watch and session, and the client can be used on") {
  world w;
  const client c = w.connect();
  grow(w, c);
  const auto s = open(w, c);
  const auto other = open(w, c);
  mutex a{s, "a"};
  mutex b{other, "a"};
  auto held = w.get(a.lock());
  auto lost = w.start(held.lost());
  auto waiting = w.start(b.lock());
  const queue jobs{c, "jobs"};
  auto item = w.start(jobs.dequeue());
  (void)w.get(c.put("stays", ""));
  auto deleted = w.start(c.wait_deleted("stays"));
  watcher seen = w.get(c.watch("seen"));
  auto next = w.start(seen.next());
  auto end = w.start(s.lost());
  w.settle();

  lose_the_disk(w);
  CHECK(lost.value() == errc::cluster_reset);
  CHECK(lost.value() == condition::ownership_lost);
  CHECK(waiting.error() == errc::cluster_reset);
  CHECK(item.error() == errc::cluster_reset);
  CHECK(deleted.error() == errc::cluster_reset);
  CHECK(next.error() == errc::cluster_reset);
  CHECK(end.value() == errc::cluster_reset);
  CHECK_FALSE(held.held());
  CHECK_FALSE(s.alive());
  CHECK_FALSE(other.alive());

  const auto again = open(w, c);
  mutex anew{again, "a"};
  CHECK(w.get(anew.lock()).held());
  auto second = w.start(jobs.dequeue());
  (void)w.get(jobs.enqueue("job"));
  w.settle();
  CHECK(second.value() == "job");
}

TEST_CASE("whoever makes the first call after a reset is told so") {
  world w;
  const client c = w.connect();
  grow(w, c);
  w.server().stop();
  w.settle();
  w.server().start_empty();
  SECTION("a write") {
    auto first = w.start(c.put("k", "v"));
    w.advance(1s);
    CHECK(first.error() == errc::cluster_reset);
  }
  SECTION("a read") {
    auto first = w.start(c.get("k"));
    w.advance(1s);
    CHECK(first.error() == errc::cluster_reset);
  }
  CHECK_NOTHROW(w.get(c.put("k", "w")));
}

TEST_CASE("a stale answer is asked for again, and not believed") {
  world w;
  const client c = w.connect();
  grow(w, c);
  w.server().stale_answers = GENERATE(1, 2);
  auto found = w.start(c.get("grown"));
  w.advance(1s);
  REQUIRE(found.value());
  CHECK(found.value()->value == "9");
}

TEST_CASE("stale answers without end are a reset") {
  world w;
  const client c = w.connect();
  grow(w, c);
  w.server().stale_answers = 1000;
  auto found = w.start(c.get("grown"));
  w.advance(1s);
  CHECK(found.error() == errc::cluster_reset);
}

TEST_CASE("a stale read that was asked for is not mistaken for a reset") {
  world w;
  const client c = w.connect();
  grow(w, c);
  w.server().stale_answers = 1;
  const auto found = w.get(c.range(conclave::range("grown", {.serializable = true})));
  CHECK(found.kvs.empty());
  CHECK(w.get(c.get("grown"))->value == "9");
}

TEST_CASE("an event that a server forgets costs a wait at most half a minute") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  const auto other = open(w, c);
  mutex a{s, "a"};
  mutex b{other, "a"};
  auto held = w.get(a.lock());
  auto waiting = w.start(b.lock());
  const queue jobs{c, "jobs"};
  auto item = w.start(jobs.dequeue());
  (void)w.get(c.put("goes", ""));
  auto deleted = w.start(c.wait_deleted("goes"));
  w.settle();

  w.server().tells_events = false;
  const client elsewhere = w.connect();
  w.get(held.unlock());
  (void)w.get(queue{elsewhere, "jobs"}.enqueue("job"));
  (void)w.get(elsewhere.delete_range(conclave::delete_key("goes")));
  w.settle();
  CHECK_FALSE(waiting.done());
  CHECK_FALSE(item.done());
  CHECK_FALSE(deleted.done());
  w.advance(31s);
  CHECK(waiting.value().held());
  CHECK(item.value() == "job");
  CHECK(deleted.done());
}

TEST_CASE("waiting costs a request each ten to thirty seconds, and holding a lock none") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex a{s, "a"};
  const auto held = w.get(a.lock());
  w.advance(50ms);  // from now on it is watched
  CHECK(w.server().count("KV.Range") == 1);
  const int before = w.server().count("KV.Range");
  w.advance(10min);
  CHECK(w.server().count("KV.Range") == before);

  const auto other = open(w, c);
  mutex b{other, "a"};
  auto waiting = w.start(b.lock());
  w.advance(10min);
  CHECK_FALSE(waiting.done());
  const int spent = w.server().count("KV.Range") - before;
  CHECK(spent >= 20);
  CHECK(spent <= 60);
  waiting.cancel();
  w.settle();
}

TEST_CASE("thousands that wait read fifty times a second together, and each in its turn") {
  world w;
  const client c = w.connect();
  constexpr int count = 1500;
  (void)w.get(c.put("k", ""));
  std::vector<conclave::test::task<conclave::revision>> waiting;
  for (int i = 0; i < count; ++i) waiting.push_back(w.start(c.wait_deleted("k")));
  w.settle();
  w.server().tells_events = false;
  const client elsewhere = w.connect();
  (void)w.get(elsewhere.delete_range(conclave::delete_key("k")));
  int before = w.server().count("KV.Range");
  const int all = before + count;
  for (int second = 0; second < 60; ++second) {
    w.advance(1s);
    const int now = w.server().count("KV.Range");
    CHECK(now - before <= 50);
    before = now;
  }
  CHECK(before == all);
  for (const auto& each : waiting) CHECK(each.done());
}
