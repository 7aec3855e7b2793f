// SPDX-License-Identifier: BSL-1.0

#include <conclave/queue.hpp>

#include <conclave/priority_queue.hpp>

#include "full_store.hpp"
#include "on_etcd.hpp"

#include <asio/experimental/awaitable_operators.hpp>

#include <cstdio>
#include <deque>
#include <map>
#include <set>

namespace {

using namespace conclave::test;
namespace asio = conclave::asio;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using conclave::event;
using conclave::event_type;
using conclave::key_value;
using conclave::put_response;
using conclave::queue;
using conclave::range_response;
using conclave::revision;
using conclave::txn_response;
using strings = std::vector<std::string>;

strings numbered(const std::string& name, std::size_t count) {
  strings out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(name + std::to_string(i));
  return out;
}

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

asio::awaitable<strings> take(queue from, std::size_t count) {
  strings out;
  while (out.size() < count) {
    std::string item = co_await from.dequeue();
    out.push_back(std::move(item));
  }
  co_return out;
}

asio::awaitable<strings> take_all(queue from) {
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

/// Consumers that take until they are dismissed.
class crew {
public:
  explicit crew(asio::io_context& context) : context_{context} {}
  crew(const crew&) = delete;
  crew& operator=(const crew&) = delete;

  void hire(const queue& from) {
    auto* const got = &got_.emplace_back();
    auto work = [this, from, got]() -> asio::awaitable<void> {
      while (true) {
        bool unknown = false;
        try {
          std::string item = co_await from.dequeue();
          got->push_back(std::move(item));
          ++total_;
        } catch (const conclave::error& e) {
          if (e.code() != condition::outcome_unknown) throw;
          unknown = true;
        }
        if (unknown) ++unknown_;
      }
    };
    tasks_.push_back(start(context_, work));
  }

  std::size_t total() const { return total_; }
  /// How often a consumer was told that an item may be gone.
  std::size_t unknown() const { return unknown_; }
  const std::deque<strings>& got() const { return got_; }

  std::multiset<std::string> all() const {
    std::multiset<std::string> out;
    for (const auto& each : got_) out.insert(each.begin(), each.end());
    return out;
  }

  asio::awaitable<void> received(std::size_t count, std::chrono::milliseconds limit = 30s) {
    auto reached = [this, count] { return total_ >= count; };
    co_await eventually("the consumers have got " + std::to_string(count), reached, limit);
  }

  asio::awaitable<void> dismiss() {
    for (auto& each : tasks_) each.cancel();
    for (auto& each : tasks_) {
      const auto code = co_await each.error();
      CHECK(code == condition::cancelled);
    }
    tasks_.clear();
  }

private:
  asio::io_context& context_;
  std::vector<task<void>> tasks_;
  std::deque<strings> got_;
  std::size_t total_ = 0;
  std::size_t unknown_ = 0;
};

/// What the store's own record says of items: each was put once and deleted once, in the order of the puts.
void check_commit_order(const std::vector<event>& history, const std::string& prefix, std::size_t count) {
  std::map<std::string, revision> deleted;
  strings in_order;
  for (const auto& each : history) {
    if (!each.kv->key.starts_with(prefix)) continue;
    if (each.type == event_type::put) {
      CHECK(each.kv->version == 1);
      in_order.push_back(each.kv->key);
    } else {
      CHECK(deleted.emplace(each.kv->key, each.kv->mod_revision).second);
    }
  }
  CHECK(in_order.size() == count);
  CHECK(deleted.size() == count);
  revision last = 0;
  for (const auto& key : in_order) {
    REQUIRE(deleted.contains(key));
    CHECK(deleted[key] >= last);
    last = deleted[key];
  }
}

/// An item that has been taken from the store and put back: there, and younger than it was.
asio::awaitable<void> put_back(client on, std::string prefix, revision written) {
  auto again = [&]() -> asio::awaitable<bool> {
    const auto found = co_await keys_of(on, prefix);
    co_return found.size() == 1 && found[0].create_revision > written;
  };
  co_await eventually("the item is put back", again);
}

client_options impatient() { return client_options{}.connect_timeout(500ms).request_timeout(1s); }

}  // namespace

TEST_CASE("a queue needs a name") {
  asio::io_context context;
  const client c{context, "127.0.0.1:1"};
  CHECK_THROWS_AS((queue{c, ""}), conclave::error);
  CHECK_THROWS_WITH((queue{c, ""}), contains("name is empty"));
}

TEST_CASE("items come out in the order in which they went in") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    const auto items = numbered("item ", 20);
    revision last = 0;
    for (const auto& each : items) {
      const revision at = co_await q.enqueue(each);
      CHECK(at > last);
      last = at;
    }
    const strings got = co_await take(q, items.size());
    CHECK(got == items);
    co_await keys_below(c, "q", 0);
  });
}

TEST_CASE("a waiting consumer gets an item that is pushed later") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    auto waiting = start(context, [&] { return consumer.dequeue(); });
    co_await watched(server, 1);
    CHECK_FALSE(waiting.done());
    co_await producer.enqueue("hello");
    const std::string got = co_await waiting.result();
    CHECK(got == "hello");
  });
}

