// SPDX-License-Identifier: BSL-1.0

#include <conclave/priority_queue.hpp>

#include "on_etcd.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

namespace {

using namespace conclave::test;
namespace asio = conclave::asio;
using conclave::client;
using conclave::condition;
using conclave::errc;
using conclave::event_type;
using conclave::key_value;
using conclave::priority_queue;
using conclave::put_response;
using conclave::range_response;
using conclave::revision;
using conclave::txn_response;
using strings = std::vector<std::string>;

/// Lets everything run that is ready on the test's one thread: a request is on its way afterwards.
asio::awaitable<void> let_run() {
  const auto executor = co_await asio::this_coro::executor;
  for (int i = 0; i < 200; ++i) co_await asio::post(executor, asio::use_awaitable);
}

asio::awaitable<void> watched(const etcd_server& server, int count) {
  auto reached = [&] { return server.metric(watchers_metric) == count; };
  co_await eventually("the consumers' watches stand", reached);
  co_await let_run();  // and what they lead to is on its way
}

asio::awaitable<strings> take_all(priority_queue from) {
  strings out;
  while (true) {
    std::optional<std::string> item = co_await from.try_dequeue();
    if (!item) co_return out;
    out.push_back(std::move(*item));
  }
}

asio::awaitable<std::vector<key_value>> keys_of(client on, std::string prefix) {
  range_response found = co_await on.range(conclave::range_prefix(std::move(prefix)));
  co_return std::move(found.kvs);
}

/// No item was ever written over another.
asio::awaitable<void> check_nothing_overwritten(client on, std::string prefix, std::size_t count) {
  const auto all = co_await history(on);
  std::size_t written = 0;
  for (const auto& each : all) {
    if (each.type != event_type::put || !each.kv->key.starts_with(prefix)) continue;
    CHECK(each.kv->version == 1);
    ++written;
  }
  CHECK(written == count);
}

/// As contrib/recipes/priority_queue.go: the last number, then a transaction which touches the priority's own key
/// on the condition that nobody did since.
asio::awaitable<void> enqueue_as_go_does(client on, std::string name, int priority, std::string value) {
  char digits[8];
  std::snprintf(digits, sizeof digits, "%05d", priority);
  const std::string prefix = name + "/" + digits;
  const std::string base = "__" + prefix;
  while (true) {
    const range_response last = co_await on.range(conclave::range_prefix(
        prefix + "/",
        {.limit = 1, .order = conclave::sort_order::descend, .target = conclave::sort_target::key}));
    long long number = 0;
    if (!last.kvs.empty()) number = std::stoll(last.kvs[0].key.substr(prefix.size() + 1)) + 1;
    char tail[24];
    std::snprintf(tail, sizeof tail, "/%016lld", number);
    conclave::txn request;
    request.when(conclave::mod_revision(base) < last.header.revision + 1)
        .then(conclave::put(base, ""), conclave::put(prefix + tail, value));
    const txn_response answer = co_await on.txn(std::move(request));
    if (answer.succeeded) co_return;
  }
}

}  // namespace

TEST_CASE("a priority queue needs a name") {
  asio::io_context context;
  const client c{context, "127.0.0.1:1"};
  CHECK_THROWS_WITH((priority_queue{c, ""}), contains("name is empty"));
}

TEST_CASE("priorities that are pushed concurrently come back in order") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const priority_queue q{c, "pq"};
    std::vector<task<revision>> adding;
    for (const int priority : {7, 3, 9, 0, 5, 1, 8, 2, 6, 4})
      adding.push_back(start(context, [&q, priority] {
        return q.enqueue(std::to_string(priority), static_cast<std::uint16_t>(priority));
      }));
    for (auto& each : adding) (void)co_await each.result();
    const strings got = co_await take_all(q);
    CHECK(got == strings{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"});
    co_await keys_below(c, "pq/", 0);
  });
}

