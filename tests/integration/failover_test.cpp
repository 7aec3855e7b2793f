// SPDX-License-Identifier: BSL-1.0

// Several servers: who is asked when one is gone, hangs, or is cut off from the others.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>
#include <conclave/testing/etcd_cluster.hpp>
#include <conclave/testing/faulty_link.hpp>

#include "on_cluster.hpp"
#include "on_etcd.hpp"

#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::condition;
using conclave::errc;
using conclave::session;
using conclave::testing::etcd_cluster;
using conclave::testing::etcd_server;
using conclave::testing::faulty_link;

/// Someone who holds a lock, one who waits for it, a consumer and a watcher, all of one client.
struct users_of_one_client {
  users_of_one_client(asio::io_context& on, client c) : context(on), mine(std::move(c)) {}

  asio::awaitable<void> begin(std::chrono::seconds ttl = 20s) {
    holder.emplace(co_await session::open(mine, {.ttl = ttl}));
    second.emplace(co_await session::open(mine, {.ttl = ttl}));
    first_lock.emplace(*holder, "lock/a");
    second_lock.emplace(*second, "lock/a");
    held.emplace(co_await first_lock->lock());
    waiting.emplace(start(context, [this] { return second_lock->lock(); }));
    jobs.emplace(mine, "jobs");
    job.emplace(start(context, [this] { return jobs->dequeue(); }));
    seen.emplace(co_await mine.watch("seen"));
    next.emplace(start(context, [this] { return seen->next(); }));
    co_await keys_below(mine, "lock/", 2);
  }

  /// All goes on as if nothing had happened. What is done meanwhile is done by somebody else.
  asio::awaitable<void> go_on(client other) {
    const conclave::queue elsewhere{other, "jobs"};
    co_await elsewhere.enqueue("job");
    const auto got = co_await job->result(20s);
    CHECK(got == "job");
    co_await other.put("seen", "now");
    const auto events = co_await next->result(20s);
    CHECK(events.back().kv->value == "now");
    CHECK(held->held());
    co_await held->unlock();
    auto mine_now = co_await waiting->result(20s);
    CHECK(mine_now.held());
    co_await mine_now.unlock();
    co_await holder->close();
    co_await second->close();
  }

  asio::io_context& context;
  client mine;
  std::optional<session> holder;
  std::optional<session> second;
  std::optional<conclave::mutex> first_lock;
  std::optional<conclave::mutex> second_lock;
  std::optional<conclave::unique_lock> held;
  std::optional<task<conclave::unique_lock>> waiting;
  std::optional<conclave::queue> jobs;
  std::optional<task<std::string>> job;
  std::optional<conclave::watcher> seen;
  std::optional<task<std::vector<conclave::event>>> next;
};

using cluster_fault = void (etcd_cluster::*)(std::size_t);

/// The member that a client asks first fails, the leader or another: all of the client goes on.
void loses_a_member(cluster_fault strike, cluster_fault mend = nullptr, std::chrono::seconds ttl = 20s) {
  etcd_cluster cluster;
  const bool leader = GENERATE(false, true);
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    const auto victim = leader ? cluster.wait_for_leader() : (cluster.wait_for_leader() + 1) % cluster.size();
    const auto survivor = (victim + 1) % cluster.size();
    users_of_one_client users{context, connect_to(context, from(cluster, victim))};
    co_await users.begin(ttl);
    (cluster.*strike)(victim);
    (void)cluster.wait_for_leader();
    const auto found = co_await users.mine.get("lock");  // a read is asked for elsewhere in time
    CHECK_FALSE(found);
    co_await users.go_on(connect_to(context, cluster.endpoint(survivor)));
    if (mend != nullptr) (cluster.*mend)(victim);
  });
}

}  // namespace

TEST_CASE("a member that dies is left, by calls and by streams") { loses_a_member(&etcd_cluster::kill); }

TEST_CASE("a member that hangs is not waited for") {
  // A keepalive each two seconds finds out.
  loses_a_member(&etcd_cluster::pause, &etcd_cluster::resume, 6s);
}

TEST_CASE("a member that is cut off from the others is left") {
  loses_a_member(&etcd_cluster::isolate, &etcd_cluster::heal);
}

