// SPDX-License-Identifier: BSL-1.0

// The whole library above the transport, on virtual time and against an etcd in memory.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/session.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/scripted_transport.hpp"

namespace {

using conclave::client;
using conclave::condition;
using conclave::errc;
using conclave::lease_id;
using conclave::mutex;
using conclave::session;
using conclave::unique_lock;
using conclave::detail::pattern::line_grammar;
using conclave::test::fate;
using conclave::test::world;
using keys = std::vector<std::string>;
using namespace std::chrono_literals;

session open(world& w, const client& on, std::chrono::seconds ttl = 10s) {
  return w.get(session::open(on, conclave::session_options{ttl}));
}

std::string place(const std::string& name, const session& of) {
  return line_grammar{name}.key(of.lease_id());
}

conclave::asio::awaitable<void> note_loss(const unique_lock& held, std::vector<std::string>& notes) {
  (void)co_await held.lost();
  notes.emplace_back(held.held() ? "told of a loss, and still holds" : "lost");
}

conclave::asio::awaitable<unique_lock> note_lock(mutex& wanted, std::vector<std::string>& notes) {
  unique_lock got = co_await wanted.lock();
  notes.emplace_back("locked");
  co_return got;
}

}  // namespace

TEST_CASE("a session is a lease, which its end revokes") {
  world w;
  const client c = w.connect();
  auto s = open(w, c);
  CHECK(w.etcd().has_lease(s.lease_id()));
  CHECK(s.alive());
  CHECK(s.ttl() == 10s);
  CHECK(s.valid_until() == w.now() + 9500ms);

  SECTION("by close") {
    auto lost = w.start(s.lost());
    w.get(s.close());
    w.settle();
    CHECK(lost.value() == errc::session_closed);
  }
  SECTION("by the end of its last handle") {
    std::optional<session> last{std::move(s)};
    last.reset();
    w.settle();
  }
  CHECK(w.etcd().leases() == 0);
}

TEST_CASE("a session lives on for as long as its keepalives are answered") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  auto lost = w.start(s.lost());
  w.advance(10min);
  CHECK(s.alive());
  CHECK_FALSE(lost.done());
  CHECK(w.etcd().has_lease(s.lease_id()));
  CHECK(s.valid_until() > w.now() + 6s);
  const int sent = w.server().count("LeaseKeepAlive");
  CHECK(sent >= 170);  // each third of 10 s
  CHECK(sent <= 190);
}

TEST_CASE("a grant whose answer is lost is asked for again and leaves one lease") {
  world w;
  const client c = w.connect();
  w.server().next("Lease.LeaseGrant", fate::answer_lost);
  const auto begun = w.now();
  auto opening = w.start(session::open(c));
  w.advance(1s);
  const session s = opening.value();
  CHECK(w.server().count("Lease.LeaseGrant") == 2);
  CHECK(w.etcd().leases() == 1);
  CHECK(w.etcd().has_lease(s.lease_id()));
  CHECK(s.valid_until() <= begun + 15s);
}

TEST_CASE("an opening that is cancelled leaves no lease") {
  world w;
  const client c = w.connect();
  w.server().next("Lease.LeaseGrant", fate::answer_late);
  auto opening = w.start(session::open(c));
  w.settle();
  REQUIRE(w.etcd().leases() == 1);
  opening.cancel();
  w.settle();
  CHECK(opening.error() == condition::cancelled);
  w.advance(1s);
  CHECK(w.etcd().leases() == 0);
}

TEST_CASE("a session is lost at valid_until, in virtual time, when no keepalive is answered") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  auto lost = w.start(s.lost());
  mutex m{s, "a"};
  const auto lock = w.get(m.lock());
  auto hold_lost = w.start(lock.lost());
  w.server().answers_keepalives = false;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(s.valid_until() - w.now());
  w.advance(left - 1ms);
  CHECK_FALSE(lost.done());
  CHECK(s.alive());
  CHECK(lock.held());
  CHECK(w.etcd().has_lease(s.lease_id()));

  w.advance(1ms);
  REQUIRE(lost.done());
  CHECK(lost.value() == errc::session_lost);
  CHECK_FALSE(s.alive());
  CHECK_FALSE(lock.held());
  CHECK(hold_lost.value() == errc::session_lost);
  CHECK(w.etcd().has_lease(s.lease_id()));  // we gave up before the server did

  w.advance(1s);
  CHECK(w.etcd().leases() == 0);
}