TEST_CASE(
    "items of one priority come out in the order in which they went in, and the extremes are ordinary") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const priority_queue q{connect(context, server), "pq"};
    strings low;
    strings middle;
    strings high;
    for (int i = 0; i < 12; ++i) {
      co_await q.enqueue("low " + std::to_string(i), 65535);
      low.push_back("low " + std::to_string(i));
      co_await q.enqueue("high " + std::to_string(i), 0);
      high.push_back("high " + std::to_string(i));
      co_await q.enqueue("middle " + std::to_string(i), 10);
      middle.push_back("middle " + std::to_string(i));
    }
    strings expected = high;
    expected.insert(expected.end(), middle.begin(), middle.end());
    expected.insert(expected.end(), low.begin(), low.end());
    const std::size_t size = co_await q.size();
    CHECK(size == 36);
    const std::optional<std::string> first = co_await q.peek();
    CHECK(first == "high 0");
    const strings some = co_await q.dequeue_up_to(20);
    strings got = some;
    const strings rest = co_await take_all(q);
    got.insert(got.end(), rest.begin(), rest.end());
    CHECK(some.size() == 20);
    CHECK(got == expected);
  });
}

TEST_CASE(
    "concurrent producers of one priority overwrite nothing, and all is delivered in each one's order") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr int producers = 9;
    constexpr int each_makes = 25;
    std::vector<client> clients;
    for (int i = 0; i < 3; ++i) clients.push_back(connect(context, server));
    std::vector<task<void>> making;
    for (int p = 0; p < producers; ++p) {
      making.push_back(start(context, [&clients, p]() -> asio::awaitable<void> {
        const priority_queue to{clients[static_cast<std::size_t>(p) % 3], "pq"};
        for (int i = 0; i < each_makes; ++i)
          co_await to.enqueue(std::to_string(p) + ":" + std::to_string(i), 5);
      }));
    }
    strings got;
    const priority_queue consumer{clients[0], "pq"};
    while (got.size() < producers * each_makes) {
      std::string item = co_await consumer.dequeue();
      got.push_back(std::move(item));
    }
    for (auto& each : making) co_await each.result();
    CHECK(std::set<std::string>(got.begin(), got.end()).size() == got.size());
    std::map<std::string, int> next;
    for (const auto& item : got) {
      const auto colon = item.find(':');
      CHECK(std::stoi(item.substr(colon + 1)) == next[item.substr(0, colon)]++);
    }
    CHECK(next.size() == producers);
    co_await keys_below(clients[0], "pq/", 0);
    co_await check_nothing_overwritten(clients[0], "pq/", producers * each_makes);
  });
}

TEST_CASE("many producers and consumers of many priorities: each item once") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t count = 300;
    std::vector<client> clients;
    for (int i = 0; i < 3; ++i) clients.push_back(connect(context, server));
    std::multiset<std::string> got;
    std::vector<task<void>> taking;
    for (std::size_t i = 0; i < 9; ++i) {
      taking.push_back(start(context, [&, i]() -> asio::awaitable<void> {
        const priority_queue from{clients[i % 3], "pq"};
        while (true) {
          std::string item = co_await from.dequeue();
          got.insert(std::move(item));
        }
      }));
    }
    std::vector<task<void>> making;
    for (std::size_t p = 0; p < 6; ++p) {
      making.push_back(start(context, [&clients, p]() -> asio::awaitable<void> {
        const priority_queue to{clients[p % 3], "pq"};
        for (std::size_t i = p; i < count; i += 6)
          co_await to.enqueue(std::to_string(i), static_cast<std::uint16_t>(i * 7 % 11));
      }));
    }
    for (auto& each : making) co_await each.result(30s);
    auto all = [&] { return got.size() >= count; };
    co_await eventually("all are delivered", all, 30s);
    for (auto& each : taking) {
      each.cancel();
      const auto code = co_await each.error();
      CHECK(code == condition::cancelled);
    }
    std::multiset<std::string> expected;
    for (std::size_t i = 0; i < count; ++i) expected.insert(std::to_string(i));
    CHECK(got == expected);
  });
}

TEST_CASE("a better item goes first from the moment at which it was enqueued") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const priority_queue a{connect(context, server), "pq"};
    const priority_queue b{connect(context, server), "pq"};
    const int rounds = 100;
    for (int i = 0; i <= rounds; ++i) co_await a.enqueue("worse " + std::to_string(i), 500);
    const std::string first = co_await b.dequeue();  // and now b has a view of the others
    CHECK(first == "worse 0");
    for (int i = 0; i < rounds; ++i) {
      const auto better = "better " + std::to_string(i);
      co_await a.enqueue(better, static_cast<std::uint16_t>(499 - i));
      // Without waiting for the view to know of it.
      if (i % 3 == 0) {
        const std::string got = co_await b.dequeue();
        CHECK(got == better);
      } else if (i % 3 == 1) {
        const std::optional<std::string> got = co_await b.try_dequeue();
        CHECK(got == better);
      } else {
        const strings got = co_await b.dequeue_up_to(1);
        CHECK(got == strings{better});
      }
    }
    // The same within one client.
    co_await b.enqueue("own", 1);
    const std::optional<std::string> own = co_await b.try_dequeue();
    CHECK(own == "own");
  });
}

