// SPDX-License-Identifier: BSL-1.0

// The lock on a real etcd when something comes between: loss, cancellation, servers that go and come.

#include <conclave/mutex.hpp>

#include "on_lock.hpp"

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::condition;
using conclave::errc;
using conclave::mutex;
using conclave::put;
using conclave::session;
using conclave::txn;
using conclave::unique_lock;

/// Deletes a key without any client of ours, through the server's JSON gateway.
void delete_through_gateway(const etcd_server& server, const std::string& key) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string encoded;
  for (std::size_t at = 0; at < key.size(); at += 3) {
    unsigned bits = 0;
    for (std::size_t i = 0; i < 3; ++i)
      bits = bits << 8U | (at + i < key.size() ? static_cast<unsigned char>(key[at + i]) : 0U);
    for (std::size_t i = 0; i < 4; ++i)
      encoded += at + i <= key.size() ? digits[bits >> (18U - 6U * i) & 63U] : '=';
  }
  const auto answer =
      conclave::testing::http_request(server.port(), "/v3/kv/deleterange", "{\"key\":\"" + encoded + "\"}");
  REQUIRE(answer.status == 200);
}

}  // namespace

// ---- loss -------------------------------------------------------------------------------------------------

TEST_CASE("a lock that is lost while held says so at once") {
  const auto how = GENERATE(fate::lease_revoked, fate::key_deleted, fate::session_closed);
  on_etcd([how](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto administrator = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 12s});  // the next keepalive is due in 4 s
    mutex m{s, "lock/a"};
    auto lock = co_await m.lock();
    auto ending = start(context, [&] { return lock.lost(); });
    co_await let_it_begin();
    CHECK(lock.held());
    CHECK_FALSE(ending.done());

    co_await strike(how, administrator, s, lock.key());
    const auto why = co_await ending.result(promptly);
    CHECK(why == condition::ownership_lost);
    if (how == fate::key_deleted) CHECK(why == errc::lock_lost);
    if (how == fate::session_closed) CHECK(why == errc::session_closed);
    CHECK_FALSE(lock.held());
    const auto later = co_await lock.lost();
    CHECK(later == why);
    const auto refused = co_await error_of(lock.unlock());
    CHECK(refused == condition::ownership_lost);
    if (how == fate::lease_revoked) {
      const auto refused_too = co_await error_of(m.lock());
      CHECK(refused_too == errc::session_lost);
      CHECK_FALSE(s.alive());
    }
    if (how == fate::key_deleted) {
      CHECK(s.alive());
      auto again = co_await m.lock();
      CHECK(again.held());
      co_await again.unlock();
    }
  });
}

TEST_CASE("a wait ends at once when the session or the place in line is lost") {
  const auto how = GENERATE(fate::lease_revoked, fate::key_deleted, fate::session_closed);
  on_etcd([how](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto administrator = connect(context, server);
    auto holder = co_await session::open(administrator, {.ttl = 30s});
    mutex held{holder, "lock/a"};
    auto lock = co_await held.lock();
    auto s = co_await session::open(c, {.ttl = 30s});
    mutex m{s, "lock/a"};
    auto waiting = start(context, [&] { return m.lock(); });
    co_await in_line(c, "lock/a", 2);

    co_await strike(how, administrator, s, key_of("lock/a", s));
    const auto why = co_await waiting.error(promptly);
    CHECK(why == condition::ownership_lost);
    CHECK(lock.held());  // nobody's turn had come
    co_await in_line(c, "lock/a", 1);
    if (how == fate::session_closed) {
      CHECK(why == errc::session_closed);
      const auto after = co_await error_of(m.lock());
      CHECK(after == errc::session_closed);
      const auto tried = co_await error_of(m.try_lock());
      CHECK(tried == errc::session_closed);
    }
    co_await lock.unlock();
  });
}

