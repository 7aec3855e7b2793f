// SPDX-License-Identifier: BSL-1.0

// Watches on a real etcd: conclave/watcher.hpp.

#include <conclave/client.hpp>

#include "on_etcd.hpp"

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::delete_key;
using conclave::errc;
using conclave::event;
using conclave::event_type;
using conclave::put;
using conclave::revision;
using conclave::txn;
using conclave::watcher;

/// Events until `last` has been seen. Checks on the way that batches are not empty, that revisions grow from
/// batch to batch and never fall within one.
asio::awaitable<std::vector<event>> events_until(watcher& from, revision last) {
  std::vector<event> all;
  while (all.empty() || all.back().kv->mod_revision < last) {
    auto batch = co_await from.next();
    REQUIRE_FALSE(batch.empty());
    if (!all.empty()) CHECK(batch.front().kv->mod_revision > all.back().kv->mod_revision);
    for (auto& each : batch) {
      if (!all.empty()) CHECK(each.kv->mod_revision >= all.back().kv->mod_revision);
      all.push_back(std::move(each));
    }
  }
  co_return all;
}

/// Event by event the same: nothing missing, nothing twice, nothing in another order.
void check_same(const std::vector<event>& seen, const std::vector<event>& truth) {
  REQUIRE(seen.size() == truth.size());
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] == truth[i]) continue;
    FAIL("event " << i << ": " << seen[i].kv->key << " at " << seen[i].kv->mod_revision
                  << ", but in the store " << truth[i].kv->key << " at " << truth[i].kv->mod_revision);
  }
}

/// What the store's own record has below `prefix`, up to `last`.
asio::awaitable<std::vector<event>> truth_below(client on, std::string prefix, revision last) {
  auto all = co_await history(on);
  std::erase_if(all, [&](const event& each) {
    return !each.kv->key.starts_with(prefix) || each.kv->mod_revision > last;
  });
  co_return all;
}

}  // namespace

TEST_CASE("a watch tells of what happens from its start on") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("k", "before");
    auto w = co_await c.watch("k");
    const auto first = co_await c.put("k", "1");
    co_await c.put("kk", "another key");
    const auto second = co_await c.delete_range(delete_key("k"));
    const auto all = co_await events_until(w, second.header.revision);
    REQUIRE(all.size() == 2);
    CHECK(all[0].type == event_type::put);
    CHECK(all[0].kv->value == "1");
    CHECK(all[0].kv->mod_revision == first.header.revision);
    CHECK(all[0].kv->version == 2);
    CHECK_FALSE(all[0].prev_kv.has_value());
    CHECK(all[1].type == event_type::delete_);
    CHECK(all[1].kv->key == "k");

    auto waiting = start(context, [&] { return w.next(); });
    co_await pause_for(50ms);
    CHECK_FALSE(waiting.done());
    const auto twice = co_await error_of(w.next());
    CHECK(twice == errc::invalid_argument);  // one at a time
    co_await c.put("k", "2");
    const auto later = co_await waiting.result();
    CHECK(later.size() == 1);
  });
}

TEST_CASE("watches on prefixes and intervals see their keys and no others") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto prefix = co_await c.watch_prefix("b");
    auto interval = co_await c.watch_interval("a", "b");
    auto everything = co_await c.watch_prefix("");
    for (const char* key : {"aa", "b", "c", "b/1"}) co_await c.put(key, "");
    const auto last_b = co_await c.put("b/2", "");
    const auto last = co_await c.put("a", "");
    auto keys = [](const std::vector<event>& events) {
      std::vector<std::string> out;
      for (const auto& each : events) out.push_back(each.kv->key);
      return out;
    };
    const auto by_prefix = co_await events_until(prefix, last_b.header.revision);
    CHECK(keys(by_prefix) == std::vector<std::string>{"b", "b/1", "b/2"});
    const auto by_interval = co_await events_until(interval, last.header.revision);
    CHECK(keys(by_interval) == std::vector<std::string>{"aa", "a"});
    const auto all = co_await events_until(everything, last.header.revision);
    CHECK(keys(all) == std::vector<std::string>{"aa", "b", "c", "b/1", "b/2", "a"});
    const auto empty = co_await error_of(c.watch(""));
    CHECK(empty == errc::invalid_argument);
    const auto negative = co_await error_of(c.watch("k", {.start_revision = -1}));
    CHECK(negative == errc::invalid_argument);
  });
}

