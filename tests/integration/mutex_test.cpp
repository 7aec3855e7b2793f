// SPDX-License-Identifier: BSL-1.0

// The lock on a real etcd: conclave/mutex.hpp and unique_lock.hpp. mutex_faults_test.cpp has what disturbs it.

#include <conclave/mutex.hpp>

#include "on_lock.hpp"

#include <cstdio>
#include <map>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::commit_outcome;
using conclave::condition;
using conclave::create_revision;
using conclave::delete_key;
using conclave::errc;
using conclave::event_type;
using conclave::mutex;
using conclave::put;
using conclave::revision;
using conclave::session;
using conclave::txn;
using conclave::unique_lock;

}  // namespace

// ---- the plain case ---------------------------------------------------------------------------------------

TEST_CASE("a lock is a key of the session, and goes with unlock") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    CHECK(m.name() == "lock/a");

    auto lock = co_await m.lock();
    CHECK(lock.held());
    CHECK(static_cast<bool>(lock));
    CHECK(lock.key() == key_of("lock/a", s));
    const auto key = co_await c.get(lock.key());
    REQUIRE(key.has_value());
    CHECK(key->create_revision == lock.token());
    CHECK(key->lease == s.lease_id());
    CHECK(key->value.empty());
    txn proof;
    proof.when(lock.fence());
    const auto proven = co_await c.txn(proof);
    CHECK(proven.succeeded);

    const auto first = lock.token();
    co_await lock.unlock();
    CHECK_FALSE(lock.held());
    CHECK(lock.key().empty());
    CHECK(lock.token() == 0);
    co_await not_there(c, key_of("lock/a", s));

    auto again = co_await m.lock();
    CHECK(again.token() > first);
    co_await again.unlock();
  });
}

TEST_CASE("a lock has a name") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    CHECK_THROWS_WITH(mutex(s, ""), contains("name is empty"));
    CHECK_NOTHROW(mutex(s, "/"));
  });
}

TEST_CASE("a lock below the prefix of its client is the same lock for a client without") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    conclave::client_options options;
    options.key_prefix("lock/");
    auto below = connect(context, server, options);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(below, {.ttl = 10s});
    mutex m{s, "lock/a"};
    mutex n{t, "a"};
    auto lock = co_await n.lock();
    CHECK(lock.key() == key_of("a", t));
    co_await there(c, key_of("lock/a", t));
    auto waiting = start(context, [&] { return m.lock(); });
    co_await in_line(c, "lock/a", 2);
    CHECK_FALSE(waiting.done());
    co_await lock.unlock();
    auto next = co_await waiting.result();
    CHECK(next.held());
    const auto failed = co_await n.try_lock();
    CHECK_FALSE(failed.has_value());
    co_await next.unlock();
  });
}

TEST_CASE("a guard that goes releases behind itself, and one that is assigned to releases what it had") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex a{s, "lock/a"};
    mutex b{s, "lock/b"};
    { auto lock = co_await a.lock(); }
    co_await in_line(c, "lock/a", 0);

    auto lock = co_await a.lock();
    auto other = co_await b.lock();
    const auto token = other.token();
    lock = std::move(other);
    CHECK(lock.held());
    CHECK(lock.token() == token);
    CHECK(lock.key() == key_of("lock/b", s));
    co_await in_line(c, "lock/a", 0);
    co_await there(c, lock.key());
    auto& itself = lock;
    lock = std::move(itself);
    CHECK(lock.held());
    lock = unique_lock{};
    co_await in_line(c, "lock/b", 0);
  });
}