TEST_CASE("the end of a session ends every wait and every hold under it") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto held = co_await mutex(s, "lock/held").lock();
    auto other = co_await session::open(c, {.ttl = 30s});
    auto theirs = co_await mutex(other, "lock/taken").lock();
    std::vector<task<unique_lock>> waits;
    for (int i = 0; i < 5; ++i) {
      waits.push_back(start(context, [&] { return mutex{s, "lock/held"}.lock(); }));   // in the local line
      waits.push_back(start(context, [&] { return mutex{s, "lock/taken"}.lock(); }));  // in the cluster's
    }
    co_await in_line(c, "lock/taken", 2);
    co_await s.close();
    for (auto& each : waits) {
      const auto why = co_await each.error(promptly);
      CHECK(why == errc::session_closed);
    }
    CHECK_FALSE(held.held());
    co_await in_line(c, "lock/held", 0);
    co_await theirs.unlock();
  });
}

TEST_CASE("the predecessor's death lets the next one in") {
  const auto how = GENERATE(fate::lease_revoked, fate::key_deleted, fate::session_closed);
  on_etcd([how](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto d = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto t = co_await session::open(d, {.ttl = 30s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 2);
    co_await strike(how, d, s, lock.key());
    auto next = co_await waiting.result(promptly);
    CHECK(next.held());
    CHECK(next.token() > lock.token());
    co_await next.unlock();
  });
}

TEST_CASE("a holder that cannot reach the server gives up before the server can grant to another") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto d = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 2s});
    mutex m{s, "lock/a"};
    auto lock = co_await m.lock();
    auto other = co_await session::open(d, {.ttl = 30s});
    auto next = start(context, [&] { return mutex{other, "lock/a"}.lock(); });
    co_await in_line(d, "lock/a", 2);
    auto second = start(context, [&] { return mutex{s, "lock/b"}.lock(); });
    auto taken = co_await second.result();
    auto waiting = start(context, [&] { return mutex{s, "lock/b"}.lock(); });

    server.pause();
    time_point lost_at;
    auto ending = start(context, [&]() -> asio::awaitable<std::error_code> {
      const auto why = co_await lock.lost();
      lost_at = now();
      co_return why;
    });
    const auto why = co_await ending.result();
    CHECK(why == errc::session_lost);
    CHECK_FALSE(lock.held());
    CHECK_FALSE(taken.held());
    // A timer of this machine, not a poll: the second is for a busy one.
    CHECK(lost_at < s.valid_until() + 1s);
    const auto waited = co_await waiting.error(promptly);
    CHECK(waited == errc::session_lost);
    CHECK_FALSE(next.done());
    server.resume();
    auto successor = co_await next.result();
    CHECK(successor.held());
    CHECK(successor.token() > lock.token());
    co_await successor.unlock();
  });
}

// ---- cancellation -----------------------------------------------------------------------------------------

TEST_CASE("lock is cancelled promptly while it joins the line of a frozen server, and leaves no key") {
  const bool only_try = GENERATE(false, true);
  on_etcd([only_try](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    mutex m{s, "lock/a"};
    server.pause();
    auto locking = start(context, [&]() -> asio::awaitable<void> {
      if (only_try)
        (void)co_await m.try_lock();
      else
        (void)co_await m.lock();
    });
    co_await let_it_begin();
    CHECK_FALSE(locking.done());
    locking.cancel();
    const auto why = co_await locking.error(promptly);
    CHECK(why == condition::cancelled);
    server.resume();
    auto came_and_went = [&]() -> asio::awaitable<bool> {
      const bool came = co_await writes_below(c, "lock/a/") == 1;
      const bool there = co_await exists(c, key_of("lock/a", s));
      co_return came && !there;
    };
    co_await eventually("the key has been written and deleted", came_and_went);
    auto free = co_await m.try_lock_for(5s);
    REQUIRE(free.has_value());
    co_await free->unlock();
  });
}

TEST_CASE("a wait is cancelled promptly and leaves the line") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto t = co_await session::open(c, {.ttl = 30s});
    auto u = co_await session::open(c, {.ttl = 30s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 2);
    auto behind = start(context, [&] { return mutex{u, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 3);
    auto local = start(context, [&] { return mutex{s, "lock/a"}.lock(); });
    auto timed = start(context, [&] { return mutex{t, "lock/a"}.try_lock_for(1h); });
    co_await let_it_begin();

    local.cancel();
    const auto local_end = co_await local.error(promptly);
    CHECK(local_end == condition::cancelled);
    waiting.cancel();
    const auto waiting_end = co_await waiting.error(promptly);
    CHECK(waiting_end == condition::cancelled);
    CHECK(lock.held());
    co_await there(c, key_of("lock/a", t));  // its session's next coroutine has taken the place over
    timed.cancel();
    const auto timed_end = co_await timed.error(promptly);
    CHECK(timed_end == condition::cancelled);
    co_await in_line(c, "lock/a", 2);
    co_await not_there(c, key_of("lock/a", t));

    CHECK_FALSE(behind.done());
    co_await lock.unlock();
    auto next = co_await behind.result();
    co_await next.unlock();
  });
}