TEST_CASE("a frozen server costs the session at the same moment") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  auto lost = w.start(s.lost());
  w.server().freeze();
  w.advance(9499ms);
  CHECK_FALSE(lost.done());
  w.advance(1ms);
  CHECK(lost.value() == errc::session_lost);
}

TEST_CASE("a session survives a server that comes back within its time") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  auto lost = w.start(s.lost());
  w.server().stop();
  w.advance(8s);
  w.server().start();
  w.advance(1min);
  CHECK_FALSE(lost.done());
  CHECK(s.valid_until() > w.now());
}

TEST_CASE("a free lock is taken by one call and given back by one") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  CHECK(w.server().count("KV.Txn") == 1);
  CHECK(lock.held());
  CHECK(lock.key() == place("a", s));
  CHECK(w.etcd().line("a/") == keys{place("a", s)});
  CHECK(lock.token() == w.etcd().keys().at(lock.key()).create_revision);
  CHECK(w.etcd().keys().at(lock.key()).lease == s.lease_id());
  w.get(lock.unlock());
  CHECK(w.server().count("KV.Txn") == 2);
  CHECK_FALSE(lock.held());
  CHECK(w.etcd().line("a/").empty());
}

TEST_CASE("a line is watched when somebody needs it, and no longer when nobody has for a while") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c, 60s);
  const auto other = open(w, c, 60s);
  mutex m{s, "a"};
  mutex theirs{other, "a"};
  const auto watch_requests = [&w] { return w.server().count("Watch"); };
  const auto take_and_give_back = [&w, &m] {
    auto lock = w.get(m.lock());
    w.get(lock.unlock());
  };

  for (int i = 0; i < 3; ++i) {
    take_and_give_back();
    w.advance(20ms);
  }
  CHECK(watch_requests() == 0);
  auto lock = w.get(m.lock());
  w.advance(49ms);
  CHECK(watch_requests() == 0);
  CHECK(w.server().count("KV.Range") == 0);
  w.advance(1ms);
  CHECK(watch_requests() == 1);
  CHECK(w.server().count("KV.Range") == 1);
  w.get(lock.unlock());

  for (int i = 0; i < 29; ++i) {
    w.advance(1s);
    take_and_give_back();
  }
  CHECK(watch_requests() == 1);
  w.advance(1s);
  take_and_give_back();
  w.settle();
  CHECK(watch_requests() == 2);  // its end
  for (int i = 0; i < 3; ++i) take_and_give_back();
  CHECK(watch_requests() == 2);

  auto held = w.get(m.lock());
  auto waiting = w.start(theirs.lock());
  w.settle();
  CHECK(watch_requests() == 3);
  CHECK_FALSE(waiting.done());
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
  CHECK(watch_requests() == 3);

  w.advance(40s);
  w.get(waiting.value().unlock());
  w.advance(29s);
  take_and_give_back();
  CHECK(watch_requests() == 3);  // it was needed until the long hold ended
  w.advance(1s);
  take_and_give_back();
  w.settle();
  CHECK(watch_requests() == 4);
}

TEST_CASE("two sessions exclude each other, and the lock is handed over by an event alone") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();
  CHECK_FALSE(waiting.done());
  CHECK(w.etcd().line("a/") == keys{place("a", first), place("a", second)});

  w.advance(1min);
  CHECK_FALSE(waiting.done());
  CHECK(held.held());

  const int ranges = w.server().count("KV.Range");
  const int txns = w.server().count("KV.Txn");
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
  CHECK(waiting.value().token() > 0);
  CHECK(w.server().count("KV.Range") == ranges);
  CHECK(w.server().count("KV.Txn") == txns + 1);  // the unlock
  CHECK(w.etcd().line("a/") == keys{place("a", second)});
}

TEST_CASE("the lock goes through many sessions in the order of their arrival, with growing tokens") {
  world w;
  std::vector<client> clients;
  std::vector<session> sessions;
  std::vector<std::unique_ptr<mutex>> mutexes;
  std::vector<conclave::test::task<unique_lock>> waiting;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(w.connect());
    sessions.push_back(open(w, clients.back()));
    mutexes.push_back(std::make_unique<mutex>(sessions.back(), "a"));
    waiting.push_back(w.start(mutexes.back()->lock()));
    w.settle();
  }
  conclave::revision last = 0;
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    CAPTURE(i);
    REQUIRE(waiting[i].done());
    if (i + 1 < waiting.size()) REQUIRE_FALSE(waiting[i + 1].done());
    CHECK(waiting[i].value().token() > last);
    last = waiting[i].value().token();
    w.get(waiting[i].value().unlock());
    w.settle();
  }
  CHECK(w.etcd().line("a/").empty());
}