TEST_CASE("a guard that holds nothing refuses to be used") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto released = co_await m.lock();
    co_await released.unlock();
    auto source = co_await m.lock();
    auto moved = std::move(source);
    unique_lock empty;
    for (auto* each : {&released, &source, &empty}) {
      CHECK_FALSE(each->held());
      CHECK(each->token() == 0);
      CHECK_THROWS_WITH((void)each->fence(), contains("nothing is held"));
      CHECK_THROWS_WITH(each->unlock(), contains("nothing is held"));
      CHECK_THROWS_WITH(each->lost(), contains("nothing is held"));
      CHECK_THROWS_WITH(each->commit(txn{}), contains("nothing is held"));
      CHECK_THROWS_WITH(each->commit_and_unlock(txn{}), contains("nothing is held"));
    }
    try {
      (void)empty.fence();
    } catch (const conclave::error& e) {
      CHECK(e.code() == condition::invalid_argument);
    }
    CHECK(moved.held());
    co_await moved.unlock();
  });
}

TEST_CASE("lost ends without an error when the lock is released") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto lock = co_await m.lock();
    auto ending = start(context, [&] { return lock.lost(); });
    co_await let_it_begin();
    CHECK_FALSE(ending.done());
    co_await lock.unlock();
    const auto why = co_await ending.result();
    CHECK_FALSE(why);
  });
}

// ---- contention -------------------------------------------------------------------------------------------

TEST_CASE(
    "sessions of one client that come to a held lock at once have each a place and a token of their own") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t contenders = 30;
    const auto c = connect(context, server);
    std::vector<session> sessions;
    for (std::size_t i = 0; i < contenders + 1; ++i)
      sessions.push_back(co_await session::open(c, {.ttl = 10s}));
    // Whoever has waited has the lock by an event: the client knows the line, and that somebody is ahead.
    mutex m{sessions.back(), "lock/a"};
    mutex other{sessions.front(), "lock/a"};
    auto before = co_await other.lock();
    auto waiting = start(context, [&] { return m.lock(); });
    co_await let_it_begin();
    co_await before.unlock();
    auto first = co_await waiting.result();

    revision last = first.token();
    std::size_t holds = 0;
    auto hold_once = [&](session by) -> asio::awaitable<void> {
      mutex own{by, "lock/a"};
      auto lock = co_await own.lock();
      ++holds;
      CHECK(lock.token() > last);
      last = lock.token();
      co_await lock.unlock();
    };
    std::vector<task<void>> workers;
    for (std::size_t i = 0; i < contenders; ++i)
      workers.push_back(start(context, [&hold_once, by = sessions[i]] { return hold_once(by); }));
    co_await eventually("all stand in line", [&]() -> asio::awaitable<bool> {
      const auto line = co_await c.range(conclave::range_prefix("lock/a/", {.count_only = true}));
      co_return line.count == static_cast<std::int64_t>(contenders + 1);
    });
    std::set<revision> places;
    const auto line = co_await c.range(conclave::range_prefix("lock/a/"));
    for (const auto& each : line.kvs) places.insert(each.create_revision);
    CHECK(places.size() == contenders + 1);
    co_await first.unlock();
    for (auto& each : workers) co_await each.result(20s);
    CHECK(holds == contenders);
  });
}

TEST_CASE("ten sessions of four clients exclude each other, by the store's own record") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr int rounds = 20;
    std::vector<client> clients;
    for (int i = 0; i < 4; ++i) clients.push_back(connect(context, server));
    int inside = 0;
    auto work = [&](client on) -> asio::awaitable<void> {
      auto s = co_await session::open(on, {.ttl = 10s});
      mutex m{s, "lock/a"};
      for (int i = 0; i < rounds; ++i) {
        auto lock = co_await m.lock();
        CHECK(++inside == 1);
        txn note;
        note.then(put("log", std::to_string(lock.token())));
        const auto done = co_await lock.commit(note);
        CHECK(done.committed());
        CHECK(lock.held());
        CHECK(--inside == 0);
        co_await lock.unlock();
      }
    };
    std::vector<task<void>> workers;
    for (std::size_t i = 0; i < 10; ++i)
      workers.push_back(start(context, [&work, on = clients[i % 4]] { return work(on); }));
    for (auto& each : workers) co_await each.result(40s);

    // Whoever wrote the log was, at that revision, the oldest in line; and holders never go back.
    std::map<revision, std::string> line;
    std::map<std::string, revision> places;
    revision last = 0;
    int holds = 0;
    const auto all = co_await history(clients[0]);
    for (const auto& each : all) {
      const auto& kv = *each.kv;
      if (kv.key == "log") {
        const auto token = std::stoll(kv.value);
        ++holds;
        REQUIRE_FALSE(line.empty());
        CHECK(line.begin()->first == token);
        CHECK(token > last);
        last = token;
      } else if (kv.key.starts_with("lock/a/")) {
        if (const auto place = places.find(kv.key); place != places.end()) {
          line.erase(place->second);
          places.erase(place);
        }
        if (each.type == event_type::put) {
          line.emplace(kv.create_revision, kv.key);
          places.emplace(kv.key, kv.create_revision);
        }
      }
    }
    CHECK(holds == 10 * rounds);
    CHECK(line.empty());
  });
}