TEST_CASE("foreign keys below a priority queue are left alone") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const priority_queue q{c, "pq"};
    co_await c.put("pq/config", "");
    co_await c.put("pq/00000/first", "");
    co_await c.put("pq/00005/7", "");
    co_await c.put("pq/1700000000123456789", "an item of a plain queue");
    co_await c.put("pq2/00000/0000000000000000", "");
    co_await q.enqueue("b", 6);
    co_await q.enqueue("a", 5);
    const std::size_t size = co_await q.size();
    CHECK(size == 2);
    const std::optional<std::string> first = co_await q.peek();
    CHECK(first == "a");
    const strings got = co_await take_all(q);
    CHECK(got == strings{"a", "b"});
    const auto left = co_await count_prefix(c, "pq");
    CHECK(left == 5);
  });
}

TEST_CASE("a priority queue's values are bytes") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const priority_queue q{connect(context, server), "pq"};
    const strings values{"", std::string(1, '\0'), std::string{"a\0b", 3}, std::string(1024 * 1024, '\xff')};
    for (const auto& each : values) co_await q.enqueue(each, 1);
    const strings got = co_await take_all(q);
    CHECK((got == values));
  });
}

TEST_CASE("a value that is too large fails alone") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const priority_queue q{connect(context, server), "pq"};
    std::vector<task<revision>> adding;
    for (int i = 0; i < 5; ++i) {
      const std::size_t size = i == 2 ? 2 * 1024 * 1024 : 300 * 1024;
      adding.push_back(
          start(context, [&q, i, size] { return q.enqueue(std::to_string(i) + std::string(size, 'x'), 1); }));
    }
    for (std::size_t i = 0; i < 5; ++i) {
      CAPTURE(i);
      const auto code = co_await adding[i].error();
      if (i == 2)
        CHECK(code == errc::request_too_large);
      else
        CHECK_FALSE(code);
    }
    std::string order;
    const strings got = co_await take_all(q);
    for (const auto& each : got) order += each[0];
    CHECK(order == "0134");
  });
}

TEST_CASE("a full etcd refuses items with a clear error") {
  etcd_server server{{.quota_backend_bytes = 4 * 1024 * 1024}};
  run([&](asio::io_context& context) -> asio::awaitable<void> {
    const priority_queue q{connect(context, server), "pq"};
    std::error_code code;
    std::size_t written = 0;
    while (!code && written < 5000) {
      code = co_await error_of(q.enqueue(std::string(200 * 1024, 'x'), 1));
      if (!code) ++written;
    }
    CHECK(code == errc::no_space);
    CHECK(written > 2);
    const std::size_t size = co_await q.size();
    CHECK((size == written || size == written + 1));  // etcd looks at its space also after it has written
  });
}

TEST_CASE("every operation of a priority queue can be cancelled while the server does not answer") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const priority_queue q{c, "pq"};
    co_await q.enqueue("kept", 1);
    server.pause();
    std::vector<task<void>> tasks;
    // The first is on its way, the second waits for it, the third has to look first.
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.enqueue("maybe", 1); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.enqueue("waits", 1); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.enqueue("looks", 2); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.dequeue(); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.dequeue_for(1h); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.dequeue_up_to(2); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.try_dequeue(); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.size(); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.peek(); }));
    co_await let_run();
    for (auto& each : tasks) {
      CHECK_FALSE(each.done());
      each.cancel();
      const auto code = co_await each.error(promptly);
      CHECK(code == condition::cancelled);
    }
    server.resume();

    co_await q.enqueue("last", 1);
    co_await q.enqueue("last of all", 3);
    strings got;
    while (got.empty() || got.back() != "last of all") {
      std::string item = co_await q.dequeue();
      got.push_back(std::move(item));
    }
    // The server may carry out later what it had been sent before.
    auto drained = [&]() -> asio::awaitable<bool> {
      const strings late = co_await take_all(q);
      got.insert(got.end(), late.begin(), late.end());
      const auto left = co_await count_prefix(c, "pq/");
      co_return left == 0;
    };
    co_await eventually("the queue is drained", drained);
    CHECK(got.front() == "kept");
    const std::multiset<std::string> all(got.begin(), got.end());
    CHECK(all.count("last") == 1);
    CHECK(all.count("maybe") <= 1);
    CHECK(all.count("waits") == 0);  // it had not been sent
    CHECK(all.count("looks") == 0);
  });
}