TEST_CASE("one session neither excludes itself for ever nor enters twice") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m1{s, "a"};
  mutex m2{s, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.advance(1min);
  CHECK_FALSE(waiting.done());
  const auto token = held.token();
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().token() > token);
}

TEST_CASE("the locks a and a/b do not touch, and foreign keys stand in nobody's way") {
  world w;
  const client c = w.connect();
  const auto first = open(w, c);
  const auto second = open(w, c);
  w.get(c.put("a/readme", "not a place in line"));
  w.get(c.put("a/ZZ", ""));
  mutex outer{first, "a"};
  mutex inner{second, "a/b"};
  auto one = w.get(inner.lock());
  auto other = w.get(outer.lock());
  CHECK(one.held());
  CHECK(other.held());

  mutex contender{second, "a"};
  auto waiting = w.start(contender.lock());
  w.settle();
  CHECK_FALSE(waiting.done());
  w.get(other.unlock());
  w.settle();
  CHECK(waiting.done());
}

TEST_CASE("try_lock takes a free lock, and leaves no key when it is not") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto got = w.get(m1.try_lock());
  REQUIRE(got.has_value());
  CHECK(got->held());

  auto again = w.get(m2.try_lock());
  CHECK_FALSE(again.has_value());
  CHECK(w.etcd().line("a/") == keys{place("a", first)});
  mutex same{first, "a"};
  CHECK_FALSE(w.get(same.try_lock()).has_value());

  w.get(got->unlock());
  auto third = w.get(m2.try_lock());
  REQUIRE(third.has_value());
  CHECK(w.etcd().line("a/") == keys{place("a", second)});
}

TEST_CASE("try_lock takes a lock beside foreign keys") {
  world w;
  const client c = w.connect();
  const auto first = open(w, c);
  const auto second = open(w, c);
  w.get(c.put("a/readme", ""));
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto got = w.get(m1.try_lock());
  CHECK(got.has_value());
  CHECK_FALSE(w.get(m2.try_lock()).has_value());
  w.settle();
  CHECK(w.etcd().line("a/") == keys{"a/readme", place("a", first)});
}

TEST_CASE("a wait with a limit ends with it and leaves no key") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.try_lock_for(3s));
  w.advance(2999ms);
  CHECK_FALSE(waiting.done());
  CHECK(w.etcd().line("a/").size() == 2);
  w.advance(1ms);
  REQUIRE(waiting.done());
  CHECK_FALSE(waiting.value().has_value());
  CHECK(w.etcd().line("a/") == keys{place("a", first)});
}

TEST_CASE("the limit of an earlier wait does not disturb a later one") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto got = w.get(m1.try_lock_for(5s));  // its limit has yet to come
  REQUIRE(got.has_value());
  w.get(got->unlock());
  auto held = w.get(m2.lock());
  auto waiting = w.start(m1.lock());
  w.advance(10s);
  CHECK_FALSE(waiting.done());
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
}

TEST_CASE("a hold is lost when the event of its key's deletion arrives") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  auto lost = w.start(lock.lost());
  w.settle();
  CHECK_FALSE(lost.done());

  SECTION("deleted by somebody else before it is watched") {
    (void)w.etcd().apply(conclave::delete_key(lock.key()));
    w.advance(50ms);
    REQUIRE(lost.done());
    CHECK(lost.value() == errc::lock_lost);
  }
  SECTION("deleted by somebody else") {
    w.advance(50ms);
    (void)w.etcd().apply(conclave::delete_key(lock.key()));
    CHECK(lock.held());  // the event has yet to arrive
    w.settle();
    REQUIRE(lost.done());
    CHECK(lost.value() == errc::lock_lost);
    CHECK_FALSE(lock.held());
    auto unlocking = w.start(lock.unlock());
    w.settle();
    CHECK(unlocking.error() == errc::lock_lost);
    CHECK(s.alive());
    CHECK(w.get(m.lock()).held());  // the session can lock again
  }
  SECTION("by the end of its lease") {
    auto session_lost = w.start(s.lost());
    w.etcd().revoke(s.lease_id());
    w.advance(4s);  // the next keepalive tells
    REQUIRE(lost.done());
    CHECK(lost.value() == condition::ownership_lost);
    CHECK_FALSE(lock.held());
    CHECK(session_lost.value() == errc::session_lost);
  }
}