TEST_CASE("a wait is cancelled promptly while the server is frozen or dead") {
  const bool dead = GENERATE(false, true);
  on_etcd([dead](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto t = co_await session::open(c, {.ttl = 30s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 2);
    if (dead)
      server.kill();
    else
      server.pause();
    waiting.cancel();
    const auto why = co_await waiting.error(promptly);
    CHECK(why == condition::cancelled);
    if (dead)
      server.restart();
    else
      server.resume();
    co_await in_line(c, "lock/a", 1);
    CHECK(lock.held());
    co_await lock.unlock();
  });
}

TEST_CASE("releasing is cancelled promptly and goes on behind the caller") {
  const bool with_commit = GENERATE(false, true);
  on_etcd([with_commit](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto lock = co_await mutex(s, "lock/a").lock();
    server.pause();
    auto releasing = start(context, [&]() -> asio::awaitable<void> {
      txn write;
      write.then(put("balance", "17"));
      if (with_commit)
        (void)co_await lock.commit_and_unlock(write);
      else
        co_await lock.unlock();
    });
    co_await let_it_begin();
    releasing.cancel();
    const auto why = co_await releasing.error(promptly);
    CHECK(why == condition::cancelled);
    server.resume();
    co_await in_line(c, "lock/a", 0);
    auto free = co_await mutex(s, "lock/a").lock();
    co_await free.unlock();
  });
}

TEST_CASE("a coroutine that is cancelled already still releases") {
  const bool with_commit = GENERATE(false, true);
  on_etcd([with_commit](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto releasing = start(context, [&]() -> asio::awaitable<void> {
      try {
        co_await pause_for(1h);
      } catch (const std::exception&) {
      }
      // From here on every await of this coroutine throws before it begins.
      if (with_commit)
        (void)co_await lock.commit_and_unlock(txn{});
      else
        co_await lock.unlock();
    });
    co_await let_it_begin();
    releasing.cancel();
    const auto why = co_await releasing.error(promptly);
    CHECK(why == condition::cancelled);
    co_await in_line(c, "lock/a", 0);
  });
}

TEST_CASE("commit and lost are cancelled promptly and the lock stays") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto ending = start(context, [&] { return lock.lost(); });
    server.pause();
    txn write;
    write.then(put("balance", "17"));
    auto committing = start(context, [&] { return lock.commit(write); });
    co_await let_it_begin();
    for (auto* each : {&committing}) each->cancel();
    ending.cancel();
    const auto committed = co_await committing.error(promptly);
    CHECK(committed == condition::cancelled);
    const auto lost = co_await ending.error(promptly);
    CHECK(lost == condition::cancelled);
    CHECK(lock.held());
    server.resume();
    co_await lock.unlock();
  });
}

TEST_CASE("a lock that arrives as the wait is cancelled is released") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    using namespace asio::experimental::awaitable_operators;
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto t = co_await session::open(c, {.ttl = 30s});
    int won = 0;
    for (int round = 0; round < 60; ++round) {
      auto lock = co_await mutex(s, "lock/a").lock();
      auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
      co_await in_line(c, "lock/a", 2);
      auto unlocking = start(context, [&] { return lock.unlock(); });
      for (int i = 0; i < round; ++i) co_await asio::post(context, asio::use_awaitable);
      waiting.cancel();
      co_await unlocking.result();
      const auto why = co_await waiting.error(promptly);
      won += why ? 0 : 1;
      if (why) CHECK(why == condition::cancelled);
      if (!why) (void)co_await waiting.result();  // the guard goes
      co_await in_line(c, "lock/a", 0);
    }
    INFO(won << " of 60 had the lock before they were cancelled");
    CHECK(won < 60);
  });
}

// ---- the server goes and comes ----------------------------------------------------------------------------

