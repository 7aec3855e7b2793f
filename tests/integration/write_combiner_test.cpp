// SPDX-License-Identifier: BSL-1.0

// The write combiner on a real etcd, and what it takes for granted of etcd.

#include <conclave/detail/engine/write_combiner.hpp>
#include <conclave/detail/rpc/endpoint.hpp>
#include <conclave/detail/rpc/grpc_transport.hpp>
#include <conclave/detail/rpc/steady_clock.hpp>

#include "on_etcd.hpp"

#include <asio/thread_pool.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <set>

namespace {

namespace asio = conclave::asio;
namespace engine = conclave::detail::engine;
using namespace conclave::test;
using conclave::client;
using conclave::create_revision;
using conclave::delete_key;
using conclave::errc;
using conclave::put;
using conclave::range;
using conclave::txn;
using conclave::txn_response;
using engine::write_combiner;
using engine::write_lane;
using results = std::vector<task<txn_response>>;

std::shared_ptr<engine::runtime> make_runtime(const asio::any_io_executor& executor,
                                              const etcd_server& server, const std::string& prefix = {},
                                              std::chrono::milliseconds request_timeout = 5000ms) {
  namespace rpc = conclave::detail::rpc;
  const auto endpoint = rpc::parse_endpoint(server.endpoint());
  const std::size_t receive_limit = 16 * 1024 * 1024;
  std::vector<std::shared_ptr<rpc::transport>> servers{
      std::make_shared<rpc::grpc_transport>(endpoint.target, endpoint.text, static_cast<int>(receive_limit))};
  return engine::runtime::make(executor, std::move(servers), std::make_shared<rpc::steady_clock>(),
                               engine::key_space{prefix}, {3000ms, request_timeout, receive_limit});
}

std::shared_ptr<write_combiner> make_combiner(const asio::any_io_executor& executor,
                                              const etcd_server& server, const std::string& prefix = {},
                                              std::chrono::milliseconds request_timeout = 5000ms) {
  return std::make_shared<write_combiner>(make_runtime(executor, server, prefix, request_timeout));
}

/// A combiner whose first write is under way on a server that stands still, so that what comes now gathers.
class held {
public:
  held(asio::io_context& context, etcd_server& server, std::shared_ptr<write_combiner> combiner)
      : context_(context), server_(server), combiner_(std::move(combiner)) {}

  asio::awaitable<void> begin() {
    // The connection stands.
    (void)co_await combiner_->apply(txn{}.then(put("warm", "")));
    server_.pause();
    first_.push_back(add(txn{}.then(put("first", ""))));
    auto under_way = [this] { return combiner_->in_flight() == 1; };
    co_await eventually("the first write is under way", under_way);
  }

  task<txn_response> add(txn write, write_lane lane = {}) {
    ++added_;
    const auto to = combiner_;
    return start(context_,
                 [to, write = std::move(write), lane = std::move(lane)] { return to->apply(write, lane); });
  }

  /// Lets the server go on, and waits for the first write.
  asio::awaitable<void> release() {
    auto gathered = [this] { return combiner_->waiting() + 1 == added_; };
    co_await eventually("the others wait", gathered);
    server_.resume();
    (void)co_await first_.front().result();
  }

private:
  asio::io_context& context_;
  etcd_server& server_;
  std::shared_ptr<write_combiner> combiner_;
  results first_;
  std::size_t added_ = 0;
};

constexpr const char* proposals = "etcd_server_proposals_applied_total";

txn write_of(const std::string& key, const std::string& value = "v") { return txn{}.then(put(key, value)); }

txn create(const std::string& key, const std::string& value = "mine") {
  return txn{}.when(create_revision(key) == 0).then(put(key, value)).otherwise(range(key));
}

}  // namespace

// ---- what etcd does ---------------------------------------------------------------------------------------