TEST_CASE("a hold is not lost by what happens to other keys, nor by a broken stream") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  auto lost = w.start(lock.lost());
  w.get(c.put("a/other", ""));
  w.get(c.delete_range(conclave::delete_key("a/other")));
  w.server().break_streams();
  w.advance(1min);
  CHECK_FALSE(lost.done());
  CHECK(lock.held());

  SECTION("a loss that happens while there is no stream is found out by the read after it") {
    w.server().break_streams();
    (void)w.etcd().apply(conclave::delete_key(lock.key()));
    w.advance(2s);
    REQUIRE(lost.done());
    CHECK(lost.value() == errc::lock_lost);
  }
}

TEST_CASE("in one client a holder hears of its loss before the next one has the lock") {
  world w;
  const client c = w.connect();
  const auto first = open(w, c);
  const auto second = open(w, c);
  // Several: in whatever order the library may keep the two.
  const std::string name = "lock-" + std::to_string(GENERATE(range(0, 8)));
  mutex m1{first, name};
  mutex m2{second, name};
  std::vector<std::string> notes;
  const auto held = w.get(m1.lock());
  w.advance(50ms);  // from now on it is watched
  auto losing = w.start(note_loss(held, notes));

  SECTION("if an event tells of it") {
    auto waiting = w.start(note_lock(m2, notes));
    w.settle();
    (void)w.etcd().apply(conclave::delete_key(held.key()));
    w.settle();
    CHECK(waiting.value().held());
  }
  SECTION("if the read after a broken stream does") {
    auto waiting = w.start(note_lock(m2, notes));
    w.settle();
    w.server().break_streams();
    (void)w.etcd().apply(conclave::delete_key(held.key()));
    w.advance(2s);
    CHECK(waiting.value().held());
  }
  SECTION("if no event tells of it, nor of the next one's place, and so the line is read") {
    w.server().tells_events = false;
    (void)w.etcd().apply(conclave::delete_key(held.key()));
    auto waiting = w.start(note_lock(m2, notes));
    w.settle();
    CHECK_FALSE(waiting.done());
    w.advance(1s);
    CHECK(waiting.value().held());
  }
  SECTION("if the next one's own request does, while nothing is known of the line") {
    w.server().tells_events = false;
    w.server().next("KV.Range", fate::never_arrives);
    w.server().break_streams();
    w.advance(2s);
    (void)w.etcd().apply(conclave::delete_key(held.key()));
    auto waiting = w.start(note_lock(m2, notes));
    w.settle();
    CHECK(waiting.value().held());
  }
  CHECK(notes == std::vector<std::string>{"lost", "locked"});
  CHECK(losing.done());
}

TEST_CASE("a place in line that is deleted before the watch tells of it ends the wait") {
  world w;
  const client c = w.connect();
  const auto first = open(w, c);
  const auto second = open(w, c);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  w.advance(50ms);  // from now on it is watched
  w.server().tells_events = false;
  auto waiting = w.start(m2.lock());
  w.settle();
  (void)w.etcd().apply(conclave::delete_key(place("a", second)));
  w.advance(1s);
  REQUIRE(waiting.done());
  CHECK(waiting.error() == errc::lock_lost);
  CHECK(held.held());
}

TEST_CASE("whoever joins behind somebody, and has no answer, has one place all the same") {
  const auto lost = GENERATE(fate::answer_lost, fate::never_arrives, fate::arrives_late);
  world w;
  const client c = w.connect();
  const auto first = open(w, c);
  const auto second = open(w, c);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  w.advance(50ms);  // from now on the second knows that somebody is ahead, and does not ask
  w.server().next("KV.Txn", lost);
  auto waiting = w.start(m2.lock());
  w.advance(20s);
  CHECK_FALSE(waiting.done());
  w.server().answer_late_ones();
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
  CHECK(waiting.value().token() > 0);
  const auto line = w.get(c.range(conclave::range_prefix("a/")));
  REQUIRE(line.kvs.size() == 1);
  CHECK(line.kvs.front().key == place("a", second));
  CHECK(line.kvs.front().create_revision == waiting.value().token());
}