TEST_CASE("sessions get the lock in the order in which they came") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    std::vector<client> clients{connect(context, server), connect(context, server), connect(context, server)};
    auto holder = co_await session::open(clients[0], {.ttl = 10s});
    mutex held{holder, "lock/a"};
    auto lock = co_await held.lock();

    std::vector<int> order;
    auto queue_up = [&](client on, int number) -> asio::awaitable<void> {
      auto s = co_await session::open(on, {.ttl = 10s});
      mutex m{s, "lock/a"};
      auto mine = co_await m.lock();
      order.push_back(number);
      co_await mine.unlock();
    };
    std::vector<task<void>> waiting;
    for (int i = 0; i < 9; ++i) {
      waiting.push_back(start(context, [&queue_up, on = clients[static_cast<std::size_t>(i % 3)], i] {
        return queue_up(on, i);
      }));
      co_await in_line(clients[0], "lock/a", i + 2);
    }
    CHECK(order.empty());
    co_await lock.unlock();
    for (auto& each : waiting) co_await each.result();
    CHECK(order == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8});
  });
}

TEST_CASE("coroutines that share a session exclude each other, and other sessions too") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto shared = co_await session::open(c, {.ttl = 10s});
    auto other = co_await session::open(connect(context, server), {.ttl = 10s});
    int counter = 0;
    auto count_up = [&](session s) -> asio::awaitable<void> {
      mutex m{s, "lock/a"};
      for (int i = 0; i < 100; ++i) {
        auto lock = co_await m.lock();
        const int seen = counter;
        co_await asio::post(context, asio::use_awaitable);  // a chance for whoever is not kept out
        counter = seen + 1;
        co_await lock.unlock();
      }
    };
    std::vector<task<void>> workers;
    for (int i = 0; i < 10; ++i) workers.push_back(start(context, [&] { return count_up(shared); }));
    workers.push_back(start(context, [&] { return count_up(other); }));
    for (auto& each : workers) co_await each.result(50s);
    CHECK(counter == 1100);
  });
}

// ---- trying -----------------------------------------------------------------------------------------------

TEST_CASE("try_lock takes a free lock and leaves no trace at one that is taken") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto d = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(d, {.ttl = 10s});
    mutex mine{s, "lock/a"};
    mutex theirs{t, "lock/a"};

    auto lock = co_await mine.try_lock();
    REQUIRE(lock.has_value());
    CHECK(lock->held());
    co_await there(c, lock->key());
    for (int i = 0; i < 10; ++i) {
      const auto refused = co_await theirs.try_lock();
      CHECK_FALSE(refused.has_value());
      mutex same_session{s, "lock/a"};
      const auto nested = co_await same_session.try_lock();
      CHECK_FALSE(nested.has_value());
    }
    co_await lock->unlock();
    const auto writes = co_await writes_below(c, "lock/");
    CHECK(writes == 1);  // not even for a moment

    auto second = co_await theirs.try_lock();
    REQUIRE(second.has_value());
    CHECK(second->held());
    co_await second->unlock();
  });
}