TEST_CASE("etcd evaluates nested compares before anything, and nested reads as it goes") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto compared = co_await c.txn(txn{}
                                             .then(write_of("k"), create("k2"))
                                             .then(txn{}
                                                       .when(create_revision("k") == 0)
                                                       .then(put("saw", "before"))
                                                       .otherwise(put("saw", "after"))));
    CHECK(compared.succeeded);
    const auto saw = co_await c.get("saw");
    CHECK(saw->value == "before");

    const auto read =
        co_await c.txn(txn{}.then(txn{}.then(range("r")), write_of("r", "1"), txn{}.then(range("r"))));
    CHECK(read.at(0).txn().at(0).range().kvs.empty());
    REQUIRE(read.at(2).txn().at(0).range().kvs.size() == 1);
    CHECK(read.at(2).txn().at(0).range().kvs.front().mod_revision == read.header.revision);
  });
}

TEST_CASE("etcd refuses a transaction that writes a key twice, in whichever nested branches") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto refused = [&](txn a, txn b) -> asio::awaitable<bool> {
      const auto code = co_await error_of(c.txn(txn{}.then(std::move(a), std::move(b))));
      if (code && code != errc::duplicate_key) throw std::system_error{code};
      co_return code == errc::duplicate_key;
    };
    const auto gone = [](const char* key) { return txn{}.then(delete_key(key)); };
    const bool puts = co_await refused(write_of("a"), write_of("a"));
    CHECK(puts);
    const bool other_branch = co_await refused(write_of("a"), txn{}.otherwise(put("a", "")));
    CHECK(other_branch);
    const bool put_after_delete = co_await refused(gone("a"), write_of("a"));
    CHECK(put_after_delete);
    const bool put_after_range = co_await refused(txn{}.then(conclave::delete_prefix("a")), write_of("ab"));
    CHECK(put_after_range);
    const bool delete_after_put = co_await refused(write_of("a"), gone("a"));
    CHECK_FALSE(delete_after_put);
    const bool deletes = co_await refused(gone("a"), gone("a"));
    CHECK_FALSE(deletes);
  });
}

TEST_CASE("etcd leaves to nested transactions what the level above them has not taken") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto code = [&](int members, int heavy) -> asio::awaitable<std::error_code> {
      txn whole;
      for (int i = 0; i + 1 < members; ++i) whole.then(write_of("k" + std::to_string(i)));
      txn last;
      for (int i = 0; i < heavy; ++i) last.then(put("l" + std::to_string(i), ""));
      whole.then(std::move(last));
      co_return co_await error_of(c.txn(std::move(whole)));
    };
    const auto most = co_await code(127, 1);
    CHECK_FALSE(most);
    const auto more = co_await code(127, 2);
    CHECK(more == errc::too_many_operations);
    const auto half = co_await code(64, 64);
    CHECK_FALSE(half);
    const auto above = co_await code(64, 65);
    CHECK(above == errc::too_many_operations);
  });
}

TEST_CASE("etcd applies nothing of a transaction of which it refuses a part") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto lease = co_await error_of(
        c.txn(txn{}.then(write_of("a"), txn{}.then(put("b", "", {.lease = 4711})), write_of("c"))));
    CHECK(lease == errc::lease_not_found);
    const auto kept = co_await error_of(
        c.txn(txn{}.then(write_of("a"), txn{}.then(put("b", "", {.ignore_value = true})), write_of("c"))));
    CHECK(kept == errc::invalid_argument);
    const auto future =
        co_await error_of(c.txn(txn{}.then(write_of("a"), txn{}.then(range("b", {.revision = 1'000'000})))));
    CHECK(future == errc::future_revision);
    const auto left = co_await count_prefix(c, "");
    CHECK(left == 0);
  });
}

// ---- the combiner -----------------------------------------------------------------------------------------

TEST_CASE("many coroutines' puts take few proposals, and each gets its own answer") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto combiner = make_combiner(context.get_executor(), server, "part/");
    for (int i = 0; i < 64; ++i) co_await c.put("part/k" + std::to_string(i), "old" + std::to_string(i));

    const auto before = server.metric(proposals);
    results all;
    for (int i = 0; i < 64; ++i) {
      const auto key = "k" + std::to_string(i);
      all.push_back(start(context, [combiner, key] {
        return combiner->apply(txn{}.then(put(key, "new", {.prev_kv = true})));
      }));
    }
    std::set<conclave::revision> revisions;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const txn_response done = co_await all[i].result();
      CHECK(done.at(0).put().prev_kv->key == "k" + std::to_string(i));
      CHECK(done.at(0).put().prev_kv->value == "old" + std::to_string(i));
      revisions.insert(done.header.revision);
    }
    const auto taken = server.metric(proposals) - before;
    CHECK(taken <= 8);
    CHECK(static_cast<double>(revisions.size()) == taken);
  });
}