TEST_CASE("a place in line that is deleted ends the wait") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();
  (void)w.etcd().apply(conclave::delete_key(place("a", second)));
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.error() == errc::lock_lost);
  CHECK(held.held());
}

TEST_CASE("a waiter whose session is lost is told at once") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();
  auto closing = second;
  w.get(closing.close());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.error() == errc::session_closed);
  CHECK(w.etcd().line("a/") == keys{place("a", first)});
  CHECK(held.held());
}

TEST_CASE("a join whose answer is lost after it was applied finds its own key, once") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  w.server().next("KV.Txn", fate::answer_lost);
  auto locking = w.start(m.lock());
  w.advance(1s);
  REQUIRE(locking.done());
  CHECK(locking.value().held());
  CHECK(w.etcd().line("a/") == keys{place("a", s)});
  CHECK(locking.value().token() == w.etcd().keys().at(place("a", s)).create_revision);
  CHECK(w.server().count("KV.Txn") == 2);
}

TEST_CASE("a join whose answer is lost keeps its place in line") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  w.server().next("KV.Txn", fate::answer_lost);
  auto waiting = w.start(m2.lock());
  w.advance(1s);
  CHECK_FALSE(waiting.done());
  CHECK(w.etcd().line("a/") == keys{place("a", first), place("a", second)});
  w.get(held.unlock());
  w.settle();
  CHECK(waiting.value().held());
}

TEST_CASE("a join that never arrives is sent again after half of its time") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  w.server().next("KV.Txn", fate::never_arrives);
  auto locking = w.start(m.lock());
  w.advance(2499ms);
  CHECK_FALSE(locking.done());
  w.advance(1ms);
  CHECK(locking.value().held());
}

TEST_CASE("a copy of a join that arrives when the lock has been given up leaves no key") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  w.server().next("KV.Txn", fate::arrives_late);
  auto locking = w.start(m.lock());
  w.advance(2500ms);
  w.get(locking.value().unlock());
  REQUIRE(w.etcd().line("a/").empty());
  w.server().answer_late_ones();
  REQUIRE(w.etcd().line("a/") == keys{place("a", s)});
  w.settle();
  CHECK(w.etcd().line("a/").empty());
  CHECK(w.get(m.lock()).held());
}

TEST_CASE("a session is opened, and closed, although the first request never arrives") {
  world w;
  const client c = w.connect();
  w.server().next("Lease.LeaseGrant", fate::never_arrives);
  const auto begun = w.now();
  auto opening = w.start(session::open(c));
  w.advance(2500ms);
  session s = opening.value();
  CHECK(w.etcd().leases() == 1);
  CHECK(s.valid_until() <= begun + 15s);
  w.server().next("Lease.LeaseRevoke", fate::never_arrives);
  auto closing = w.start(s.close());
  w.advance(2500ms);
  CHECK(closing.done());
  CHECK_FALSE(closing.error());
  CHECK(w.etcd().leases() == 0);
}

TEST_CASE("an unlock whose answer is lost is asked for again, and has succeeded") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  w.server().next("KV.Txn", fate::answer_lost);
  auto unlocking = w.start(lock.unlock());
  w.advance(1s);
  CHECK(unlocking.done());
  CHECK_FALSE(unlocking.error());
  CHECK(w.etcd().line("a/").empty());
  CHECK(w.get(m.lock()).held());
}

TEST_CASE("an unlock that never arrived is sent again, and a copy of it harms no later hold") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  w.server().next("KV.Txn", fate::arrives_late);
  auto unlocking = w.start(lock.unlock());
  w.advance(2499ms);
  CHECK_FALSE(unlocking.done());
  w.advance(1ms);
  CHECK(unlocking.done());
  CHECK_FALSE(unlocking.error());
  const auto again = w.get(m.lock());
  w.server().answer_late_ones();
  w.settle();
  CHECK(again.held());
  CHECK(w.etcd().line("a/") == keys{place("a", s)});
}