TEST_CASE("an item that was claimed for a cancelled consumer keeps its place") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const priority_queue q{c, "pq"};
    co_await q.enqueue("a", 1);
    const revision written = co_await q.enqueue("b", 5);
    co_await q.enqueue("c", 6);
    const std::string a = co_await q.dequeue();  // and now the view has the others
    CHECK(a == "a");

    server.pause();
    auto leaving = start(context, [&] { return q.dequeue(); });
    co_await let_run();
    leaving.cancel();
    const auto code = co_await leaving.error(promptly);
    CHECK(code == condition::cancelled);
    server.resume();

    const auto other = connect(context, server);
    auto again = [&]() -> asio::awaitable<bool> {
      const auto found = co_await keys_of(other, "pq/00005/");
      co_return found.size() == 1 && found[0].create_revision > written;
    };
    co_await eventually("the item is put back", again);
    const auto base = co_await keys_of(other, "__pq/00005");
    REQUIRE(base.size() == 1);
    CHECK(base[0].mod_revision > written);  // so that no producer writes over it
    const strings got = co_await take_all(priority_queue{other, "pq"});
    CHECK(got == strings{"b", "c"});
  });
}

TEST_CASE("an item that is put back is not lost when its number was given anew") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    for (const bool go : {false, true}) {
      CAPTURE(go);
      const auto c = connect(context, server);
      const priority_queue q{c, "pq"};
      co_await q.enqueue("a", 1);
      const revision written = co_await q.enqueue("b", 5);
      const std::string a = co_await q.dequeue();
      CHECK(a == "a");
      server.pause();
      auto leaving = start(context, [&] { return q.dequeue(); });
      co_await let_run();
      leaving.cancel();
      const auto code = co_await leaving.error(promptly);
      CHECK(code == condition::cancelled);
      server.resume();

      // The priority is empty now: whoever comes starts at zero again, as "b" had done.
      const auto other = connect(context, server);
      co_await keys_below(other, "pq/", 0);
      if (go)
        co_await enqueue_as_go_does(other, "pq", 5, "new");
      else
        co_await priority_queue{other, "pq"}.enqueue("new", 5);
      auto both = [&]() -> asio::awaitable<bool> {
        const auto found = co_await keys_of(other, "pq/00005/");
        co_return found.size() == 2 && std::all_of(found.begin(), found.end(), [&](const key_value& each) {
          return each.create_revision > written;
        });
      };
      co_await eventually("the item is put back beside the new one", both);
      co_await enqueue_as_go_does(other, "pq", 5, "newer");
      co_await priority_queue{other, "pq"}.enqueue("newest", 5);
      const strings got = co_await take_all(priority_queue{other, "pq"});
      CHECK(std::multiset<std::string>(got.begin(), got.end()) ==
            std::multiset<std::string>{"b", "new", "newer", "newest"});
      REQUIRE(got.size() == 4);
      CHECK(got[2] == "newer");
      CHECK(got[3] == "newest");
    }
  });
}

TEST_CASE("a priority queue works on over restarts and compactions") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const priority_queue consumer{connect(context, server), "pq"};
    const auto c = connect(context, server);
    const priority_queue producer{c, "pq"};
    for (int round = 0; round < 3; ++round) {
      CAPTURE(round);
      auto waiting = start(context, [&] { return consumer.dequeue(); });
      co_await watched(server, 1);
      if (round != 1) {
        server.kill();
        server.restart();
      }
      if (round != 0) {
        const put_response written = co_await c.put("other", "");
        co_await c.compact(written.header.revision, true);
      }
      CHECK_FALSE(waiting.done());
      const auto item = "item " + std::to_string(round);
      co_await producer.enqueue(item, 9);
      const std::string got = co_await waiting.result();
      CHECK(got == item);
    }
  });
}