TEST_CASE("a member whose compare fails is told so, and the others are applied") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto combiner = make_combiner(context.get_executor(), server);
    co_await c.put("taken", "theirs");
    held h{context, server, combiner};
    co_await h.begin();
    auto a = h.add(create("a"));
    auto loser = h.add(create("taken"));
    auto b = h.add(create("b"));
    auto again = h.add(create("a"));  // in conflict with the first: goes after it
    co_await h.release();

    const auto in_a = co_await a.result();
    CHECK(in_a.succeeded);
    const auto in_b = co_await b.result();
    CHECK(in_b.succeeded);
    CHECK(in_b.header == in_a.header);
    const auto lost = co_await loser.result();
    CHECK_FALSE(lost.succeeded);
    CHECK(lost.at(0).range().kvs.at(0).value == "theirs");
    CHECK(lost.header == in_a.header);
    const auto second = co_await again.result();
    CHECK_FALSE(second.succeeded);
    CHECK(second.at(0).range().kvs.at(0).create_revision == in_a.header.revision);
  });
}

TEST_CASE("a full batch fits, and bad members cost the others nothing") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto combiner = make_combiner(context.get_executor(), server);
    held h{context, server, combiner};
    co_await h.begin();
    results good;
    for (int i = 0; i < 127; ++i) good.push_back(h.add(write_of("k" + std::to_string(i))));
    co_await h.release();
    const auto full = co_await good.back().result();
    for (std::size_t i = 0; i + 1 < good.size(); ++i) {
      const auto done = co_await good[i].result();
      CHECK(done.header == full.header);
    }

    held bad{context, server, combiner};
    co_await bad.begin();
    good.clear();
    for (int i = 0; i < 40; ++i) good.push_back(bad.add(create("g" + std::to_string(i))));
    auto lease = bad.add(txn{}.then(put("bad", "", {.lease = 4711})));
    txn much;
    for (int i = 0; i < 129; ++i) much.then(put("m" + std::to_string(i), ""));
    auto many = bad.add(std::move(much));
    auto twice = bad.add(txn{}.then(put("twice", ""), put("twice", "")));
    auto empty = bad.add(write_of(""));
    for (int i = 40; i < 80; ++i) good.push_back(bad.add(create("g" + std::to_string(i))));
    co_await bad.release();
    for (auto& each : good) {
      const auto done = co_await each.result();
      CHECK(done.succeeded);
    }
    const auto no_lease = co_await lease.error();
    CHECK(no_lease == errc::lease_not_found);
    const auto too_many = co_await many.error();
    CHECK(too_many == errc::too_many_operations);
    const auto duplicate = co_await twice.error();
    CHECK(duplicate == errc::duplicate_key);
    const auto no_key = co_await empty.error();
    CHECK(no_key == errc::invalid_argument);
    const auto there = co_await count_prefix(c, "g");
    CHECK(there == 80);
  });
}