TEST_CASE("a release that somebody waits for does not get lost either") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();

  SECTION("when it was applied and its answer is lost") {
    w.server().next("KV.Txn", fate::answer_lost);
    auto unlocking = w.start(held.unlock());
    w.advance(1s);
    CHECK(unlocking.done());
    CHECK_FALSE(unlocking.error());
  }
  SECTION("when it never arrives") {
    w.server().next("KV.Txn", fate::never_arrives);
    auto unlocking = w.start(held.unlock());
    w.advance(2499ms);
    CHECK_FALSE(unlocking.done());
    w.advance(1ms);
    CHECK(unlocking.done());
    CHECK_FALSE(unlocking.error());
  }
  SECTION("when no server answers it in time") {
    w.server().next("KV.Txn", fate::never_arrives);
    w.server().next("KV.Txn", fate::never_arrives);
    auto unlocking = w.start(held.unlock());
    w.advance(5s);
    CHECK(unlocking.error() == errc::outcome_unknown);
    w.advance(1s);  // it is repeated behind the caller
  }
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
  CHECK(w.etcd().line("a/") == keys{place("a", second)});
}

TEST_CASE("releases that are waited for go by themselves, but no more than four at a time") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one, 60s);
  const auto second = open(w, other, 60s);
  std::vector<std::unique_ptr<mutex>> mutexes;
  std::vector<unique_lock> held;
  std::vector<conclave::test::task<unique_lock>> waiting;
  for (int i = 0; i < 10; ++i) {
    const std::string name = "lock-" + std::to_string(i);
    mutexes.push_back(std::make_unique<mutex>(first, name));
    held.push_back(w.get(mutexes.back()->lock()));
    mutexes.push_back(std::make_unique<mutex>(second, name));
    waiting.push_back(w.start(mutexes.back()->lock()));
    w.settle();
  }
  w.advance(50ms);  // from now on the holders' client knows of those who wait
  const int before = w.server().count("KV.Txn");
  w.server().freeze();
  std::vector<conclave::test::task<void>> unlocking;
  for (auto& each : held) unlocking.push_back(w.start(each.unlock()));
  w.settle();
  CHECK(w.server().count("KV.Txn") == before + 5);  // and one with the combiner's others behind it
  w.server().thaw();
  w.settle();
  CHECK(w.server().count("KV.Txn") == before + 6);
  for (auto& each : unlocking) CHECK(each.done());
  for (auto& each : waiting) CHECK(each.done());
}

TEST_CASE("whoever had to wait gives the lock back without waiting for the answer to a join") {
  world w;
  const client c = w.connect();
  const auto first = open(w, c);
  const auto second = open(w, c);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  const int before = w.server().count("KV.Txn");
  w.server().freeze();
  auto again = w.start(m1.lock());
  w.settle();
  auto unlocking = w.start(waiting.value().unlock());
  w.settle();
  CHECK(w.server().count("KV.Txn") == before + 2);
  w.server().thaw();
  w.settle();
  CHECK(unlocking.done());
  CHECK(again.value().held());
}

TEST_CASE("an unlock that a server refuses after one without an answer is in doubt") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  w.server().next("KV.Txn", fate::answer_lost);
  for (int i = 0; i < 100; ++i) w.server().next("KV.Txn", fate::refused);
  auto unlocking = w.start(lock.unlock());
  w.advance(5s);
  CHECK(unlocking.error() == errc::outcome_unknown);
}

TEST_CASE("a commit is sent once") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  const int before = w.server().count("KV.Txn");
  w.server().next("KV.Txn", fate::never_arrives);
  auto committing = w.start(lock.commit(conclave::txn{}.then(conclave::put("k", "v"))));
  w.advance(4999ms);
  CHECK_FALSE(committing.done());
  w.advance(1ms);
  CHECK(committing.error() == errc::outcome_unknown);
  CHECK(w.server().count("KV.Txn") == before + 1);
}

TEST_CASE("an unlock that no server answers is repeated behind the caller") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  w.server().next("KV.Txn", fate::never_arrives);
  w.server().next("KV.Txn", fate::never_arrives);
  auto unlocking = w.start(lock.unlock());
  w.advance(5s);
  CHECK(unlocking.error() == errc::outcome_unknown);
  w.advance(1s);
  CHECK(w.etcd().line("a/").empty());
}

TEST_CASE("a guard that goes out of scope releases its lock behind itself") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  {
    const auto lock = w.get(m.lock());
    CHECK(w.etcd().line("a/").size() == 1);
  }
  w.settle();
  CHECK(w.etcd().line("a/").empty());
}