TEST_CASE("without a majority calls fail in time, and all goes on when it is back") {
  etcd_cluster cluster;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    users_of_one_client users{context, connect_to(context, cluster.endpoints())};
    co_await users.begin(30s);
    cluster.kill(1);
    cluster.kill(2);
    auto asking = start(context, [&] { return users.mine.get("k"); });
    const auto read = co_await asking.error(8s);
    CHECK((read == condition::unavailable || read == condition::timed_out));
    cluster.restart(1);
    cluster.restart(2);
    cluster.wait_healthy();
    co_await users.go_on(connect_to(context, cluster.endpoints()));
  });
}

TEST_CASE("endpoints that nobody serves cost little, wherever they stand in the list") {
  etcd_server server;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    const std::string dead = "http://127.0.0.1:1";
    for (const std::string& list : {dead + "," + server.endpoint(), server.endpoint() + "," + dead,
                                    dead + "," + dead + "," + server.endpoint()}) {
      client c = connect_to(context, list);
      auto asking = start(context, [&] { return c.put("k", "v"); });
      (void)co_await asking.result(promptly);
    }
  });
}

TEST_CASE("nobody is called in a busy loop while everything is down") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    users_of_one_client users{context, connect_to(context, link.endpoint())};
    co_await users.begin(60s);
    const auto before = link.connections_accepted();
    for (int i = 0; i < 30; ++i) {  // each time a connection stands it is broken
      link.reset();
      co_await pause_for(100ms);
    }
    CHECK(link.connections_accepted() - before <= 35);
    co_await users.go_on(connect_to(context, server.endpoint()));
  });
}

TEST_CASE("a link that is silent for less than the lease's time costs nothing but time") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    users_of_one_client users{context, connect_to(context, link.endpoint())};
    co_await users.begin(10s);
    link.stall();
    co_await pause_for(4s);
    CHECK(users.held->held());
    link.heal();
    co_await users.go_on(connect_to(context, server.endpoint()));
  });
}

TEST_CASE("a link that is silent for longer than the lease's time ends the hold before the server does") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    auto direct = connect_to(context, server.endpoint());
    auto distant = connect_to(context, link.endpoint());
    auto s = co_await session::open(distant, {.ttl = 2s});
    auto rival = co_await session::open(direct, {.ttl = 20s});
    conclave::mutex mine{s, "lock/a"};
    conclave::mutex theirs{rival, "lock/a"};
    auto held = co_await mine.lock();
    auto waiting = start(context, [&] { return theirs.lock(); });
    co_await keys_below(direct, "lock/", 2);
    bool told = false;
    bool too_late = false;
    auto loss = start(context, [&]() -> asio::awaitable<void> {
      (void)co_await held.lost();
      told = true;
      too_late = waiting.done();
    });
    link.stall();
    auto next = co_await waiting.result(20s);
    CHECK(told);
    CHECK_FALSE(too_late);
    CHECK_FALSE(held.held());
    link.heal();
    const auto end = co_await s.lost();
    CHECK(end == errc::session_lost);
    co_await next.unlock();
    co_await rival.close();
  });
}

TEST_CASE(
    "an answer that is lost on the way leaves no lock, no lease and no doubt where there need be none") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    auto direct = connect_to(context, server.endpoint());
    auto distant = connect_to(context, link.endpoint());
    co_await distant.status();

    link.swallow_next_answer();
    auto s = co_await session::open(distant, {.ttl = 20s});
    CHECK(link.wait_swallowed(5s));
    const auto leases = co_await direct.leases();
    CHECK(leases.leases.size() == 1);

    conclave::mutex m{s, "lock/a"};
    link.swallow_next_answer();
    auto held = co_await m.lock();
    CHECK(link.wait_swallowed(5s));
    CHECK(held.held());
    co_await keys_below(direct, "lock/", 1);

    link.swallow_next_answer();
    co_await held.unlock();
    CHECK(link.wait_swallowed(5s));
    co_await keys_below(direct, "lock/", 0);
    auto again = co_await m.lock();
    co_await again.unlock();
    co_await s.close();
  });
}
