// SPDX-License-Identifier: BSL-1.0

// Sessions on a real etcd: conclave/session.hpp.

#include <conclave/session.hpp>

#include "on_etcd.hpp"

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using conclave::session;

/// Time for a request to be under way. There is nothing to look at: a frozen server tells nothing.
asio::awaitable<void> let_it_begin() { return pause_for(50ms); }

}  // namespace

TEST_CASE("a session is a lease which is kept alive, and close ends it with its keys") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 3s});
    CHECK(s.alive());
    CHECK(s.lease_id() > 0);
    CHECK(s.ttl() == 3s);
    co_await c.put("mine", "", {.lease = s.lease_id()});

    const auto first = s.valid_until();
    CHECK(first > now());
    CHECK(first < now() + 3s);  // it ends here before it ends on the server
    co_await eventually("three renewals", [&] { return s.valid_until() > first + 2s; });
    CHECK(s.alive());
    const bool kept = co_await lease_exists(c, s.lease_id());
    CHECK(kept);

    auto ending = start(context, [&] { return s.lost(); });
    co_await s.close();
    CHECK_FALSE(s.alive());
    const auto why = co_await ending.result();
    CHECK(why == errc::session_closed);
    const auto key = co_await c.get("mine");
    CHECK_FALSE(key.has_value());
    const bool exists = co_await lease_exists(c, s.lease_id());
    CHECK_FALSE(exists);
    co_await s.close();  // again: nothing to do
  });
}

TEST_CASE("a session takes the time to live that the server grants") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c);
    CHECK(s.ttl() == 15s);
    const auto left = co_await c.lease_time_to_live(s.lease_id());
    CHECK(left.granted_ttl == 15);
    for (const std::chrono::seconds ttl : {0s, -1s, std::chrono::seconds{24h * 400}}) {
      const auto refused = co_await error_of(session::open(c, {.ttl = ttl}));
      CHECK(refused == condition::invalid_argument);
    }
  });
}

TEST_CASE("copies share a session, and the end of the last one closes it") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    std::optional<session> first = co_await session::open(c, {.ttl = 30s});
    std::optional<session> second = first;
    const auto id = first->lease_id();
    CHECK(second->lease_id() == id);
    first.reset();
    const bool still = co_await lease_exists(c, id);
    CHECK(still);
    CHECK(second->alive());
    second.reset();
    co_await lease_gone(c, id);
  });
}

TEST_CASE("a session outlives its client handle") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    std::optional<client> c = connect(context, server);
    auto s = co_await session::open(*c, {.ttl = 1s});
    c.reset();
    const auto first = s.valid_until();
    co_await eventually("a renewal", [&] { return s.valid_until() > first + 1s; });
    CHECK(s.alive());
    co_await s.close();
  });
}

TEST_CASE("a session whose lease an administrator revokes is lost") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto administrator = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 6s});
    auto ending = start(context, [&] { return s.lost(); });
    auto another = start(context, [&] { return s.lost(); });
    co_await administrator.lease_revoke(s.lease_id());
    const auto why =
        co_await ending.result(2s + promptly);  // the next keepalive tells, a third of the TTL from now
    CHECK(why == errc::session_lost);
    const auto told = co_await another.result(promptly);
    CHECK(told == errc::session_lost);
    CHECK_FALSE(s.alive());
    CHECK(now() < s.valid_until());
    const auto at_once = co_await s.lost();
    CHECK(at_once == errc::session_lost);
    co_await s.close();  // there is nothing left to do
  });
}

TEST_CASE("a session survives a server that is back within its time to live") {
  const bool paused = GENERATE(false, true);
  on_etcd([paused](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 6s});
    const auto first = s.valid_until();
    if (paused)
      server.pause();
    else
      server.kill();
    co_await pause_for(2500ms);  // a keepalive is due meanwhile
    CHECK(s.alive());
    if (paused)
      server.resume();
    else
      server.restart();
    co_await eventually("renewed", [&] { return s.valid_until() > first + 4s; });
    CHECK(s.alive());
    co_await s.close();
  });
}