TEST_CASE("cancellation while waiting leaves no key and ends at once, whatever the server does") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());

  SECTION("in line") {
    auto waiting = w.start(m2.lock());
    w.settle();
    REQUIRE(w.etcd().line("a/").size() == 2);
    waiting.cancel();
    w.settle();
    REQUIRE(waiting.done());
    CHECK(waiting.error() == errc::cancelled);
  }
  SECTION("in line, and the server is frozen") {
    auto waiting = w.start(m2.lock());
    w.settle();
    w.server().freeze();
    waiting.cancel();
    w.settle();
    REQUIRE(waiting.done());
    CHECK(waiting.error() == errc::cancelled);
    CHECK(w.etcd().line("a/").size() == 2);
    w.server().thaw();
    w.settle();
  }
  SECTION("in line, and the server is away for a while") {
    auto waiting = w.start(m2.lock());
    w.settle();
    w.server().stop();
    waiting.cancel();
    w.settle();
    CHECK(waiting.error() == errc::cancelled);
    w.advance(1s);
    w.server().start();
    w.advance(2s);
  }
  SECTION("while the join is under way and applied already") {
    w.server().next("KV.Txn", fate::answer_late);
    auto waiting = w.start(m2.lock());
    w.settle();
    REQUIRE(w.etcd().line("a/").size() == 2);
    waiting.cancel();
    w.settle();
    REQUIRE(waiting.done());
    CHECK(waiting.error() == errc::cancelled);
    w.server().answer_late_ones();
    w.settle();
  }
  SECTION("while the join is under way and its answer gets lost") {
    w.server().next("KV.Txn", fate::lost_late);
    auto waiting = w.start(m2.lock());
    w.settle();
    REQUIRE(w.etcd().line("a/").size() == 2);
    waiting.cancel();
    w.settle();
    REQUIRE(waiting.done());
    CHECK(waiting.error() == errc::cancelled);
    w.server().answer_late_ones();
    w.advance(1s);
  }
  SECTION("before it has begun") {
    auto waiting = w.start(m2.lock());
    waiting.cancel();
    w.settle();
    REQUIRE(waiting.done());
    CHECK(waiting.error() == condition::cancelled);
  }
  SECTION("a limited wait") {
    auto waiting = w.start(m2.try_lock_for(1h));
    w.settle();
    waiting.cancel();
    w.settle();
    CHECK(waiting.error() == errc::cancelled);
  }
  CHECK(w.etcd().line("a/") == keys{place("a", first)});
  CHECK(held.held());
  w.get(held.unlock());
  CHECK(w.etcd().line("a/").empty());
}

TEST_CASE("a cancelled waiter's place passes to the next coroutine of its session") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  mutex m3{second, "a"};
  auto held = w.get(m1.lock());
  auto gives_up = w.start(m2.lock());
  auto stays = w.start(m3.lock());
  w.settle();
  const auto place_taken = w.etcd().keys().at(place("a", second)).create_revision;
  gives_up.cancel();
  w.settle();
  CHECK(gives_up.error() == errc::cancelled);
  CHECK_FALSE(stays.done());
  CHECK(w.etcd().keys().at(place("a", second)).create_revision == place_taken);
  w.get(held.unlock());
  w.settle();
  CHECK(stays.value().token() == place_taken);
}

TEST_CASE("a failing try_lock does not take a waiting lock of its session along") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m1{s, "a"};
  mutex m2{s, "a"};
  w.server().next("KV.Txn", fate::lost_late);
  auto trying = w.start(m1.try_lock());
  w.settle();
  auto locking = w.start(m2.lock());
  w.settle();
  REQUIRE_FALSE(trying.done());
  REQUIRE_FALSE(locking.done());
  w.server().answer_late_ones();
  w.advance(1s);
  CHECK(trying.error() == errc::outcome_unknown);
  REQUIRE(locking.done());
  CHECK_FALSE(locking.error());
  CHECK(locking.value().held());
  CHECK(w.etcd().line("a/") == keys{place("a", s)});
}

TEST_CASE("a try_lock whose answer is lost leaves no key") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  w.server().next("KV.Txn", fate::answer_lost);
  auto trying = w.start(m.try_lock());
  w.advance(1s);
  CHECK(trying.error() == errc::outcome_unknown);
  CHECK(w.etcd().line("a/").empty());
}