TEST_CASE("many producers and many consumers: each item once, in the order of commits") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t producers = 9;
    constexpr std::size_t each_makes = 40;
    std::vector<client> clients;
    for (int i = 0; i < 3; ++i) clients.push_back(connect(context, server));
    crew consumers{context};
    for (int i = 0; i < 12; ++i) consumers.hire(queue{clients[static_cast<std::size_t>(i) % 3], "q"});
    std::vector<task<void>> making;
    for (std::size_t p = 0; p < producers; ++p) {
      making.push_back(start(context, [&clients, p]() -> asio::awaitable<void> {
        const queue to{clients[p % 3], "q"};
        const auto items = numbered(std::to_string(p) + ":", each_makes);
        for (const auto& item : items) co_await to.enqueue(item);
      }));
    }
    for (auto& each : making) co_await each.result(30s);
    co_await consumers.received(producers * each_makes);
    co_await consumers.dismiss();

    std::multiset<std::string> expected;
    for (std::size_t p = 0; p < producers; ++p)
      for (const auto& item : numbered(std::to_string(p) + ":", each_makes)) expected.insert(item);
    CHECK(consumers.all() == expected);
    for (const auto& got : consumers.got()) {
      std::map<std::string, int> last;  // by producer
      for (const auto& item : got) {
        const auto colon = item.find(':');
        const int number = std::stoi(item.substr(colon + 1));
        const auto [seen, first] = last.try_emplace(item.substr(0, colon), number);
        CHECK((first || seen->second < number));
        seen->second = number;
      }
    }
    const auto all = co_await history(clients[0]);
    check_commit_order(all, "q/", producers * each_makes);
  });
}

TEST_CASE("the consumers that wait in a process are served by one transaction") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t k = 12;
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    std::vector<task<std::string>> waiting;
    for (std::size_t i = 0; i < k; ++i) waiting.push_back(start(context, [&] { return consumer.dequeue(); }));
    co_await watched(server, 1);
    // The first listing has been answered: an item that is pushed now goes to the first who waits.
    co_await producer.enqueue("first");
    const std::string first = co_await waiting[0].result();
    CHECK(first == "first");
    waiting[0] = start(context, [&] { return consumer.dequeue(); });
    co_await let_run();

    const auto before = calls_started(server, "KV", "Txn");
    const auto reads = calls_started(server, "KV", "Range");
    const auto items = numbered("item ", k);
    co_await producer.enqueue_all(items);
    strings got;
    for (std::size_t i = 0; i < k; ++i) {
      std::string item = co_await waiting[(i + 1) % k].result();
      got.push_back(std::move(item));
    }
    CHECK(got == items);  // who waits longest gets the oldest
    CHECK(calls_started(server, "KV", "Txn") - before == 2);
    CHECK(calls_started(server, "KV", "Range") - reads == 0);
  });
}

TEST_CASE("dequeue_for gives an item that is there, one that comes in time, and else nothing") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    co_await producer.enqueue("there");
    auto got = co_await consumer.dequeue_for(10s);
    CHECK(got == "there");

    got = co_await consumer.dequeue_for(20ms);
    CHECK_FALSE(got);
    got = co_await consumer.dequeue_for(-1ms);
    CHECK_FALSE(got);

    auto waiting = start(context, [&] { return consumer.dequeue_for(std::chrono::milliseconds::max()); });
    co_await let_run();
    CHECK_FALSE(waiting.done());
    co_await producer.enqueue("in time");
    got = co_await waiting.result();
    CHECK(got == "in time");

    // One that came too late is for the next.
    co_await producer.enqueue("late");
    got = co_await consumer.dequeue_for(10s);
    CHECK(got == "late");
  });
}

TEST_CASE("items are not lost to consumers whose time runs out just then") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    const auto items = numbered("item ", 60);
    auto making = start(context, [&]() -> asio::awaitable<void> {
      for (const auto& each : items) {
        co_await producer.enqueue(each);
        co_await pause_for(2ms);
      }
    });
    strings got;
    int timeouts = 0;
    while (got.size() < items.size()) {
      std::optional<std::string> item = co_await consumer.dequeue_for(1ms);
      if (item)
        got.push_back(std::move(*item));
      else
        ++timeouts;
    }
    co_await making.result();
    CHECK(got == items);
    CHECK(timeouts > 0);
  });
}

TEST_CASE("try_dequeue knows of all that was there when it was called") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    auto got = co_await consumer.try_dequeue();
    CHECK_FALSE(got);
    for (int round = 0; round < 100; ++round) {
      const auto item = std::to_string(round);
      // One that looks already must not answer for one that comes after the item.
      auto early = start(context, [&] { return consumer.try_dequeue(); });
      if (round % 2 == 0) co_await let_run();
      co_await producer.enqueue(item);
      auto late = start(context, [&] { return consumer.try_dequeue(); });
      const std::optional<std::string> first = co_await early.result();
      const std::optional<std::string> second = co_await late.result();
      CHECK(first.has_value() != second.has_value());
      CHECK(first.value_or(second.value_or("")) == item);
    }
    got = co_await consumer.try_dequeue();
    CHECK_FALSE(got);
  });
}