TEST_CASE("a wait and a hold survive a server that is killed and restarted") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto d = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    auto t = co_await session::open(d, {.ttl = 20s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 2);
    for (int round = 0; round < 2; ++round) {
      server.kill();
      co_await pause_for(200ms);  // the clients notice, or not
      server.restart();
      co_await in_line(c, "lock/a", 2);
      CHECK(lock.held());
      CHECK_FALSE(waiting.done());
    }
    txn write;
    write.then(put("balance", "17"));
    const auto done = co_await lock.commit(write);
    CHECK(done.committed());
    co_await lock.unlock();
    auto next = co_await waiting.result();
    CHECK(next.held());
    co_await next.unlock();
  });
}

TEST_CASE("a predecessor that leaves while the waiting client is cut off is noticed") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    auto t = co_await session::open(c, {.ttl = 20s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 2);
    server.kill();
    server.restart();
    // By the server's own gateway, most likely before the client's watch is back.
    delete_through_gateway(server, lock.key());
    auto next = co_await waiting.result();
    CHECK(next.held());
    const auto why = co_await lock.lost();
    CHECK(why == errc::lock_lost);
    co_await next.unlock();
  });
}

TEST_CASE("lock waits for a server that is away") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    server.kill();
    auto locking = start(context, [&] { return mutex{s, "lock/a"}.lock(); });
    const auto tried = co_await error_of(mutex(s, "lock/b").try_lock());
    // Unknown if the connection broke under the request.
    const bool told = tried == condition::unavailable || tried == condition::outcome_unknown;
    CHECK(told);
    CHECK_FALSE(locking.done());
    server.restart();
    auto lock = co_await locking.result();
    CHECK(lock.held());
    co_await lock.unlock();
  });
}

TEST_CASE("a release whose server dies is done when it is back") {
  const bool guard = GENERATE(false, true);
  on_etcd([guard](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    auto lock = co_await mutex(s, "lock/a").lock();
    server.pause();  // so that the request is on its way when the server dies
    if (guard) {
      lock = unique_lock{};
      co_await let_it_begin();
      server.kill();
    } else {
      auto unlocking = start(context, [&] { return lock.unlock(); });
      co_await let_it_begin();
      server.kill();
      const auto why = co_await unlocking.error();
      const bool told = why == condition::outcome_unknown || why == condition::unavailable;
      CHECK(told);
    }
    server.restart();
    co_await in_line(c, "lock/a", 0);
    auto again = co_await mutex(s, "lock/a").lock();
    CHECK(again.held());
    co_await again.unlock();
  });
}

TEST_CASE("a lock that joins while the server dies has one place in line, or none") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    mutex m{s, "lock/a"};
    server.pause();
    auto locking = start(context, [&] { return m.lock(); });
    co_await let_it_begin();
    server.kill();
    server.restart();
    auto lock = co_await locking.result();
    CHECK(lock.held());
    const auto key = co_await c.get(lock.key());
    REQUIRE(key.has_value());
    CHECK(key->create_revision == lock.token());
    co_await lock.unlock();
    co_await not_there(c, key_of("lock/a", s));
  });
}

TEST_CASE("compaction does not disturb waits and holds") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto d = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    auto t = co_await session::open(d, {.ttl = 20s});
    auto lock = co_await mutex(s, "lock/a").lock();
    auto waiting = start(context, [&] { return mutex{t, "lock/a"}.lock(); });
    auto local = start(context, [&] { return mutex{s, "lock/a"}.lock(); });
    co_await in_line(c, "lock/a", 2);
    auto compact = [&]() -> asio::awaitable<void> {
      for (int i = 0; i < 20; ++i) co_await c.put("noise", std::to_string(i));
      const auto last = co_await c.put("noise", "last");
      co_await c.compact(last.header.revision, true);
    };
    co_await compact();
    // Cut off, and what happens meanwhile is compacted before the watches are back.
    server.kill();
    server.restart();
    co_await compact();
    co_await in_line(c, "lock/a", 2);
    CHECK(lock.held());
    CHECK_FALSE(waiting.done());
    co_await lock.unlock();
    auto next = co_await waiting.result();
    CHECK(next.held());
    co_await compact();
    co_await next.unlock();
    auto last = co_await local.result();
    CHECK(last.held());
    co_await last.unlock();
  });
}