TEST_CASE("of many that try a free lock at once one gets it") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    std::vector<session> sessions;
    for (int i = 0; i < 8; ++i)
      sessions.push_back(co_await session::open(connect(context, server), {.ttl = 10s}));
    for (int round = 0; round < 10; ++round) {
      std::vector<task<std::optional<unique_lock>>> tries;
      for (auto& each : sessions)
        tries.push_back(start(context, [&each] { return mutex{each, "lock/a"}.try_lock(); }));
      int won = 0;
      std::vector<unique_lock> locks;
      for (auto& each : tries) {
        auto got = co_await each.result();
        if (got) locks.push_back(std::move(*got));
        won += got ? 1 : 0;
      }
      CHECK(won == 1);
      REQUIRE(locks.size() == 1);
      co_await locks.front().unlock();
    }
  });
}

TEST_CASE("try_lock_for waits no longer than told, and its key goes") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(c, {.ttl = 10s});
    mutex mine{s, "lock/a"};
    mutex theirs{t, "lock/a"};

    // An hour that is not needed must not keep the context at work: `run` would notice.
    auto lock = co_await mine.try_lock_for(1h);
    REQUIRE(lock.has_value());

    const auto begin = now();
    const auto refused = co_await theirs.try_lock_for(200ms);
    CHECK_FALSE(refused.has_value());
    CHECK(now() - begin >= 200ms);
    co_await in_line(c, "lock/a", 1);
    const auto writes = co_await writes_below(c, key_of("lock/a", t));
    CHECK(writes == 1);
    const auto at_once = co_await theirs.try_lock_until(now() - 1h);
    CHECK_FALSE(at_once.has_value());

    auto waiting = start(context, [&] { return theirs.try_lock_for(1h); });
    co_await in_line(c, "lock/a", 2);
    co_await lock->unlock();
    auto won = co_await waiting.result();
    REQUIRE(won.has_value());
    CHECK(won->held());

    // The same when the holder is a coroutine of the same session.
    mutex local{t, "lock/a"};
    const auto nested = co_await local.try_lock_for(100ms);
    CHECK_FALSE(nested.has_value());
    CHECK(won->held());
    co_await won->unlock();
  });
}

TEST_CASE("try_lock_for keeps its time when the server is frozen") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    mutex m{s, "lock/a"};
    server.pause();
    const auto begin = now();
    const auto refused = co_await m.try_lock_for(200ms);
    CHECK_FALSE(refused.has_value());
    CHECK(now() - begin < promptly);
    server.resume();
    co_await in_line(c, "lock/a", 0);
  });
}

// ---- names ------------------------------------------------------------------------------------------------

TEST_CASE("keys that are no participants do not matter, however many and old they are") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(c, {.ttl = 10s});
    const std::vector<std::string> foreign{"lock/a/",    "lock/a/x1",   "lock/a/AB",
                                           "lock/a/1 ",  "lock/a/12/3", "lock/a/0123456789abcdef0",
                                           "lock/a/-1f", "lock/ab/1",   "lock/a"};
    for (const auto& each : foreign) co_await c.put(each, "");
    for (int i = 0; i < 100; ++i) co_await c.put("lock/a/!" + std::to_string(i), "");

    mutex mine{s, "lock/a"};
    mutex theirs{t, "lock/a"};
    auto lock = co_await mine.lock();
    CHECK(lock.held());
    const auto refused = co_await theirs.try_lock();
    CHECK_FALSE(refused.has_value());
    auto waiting = start(context, [&] { return theirs.lock(); });
    co_await eventually("the second is in line", [&] { return exists(c, key_of("lock/a", t)); });
    CHECK_FALSE(waiting.done());
    co_await lock.unlock();
    auto next = co_await waiting.result();
    CHECK(next.held());
    co_await next.unlock();

    auto tried = co_await mine.try_lock();
    REQUIRE(tried.has_value());
    CHECK(tried->held());
    co_await tried->unlock();
    co_await there(c, "lock/a/x1");
    for (const auto& each : foreign) co_await c.delete_range(delete_key(each));
    co_await c.delete_range(conclave::delete_prefix("lock/a/!"));
  });
}

