// SPDX-License-Identifier: BSL-1.0

// A body that runs under a lock, on a real etcd: conclave/with_lock.hpp.

#include <conclave/mutex.hpp>
#include <conclave/with_lock.hpp>

#include "on_lock.hpp"

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::condition;
using conclave::mutex;
using conclave::put;
using conclave::session;
using conclave::txn;
using conclave::unique_lock;
using conclave::with_lock;

}  // namespace

TEST_CASE("with_lock returns the body's result and releases") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto answer = [&](unique_lock& lock) -> asio::awaitable<std::string> {
      CHECK(lock.held());
      const bool there = co_await exists(c, lock.key());
      co_return there ? "held" : "not held";
    };
    const auto said = co_await with_lock(m, answer);
    CHECK(said == "held");
    co_await not_there(c, key_of("lock/a", s));

    int runs = 0;
    auto nothing = [&](unique_lock&) -> asio::awaitable<void> {
      ++runs;
      co_return;
    };
    co_await with_lock(m, nothing);
    CHECK(runs == 1);
    co_await not_there(c, key_of("lock/a", s));
  });
}

TEST_CASE("with_lock passes the body's exception on and releases") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto fails = [&](unique_lock& lock) -> asio::awaitable<int> {
      co_await c.get(lock.key());
      throw std::out_of_range{"from the body"};
    };
    std::string said;
    try {
      (void)co_await with_lock(m, fails);
    } catch (const std::out_of_range& e) {
      said = e.what();
    }
    CHECK(said == "from the body");
    co_await not_there(c, key_of("lock/a", s));
  });
}

TEST_CASE("with_lock lets the body release the lock itself") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 10s});
    mutex m{s, "lock/a"};
    auto commits = [&](unique_lock& lock) -> asio::awaitable<int> {
      txn write;
      write.then(put("balance", "17"));
      const auto done = co_await lock.commit_and_unlock(write);
      CHECK(done.committed());
      co_await pause_for(50ms);  // not cancelled by the end of the hold, which is no loss
      co_return 17;
    };
    const auto result = co_await with_lock(m, commits);
    CHECK(result == 17);
    co_await not_there(c, key_of("lock/a", s));
    auto unlocks = [&](unique_lock& lock) -> asio::awaitable<void> { co_await lock.unlock(); };
    co_await with_lock(m, unlocks);
    co_await not_there(c, key_of("lock/a", s));
  });
}

TEST_CASE("with_lock cancels the body when the lock is lost") {
  const auto how = GENERATE(fate::lease_revoked, fate::key_deleted, fate::session_closed);
  on_etcd([how](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto administrator = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    mutex m{s, "lock/a"};
    bool begun = false;
    bool cancelled = false;
    auto body = [&](unique_lock&) -> asio::awaitable<void> {
      begun = true;
      try {
        co_await pause_for(1h);
      } catch (...) {
        cancelled = code_of(std::current_exception()) == condition::cancelled;
        throw;
      }
    };
    auto running = start(context, [&] { return with_lock(m, body); });
    co_await eventually("the body runs", [&] { return begun; });
    co_await strike(how, administrator, s, key_of("lock/a", s));
    const auto why = co_await running.error(promptly);
    CHECK(why == condition::ownership_lost);
    CHECK(cancelled);
    co_await in_line(c, "lock/a", 0);
  });
}

TEST_CASE("with_lock is cancelled in its wait and in its body, and releases") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto t = co_await session::open(c, {.ttl = 30s});
    mutex m{s, "lock/a"};
    bool begun = false;
    auto body = [&](unique_lock&) -> asio::awaitable<void> {
      begun = true;
      co_await pause_for(1h);
    };
    auto lock = co_await mutex(t, "lock/a").lock();
    auto waiting = start(context, [&] { return with_lock(m, body); });
    co_await in_line(c, "lock/a", 2);
    waiting.cancel();
    const auto waited = co_await waiting.error(promptly);
    CHECK(waited == condition::cancelled);
    CHECK_FALSE(begun);
    co_await in_line(c, "lock/a", 1);
    co_await lock.unlock();

    auto running = start(context, [&] { return with_lock(m, body); });
    co_await eventually("the body runs", [&] { return begun; });
    server.pause();
    running.cancel();
    const auto ran = co_await running.error(promptly);
    CHECK(ran == condition::cancelled);
    server.resume();
    co_await in_line(c, "lock/a", 0);
  });
}
