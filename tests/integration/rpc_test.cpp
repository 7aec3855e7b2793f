// SPDX-License-Identifier: BSL-1.0

// What the layers below the client promise, on a real etcd: reconnecting, threads, cancellation, destruction
// in any order (conclave/detail/rpc and detail/engine).

#include <conclave/mutex.hpp>

#include "on_etcd.hpp"

#include <asio/executor_work_guard.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_future.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using conclave::session;
using conclave::unique_lock;
using conclave::watcher;

int threads_of_this_process() {
  std::ifstream status{"/proc/self/status"};
  std::string line;
  while (std::getline(status, line))
    if (line.starts_with("Threads:")) return std::stoi(line.substr(8));
  throw std::runtime_error{"no Threads: in /proc/self/status"};
}

[[maybe_unused]] long memory_of_this_process() {  // not under sanitizers
  long pages = 0;
  long resident = 0;
  if (!(std::ifstream{"/proc/self/statm"} >> pages >> resident))
    throw std::runtime_error{"no /proc/self/statm"};
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace

// ---- reconnecting -----------------------------------------------------------------------------------------

TEST_CASE("a server that was away answers again within two seconds") {
  // Calls that fail all the while, or none at all; and with a stream that stays, or without.
  const bool idle = GENERATE(false, true);
  const bool with_streams = GENERATE(false, true);
  CAPTURE(idle, with_streams);
  on_etcd([=](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.connect_timeout(500ms);
    auto c = connect(context, server, options);
    co_await c.put("k", "v");
    std::optional<watcher> w;
    std::optional<session> s;
    if (with_streams) {
      w = co_await c.watch("k");
      s = co_await session::open(c, {.ttl = 20s});
    }
    server.kill();
    auto outage = std::async(std::launch::async, [&] {
      std::this_thread::sleep_for(5s);
      server.restart();
      return now();
    });
    int failed = 0;
    while (outage.wait_for(0s) != std::future_status::ready) {
      if (idle) {
        co_await pause_for(5ms);
      } else {
        const auto why = co_await error_of(c.get("k"));
        if (why) ++failed;
        co_await pause_for(5ms);
      }
    }
    if (!idle) CHECK(failed >= 5);
    const auto answers_since = outage.get();
    std::error_code why;
    do {
      why = co_await error_of(c.put("k", "w"));
    } while (why && now() - answers_since < 10s);
    const auto took = now() - answers_since;
    INFO("it took " << std::chrono::duration_cast<std::chrono::milliseconds>(took).count() << " ms");
    CHECK_FALSE(why);
    CHECK(took < 2s);
    if (with_streams) {
      const auto events = co_await w->next();
      CHECK(events.back().kv->value == "w");
      CHECK(now() - answers_since < 2s + promptly);
      const auto before = s->valid_until();
      co_await eventually("the session is renewed", [&] { return s->valid_until() > before; });
      CHECK(s->alive());
    }
  });
}

// ---- threads ----------------------------------------------------------------------------------------------

TEST_CASE("a thousand calls at a time need no thread of their own, nor do watches and sessions") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    auto w = co_await c.watch("k");
    const auto thousand_calls = [&]() -> asio::awaitable<void> {
      std::vector<task<conclave::put_response>> calls;
      for (int i = 0; i < 1000; ++i)
        calls.push_back(
            start(context, [&c, i] { return c.put("k/" + std::to_string(i), std::to_string(i)); }));
      for (auto& each : calls) (void)co_await each.result(30s);
    };
    co_await thousand_calls();
    co_await keys_below(c, "k/", 1000);
    const int before = threads_of_this_process();

    std::vector<session> sessions;
    for (int i = 0; i < 50; ++i) sessions.push_back(co_await session::open(c, {.ttl = 20s}));
    std::vector<watcher> watchers;
    for (int i = 0; i < 200; ++i) watchers.push_back(co_await c.watch("k/" + std::to_string(i)));
    std::vector<client> clients;
    for (int i = 0; i < 20; ++i) {
      clients.push_back(connect(context, server));
      co_await clients.back().get("k");
    }
    co_await thousand_calls();
    // gRPC's own few threads come and go by one or two.
    CHECK(threads_of_this_process() <= before + 3);
  });
}