TEST_CASE("a session is lost, not later than it is valid, when the server stays away") {
  const bool paused = GENERATE(false, true);
  on_etcd([paused](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 2s});
    if (paused)
      server.pause();
    else
      server.kill();
    time_point ended;
    auto ending = start(context, [&]() -> asio::awaitable<std::error_code> {
      const auto why = co_await s.lost();
      ended = now();
      co_return why;
    });
    const auto why = co_await ending.result();
    CHECK(why == errc::session_lost);
    CHECK_FALSE(s.alive());
    CHECK(ended < s.valid_until() + 1s);  // a timer, not a poll: the second is for a busy machine
    if (paused)
      server.resume();
    else
      server.restart();
    const bool alive_again = s.alive();
    CHECK_FALSE(alive_again);  // lost is lost for good
    auto fresh = co_await session::open(c, {.ttl = 2s});
    CHECK(fresh.lease_id() != s.lease_id());
    co_await fresh.close();
  });
}

TEST_CASE("opening a session without a server fails in time") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.connect_timeout(300ms).request_timeout(1s);
    // Before there is a client: a connection that breaks under the request leaves its outcome unknown.
    server.kill();
    auto c = connect(context, server, options);
    const auto begin = now();
    const auto why = co_await error_of(session::open(c));
    CHECK(why == condition::unavailable);
    CHECK(now() - begin < 300ms + promptly);
  });
}

TEST_CASE("a grant whose answer is lost is asked for again under the same id") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.request_timeout(1s);
    auto c = connect(context, server, options);
    co_await c.status();  // connected
    server.pause();
    auto opening = start(context, [&] { return session::open(c, {.ttl = 20s}); });
    co_await pause_for(1200ms);  // the first attempt has been given up, and reaches the server all the same
    CHECK_FALSE(opening.done());
    server.resume();
    auto s = co_await opening.result();
    CHECK(s.alive());
    const auto all = co_await c.leases();
    CHECK(all.leases.size() == 1);
    co_await s.close();
  });
}

TEST_CASE("opening is cancelled promptly and leaves no lease") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.status();
    server.pause();
    auto opening = start(context, [&] { return session::open(c, {.ttl = 600s}); });
    co_await let_it_begin();
    CHECK_FALSE(opening.done());
    opening.cancel();
    const auto why = co_await opening.error(promptly);
    CHECK(why == condition::cancelled);
    server.resume();
    // Whether or not the grant was applied, `on_etcd` finds no lease of ten minutes.
  });
}

TEST_CASE("closing is cancelled promptly and goes on behind the caller") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 600s});
    server.pause();
    auto ending = start(context, [&] { return s.lost(); });
    auto closing = start(context, [&] { return s.close(); });
    co_await let_it_begin();
    CHECK_FALSE(closing.done());
    closing.cancel();
    const auto why = co_await closing.error(promptly);
    CHECK(why == condition::cancelled);
    const auto ended = co_await ending.result(promptly);
    CHECK(ended == errc::session_closed);
    server.resume();
    co_await lease_gone(c, s.lease_id());
  });
}

TEST_CASE("closing while the server is away ends the session here at once, and there when it is back") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.connect_timeout(300ms).request_timeout(500ms);
    auto c = connect(context, server, options);
    auto s = co_await session::open(c, {.ttl = 600s});
    server.kill();
    const auto why = co_await error_of(s.close());
    const bool told = why == condition::unavailable || why == condition::outcome_unknown;
    CHECK(told);
    CHECK_FALSE(s.alive());
    server.restart();
    co_await lease_gone(c, s.lease_id());
  });
}

TEST_CASE("waiting for the end of a session is cancelled and the session stays") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 30s});
    auto ending = start(context, [&] { return s.lost(); });
    co_await let_it_begin();
    ending.cancel();
    const auto why = co_await ending.error(promptly);
    CHECK(why == condition::cancelled);
    CHECK(s.alive());
    co_await s.close();
  });
}

TEST_CASE("many sessions of a client share few streams, and the end of one is no matter to the others") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto administrator = connect(context, server);
    std::vector<session> sessions;
    for (int i = 0; i < 100; ++i) sessions.push_back(co_await session::open(c, {.ttl = 3s}));
    const auto first = sessions.back().valid_until();
    co_await administrator.lease_revoke(sessions[7].lease_id());
    auto ending = start(context, [&] { return sessions[7].lost(); });
    const auto why = co_await ending.result();
    CHECK(why == errc::session_lost);
    co_await eventually("all are renewed", [&] {
      int renewed = 0;
      for (const auto& each : sessions) renewed += each.valid_until() > first + 2s ? 1 : 0;
      return renewed == 99;
    });
    int alive = 0;
    for (const auto& each : sessions) alive += each.alive() ? 1 : 0;
    CHECK(alive == 99);
    CHECK(calls_started(server, "Lease", "LeaseKeepAlive") <= 4);
  });
}