TEST_CASE("try_dequeue ends when others are faster") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t items = 150;
    std::vector<client> clients;
    for (int i = 0; i < 4; ++i) clients.push_back(connect(context, server));
    const queue producer{clients[0], "q"};
    std::multiset<std::string> got;
    bool finished = false;
    std::vector<task<void>> taking;
    for (std::size_t i = 0; i < 8; ++i) {
      taking.push_back(start(context, [&, i]() -> asio::awaitable<void> {
        const queue from{clients[i % 4], "q"};
        while (true) {
          const bool last = finished;
          std::optional<std::string> item = co_await from.try_dequeue();
          if (item)
            got.insert(std::move(*item));
          else if (last)
            co_return;
        }
      }));
    }
    const auto all = numbered("", items);
    for (const auto& each : all) co_await producer.enqueue(each);
    finished = true;
    for (auto& each : taking) co_await each.result(30s);
    CHECK(got == std::multiset<std::string>(all.begin(), all.end()));
  });
}

TEST_CASE("try_dequeue fails when no server can be reached, and waiting goes on") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue producer{connect(context, server), "q"};
    const queue known{connect(context, server, impatient()), "q"};
    co_await producer.enqueue("first");
    co_await producer.enqueue("second");
    const std::string first = co_await known.dequeue();
    CHECK(first == "first");
    server.kill();

    const queue fresh{connect(context, server, impatient()), "q"};
    auto waiting = start(context, [&] { return fresh.dequeue(); });
    auto code = co_await error_of(fresh.try_dequeue());
    CHECK(code == condition::unavailable);
    code = co_await error_of(known.try_dequeue());
    CHECK((code == condition::unavailable || code == condition::outcome_unknown));
    code = co_await error_of(known.size());
    CHECK(code == condition::unavailable);
    code = co_await error_of(known.peek());
    CHECK(code == condition::unavailable);
    CHECK_FALSE(waiting.done());

    server.restart();
    const std::string second = co_await waiting.result();
    CHECK(second == "second");
  });
}

TEST_CASE("dequeue_up_to takes several in order") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    CHECK_THROWS_WITH(q.dequeue_up_to(0), contains("the number is zero"));

    const auto items = numbered("item ", 100);
    co_await q.enqueue_all(items);
    const strings some = co_await q.dequeue_up_to(3);
    CHECK(some == strings(items.begin(), items.begin() + 3));
    const strings most = co_await q.dequeue_up_to(1000);
    CHECK(most == strings(items.begin() + 3, items.begin() + 67));
    const strings rest = co_await q.dequeue_up_to(1000);
    CHECK(rest == strings(items.begin() + 67, items.end()));

    auto waiting = start(context, [&] { return q.dequeue_up_to(5); });
    co_await let_run();
    CHECK_FALSE(waiting.done());
    const auto pair = numbered("late ", 2);
    co_await q.enqueue_all(pair);
    const strings late = co_await waiting.result();
    CHECK(late == pair);
  });
}

TEST_CASE("enqueue_all writes whole groups in order") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    const revision none = co_await q.enqueue_all(strings{});
    CHECK(none == 0);

    auto items = numbered("item ", 250);
    const revision last = co_await q.enqueue_all(items);
    std::map<revision, int> groups;
    auto found = co_await keys_of(c, "q/");
    for (const auto& each : found) ++groups[each.mod_revision];
    REQUIRE(groups.size() == 3);
    CHECK(groups.begin()->second == 100);
    CHECK(groups.rbegin()->first == last);
    CHECK(groups.rbegin()->second == 50);
    strings got = co_await take(q, items.size());
    CHECK(got == items);

    // 300 KiB each: three make a group of less than 1 MiB.
    items = numbered("", 7);
    for (auto& each : items) each.resize(300 * 1024, 'x');
    co_await q.enqueue_all(items);
    groups.clear();
    found = co_await keys_of(c, "q/");
    for (const auto& each : found) ++groups[each.mod_revision];
    REQUIRE(groups.size() == 3);
    CHECK(groups.begin()->second == 3);
    CHECK(groups.rbegin()->second == 1);
    got = co_await take(q, items.size());
    CHECK(got == items);
  });
}

TEST_CASE("an error of enqueue_all says how many items were written before") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue q{connect(context, server), "q"};
    auto items = numbered("item ", 5);
    items[3].assign(2 * 1024 * 1024, 'x');
    std::error_code code;
    std::string text;
    try {
      co_await q.enqueue_all(items);
    } catch (const conclave::error& e) {
      code = e.code();
      text = e.what();
    }
    CHECK(code == errc::request_too_large);
    CHECK_THAT(text, contains("3 of 5 written"));
    const strings got = co_await take_all(q);
    CHECK(got == strings(items.begin(), items.begin() + 3));
  });
}