TEST_CASE("lock a and lock a/b have nothing to do with each other") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(c, {.ttl = 10s});
    mutex inner{s, "lock/a/b"};
    mutex outer{t, "lock/a"};
    auto held = co_await inner.lock();
    {
      auto locked = co_await outer.lock();
      CHECK(locked.held());
      co_await locked.unlock();
      auto tried = co_await outer.try_lock();
      REQUIRE(tried.has_value());
      const auto nested = co_await mutex(t, "lock/a/b").try_lock();
      CHECK_FALSE(nested.has_value());
      co_await held.unlock();
      CHECK(tried->held());
      auto other_way = co_await inner.try_lock();
      REQUIRE(other_way.has_value());
      CHECK(other_way->held());
      co_await other_way->unlock();
      co_await tried->unlock();
    }
  });
}

// ---- writing under a lock ---------------------------------------------------------------------------------

TEST_CASE("commit tells committed, compare_failed and lock_lost apart") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto lock = co_await m.lock();

    txn write;
    write.when(create_revision("balance") == 0)
        .then(put("balance", "17"), conclave::range("balance"))
        .otherwise(conclave::range("balance"), put("refused", "yes"));
    const auto first = co_await lock.commit(write);
    CHECK(first.outcome == commit_outcome::committed);
    CHECK(first.committed());
    REQUIRE(first.response.responses.size() == 2);
    CHECK(first.response.at(1).range().kvs.at(0).value == "17");

    const auto second = co_await lock.commit(write);
    CHECK(second.outcome == commit_outcome::compare_failed);
    CHECK(second.response.at(0).range().kvs.at(0).value == "17");
    co_await there(c, "refused");

    co_await c.delete_range(delete_key(lock.key()));
    txn late;
    late.then(put("balance", "0"));
    const auto third = co_await lock.commit(late);
    CHECK(third.outcome == commit_outcome::lock_lost);
    CHECK_FALSE(third.committed());
    CHECK(third.response.responses.empty());
    const auto balance = co_await c.get("balance");
    CHECK(balance->value == "17");
    CHECK_FALSE(lock.held());
  });
}

TEST_CASE("commit_and_unlock writes and releases at one revision, or releases alone") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    txn write;
    write.when(create_revision("balance") == 0).then(put("balance", "17"));

    auto lock = co_await m.lock();
    const auto key = lock.key();
    const auto first = co_await lock.commit_and_unlock(write);
    CHECK(first.outcome == commit_outcome::committed);
    CHECK_FALSE(lock.held());
    co_await not_there(c, key);
    const auto all = co_await history(c);
    revision written = 0;
    revision released = 0;
    for (const auto& each : all) {
      if (each.kv->key == "balance") written = each.kv->mod_revision;
      if (each.kv->key == key && each.type == event_type::delete_) released = each.kv->mod_revision;
    }
    CHECK(written != 0);
    CHECK(written == released);

    lock = co_await m.lock();
    const auto second = co_await lock.commit_and_unlock(write);
    CHECK(second.outcome == commit_outcome::compare_failed);
    co_await not_there(c, key);

    lock = co_await m.lock();
    co_await c.delete_range(delete_key(key));
    txn late;
    late.then(put("balance", "0"));
    const auto third = co_await lock.commit_and_unlock(late);
    CHECK(third.outcome == commit_outcome::lock_lost);
    const auto balance = co_await c.get("balance");
    CHECK(balance->value == "17");
  });
}

TEST_CASE("a transaction that the server refuses leaves the lock as it was, or released") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    txn twice;
    twice.then(put("x", "1"), put("x", "2"));
    auto lock = co_await m.lock();
    auto refused = co_await error_of(lock.commit(twice));
    CHECK(refused == errc::duplicate_key);
    CHECK(lock.held());
    co_await there(c, lock.key());
    refused = co_await error_of(lock.commit_and_unlock(twice));
    CHECK(refused == errc::duplicate_key);
    co_await in_line(c, "lock/a", 0);
    co_await not_there(c, "x");
  });
}