TEST_CASE("large members share what a request may be, and no more") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const auto combiner = make_combiner(context.get_executor(), server);
    held h{context, server, combiner};
    co_await h.begin();
    results all;
    for (int i = 0; i < 60; ++i)
      all.push_back(h.add(write_of("k" + std::to_string(i), std::string(50'000, 'x'))));
    all.push_back(h.add(write_of("large", std::string(1'400'000, 'x'))));
    auto too_large = h.add(write_of("too large", std::string(1'600'000, 'x')));
    co_await h.release();
    std::set<conclave::revision> revisions;
    for (auto& each : all) {
      const auto done = co_await each.result();
      revisions.insert(done.header.revision);
    }
    CHECK(revisions.size() == 4);  // 20, 20, 20, and the large one
    const auto refused = co_await too_large.error();
    CHECK(refused == errc::request_too_large);
  });
}

TEST_CASE("keys made in one lane differ in their create revisions") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto combiner = make_combiner(context.get_executor(), server);
    held h{context, server, combiner};
    co_await h.begin();
    results all;
    for (int i = 0; i < 10; ++i) all.push_back(h.add(write_of("q/" + std::to_string(i)), write_lane{"q/"}));
    for (int i = 0; i < 10; ++i) all.push_back(h.add(write_of("x" + std::to_string(i))));
    co_await h.release();
    for (auto& each : all) (void)co_await each.result();
    const auto items = co_await c.range(conclave::range_prefix("q/"));
    REQUIRE(items.kvs.size() == 10);
    for (std::size_t i = 1; i < items.kvs.size(); ++i)
      CHECK(items.kvs[i - 1].create_revision < items.kvs[i].create_revision);
    const auto others = co_await c.range(conclave::range_prefix("x"));
    for (const auto& each : others.kvs) CHECK(each.create_revision == items.kvs.front().create_revision);
  });
}

TEST_CASE("counters that many coroutines raise under a compare lose nothing") {
  const std::size_t batches = GENERATE(1U, 3U);
  on_etcd([batches](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto executor = asio::any_io_executor{context.get_executor()};
    const auto no_hurry = 20s;  // some hundred writes after one another: one that takes long is no failure
    write_combiner::limits within;
    within.most_in_flight = batches;
    within.patience = no_hurry;
    const auto combiner =
        std::make_shared<write_combiner>(make_runtime(executor, server, {}, no_hurry), within);
    std::vector<task<int>> raisers;
    for (int i = 0; i < 24; ++i) {
      const auto key = "counter" + std::to_string(i % 6);
      raisers.push_back(start(context, [combiner, key]() -> asio::awaitable<int> {
        int raised = 0;
        int seen = 0;
        while (raised < 15) {
          txn raise;
          if (seen == 0)
            raise.when(create_revision(key) == 0);
          else
            raise.when(conclave::value(key) == std::to_string(seen));
          raise.then(put(key, std::to_string(seen + 1))).otherwise(range(key));
          const txn_response answer = co_await combiner->apply(std::move(raise));
          if (answer.succeeded) {
            ++raised;
            ++seen;
          } else {
            seen = std::stoi(answer.at(0).range().kvs.at(0).value);
          }
        }
        co_return raised;
      }));
    }
    for (auto& each : raisers) (void)co_await each.result(30s);
    const auto found = co_await c.range(conclave::range_prefix("counter"));
    REQUIRE(found.kvs.size() == 6);
    for (const auto& each : found.kvs) {
      CHECK(each.value == "60");
      CHECK(each.version == 60);
    }
  });
}

TEST_CASE("coroutines of many threads use one combiner") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    asio::thread_pool threads{4};
    const auto combiner = make_combiner(threads.get_executor(), server);
    std::atomic<int> done{0};
    std::atomic<int> wrong{0};
    for (int i = 0; i < 200; ++i) {
      auto write = [&, combiner, i]() -> asio::awaitable<void> {
        const auto key = "k" + std::to_string(i);
        const txn_response answer = co_await combiner->apply(create(key));
        if (!answer.succeeded) ++wrong;
        ++done;
      };
      asio::co_spawn(threads, std::move(write), asio::detached);
    }
    auto all = [&] { return done == 200; };
    co_await eventually("all have written", all);
    CHECK(wrong == 0);
    const auto there = co_await count_prefix(c, "k");
    CHECK(there == 200);
    threads.join();
  });
}