TEST_CASE("a queue leaves alone what is not its own") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue jobs{c, "jobs"};
    const queue deeper{c, "jobs/x"};
    const queue sibling{c, "jobs2"};
    const conclave::priority_queue ranked{c, "jobs"};
    co_await c.put("jobs/config", "c");
    co_await c.put("jobs", "j");
    co_await deeper.enqueue("deeper");
    co_await sibling.enqueue("sibling");
    co_await ranked.enqueue("ranked", 7);
    const auto others = co_await count_prefix(c, "");

    std::size_t size = co_await jobs.size();
    CHECK(size == 0);
    std::optional<std::string> item = co_await jobs.peek();
    CHECK_FALSE(item);
    item = co_await jobs.try_dequeue();
    CHECK_FALSE(item);

    co_await jobs.enqueue("one");
    co_await jobs.enqueue("two");
    size = co_await jobs.size();
    CHECK(size == 2);
    item = co_await jobs.peek();
    CHECK(item == "one");
    const strings got = co_await take_all(jobs);
    CHECK(got == strings{"one", "two"});

    const auto left = co_await count_prefix(c, "");
    const auto receipts = co_await count_prefix(c, "__jobs/receipt/");
    CHECK(receipts == 1);
    CHECK(left == others + receipts);
    size = co_await deeper.size();
    CHECK(size == 1);
    item = co_await ranked.peek();
    CHECK(item == "ranked");
    item = co_await ranked.try_dequeue();
    CHECK(item == "ranked");
    item = co_await deeper.try_dequeue();
    CHECK(item == "deeper");
    item = co_await sibling.try_dequeue();
    CHECK(item == "sibling");
  });
}

TEST_CASE("peek shows the first of several that were put at once, and looks past foreign keys") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    const auto items = numbered("item ", 100);
    for (const bool foreign : {false, true}) {
      CAPTURE(foreign);
      if (foreign)
        for (int i = 0; i < 40; ++i) co_await c.put("q/foreign " + std::to_string(i), "");
      co_await q.enqueue_all(items);
      for (const auto& each : items) {
        const std::optional<std::string> seen = co_await q.peek();
        CHECK(seen == each);
        const std::string got = co_await q.dequeue();
        CHECK(got == each);
      }
    }
    const std::optional<std::string> seen = co_await q.peek();
    CHECK_FALSE(seen);
  });
}

TEST_CASE("items of one transaction are in the order of their keys, even where the server's answer is not") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    // The names of the second transaction go before those of the first: sorting by revision has to move them all.
    strings items;
    for (const std::int64_t base : {2000000000000000000, 1000000000000000000}) {
      conclave::txn request;
      for (int i = 0; i < 60; ++i) {
        items.push_back(std::to_string(base + i));
        request.then(conclave::put("q/" + items.back(), items.back()));
      }
      co_await c.txn(std::move(request));
    }
    for (const auto& each : items) {
      const std::optional<std::string> seen = co_await q.peek();
      CHECK(seen == each);
      const std::string got = co_await q.dequeue();
      CHECK(got == each);
    }
  });
}

TEST_CASE("more foreign keys than the window holds do not hide an item") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    for (int i = 0; i < 42; ++i) {
      conclave::txn request;
      for (int k = 0; k < 100; ++k) request.then(conclave::put("q/!" + std::to_string(i * 100 + k), ""));
      co_await c.txn(request);
    }
    const queue q{c, "q"};
    const conclave::priority_queue ranked{c, "q"};
    co_await q.enqueue("item");
    co_await ranked.enqueue("ranked", 3);
    std::optional<std::string> item = co_await q.try_dequeue();
    CHECK(item == "item");
    item = co_await ranked.try_dequeue();
    CHECK(item == "ranked");
    const std::size_t size = co_await q.size();
    CHECK(size == 0);
  });
}

TEST_CASE("values are bytes") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue producer{connect(context, server), "q"};
    const queue consumer{connect(context, server), "q"};
    std::string every;
    for (int i = 0; i < 256; ++i) every += static_cast<char>(i);
    const strings values{
        "", std::string(1, '\0'), std::string{"a\0b", 3}, every, std::string(1024 * 1024, '\xff'), "end"};
    for (const auto& each : values) co_await producer.enqueue(each);
    const strings listed = co_await take(consumer, values.size());
    CHECK((listed == values));

    // The consumer's view stands now: it knows these from events.
    for (const auto& each : values) {
      co_await producer.enqueue(each);
      const std::optional<std::string> seen = co_await consumer.peek();
      CHECK((seen == each));
      const std::string got = co_await consumer.dequeue();
      CHECK((got == each));
    }
  });
}

TEST_CASE("a value that is too large is refused, and the queue goes on") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue q{connect(context, server), "q"};
    for (const std::size_t size : {std::size_t{1600} * 1024, std::size_t{3} * 1024 * 1024}) {
      const auto code = co_await error_of(q.enqueue(std::string(size, 'x')));
      CHECK(code == errc::request_too_large);
      CHECK(code == condition::invalid_argument);
    }
    co_await q.enqueue("small");
    const strings got = co_await take_all(q);
    CHECK(got == strings{"small"});
  });
}