TEST_CASE("whatever a user's coroutine does it does on its own executor") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto mine = std::this_thread::get_id();
    int looked = 0;
    auto look = [&] {
      ++looked;
      CHECK(std::this_thread::get_id() == mine);
    };
    struct dying {
      explicit dying(std::thread::id at) : expected(at) {}
      ~dying() { CHECK(std::this_thread::get_id() == expected); }
      std::thread::id expected;
    };
    auto c = connect(context, server);
    auto s = co_await session::open(c, {.ttl = 20s});
    look();
    auto w = co_await c.watch("k");
    look();
    auto lock = co_await conclave::mutex(s, "lock/a").lock();
    look();
    auto waiting = start(context, [&]() -> asio::awaitable<void> {
      const dying local{mine};
      const auto token = std::make_shared<dying>(mine);
      (void)co_await w.next();
      look();
      try {
        (void)co_await w.next();
      } catch (const conclave::error&) {
        look();
      }
    });
    co_await c.put("k", "");
    look();
    co_await eventually("the event has come", [&] { return looked == 5; });
    waiting.cancel();
    co_await waiting.result();
    co_await lock.unlock();
    look();
    const auto failed = co_await error_of(c.get(""));
    look();
    CHECK(failed);
    server.kill();
    (void)co_await error_of(c.get("k"));
    look();
    CHECK(looked == 9);
    server.restart();  // or the lease would outlive the test
  });
}

TEST_CASE("a client serves the coroutines of many threads") {
  etcd_server server;
  {
    asio::thread_pool pool{4};
    std::mutex mutex;
    std::set<std::thread::id> threads;
    std::atomic<int> inside{0};
    std::atomic<int> counter{0};
    std::atomic<int> strangers{0};
    {
      client c{pool, server.endpoint()};
      auto work = [&](int number) -> asio::awaitable<void> {
        auto s = co_await session::open(c, {.ttl = 20s});
        for (int i = 0; i < 10; ++i) {
          const std::string key = "k/" + std::to_string(number);
          auto w = co_await c.watch(key);
          co_await c.put(key, std::to_string(i));
          const auto events = co_await w.next();
          if (events.back().kv->value != std::to_string(i)) ++strangers;
          conclave::mutex m{s, "lock/a"};
          auto lock = co_await m.lock();
          if (inside.fetch_add(1) != 0) ++strangers;
          {
            const std::lock_guard guard{mutex};
            threads.insert(std::this_thread::get_id());
          }
          ++counter;
          inside.fetch_sub(1);
          if (i % 2 == 0) co_await lock.unlock();  // otherwise behind itself
        }
      };
      std::vector<std::future<void>> done;
      for (int i = 0; i < 20; ++i) done.push_back(asio::co_spawn(pool, work(i), asio::use_future));
      for (auto& each : done) {
        REQUIRE(each.wait_for(60s) == std::future_status::ready);
        CHECK_NOTHROW(each.get());
      }
    }
    pool.join();
    CHECK(counter == 200);
    CHECK(strangers == 0);
    CHECK(threads.size() <= 4);
    CHECK(threads.count(std::this_thread::get_id()) == 0);
  }
}

// ---- cancellation -----------------------------------------------------------------------------------------

TEST_CASE("a call is cancelled promptly, on a frozen server and without one") {
  const bool dead = GENERATE(false, true);
  on_etcd([dead](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.status();
    if (dead) {
      server.kill();
      // The connection's end must be known first: the outcome of a write that meets it is unknown.
      auto noticing = start(context, [&] { return c.get("k"); });
      const auto noticed = co_await noticing.error(20s);
      CHECK(noticed == errc::unavailable);
    } else {
      server.pause();
    }
    auto reading = start(context, [&] { return c.get("k"); });
    auto writing = start(context, [&] { return c.put("k", ""); });
    // The server may apply what it had received of the grant at any time after: the lease ends by itself.
    auto granting = start(context, [&] { return c.lease_grant(1s); });
    co_await pause_for(50ms);
    reading.cancel();
    writing.cancel();
    granting.cancel();
    const auto read = co_await reading.error(promptly);
    CHECK(read == errc::cancelled);
    const auto written = co_await writing.error(promptly);
    CHECK(written == errc::cancelled);
    const auto granted = co_await granting.error(promptly);
    CHECK(granted == errc::cancelled);
    if (dead)
      server.restart();
    else
      server.resume();
    co_await c.status();
  });
}

TEST_CASE("cancelling at any moment of a call leaves the client as it was") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    using namespace asio::experimental::awaitable_operators;
    auto c = connect(context, server);
    co_await c.put("k", "v");
    int cancelled = 0;
    int read = 0;
    asio::steady_timer timer{context};
    for (int i = 0; i < 1000; ++i) {
      timer.expires_after(std::chrono::microseconds{i * 2});
      const auto either = co_await (c.get("k") || timer.async_wait(asio::use_awaitable));
      if (either.index() == 1) {
        ++cancelled;
      } else {
        ++read;
        CHECK(std::get<0>(either)->value == "v");
      }
    }
    CHECK(cancelled > 0);
    CHECK(read > 0);
    const auto after = co_await c.get("k");
    CHECK(after->value == "v");
  });
}