TEST_CASE("a stale holder can neither commit nor harm its successor") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto d = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(d, {.ttl = 10s});
    mutex mine{s, "lock/a"};
    mutex theirs{t, "lock/a"};
    auto stale = co_await mine.lock();
    auto waiting = start(context, [&] { return theirs.lock(); });
    co_await in_line(c, "lock/a", 2);
    co_await c.delete_range(delete_key(stale.key()));
    auto successor = co_await waiting.result();
    CHECK(successor.token() > stale.token());

    txn late;
    late.then(put("balance", "0"));
    const auto refused = co_await stale.commit(late);
    CHECK(refused.outcome == commit_outcome::lock_lost);
    const auto why = co_await error_of(stale.unlock());
    CHECK(why == condition::ownership_lost);
    co_await not_there(c, "balance");
    CHECK(successor.held());
    co_await there(c, successor.key());
    txn good;
    good.then(put("balance", "17"));
    const auto done = co_await successor.commit(good);
    CHECK(done.committed());
    co_await successor.unlock();
  });
}

TEST_CASE("a stale guard does no harm to a newer hold of its own session") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto stale = co_await m.lock();
    const auto key = stale.key();
    co_await c.delete_range(delete_key(key));
    const auto first = co_await stale.lost();
    CHECK(first == errc::lock_lost);

    auto fresh = co_await m.lock();  // the same key, another incarnation
    CHECK(fresh.key() == key);
    CHECK(fresh.token() > stale.token());
    CHECK(fresh.held());
    CHECK_FALSE(stale.held());
    const auto why = co_await error_of(stale.unlock());
    CHECK(why == errc::lock_lost);
    stale = unique_lock{};
    co_await there(c, key);
    CHECK(fresh.held());

    // Still told about its own loss.
    co_await c.delete_range(delete_key(key));
    auto ending = start(context, [&] { return fresh.lost(); });
    const auto second = co_await ending.result(promptly);
    CHECK(second == errc::lock_lost);
    CHECK_FALSE(fresh.held());
  });
}

TEST_CASE("a lock that is taken right after an unlock of the same session still hears of its turn") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto t = co_await session::open(c, {.ttl = 10s});
    for (int round = 0; round < 30; ++round) {
      // s releases and locks anew at the same moment, while t is in line between both.
      auto lock = co_await mutex(s, "lock/a").lock();
      auto between = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
      co_await in_line(c, "lock/a", 2);
      auto unlocking = start(context, [&] { return lock.unlock(); });
      auto again = start(context, [&]() -> asio::awaitable<unique_lock> {
        for (int i = 0; i < round; ++i) co_await asio::post(context, asio::use_awaitable);
        co_return co_await mutex(s, "lock/a").lock();
      });
      auto other = co_await between.result();
      co_await unlocking.result();
      co_await in_line(c, "lock/a", 2);
      co_await other.unlock();
      auto last = co_await again.result(promptly);
      co_await last.unlock();
    }
  });
}

// ---- with others ------------------------------------------------------------------------------------------

namespace {

/// `etcdctl lock`, which holds the lock until it is ended.
conclave::testing::child_process etcdctl_lock(const etcd_server& server, const std::string& name,
                                              const std::filesystem::path& output) {
  return conclave::testing::child_process{
      {.command = {"etcdctl", "--endpoints", server.endpoint(), "lock", "--ttl", "2", name},
       .environment = {{"ETCDCTL_API", "3"}},
       .output_file = output}};
}

}  // namespace

TEST_CASE("etcdctl lock and ours stand in one line") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto output = server.folder() / "etcdctl.txt";
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto said_key = [&] {
      return conclave::testing::file_tail(output, 5).find("lock/a/") != std::string::npos;
    };

    {  // theirs, then ours
      auto theirs = etcdctl_lock(server, "lock/a", output);
      co_await eventually("etcdctl has the lock", said_key);
      const auto refused = co_await m.try_lock();
      CHECK_FALSE(refused.has_value());
      auto waiting = start(context, [&] { return m.lock(); });
      co_await in_line(c, "lock/a", 2);
      CHECK_FALSE(waiting.done());
      theirs.stop();
      auto lock = co_await waiting.result();
      CHECK(lock.held());
      co_await lock.unlock();
    }
    co_await in_line(c, "lock/a", 0);
    std::filesystem::remove(output);
    {  // ours, then theirs
      auto lock = co_await m.lock();
      auto theirs = etcdctl_lock(server, "lock/a", output);
      co_await in_line(c, "lock/a", 2);
      CHECK_FALSE(said_key());
      co_await lock.unlock();
      co_await eventually("etcdctl has the lock", said_key);
      theirs.kill();  // its lease has yet to expire
      auto next = co_await m.lock();
      CHECK(next.held());
      co_await next.unlock();
    }
  });
}