TEST_CASE("a full etcd says so, and no item is lost") {
  etcd_server server{{.quota_backend_bytes = 4 * 1024 * 1024}};
  run(
      [&](asio::io_context& context) -> asio::awaitable<void> {
        const auto c = connect(context, server);
        const queue q{c, "q"};
        std::error_code code;
        std::size_t written = 0;
        while (!code && written < 5000) {
          code = co_await error_of(q.enqueue(std::to_string(written) + std::string(200 * 1024, 'x')));
          if (!code) ++written;
        }
        CHECK(code == errc::no_space);
        REQUIRE(written > 2);
        const std::size_t size = co_await q.size();
        CHECK(size == written);

        // Some servers let a full store be drained, others refuse all transactions: both are clear.
        std::size_t next = 0;
        code = {};
        while (!code && next < written) {
          std::optional<std::string> item;
          try {
            item = co_await q.try_dequeue();
          } catch (const conclave::error& e) {
            code = e.code();
          }
          if (code) break;
          REQUIRE(item);
          CHECK(item->substr(0, item->find('x')) == std::to_string(next));
          ++next;
        }
        if (code) CHECK(code == errc::no_space);
        const auto waiting = co_await error_of(q.dequeue_for(1ms));
        CHECK((!waiting || waiting == errc::no_space));

        // An administrator makes room.
        const auto now = co_await c.status();
        co_await make_room(c, server, now.header.revision);
        co_await c.put("room", "");
        while (next < written) {
          const std::string item = co_await q.dequeue();
          CHECK(item.substr(0, item.find('x')) == std::to_string(next));
          ++next;
        }
        co_await keys_below(c, "q/", 0);
      },
      60s);
}

TEST_CASE("a backlog far larger than the window is drained in order") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t count = 20000;
    const auto c = connect(context, server);
    const queue q{c, "q"};
    const auto items = numbered("", count);
    co_await q.enqueue_all(items);
    const std::size_t size = co_await q.size();
    CHECK(size == count);
    strings got;
    while (got.size() < count) {
      const strings some = co_await q.dequeue_up_to(64);
      got.insert(got.end(), some.begin(), some.end());
    }
    CHECK((got == items));
    co_await keys_below(c, "q/", 0);
  });
}

TEST_CASE("an idle consumer can be cancelled, and nothing is lost by it") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    auto first = start(context, [&] { return consumer.dequeue(); });
    auto second = start(context, [&] { return consumer.dequeue(); });
    auto bounded = start(context, [&] { return consumer.dequeue_for(10min); });
    auto several = start(context, [&] { return consumer.dequeue_up_to(9); });
    co_await watched(server, 1);
    first.cancel();
    auto code = co_await first.error(promptly);
    CHECK(code == condition::cancelled);
    bounded.cancel();
    code = co_await bounded.error(promptly);
    CHECK(code == condition::cancelled);
    CHECK_FALSE(second.done());

    co_await producer.enqueue("one");
    const std::string got = co_await second.result();
    CHECK(got == "one");
    several.cancel();
    code = co_await several.error(promptly);
    CHECK(code == condition::cancelled);
    const strings two{"two", "three"};
    co_await producer.enqueue_all(two);
    const strings rest = co_await take(consumer, 2);
    CHECK(rest == two);
  });
}

TEST_CASE("an item that was claimed for a cancelled consumer goes to the next one") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    co_await q.enqueue("first");
    co_await q.enqueue("second");
    const std::string first = co_await q.dequeue();  // and now the view has the second
    CHECK(first == "first");

    server.pause();
    auto leaving = start(context, [&] { return q.dequeue(); });
    co_await let_run();
    leaving.cancel();
    const auto code = co_await leaving.error(promptly);
    CHECK(code == condition::cancelled);
    auto next = start(context, [&] { return q.dequeue(); });
    co_await let_run();
    server.resume();
    const std::string second = co_await next.result();
    CHECK(second == "second");
    const auto all = co_await history(c);
    check_commit_order(all, "q/", 2);  // written once, deleted once: never put back
  });
}

TEST_CASE("an item that was claimed for a cancelled consumer goes back into the store if there is no other") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    for (const bool client_goes : {false, true}) {
      for (const int how : {0, 1, 2}) {
        CAPTURE(client_goes, how);
        std::optional<queue> q{queue{connect(context, server), "q"}};
        co_await q->enqueue("first");
        const revision written = co_await q->enqueue("second");
        const std::string first = co_await q->dequeue();
        CHECK(first == "first");

        server.pause();
        auto leaving = start(context, [q = *q, how]() -> asio::awaitable<void> {
          if (how == 0) (void)co_await q.dequeue();
          if (how == 1) (void)co_await q.dequeue_for(10min);
          if (how == 2) (void)co_await q.try_dequeue();
        });
        co_await let_run();
        leaving.cancel();
        const auto code = co_await leaving.error(promptly);
        CHECK(code == condition::cancelled);
        if (client_goes) q.reset();
        co_await let_run();
        server.resume();

        const auto other = connect(context, server);
        co_await put_back(other, "q/", written);
        const std::string second = co_await queue{other, "q"}.dequeue();
        CHECK(second == "second");
        co_await keys_below(other, "q/", 0);
      }
    }
  });
}

TEST_CASE("an item and the cancellation at the same moment: the item is not lost") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    int delivered = 0;
    int cancelled = 0;
    for (int round = 0; round < 300; ++round) {
      auto leaving = start(context, [&] { return consumer.dequeue(); });
      co_await let_run();
      const auto item = std::to_string(round);
      co_await producer.enqueue(item);
      // Before the event, with the claim in flight, with its result on the way, after it.
      const auto executor = co_await asio::this_coro::executor;
      for (int i = 0; i < round * 2; ++i) co_await asio::post(executor, asio::use_awaitable);
      leaving.cancel();
      const auto code = co_await leaving.error();
      CHECK((!code || code == condition::cancelled));
      std::string got;
      if (code)
        got = co_await consumer.dequeue();
      else
        got = co_await leaving.result();
      CHECK(got == item);
      ++(code ? cancelled : delivered);
    }
    CHECK(cancelled > 0);
    co_await keys_below(connect(context, server), "q/", 0);
    std::printf("cancelled %d times, too late %d times\n", cancelled, delivered);
  });
}