TEST_CASE("a watch may begin in the past, or in the future") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    std::vector<revision> written;
    for (int i = 0; i < 10; ++i) written.push_back((co_await c.put("k", std::to_string(i))).header.revision);
    auto past = co_await c.watch("k", {.start_revision = written[4]});
    auto future = co_await c.watch("k", {.start_revision = written[9] + 3});
    const auto seen = co_await events_until(past, written[9]);
    REQUIRE(seen.size() == 6);
    CHECK(seen.front().kv->value == "4");
    for (int i = 0; i < 5; ++i) co_await c.put("k", "later " + std::to_string(i));
    const auto first = co_await future.next();
    CHECK(first.front().kv->value == "later 2");
  });
}

TEST_CASE("a watch shows what was before, and leaves out what it is told to") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto with_previous = co_await c.watch("k", {.prev_kv = true});
    auto only_deletions = co_await c.watch("k", {.no_put = true});
    auto only_puts = co_await c.watch("k", {.no_delete = true});
    co_await c.put("k", "1");
    co_await c.put("k", "2");
    const auto deleted = co_await c.delete_range(delete_key("k"));
    const auto last = co_await c.put("k", "3");

    const auto all = co_await events_until(with_previous, last.header.revision);
    REQUIRE(all.size() == 4);
    CHECK_FALSE(all[0].prev_kv.has_value());
    CHECK(all[1].prev_kv->value == "1");
    CHECK(all[2].prev_kv->value == "2");
    CHECK_FALSE(all[3].prev_kv.has_value());
    const auto deletions = co_await events_until(only_deletions, deleted.header.revision);
    REQUIRE(deletions.size() == 1);
    CHECK(deletions[0].type == event_type::delete_);
    const auto puts = co_await events_until(only_puts, last.header.revision);
    CHECK(puts.size() == 3);
  });
}

TEST_CASE("all events of a revision come together, in batches that are in order") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto fast = co_await c.watch_prefix("w/");
    auto slow = co_await c.watch_prefix("w/", {.max_buffered_events = 7});
    revision last = 0;
    for (int i = 0; i < 50; ++i) {
      txn many;
      for (int k = 0; k < 40; ++k) many.then(put("w/" + std::to_string(k), std::to_string(i)));
      last = (co_await c.txn(many)).header.revision;
    }
    for (auto* each : {&fast, &slow}) {
      std::map<revision, int> count;
      std::vector<event> all;
      while (all.empty() || all.back().kv->mod_revision < last) {
        const auto batch = co_await each->next();
        std::map<revision, int> in_batch;
        for (const auto& one : batch) {
          ++in_batch[one.kv->mod_revision];
          all.push_back(one);
        }
        for (const auto& [at, events] : in_batch) CHECK(events == 40);
      }
      CHECK(all.size() == 2000);
      const auto truth = co_await truth_below(c, "w/", last);
      check_same(all, truth);
    }
  });
}

TEST_CASE("a slow consumer with a small buffer loses nothing") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto w = co_await c.watch_prefix("w/", {.max_buffered_events = 10});
    auto other = co_await c.watch_prefix("w/");
    revision last = 0;
    std::vector<event> seen;
    auto take = [&]() -> asio::awaitable<void> {
      auto batch = co_await w.next();
      for (auto& each : batch) seen.push_back(std::move(each));
    };
    for (int i = 0; i < 1000; ++i) {
      last = (co_await c.put("w/" + std::to_string(i), "")).header.revision;
      if (i % 97 == 96) co_await take();  // far behind, most of the time
    }
    while (seen.back().kv->mod_revision < last) co_await take();
    const auto truth = co_await truth_below(c, "w/", last);
    check_same(seen, truth);
    const auto undisturbed = co_await events_until(other, last);
    check_same(undisturbed, truth);
  });
}