TEST_CASE(
    "a server that is killed among producers and consumers duplicates nothing and loses nothing unsaid") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr int count = 400;
        const auto observer = connect(context, server);
        std::vector<client> clients;
        for (int i = 0; i < 2; ++i) clients.push_back(connect(context, server));
        std::multiset<std::string> got;
        std::size_t unknown = 0;
        std::set<std::string> maybe;  ///< Of those, the producers do not know.
        std::set<std::string> written;
        std::vector<task<void>> taking;
        for (std::size_t i = 0; i < 4; ++i) {
          taking.push_back(start(context, [&, i]() -> asio::awaitable<void> {
            const priority_queue from{clients[i % 2], "pq"};
            while (true) {
              try {
                std::string item = co_await from.dequeue();
                got.insert(std::move(item));
              } catch (const conclave::error& e) {
                if (e.code() != condition::outcome_unknown) throw;
                ++unknown;
              }
            }
          }));
        }
        std::vector<task<void>> making;
        for (int p = 0; p < 4; ++p) {
          making.push_back(start(context, [&, p]() -> asio::awaitable<void> {
            const priority_queue to{clients[static_cast<std::size_t>(p) % 2], "pq"};
            for (int i = p; i < count; i += 4) {
              std::error_code code = errc::unavailable;
              while (code == condition::unavailable)
                code = co_await error_of(to.enqueue(std::to_string(i), static_cast<std::uint16_t>(i % 5)));
              CHECK((!code || code == condition::outcome_unknown));
              (code ? maybe : written).insert(std::to_string(i));
            }
          }));
        }
        for (const std::size_t stage : {60U, 150U, 240U}) {
          auto reached = [&] { return got.size() >= stage; };
          co_await eventually("some are delivered", reached, 30s);
          server.kill();
          server.restart();
        }
        for (auto& each : making) co_await each.result(30s);
        co_await keys_below(observer, "pq/", 0, 30s);
        auto accounted = [&] {
          const auto sure = std::count_if(written.begin(), written.end(),
                                          [&](const auto& each) { return got.contains(each); });
          return static_cast<std::size_t>(sure) + unknown >= written.size();
        };
        co_await eventually("every item is delivered or said to be lost", accounted);
        for (auto& each : taking) {
          each.cancel();
          const auto code = co_await each.error();
          CHECK(code == condition::cancelled);
        }
        CHECK(std::set<std::string>(got.begin(), got.end()).size() == got.size());
        for (const auto& each : got) CHECK((written.contains(each) || maybe.contains(each)));
        CHECK(written.size() + maybe.size() == count);
      },
      100s);
}

TEST_CASE("the keys of a priority queue are those of etcd's Go package") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const priority_queue q{c, "Q"};
    co_await q.enqueue("a", 7);
    co_await q.enqueue("b", 7);
    co_await q.enqueue("c", 65535);
    const auto found = co_await keys_of(c, "");
    strings keys;
    for (const auto& each : found) {
      keys.push_back(each.key);
      CHECK(each.lease == 0);
    }
    CHECK(keys == strings{"Q/00007/0000000000000000", "Q/00007/0000000000000001", "Q/65535/0000000000000000",
                          "__Q/00007", "__Q/65535"});
    CHECK(found[0].value == "a");
    CHECK(found[1].value == "b");
    CHECK(found[2].value == "c");
    // Go's leaves the value empty, and never reads it.
    CHECK(found[3].mod_revision == found[1].mod_revision);  // written together

    co_await c.put("Q/00006/0000000000000041", "d");
    const strings got = co_await take_all(q);
    CHECK(got == strings{"d", "a", "b", "c"});
  });
}

TEST_CASE("Go's way of adding to a priority queue and ours share a queue") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr int count = 60;
    const auto c = connect(context, server);
    const auto go = connect(context, server);
    auto in_go = start(context, [&]() -> asio::awaitable<void> {
      for (int i = 0; i < count; ++i) co_await enqueue_as_go_does(go, "pq", 3, "go " + std::to_string(i));
    });
    auto ours = start(context, [&]() -> asio::awaitable<void> {
      const priority_queue q{c, "pq"};
      for (int i = 0; i < count; ++i) co_await q.enqueue("ours " + std::to_string(i), 3);
    });
    co_await in_go.result(30s);
    co_await ours.result(30s);
    const strings got = co_await take_all(priority_queue{c, "pq"});
    CHECK(got.size() == 2 * count);
    int next_go = 0;
    int next_ours = 0;
    for (const auto& each : got) {
      if (each.starts_with("go "))
        CHECK(each == "go " + std::to_string(next_go++));
      else
        CHECK(each == "ours " + std::to_string(next_ours++));
    }
    CHECK(next_go == count);
    CHECK(next_ours == count);
    co_await check_nothing_overwritten(c, "pq/", 2 * count);
  });
}