TEST_CASE("a consumer that loses Asio's || loses no item") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    using namespace asio::experimental::awaitable_operators;
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    const auto items = numbered("item ", 150);
    auto making = start(context, [&]() -> asio::awaitable<void> {
      for (const auto& each : items) co_await producer.enqueue(each);
    });
    std::multiset<std::string> got;
    int losses = 0;
    asio::steady_timer timer{co_await asio::this_coro::executor};
    for (int round = 0; got.size() < items.size(); ++round) {
      timer.expires_after(std::chrono::microseconds{round % 40 * 50});
      auto either = co_await (consumer.dequeue() || timer.async_wait(asio::use_awaitable));
      if (either.index() == 0)
        got.insert(std::get<0>(std::move(either)));
      else
        ++losses;
    }
    co_await making.result();
    CHECK(got == std::multiset<std::string>(items.begin(), items.end()));
    CHECK(losses > 0);
    co_await keys_below(connect(context, server), "q/", 0);
  });
}

TEST_CASE("every operation of a queue can be cancelled while the server does not answer") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "q"};
    co_await q.enqueue("kept");
    const auto pair = numbered("pair ", 2);
    server.pause();
    std::vector<task<void>> tasks;
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.enqueue("maybe"); }));
    tasks.push_back(start(context, [&]() -> asio::awaitable<void> { (void)co_await q.enqueue_all(pair); }));
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

    // Written or not, whole or not at all, and never twice.
    co_await q.enqueue("last");
    strings got;
    while (got.empty() || got.back() != "last") {
      std::string item = co_await q.dequeue();
      got.push_back(std::move(item));
    }
    // The server may carry out later what it had been sent before.
    auto drained = [&]() -> asio::awaitable<bool> {
      const strings late = co_await take_all(q);
      got.insert(got.end(), late.begin(), late.end());
      const auto left = co_await count_prefix(c, "q/");
      co_return left == 0;
    };
    co_await eventually("the queue is drained", drained);
    CHECK(got.front() == "kept");
    CHECK(std::set<std::string>(got.begin(), got.end()).size() == got.size());
    CHECK(std::count(got.begin(), got.end(), pair[0]) == std::count(got.begin(), got.end(), pair[1]));
  });
}

TEST_CASE("a consumer waits on when the client and the queue that it came from are destroyed") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    std::optional<client> c{connect(context, server)};
    std::optional<queue> q{queue{*c, "q"}};
    auto waiting = start(context, [q = *q]() mutable { return std::move(q).dequeue(); });
    auto cancelled = start(context, [q = *q]() mutable { return std::move(q).dequeue(); });
    co_await watched(server, 1);
    q.reset();
    c.reset();
    co_await queue{connect(context, server), "q"}.enqueue("item");
    const std::string got = co_await waiting.result();
    CHECK(got == "item");
    cancelled.cancel();
    const auto code = co_await cancelled.error(promptly);
    CHECK(code == condition::cancelled);
  });
}

TEST_CASE("a context may be destroyed with consumers waiting and a claim in flight") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    for (const bool in_flight : {false, true}) {
      CAPTURE(in_flight);
      asio::io_context inner{1};
      const client c{inner, server.endpoint()};
      const queue q{c, "q"};
      int ended = 0;
      for (int i = 0; i < 3; ++i)
        asio::co_spawn(inner, q.dequeue(), [&ended](std::exception_ptr, const std::string&) { ++ended; });
      auto watching = [&] {
        inner.poll();
        return server.metric(watchers_metric) == 1;
      };
      co_await eventually("the consumers wait", watching);
      if (in_flight) {
        server.pause();
        asio::co_spawn(inner, q.enqueue("item"), [&ended](std::exception_ptr, revision) { ++ended; });
        inner.poll();
      }
      CHECK(ended == 0);
    }
    server.resume();
    // As after a crash, the lease of the claims' receipts is left until its time is over.
    const auto c = connect(context, server);
    const auto left = co_await c.leases();
    CHECK(left.leases.size() <= 2);
    for (const auto& each : left.leases) co_await c.lease_revoke(each.id);
  });
}

TEST_CASE("a consumer waits through a server that is killed and restarted") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const queue producer{connect(context, server), "q"};
    const conclave::priority_queue ranked{connect(context, server), "ranked"};
    for (int round = 0; round < 3; ++round) {
      CAPTURE(round);
      auto waiting = start(context, [&] { return consumer.dequeue(); });
      auto bounded = start(context, [&] { return consumer.dequeue_for(10min); });
      auto of_ranked = start(context, [&] { return ranked.dequeue(); });
      co_await watched(server, 2);
      server.kill();
      server.restart();
      CHECK_FALSE(waiting.done());
      const strings items{"one", "two"};
      co_await producer.enqueue_all(items);
      co_await ranked.enqueue("ranked", 1);
      const std::string one = co_await waiting.result();
      CHECK(one == "one");
      const std::optional<std::string> two = co_await bounded.result();
      CHECK(two == "two");
      const std::string got = co_await of_ranked.result();
      CHECK(got == "ranked");
    }
  });
}