TEST_CASE("a watch bridges kills and restarts: nothing is lost and nothing comes twice") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto w = co_await c.watch_prefix("w/");
    bool stop = false;
    int written = 0;
    auto write = [&](client on, int number) -> asio::awaitable<void> {
      int i = 0;
      while (!stop) {
        txn some;
        for (int k = 0; k < 10; ++k)
          some.then(put("w/" + std::to_string(number) + "/" + std::to_string(k), std::to_string(i)));
        try {
          (void)co_await on.txn(some);
          written += 10;
        } catch (const conclave::error& e) {
          // The store's own record tells later what became of it.
          const bool expected = e.code() == condition::outcome_unknown || e.code() == condition::unavailable;
          CHECK(expected);
        }
        ++i;
      }
    };
    std::vector<event> seen;
    revision end = 0;
    auto read = [&]() -> asio::awaitable<void> {
      while (end == 0 || seen.back().kv->mod_revision < end) {
        auto batch = co_await w.next();
        for (auto& each : batch) seen.push_back(std::move(each));
      }
    };
    auto reading = start(context, read);
    std::vector<task<void>> writing;
    for (int i = 0; i < 3; ++i)
      writing.push_back(start(context, [&, i] { return write(connect(context, server), i); }));
    for (int round = 1; round <= 3; ++round) {
      co_await eventually(
          "a thousand more", [&] { return written >= 1000 * round; }, 30s);
      server.kill();
      server.restart();
    }
    co_await eventually(
        "a thousand more", [&] { return written >= 4000; }, 30s);
    stop = true;
    for (auto& each : writing) co_await each.result(30s);
    // Set before the watch can tell: the event wakes the reader.
    end = (co_await c.range(conclave::range("w/end"))).header.revision + 1;
    co_await c.put("w/end", "");
    co_await reading.result(30s);
    const auto truth = co_await truth_below(c, "w/", end);
    CHECK(truth.size() >= 4000);
    check_same(seen, truth);
  });
}

TEST_CASE("a watch whose past is compacted ends with the oldest revision there is") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    revision last = 0;
    for (int i = 0; i < 20; ++i) last = (co_await c.put("k", std::to_string(i))).header.revision;
    co_await c.compact(last - 5, true);
    auto w = co_await c.watch("k", {.start_revision = 2});
    for (int i = 0; i < 2; ++i) {  // it stays so
      std::error_code code;
      std::string text;
      try {
        (void)co_await w.next();
      } catch (const conclave::error& e) {
        code = e.code();
        text = e.what();
      }
      CHECK(code == errc::compacted);
      CHECK_THAT(text, contains(std::to_string(last - 5)));
    }
    auto anew = co_await c.watch("k", {.start_revision = last - 5});
    const auto seen = co_await events_until(anew, last);
    CHECK(seen.size() == 6);
  });
}

TEST_CASE("a watch that is up to date does not mind a compaction, unless it is cut off meanwhile") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto busy = co_await c.watch("k");
    auto idle = co_await c.watch("idle");
    auto lagging = co_await c.watch("k", {.max_buffered_events = 1});
    // A slow server may not have got to a watch yet; it has when the watch tells of something.
    const auto first_k = (co_await c.put("k", "")).header.revision;
    const auto first_idle = (co_await c.put("idle", "")).header.revision;
    for (auto* each : {&busy, &lagging}) {
      const auto first = co_await events_until(*each, first_k);
      CHECK(first.size() == 1);
    }
    const auto told = co_await events_until(idle, first_idle);
    CHECK(told.size() == 1);

    revision last = 0;
    for (int i = 0; i < 20; ++i) last = (co_await c.put("k", std::to_string(i))).header.revision;
    const auto seen = co_await events_until(busy, last);
    CHECK(seen.size() == 20);
    co_await c.compact(last, true);
    co_await c.put("k", "still watched");
    co_await c.put("idle", "still watched");
    const auto more = co_await busy.next();
    CHECK(more.size() == 1);
    const auto woken = co_await idle.next();
    CHECK(woken.size() == 1);
    // One that would not take its events has lost them, and says so.
    auto all = [&]() -> asio::awaitable<void> { (void)co_await events_until(lagging, last); };
    const auto why = co_await error_of(all());
    CHECK(why == errc::compacted);
  });
}