// ---- destruction ------------------------------------------------------------------------------------------

namespace {

enum class condition_of_server { alive, frozen, dead };
enum class order { client_first, context_first, all_with_the_context };

/// Everything that can be under way, in coroutines that are never asked to end.
asio::awaitable<void> keep_calling(client c, std::shared_ptr<int> witness) {
  while (*witness == 0) {
    try {
      (void)co_await c.put("k", "");
    } catch (const conclave::error& e) {
      if (e.code() == condition::cancelled) co_return;
    }
  }
}

asio::awaitable<void> keep_watching(client c, std::shared_ptr<int> witness) {
  auto w = co_await c.watch("never written");
  (void)co_await w.next();
  *witness = 1;
}

asio::awaitable<void> keep_waiting(client c, std::shared_ptr<int> witness) {
  co_await c.put("never deleted", "");
  (void)co_await c.wait_deleted("never deleted");
  *witness = 1;
}

asio::awaitable<void> keep_locked(client c, std::shared_ptr<int> witness) {
  auto s = co_await session::open(c, {.ttl = 1s});
  auto held = co_await conclave::mutex(s, "lock/held").lock();
  {
    auto before = co_await conclave::mutex(s, "lock/before").lock();  // its watch lingers
    co_await before.unlock();
  }
  (void)co_await held.lost();
  *witness = 1;
}

asio::awaitable<void> keep_in_line(client c, std::shared_ptr<int> witness) {
  auto first = co_await session::open(c, {.ttl = 1s});
  auto second = co_await session::open(c, {.ttl = 1s});
  auto held = co_await conclave::mutex(first, "lock/line").lock();
  auto locked = co_await conclave::mutex(second, "lock/line").try_lock_for(1h);
  *witness = 1;
}

}  // namespace

TEST_CASE("destruction in any order, whatever is under way, neither blocks nor leaks") {
  const auto server_is =
      GENERATE(condition_of_server::alive, condition_of_server::frozen, condition_of_server::dead);
  const auto how = GENERATE(order::client_first, order::context_first, order::all_with_the_context);
  const bool connected = GENERATE(true, false);
  CAPTURE(static_cast<int>(server_is), static_cast<int>(how), connected);

  etcd_server server;
  auto spoil = [&] {
    if (server_is == condition_of_server::frozen) server.pause();
    if (server_is == condition_of_server::dead) server.kill();
  };
  const auto witness = std::make_shared<int>(0);
  {
    auto context = std::make_unique<asio::io_context>();
    if (!connected) spoil();
    std::optional<client> c;
    c.emplace(*context, server.endpoint());
    for (const auto work : {keep_calling, keep_watching, keep_waiting, keep_locked, keep_in_line})
      asio::co_spawn(*context, work(*c, witness), asio::detached);
    context->run_for(200ms);
    if (connected) {
      spoil();
      context->run_for(100ms);
    }
    CHECK(*witness == 0);
    CHECK(witness.use_count() > 1);  // suspended in the middle of something

    const auto begin = now();
    switch (how) {
      case order::client_first:
        c.reset();
        context.reset();
        break;
      case order::context_first:
        context.reset();
        c.reset();
        break;
      case order::all_with_the_context:
        asio::post(*context, [mine = std::move(*c)] {});
        c.reset();
        context.reset();
        break;
    }
    CHECK(now() - begin < 2s);
  }
  // Every suspended coroutine has been destroyed with what it owned.
  CHECK(witness.use_count() == 1);
}

namespace {

asio::awaitable<void> keep_locking(client c, std::shared_ptr<int> witness, std::string name) {
  auto s = co_await session::open(c, {.ttl = 60s});
  conclave::mutex m{s, name};
  while (*witness == 0) {
    auto held = co_await m.lock();
    co_await held.unlock();
  }
}

asio::awaitable<void> take(client c, std::string name, std::optional<session>& s,
                           std::optional<unique_lock>& guard) {
  s = co_await session::open(c, {.ttl = 60s});
  conclave::mutex m{*s, name};
  guard = co_await m.lock();
}

}  // namespace