TEST_CASE("a server that is killed during a drain duplicates nothing and loses nothing unsaid") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr std::size_t count = 1200;
        const auto observer = connect(context, server);
        const auto items = numbered("item ", count);
        co_await queue{observer, "q"}.enqueue_all(items);
        crew consumers{context};
        const auto one = connect(context, server);
        const auto two = connect(context, server);
        for (int i = 0; i < 8; ++i) consumers.hire(queue{i % 2 == 0 ? one : two, "q"});
        for (const std::size_t stage : {200U, 500U, 800U}) {
          co_await consumers.received(stage);
          REQUIRE(consumers.total() < count);
          server.kill();
          server.restart();
        }
        co_await keys_below(observer, "q/", 0, 30s);
        auto accounted = [&] { return consumers.total() + consumers.unknown() >= count; };
        co_await eventually("every item is delivered or said to be lost", accounted);
        co_await consumers.dismiss();
        const auto all = consumers.all();
        CHECK(std::set<std::string>(all.begin(), all.end()).size() == all.size());
        for (const auto& each : all) CHECK(each.starts_with("item "));
        std::printf("killed during a drain: %zu delivered, %zu times told that the outcome is unknown\n",
                    consumers.total(), consumers.unknown());
      },
      100s);
}

TEST_CASE("a consumer waits through compactions, also while it is cut off") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const queue consumer{connect(context, server), "q"};
    const auto c = connect(context, server);
    const queue producer{c, "q"};
    for (const bool cut_off : {false, true}) {
      CAPTURE(cut_off);
      auto waiting = start(context, [&] { return consumer.dequeue(); });
      co_await watched(server, 1);
      if (cut_off) server.restart();
      revision last = 0;
      for (int i = 0; i < 10; ++i) {
        const put_response written = co_await c.put("other", std::to_string(i));
        last = written.header.revision;
      }
      co_await c.compact(last, true);
      co_await producer.enqueue("item");
      const std::string got = co_await waiting.result();
      CHECK(got == "item");
    }
  });
}

TEST_CASE("the keys of a queue are those of etcd's Go package") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto c = connect(context, server);
    const queue q{c, "Q"};
    co_await q.enqueue("item");
    const auto found = co_await keys_of(c, "");
    REQUIRE(found.size() == 1);
    CHECK(found[0].key.size() == 2 + 19 + 20);  // a time, as theirs, and a random number
    CHECK(found[0].key.starts_with("Q/1"));
    CHECK(found[0].key.find_first_not_of("0123456789", 2) == std::string::npos);
    CHECK(found[0].value == "item");
    CHECK(found[0].lease == 0);
    CHECK(found[0].version == 1);

    // The order is that of the commits, not of the names.
    co_await c.put("Q/1200000000000000000", "written by a program in Go whose clock is late");
    const strings got = co_await take_all(q);
    CHECK(got == strings{"item", "written by a program in Go whose clock is late"});
  });
}

TEST_CASE("Go's way of taking an item and ours share a queue") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    constexpr std::size_t count = 200;
    const auto c = connect(context, server);
    const queue producer{c, "q"};
    const auto go = connect(context, server);
    std::multiset<std::string> got;
    std::size_t by_go = 0;
    bool finished = false;
    // As contrib/recipes/queue.go: the first by revision, then a guarded deletion.
    auto in_go = start(context, [&]() -> asio::awaitable<void> {
      while (!finished) {
        const range_response first = co_await go.range(conclave::range_prefix(
            "q", {.limit = 1, .order = conclave::sort_order::ascend, .target = conclave::sort_target::mod}));
        if (first.kvs.empty()) {
          co_await let_run();
          continue;
        }
        conclave::txn request;
        request.when(conclave::mod_revision(first.kvs[0].key) == first.kvs[0].mod_revision)
            .then(conclave::delete_key(first.kvs[0].key));
        const txn_response answer = co_await go.txn(std::move(request));
        if (!answer.succeeded) continue;
        got.insert(first.kvs[0].value);
        ++by_go;
      }
    });
    crew consumers{context};
    consumers.hire(queue{connect(context, server), "q"});
    const auto items = numbered("", count);
    for (std::size_t i = 0; i < count; ++i) {
      if (i % 2 == 0)
        co_await producer.enqueue(items[i]);
      else
        co_await go.put("q/" + std::to_string(1600000000000000000U + i), items[i]);
    }
    auto done = [&] { return by_go + consumers.total() >= count; };
    co_await eventually("all are taken", done);
    finished = true;
    co_await in_go.result();
    co_await consumers.dismiss();
    got.merge(consumers.all());
    CHECK(got == std::multiset<std::string>(items.begin(), items.end()));
    CHECK(by_go > 0);
    CHECK(consumers.total() > 0);
  });
}