TEST_CASE(
    "two hundred watches of a client share one stream, and each is ended on the server with its watcher") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    std::vector<watcher> watchers;
    for (int i = 0; i < 200; ++i) watchers.push_back(co_await c.watch("k/" + std::to_string(i)));
    auto count = [&](double expected) { return server.metric(watchers_metric) == expected; };
    co_await eventually("they are there", [&] { return count(200); });
    CHECK(server.metric(watch_streams_metric) == 1);
    CHECK(calls_started(server, "Watch", "Watch") == 1);

    for (int i = 0; i < 200; ++i) co_await c.put("k/" + std::to_string(i), std::to_string(i));
    for (std::size_t i = 0; i < 200; ++i) {
      const auto events = co_await watchers[i].next();
      REQUIRE(events.size() == 1);
      CHECK(events[0].kv->value == std::to_string(i));
    }
    server.kill();
    server.restart();
    co_await eventually("they are there again", [&] { return count(200); });
    CHECK(server.metric(watch_streams_metric) == 1);

    watchers.erase(watchers.begin() + 150, watchers.end());
    co_await eventually("fifty are gone", [&] { return count(150); });
    watchers[1] = std::move(watchers[2]);
    co_await eventually("so is one that was assigned to", [&] { return count(149); });
    watchers.clear();
    co_await eventually("all are gone", [&] { return count(0); });
  });
}

TEST_CASE("cancelling next loses no event") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    using namespace asio::experimental::awaitable_operators;
    auto c = connect(context, server);
    auto w = co_await c.watch_prefix("w/");
    bool stop = false;
    revision last = 0;
    auto write = [&]() -> asio::awaitable<void> {
      int i = 0;
      while (!stop) {
        last = (co_await c.put("w/" + std::to_string(i), "")).header.revision;
        ++i;
      }
    };
    auto writing = start(context, write);
    std::vector<event> seen;
    int cancelled = 0;
    asio::steady_timer timer{context};
    while (seen.size() < 500 || cancelled < 200) {
      // From no time at all to longer than a write takes: the two meet at every step of the way.
      timer.expires_after(
          std::chrono::microseconds{(cancelled * 37 + static_cast<int>(seen.size()) * 11) % 1500});
      auto either = co_await (w.next() || timer.async_wait(asio::use_awaitable));
      if (either.index() == 1) ++cancelled;
      if (auto* batch = std::get_if<0>(&either))
        for (auto& each : *batch) seen.push_back(std::move(each));
    }
    stop = true;
    co_await writing.result();
    while (seen.back().kv->mod_revision < last) {
      auto batch = co_await w.next();
      for (auto& each : batch) seen.push_back(std::move(each));
    }
    const auto truth = co_await truth_below(c, "w/", last);
    check_same(seen, truth);
  });
}

TEST_CASE("a watch is cancelled promptly while its server is frozen, and goes on afterwards") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto w = co_await c.watch("k");
    server.pause();
    auto waiting = start(context, [&] { return w.next(); });
    auto opening = start(context, [&] { return c.watch("l"); });
    co_await pause_for(50ms);
    waiting.cancel();
    opening.cancel();
    const auto why = co_await waiting.error(promptly);
    CHECK(why == condition::cancelled);
    const auto opened = co_await opening.error(promptly);
    CHECK(opened == condition::cancelled);
    server.resume();
    co_await c.put("k", "");
    const auto events = co_await w.next();
    CHECK(events.size() == 1);
  });
}

TEST_CASE("a watcher that is moved from refuses to be used") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto source = co_await c.watch("k");
    auto w = std::move(source);
    CHECK_THROWS_WITH(source.next(), contains("moved from"));
    co_await c.put("k", "");
    const auto events = co_await w.next();
    CHECK(events.size() == 1);
  });
}

TEST_CASE("many large events are received in fragments, whatever the receive limit") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.receive_limit(4 * 1024 * 1024);
    auto small = connect(context, server, options);
    auto c = connect(context, server);
    const std::string value(1024 * 1024, 'x');
    revision first = 0;
    revision last = 0;
    for (int i = 0; i < 12; ++i) {
      last = (co_await c.put("w/" + std::to_string(i), value)).header.revision;
      if (first == 0) first = last;
    }
    // From the past: the server puts all twelve into one answer, unless it may split it.
    for (auto* each : {&small, &c}) {
      auto w = co_await each->watch_prefix("w/", {.start_revision = first});
      const auto seen = co_await events_until(w, last);
      REQUIRE(seen.size() == 12);
      for (const auto& one : seen) CHECK(one.kv->value.size() == value.size());
    }
  });
}