TEST_CASE("a lock waits out a server that is away, and is granted when it is back") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one, 60s);
  const auto second = open(w, other, 60s);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();
  w.server().stop();
  w.advance(10s);
  CHECK_FALSE(waiting.done());
  w.server().start();
  w.advance(3s);
  CHECK_FALSE(waiting.done());
  CHECK(held.held());
  w.get(held.unlock());
  w.settle();
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
}

TEST_CASE("a lock that becomes free while the watch is broken is found free by the read after it") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  auto waiting = w.start(m2.lock());
  w.settle();
  w.server().break_streams();
  (void)w.etcd().apply(conclave::delete_key(held.key()));
  w.settle();
  CHECK_FALSE(waiting.done());
  w.advance(2s);
  REQUIRE(waiting.done());
  CHECK(waiting.value().held());
}

TEST_CASE("a commit is applied while the lock is held and not after") {
  world w;
  const client c = w.connect();
  const auto s = open(w, c);
  mutex m{s, "a"};
  auto lock = w.get(m.lock());
  CHECK(w.get(lock.commit(conclave::txn{}.then(conclave::put("x", "1")))).committed());
  CHECK(w.etcd().keys().at("x").value == "1");
  const auto compared =
      w.get(lock.commit(conclave::txn{}.when(conclave::value("x") == "2").then(conclave::put("x", "3"))));
  CHECK(compared.outcome == conclave::commit_outcome::compare_failed);

  SECTION("the last one releases the lock in the same step") {
    const auto before = w.etcd().current();
    CHECK(w.get(lock.commit_and_unlock(conclave::txn{}.then(conclave::put("x", "4")))).committed());
    CHECK(w.etcd().current() == before + 1);
    CHECK(w.etcd().keys().at("x").value == "4");
    CHECK(w.etcd().line("a/").empty());
  }
  SECTION("not after the key was deleted, though nobody knows of it yet") {
    (void)w.etcd().apply(conclave::delete_key(lock.key()));
    const auto late = w.get(lock.commit(conclave::txn{}.then(conclave::put("x", "5"))));
    CHECK(late.outcome == conclave::commit_outcome::lock_lost);
    CHECK(w.etcd().keys().at("x").value == "1");
  }
}

TEST_CASE("clients with different prefixes do not share a lock") {
  world w;
  const client one = w.connect(conclave::client_options{}.key_prefix("one/"));
  const client other = w.connect(conclave::client_options{}.key_prefix("other/"));
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  const auto held = w.get(m1.lock());
  const auto also = w.get(m2.lock());
  CHECK((held.held() && also.held()));
  CHECK(held.key() == place("a", first));
  CHECK(w.etcd().line("one/a/") == keys{"one/" + place("a", first)});
  CHECK(w.etcd().line("other/a/") == keys{"other/" + place("a", second)});
}

TEST_CASE("a world that goes away in the middle of everything leaves nothing behind") {
  std::optional<world> w{std::in_place};
  std::optional<client> c{w->connect()};
  std::optional<session> first{open(*w, *c)};
  std::optional<session> second{open(*w, *c)};
  mutex m1{*first, "a"};
  mutex m2{*second, "a"};
  std::optional<unique_lock> held{w->get(m1.lock())};
  auto waiting = w->start(m2.lock());
  auto watching = w->start(c->wait_deleted("a/" + std::string{"1"}));
  w->server().next("KV.Range", fate::never_arrives);
  auto reading = w->start(c->get("x"));
  w->settle();

  SECTION("the context first") {
    w.reset();
    held.reset();
    first.reset();
    c.reset();
  }
  SECTION("the handles first") {
    held.reset();
    second.reset();
    first.reset();
    c.reset();
    w.reset();
  }
  CHECK_FALSE(waiting.done());
  CHECK_FALSE(reading.done());
}

TEST_CASE("a coroutine whose own context is destroyed gives its place in line up") {
  world w;
  const client one = w.connect();
  const client other = w.connect();
  const auto first = open(w, one);
  const auto second = open(w, other);
  mutex m1{first, "a"};
  mutex m2{second, "a"};
  auto held = w.get(m1.lock());
  {
    conclave::asio::io_context own;
    conclave::asio::co_spawn(own, m2.lock(), [](std::exception_ptr, unique_lock) { FAIL("it was dropped"); });
    own.poll();
    w.settle();
    REQUIRE(w.etcd().line("a/").size() == 2);
  }
  w.settle();
  CHECK(w.etcd().line("a/") == keys{place("a", first)});
}