namespace {

struct cost {
  double calls = 0;
  double proposals = 0;
};

cost spent(const etcd_server& server) {
  cost out;
  for (const char* method : {"Range", "Put", "DeleteRange", "Txn"})
    out.calls += calls_started(server, "KV", method);
  out.proposals = server.metric("etcd_server_proposals_committed_total");
  return out;
}

/// What an operation cost the server since `before`.
cost report(const char* what, const etcd_server& server, const cost& before) {
  const cost after = spent(server);
  const cost out{after.calls - before.calls, after.proposals - before.proposals};
  std::printf("%-72s %3.0f round trips %3.0f proposals\n", what, out.calls, out.proposals);
  return out;
}

/// A new server agrees with itself on a version, which is a proposal.
asio::awaitable<void> version_agreed(const etcd_server& server) {
  auto agreed = [&] {
    const auto text = conclave::testing::http_request(server.port(), "/version").body;
    const auto value = [&text](const std::string& name) {
      const auto begin = text.find("\"" + name + "\":\"") + name.size() + 4;
      return text.substr(begin, text.find('.', text.find('.', begin) + 1) - begin);  // major and minor
    };
    return value("etcdserver") == value("etcdcluster");
  };
  co_await eventually("the server's version is agreed on", agreed, 30s);
}

}  // namespace

TEST_CASE("what the operations of a queue cost", "[cost]") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    co_await version_agreed(server);
    const queue producer{connect(context, server), "q"};
    const queue consumer{connect(context, server), "q"};
    co_await producer.enqueue("warm up");
    (void)co_await consumer.dequeue();

    cost before = spent(server);
    co_await producer.enqueue("item");
    cost out = report("enqueue", server, before);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 1);
    (void)co_await consumer.dequeue();

    auto idle = start(context, [&] { return consumer.dequeue(); });
    co_await let_run();
    before = spent(server);
    co_await producer.enqueue("item");
    (void)co_await idle.result();
    out = report("enqueue, and dequeue by a consumer that waits", server, before);
    CHECK(out.calls == 2);
    CHECK(out.proposals == 2);

    const auto sixteen = numbered("", 16);
    std::vector<task<std::string>> waiting;
    for (std::size_t i = 0; i < 16; ++i)
      waiting.push_back(start(context, [&] { return consumer.dequeue(); }));
    co_await let_run();
    before = spent(server);
    co_await producer.enqueue_all(sixteen);
    for (auto& each : waiting) (void)co_await each.result();
    out = report("enqueue_all of 16, and dequeue by 16 consumers that wait in a process", server, before);
    CHECK(out.calls == 2);
    CHECK(out.proposals == 2);

    const auto hundred = numbered("", 100);
    before = spent(server);
    co_await producer.enqueue_all(hundred);
    out = report("enqueue_all of 100", server, before);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 1);

    // The view stands: the 100 come by events.
    (void)co_await consumer.dequeue();
    before = spent(server);
    (void)co_await consumer.dequeue();
    out = report("dequeue of an item that is in the view", server, before);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 1);

    before = spent(server);
    const strings some = co_await consumer.dequeue_up_to(64);
    out = report("dequeue_up_to(64)", server, before);
    CHECK(some.size() == 64);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 1);
    strings rest = co_await take_all(consumer);
    CHECK(rest.size() == 34);

    before = spent(server);
    std::optional<std::string> nothing = co_await consumer.try_dequeue();
    out = report("try_dequeue of an empty queue", server, before);
    CHECK_FALSE(nothing);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 0);

    co_await producer.enqueue("item");
    const queue cold{connect(context, server), "q"};
    before = spent(server);
    std::optional<std::string> item = co_await cold.try_dequeue();
    out = report("try_dequeue, the first of a client", server, before);
    CHECK(item == "item");
    CHECK(out.calls == 2);
    CHECK(out.proposals == 2);  // the claim, and the lease of its receipt

    co_await producer.enqueue_all(sixteen);
    const queue standing{connect(context, server), "q"};
    before = spent(server);
    for (int i = 0; i < 16; ++i) (void)co_await standing.dequeue();
    out = report("dequeue of 16 items that are there, one by one, the first of a client", server, before);
    CHECK(out.calls == 17);
    CHECK(out.proposals == 17);

    const conclave::priority_queue ranked{connect(context, server), "ranked"};
    before = spent(server);
    co_await ranked.enqueue("item", 5);
    out = report("priority_queue: enqueue, the first of a client and priority", server, before);
    CHECK(out.calls == 2);
    CHECK(out.proposals == 1);
    before = spent(server);
    co_await ranked.enqueue("item", 5);
    out = report("priority_queue: enqueue", server, before);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 1);
    before = spent(server);
    std::vector<task<revision>> adding;
    server.pause();  // or the first answer might come before the last of them has begun
    for (std::size_t i = 0; i < 16; ++i)
      adding.push_back(start(context, [&] { return ranked.enqueue("item", 5); }));
    co_await let_run();
    server.resume();
    for (auto& each : adding) (void)co_await each.result();
    out = report("priority_queue: enqueue, 16 at once of one priority", server, before);
    CHECK(out.calls == out.proposals);
    CHECK(out.calls <= 2);
    const conclave::priority_queue taker{connect(context, server), "ranked"};
    (void)co_await taker.dequeue();
    before = spent(server);
    (void)co_await taker.dequeue();
    out = report("priority_queue: dequeue of an item that is in the view", server, before);
    CHECK(out.calls == 1);
    CHECK(out.proposals == 1);
  });
}