// ---- what it costs ----------------------------------------------------------------------------------------

namespace {

struct cost {
  double calls = 0;
  double proposals = 0;
  bool operator==(const cost&) const = default;
};

cost spent(const etcd_server& server) {
  cost out;
  for (const char* each : {"Range", "Put", "DeleteRange", "Txn", "Compact"})
    out.calls += calls_started(server, "KV", each);
  for (const char* each : {"LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"})
    out.calls += calls_started(server, "Lease", each);
  out.proposals = server.metric("etcd_server_proposals_committed_total");
  return out;
}

std::ostream& operator<<(std::ostream& to, const cost& each) {
  return to << each.calls << " round trips, " << each.proposals << " proposals";
}

}  // namespace

TEST_CASE("what the lock costs", "[cost]") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    // The server's own first proposals are over when it knows the cluster's version.
    co_await eventually("the cluster has a version", [&] {
      return server.metrics().find("\netcd_cluster_version{") != std::string::npos;
    });
    auto c = connect(context, server);
    auto d = connect(context, server);
    cost before;
    auto begin = [&] { before = spent(server); };
    auto measure = [&](const char* what) {
      const auto after = spent(server);
      const cost out{after.calls - before.calls, after.proposals - before.proposals};
      std::ostringstream line;
      line << what << ": " << out;
      std::printf("%s\n", line.str().c_str());
      return out;
    };

    begin();
    auto s = co_await session::open(c, {.ttl = 60s});
    CHECK(measure("session, open") == cost{1, 1});
    auto t = co_await session::open(d, {.ttl = 60s});
    mutex mine{s, "lock/a"};
    mutex theirs{t, "lock/a"};

    begin();
    auto first = co_await mine.lock();
    auto settled = [&] {
      return server.metric(watchers_metric) == 1 && calls_started(server, "KV", "Range") == 1;
    };
    co_await eventually("the line is watched", settled);
    CHECK(measure("lock, free, and held until it is watched (one read)") == cost{2, 1});
    co_await first.unlock();

    begin();
    auto lock = co_await mine.lock();
    CHECK(measure("lock, free") == cost{1, 1});

    begin();
    const auto refused = co_await theirs.try_lock();
    CHECK_FALSE(refused.has_value());
    CHECK(measure("try_lock, taken") == cost{1, 1});

    begin();
    txn write;
    write.then(put("balance", "17"));
    const auto done = co_await lock.commit(write);
    CHECK(done.committed());
    CHECK(measure("commit") == cost{1, 1});

    begin();
    auto waiting = start(context, [&] { return theirs.lock(); });
    co_await eventually("the second watches the line",
                        [&] { return calls_started(server, "KV", "Range") == 2; });
    co_await pause_for(300ms);  // whatever a wait costs besides
    CHECK(measure("lock, taken: joining the line, the first wait of this client (one read)") == cost{2, 1});

    begin();
    co_await lock.unlock();
    auto next = co_await waiting.result();
    CHECK(measure("hand-over: unlock, and the next one has it") == cost{1, 1});

    begin();
    co_await next.unlock();
    CHECK(measure("unlock") == cost{1, 1});

    lock = co_await mine.lock();
    begin();
    const auto last = co_await lock.commit_and_unlock(write);
    CHECK(last.committed());
    CHECK(measure("commit_and_unlock") == cost{1, 1});

    begin();
    co_await s.close();
    CHECK(measure("session, close") == cost{1, 1});
  });
}