TEST_CASE(
    "on several threads, under load and with a frozen server, destruction in any order does not block") {
  etcd_server server;
  enum class part { client, session, guard, context };
  std::vector<part> order{part::client, part::session, part::guard, part::context};
  int round = 0;
  do {
    CAPTURE(++round);
    const auto witness = std::make_shared<int>(0);
    {
      auto context = std::make_unique<asio::io_context>();
      std::optional<client> c;
      c.emplace(*context, server.endpoint());
      std::optional<session> s;
      std::optional<unique_lock> guard;
      const std::string mine = "lock/" + std::to_string(round);
      auto taken = asio::co_spawn(*context, take(*c, mine, s, guard), asio::use_future);
      for (int i = 0; i < 20; ++i) {
        for (const auto work : {keep_calling, keep_watching, keep_waiting})
          asio::co_spawn(*context, work(*c, witness), asio::detached);
        const std::string contended = mine + "/" + std::to_string(i % 5);
        asio::co_spawn(*context, keep_locking(*c, witness, contended), asio::detached);
      }
      const double before = server.metric("etcd_mvcc_put_total");
      auto work = asio::make_work_guard(*context);
      std::vector<std::thread> threads;
      for (int i = 0; i < 3; ++i) threads.emplace_back([&] { context->run(); });
      const bool held = taken.wait_for(10s) == std::future_status::ready;
      CHECK(held);
      const auto limit = now() + 10s;
      while (server.metric("etcd_mvcc_put_total") < before + 200 && now() < limit)
        std::this_thread::sleep_for(5ms);
      server.pause();

      const auto begin = now();
      for (const auto each : order) {
        switch (each) {
          case part::client:
            c.reset();
            break;
          case part::session:
            s.reset();
            break;
          case part::guard:
            guard.reset();
            break;
          case part::context:
            work.reset();
            context->stop();
            for (auto& thread : threads) thread.join();
            context.reset();
            break;
        }
      }
      CHECK(now() - begin < promptly);
      server.resume();
      CHECK(server.metric("etcd_mvcc_put_total") >= before + 200);  // there was load
    }
    CHECK(witness.use_count() == 1);
  } while (std::next_permutation(order.begin(), order.end()));
}

#if !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)  // they keep what is freed; one finds leaks
TEST_CASE("calls that a frozen server lets time out leave no memory behind") {
  etcd_server server;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    auto c = connect(context, server, client_options{}.request_timeout(50ms));
    co_await c.put("k", "v");
    server.pause();
    auto time_out = [&](int calls) -> asio::awaitable<void> {
      while (calls > 0) {
        std::vector<task<conclave::put_response>> writing;
        for (int i = 0; i < 200; ++i, --calls)
          writing.push_back(start(context, [&] { return c.put("k", "v"); }));
        for (auto& each : writing) {
          const auto code = co_await each.error();
          CHECK(code);
        }
      }
    };
    co_await time_out(2000);  // gRPC's caches, the connection's queue
    const auto before = memory_of_this_process();
    co_await time_out(8000);
    const auto after = memory_of_this_process();
    CHECK(after < before + 8000L * 2048);  // one call takes ten times as much
    server.resume();
  });
}
#endif

TEST_CASE("a handle that outlives its context refuses to be used") {
  etcd_server server;
  auto context = std::make_unique<asio::io_context>();
  client c{*context, server.endpoint()};
  std::optional<session> s;
  std::optional<unique_lock> lock;
  std::optional<watcher> w;
  asio::co_spawn(
      *context,
      [&]() -> asio::awaitable<void> {
        s = co_await session::open(c);
        lock = co_await conclave::mutex(*s, "lock/a").lock();
        w = co_await c.watch("k");
        context->stop();
      },
      asio::detached);
  context->run_for(10s);
  REQUIRE(w.has_value());
  context.reset();

  run([&]() -> asio::awaitable<void> {
    const auto reading = co_await error_of(c.get("k"));
    CHECK(reading == errc::client_closed);
    CHECK(reading == condition::cancelled);
    const auto waiting = co_await error_of(w->next());
    CHECK(waiting == errc::client_closed);
    const auto unlocking = co_await error_of(lock->unlock());
    CHECK(unlocking == errc::client_closed);
    const auto ending = co_await error_of(s->lost());
    CHECK(ending == errc::client_closed);
    const auto closing = co_await error_of(s->close());
    CHECK(closing == errc::client_closed);
  });
}

TEST_CASE("clients that come and go leave nothing behind") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    for (int round = 0; round < 50; ++round) {
      auto c = connect(context, server);
      auto s = co_await session::open(c, {.ttl = 5s});
      auto w = co_await c.watch("k");
      auto lock = co_await conclave::mutex(s, "lock/a").lock();
      co_await c.put("k", "");
      (void)co_await w.next();
    }
  });
}