TEST_CASE("a server that stands still: what was sent may have been applied, what waited was not") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c = connect(context, server);
    const auto combiner = make_combiner(context.get_executor(), server, {}, 500ms);
    (void)co_await combiner->apply(write_of("warm"));
    server.pause();
    auto first = start(context, [&] { return combiner->apply(write_of("first")); });
    auto under_way = [&] { return combiner->in_flight() == 1; };
    co_await eventually("the first is under way", under_way);
    auto second = start(context, [&] { return combiner->apply(write_of("second")); });
    auto third = start(context, [&] { return combiner->apply(write_of("third")); });
    auto waits = [&] { return combiner->waiting() == 2; };
    co_await eventually("the others wait", waits);
    third.cancel();
    const auto cancelled = co_await third.error(promptly);
    CHECK(cancelled == errc::cancelled);
    const auto unknown = co_await first.error(promptly);
    CHECK(unknown == errc::outcome_unknown);
    // It came a moment after the first: its time is over at the next answer at the latest.
    const auto second_code = co_await second.error(promptly);
    CHECK((second_code == errc::timed_out || second_code == errc::outcome_unknown));
    server.resume();
    (void)co_await c.get("warm");  // a busy machine may need longer than the combiner's 500 ms to go on
    const auto after = co_await combiner->apply(write_of("after"));
    CHECK(after.succeeded);
    const auto none = co_await c.get("third");
    CHECK_FALSE(none.has_value());
  });
}

TEST_CASE("a client's combined transactions share proposals, and keep their own answers and errors") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const client c{context.get_executor(),
                   conclave::client_options{}.endpoints(server.endpoint()).key_prefix("mine/")};
    const auto alone =
        co_await c.combined_txn(txn{}.when(create_revision("k0") == 0).then(put("k0", "first")));
    CHECK(alone.succeeded);
    const auto before = server.metric(proposals);
    results all;
    for (int i = 0; i < 64; ++i) {
      auto write = create("k" + std::to_string(i));
      all.push_back(start(context, [c, write] { return c.combined_txn(write); }));
    }
    auto refused =
        start(context, [c] { return c.combined_txn(txn{}.then(put("leased", "", {.lease = 4711}))); });
    for (std::size_t i = 0; i < all.size(); ++i) {
      const txn_response done = co_await all[i].result();
      CHECK(done.succeeded == (i != 0));
      if (i == 0) CHECK(done.at(0).range().kvs.at(0).value == "first");
    }
    const auto why = co_await refused.error();
    CHECK(why == errc::lease_not_found);
    CHECK(server.metric(proposals) - before <= 24);  // halving to find the culprit included
    const auto there = co_await c.range(conclave::range_prefix("k", {.count_only = true}));
    CHECK(there.count == 64);
  });
}

TEST_CASE("a full store refuses a batch as it refuses its members") {
  conclave::testing::etcd_server_options small;
  small.quota_backend_bytes = 4 * 1024 * 1024;
  etcd_server server{small};
  auto test = [&](asio::io_context& context) -> asio::awaitable<void> {
    const client c = connect(context, server);
    std::error_code code;
    for (int i = 0; i < 100 && !code; ++i)
      code = co_await error_of(c.put("big" + std::to_string(i), std::string(200'000, 'x')));
    REQUIRE(code == errc::no_space);

    // What a batch must make up for: etcd does not count nested puts.
    const auto flat = co_await error_of(c.txn(write_of("flat")));
    CHECK(flat == errc::no_space);
    const auto nested = co_await error_of(c.txn(txn{}.then(write_of("nested"))));
    CHECK_FALSE(nested);

    const auto combiner = make_combiner(context.get_executor(), server);
    for (const bool nested_in_batches : {false, true}) {
      results all;
      for (int i = 0; i < 8; ++i) {
        auto write = [&combiner, i, nested_in_batches] {
          const auto key = "k" + std::to_string(i);
          return combiner->apply(nested_in_batches ? create(key) : write_of(key));
        };
        all.push_back(start(context, write));
      }
      for (auto& each : all) {
        const auto refused = co_await each.error();
        CHECK(refused == errc::no_space);
      }
    }
    const auto none = co_await count_prefix(c, "k");
    CHECK(none == 0);
    auto one = start(context, [&] { return combiner->apply(txn{}.then(delete_key("big0"))); });
    auto two = start(context, [&] { return combiner->apply(txn{}.then(delete_key("big1"))); });
    auto three = start(context, [&] { return combiner->apply(txn{}.then(delete_key("big2"))); });
    for (auto* each : {&one, &two, &three}) {
      const auto done = co_await each->result();
      CHECK(done.at(0).delete_range().deleted == 1);
    }
  };
  run(test);
}
