// SPDX-License-Identifier: BSL-1.0

// The client's calls on a real etcd: conclave/client.hpp and kept_lease.hpp.

#include <conclave/client.hpp>

#include "on_etcd.hpp"

#include <asio/ip/tcp.hpp>
#include <asio/write.hpp>

#include <netdb.h>

#include <array>
#include <fstream>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::create_revision;
using conclave::delete_key;
using conclave::delete_prefix;
using conclave::errc;
using conclave::put;
using conclave::range;
using conclave::range_prefix;
using conclave::revision;
using conclave::sort_order;
using conclave::sort_target;
using conclave::txn;
using conclave::value;

/// Time for a request to be under way. There is nothing to look at: a frozen server tells nothing.
asio::awaitable<void> let_it_begin() { return pause_for(50ms); }

asio::awaitable<void> no_watch_left(const etcd_server& server) {
  const etcd_server* const at = &server;
  co_await eventually("no watch is left", [at] { return at->metric(watchers_metric) == 0; });
}

asio::awaitable<void> watching(const etcd_server& server, int count) {
  const etcd_server* const at = &server;
  co_await eventually("it is watched", [at, count] { return at->metric(watchers_metric) == count; });
}

}  // namespace

// ---- keys and values --------------------------------------------------------------------------------------

TEST_CASE("put, get and delete_range") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const std::string bytes{"\0\xff binary \n", 11};
    const auto none = co_await c.get("k");
    CHECK_FALSE(none.has_value());
    const auto first = co_await c.put("k", bytes);
    CHECK(first.header.revision == 2);
    CHECK(first.header.cluster_id != 0);
    CHECK(first.header.member_id != 0);
    CHECK_FALSE(first.prev_kv.has_value());
    const auto second = co_await c.put("k", "", {.prev_kv = true});
    REQUIRE(second.prev_kv.has_value());
    CHECK(second.prev_kv->value == bytes);
    const auto now_there = co_await c.get("k");
    REQUIRE(now_there.has_value());
    CHECK(now_there->key == "k");
    CHECK(now_there->value.empty());
    CHECK(now_there->version == 2);
    CHECK(now_there->create_revision == 2);
    CHECK(now_there->mod_revision == 3);
    const auto gone = co_await c.delete_range(delete_key("k", {.prev_kv = true}));
    CHECK(gone.deleted == 1);
    REQUIRE(gone.prev_kvs.size() == 1);
    CHECK(gone.prev_kvs[0].version == 2);
    const auto nothing = co_await c.delete_range(delete_key("k"));
    CHECK(nothing.deleted == 0);
    const auto kept = co_await error_of(c.put(put("k", "", {.ignore_value = true})));
    CHECK(kept == condition::invalid_argument);  // there is no value to keep
  });
}

TEST_CASE("range reads intervals, in order, in part, and as of long ago") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    revision middle = 0;
    for (int i = 0; i < 10; ++i) {
      const auto written = co_await c.put("k/" + std::to_string(i), std::to_string(9 - i));
      if (i == 4) middle = written.header.revision;
    }
    co_await c.put("l", "outside");

    const auto all = co_await c.range(range_prefix("k/"));
    CHECK(all.count == 10);
    REQUIRE(all.kvs.size() == 10);
    CHECK(all.kvs[3].key == "k/3");
    CHECK_FALSE(all.more);
    const auto some = co_await c.range(
        range_prefix("k/", {.limit = 3, .order = sort_order::ascend, .target = sort_target::value}));
    REQUIRE(some.kvs.size() == 3);
    CHECK(some.more);
    CHECK(some.count == 10);
    CHECK(some.kvs[0].key == "k/9");
    const auto interval = co_await c.range(conclave::range_interval("k/2", "k/5", {.keys_only = true}));
    REQUIRE(interval.kvs.size() == 3);
    CHECK(interval.kvs[0].value.empty());
    const auto past = co_await c.range(range_prefix("k/", {.revision = middle, .count_only = true}));
    CHECK(past.count == 5);
    CHECK(past.kvs.empty());
    const auto stale = co_await c.range(range("l", {.serializable = true}));
    CHECK(stale.count == 1);
    const auto everything = co_await c.range(range_prefix(""));
    CHECK(everything.count == 11);
    const auto gone = co_await c.delete_range(delete_prefix("k/"));
    CHECK(gone.deleted == 10);
    const auto left = co_await c.range(range_prefix(""));
    CHECK(left.count == 1);
  });
}

TEST_CASE("a transaction gives a typed answer to each operation, nested ones included") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("old", "1");
    txn inner;
    inner.when(value("old") == "1").then(range("old"), delete_key("old")).otherwise(put("never", ""));
    txn outer;
    outer.when(create_revision("new") == 0, conclave::version("old") > 0)
        .then(put("new", "2"), inner, range_prefix("n"))
        .otherwise(range("new"));

    const auto first = co_await c.txn(outer);
    CHECK(first.succeeded);
    REQUIRE(first.responses.size() == 3);
    CHECK_FALSE(first.at(0).put().prev_kv.has_value());
    const auto& nested = first.at(1).txn();
    CHECK(nested.succeeded);
    REQUIRE(nested.responses.size() == 2);
    CHECK(nested.at(0).range().kvs.at(0).value == "1");
    CHECK(nested.at(1).delete_range().deleted == 1);
    CHECK(first.at(2).range().count == 1);
    CHECK_THROWS_AS((void)first.at(0).range(), std::logic_error);

    const auto second = co_await c.txn(outer);
    CHECK_FALSE(second.succeeded);
    REQUIRE(second.responses.size() == 1);
    const auto& found = second.at(0).range().kvs.at(0);
    CHECK(found.value == "2");
    CHECK(found.create_revision == first.header.revision);  // one transaction, one revision
    CHECK(second.header.revision == first.header.revision);
  });
}

TEST_CASE("compaction drops the past, and says so to whoever reads it") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    revision last = 0;
    for (int i = 0; i < 5; ++i) last = (co_await c.put("k", std::to_string(i))).header.revision;
    co_await c.compact(last - 1, true);
    const auto there = co_await c.range(range("k", {.revision = last - 1}));
    CHECK(there.kvs.at(0).value == "3");
    const auto gone = co_await error_of(c.range(range("k", {.revision = last - 2})));
    CHECK(gone == errc::compacted);
    const auto again = co_await error_of(c.compact(last - 1));
    CHECK(again == errc::compacted);
    const auto future = co_await error_of(c.compact(last + 10));
    CHECK(future == errc::future_revision);
    const auto reading = co_await error_of(c.range(range("k", {.revision = last + 10})));
    CHECK(reading == errc::future_revision);
    CHECK(reading == condition::invalid_argument);
  });
}

TEST_CASE("what the server refuses has a code of its own") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto empty_key = co_await error_of(c.put("", "v"));
    CHECK(empty_key == errc::invalid_argument);
    const auto empty_read = co_await error_of(c.get(""));
    CHECK(empty_read == errc::invalid_argument);
    const auto empty_delete = co_await error_of(c.delete_range(delete_key("")));
    CHECK(empty_delete == errc::invalid_argument);
    // Just over etcd's own limit, and over that of its gRPC server.
    for (const std::size_t size : {std::size_t{1600} * 1024, std::size_t{4} * 1024 * 1024}) {
      std::string large(size, 'x');
      const auto too_large = co_await error_of(c.put("k", std::move(large)));
      CHECK(too_large == errc::request_too_large);
      CHECK(too_large == condition::invalid_argument);
    }
    txn many;
    for (int i = 0; i < 129; ++i) many.then(put(std::to_string(i), ""));
    const auto too_many = co_await error_of(c.txn(many));
    CHECK(too_many == errc::too_many_operations);
    txn twice;
    twice.then(put("k", "1"), put("k", "2"));
    const auto duplicate = co_await error_of(c.txn(twice));
    CHECK(duplicate == errc::duplicate_key);
    const auto no_lease = co_await error_of(c.put("k", "v", {.lease = 4711}));
    CHECK(no_lease == errc::lease_not_found);
    const auto nothing = co_await c.range(range_prefix(""));
    CHECK(nothing.count == 0);

    try {
      (void)co_await c.put("", "v");
    } catch (const conclave::error& e) {
      CHECK(e.rpc() == "KV.Put");
      CHECK(e.endpoint() == server.endpoint());
      CHECK(e.grpc_status() == 3);
      CHECK_THAT(e.server_text(), contains("key is not provided"));
      CHECK_THAT(e.what(), contains("KV.Put") && contains(server.endpoint()));
    }
  });
}

TEST_CASE("an answer beyond the receive limit is an error, not a crash") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.receive_limit(1024 * 1024);
    auto small = connect(context, server, options);
    auto c = connect(context, server);
    const std::string value(400 * 1024, 'x');
    for (int i = 0; i < 12; ++i) co_await c.put("k/" + std::to_string(i), value);
    const auto refused = co_await error_of(small.range(range_prefix("k/")));
    CHECK(refused == errc::response_too_large);
    const auto one = co_await small.get("k/1");
    CHECK(one.has_value());
    const auto all = co_await c.range(range_prefix("k/"));  // more than gRPC's own 4 MiB
    CHECK(all.kvs.size() == 12);
  });
}

TEST_CASE("a full store refuses writes and still reads") {
  conclave::testing::etcd_server_options small;
  small.quota_backend_bytes = 256 * 1024;
  etcd_server server{small};
  run([&](asio::io_context& context) -> asio::awaitable<void> {
    auto c = connect(context, server);
    std::error_code full;
    auto fill = [&]() -> asio::awaitable<bool> {  // the server looks at its size now and then only
      full = co_await error_of(c.put("k", std::string(200 * 1024, 'x')));
      co_return full != std::error_code{};
    };
    co_await eventually("the store is full", fill);
    CHECK(full == errc::no_space);
    const auto there = co_await c.get("k");
    CHECK(there.has_value());
  });
}

// ---- leases and status ------------------------------------------------------------------------------------

TEST_CASE("leases are granted, listed, asked for and revoked") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto chosen = co_await c.lease_grant(60s, 4711);
    CHECK(chosen.id == 4711);
    CHECK(chosen.ttl == 60);
    const auto other = co_await c.lease_grant(60s);
    CHECK(other.id > 0);
    const auto twice = co_await error_of(c.lease_grant(60s, 4711));
    CHECK(twice == errc::lease_exists);
    const auto all = co_await c.leases();
    CHECK(all.leases.size() == 2);

    co_await c.put("k", "", {.lease = 4711});
    const auto left = co_await c.lease_time_to_live(4711, true);
    CHECK(left.granted_ttl == 60);
    CHECK((left.ttl >= 50 && left.ttl <= 60));
    CHECK(left.keys == std::vector<std::string>{"k"});
    co_await c.lease_revoke(4711);
    const auto key = co_await c.get("k");
    CHECK_FALSE(key.has_value());
    const auto gone = co_await c.lease_time_to_live(4711);
    CHECK(gone.ttl == -1);
    const auto again = co_await error_of(c.lease_revoke(4711));
    CHECK(again == errc::lease_not_found);
    CHECK(again == condition::ownership_lost);
    const auto too_long = co_await error_of(c.lease_grant(std::chrono::seconds{9'000'000'001}));
    CHECK(too_long == errc::invalid_argument);
    co_await c.lease_revoke(other.id);
  });
}

TEST_CASE("a lease that nobody keeps alive ends with its keys") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto lease = co_await c.lease_grant(1s);
    co_await c.put("k", "", {.lease = lease.id});
    const auto at = co_await c.wait_deleted("k");
    CHECK(at > 2);
    co_await lease_gone(c, lease.id);
  });
}

TEST_CASE("status tells how the server is") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto state = co_await c.status();
    CHECK_THAT(state.version, contains("3."));
    CHECK(state.leader == state.header.member_id);
    CHECK(state.db_size > 0);
    CHECK(state.raft_term > 0);
  });
}

// ---- servers that do not answer ---------------------------------------------------------------------------

TEST_CASE("without a server a call fails as unavailable within the connect timeout") {
  run([](asio::io_context& context) -> asio::awaitable<void> {
    const conclave::testing::reserved_port nobody;
    client_options options;
    options.endpoints("http://127.0.0.1:" + std::to_string(nobody.number())).connect_timeout(300ms);
    client c{context.get_executor(), options};
    for (int i = 0; i < 2; ++i) {
      const auto begin = now();
      const auto reading = co_await error_of(c.get("k"));
      CHECK(reading == errc::unavailable);
      const auto writing = co_await error_of(c.put("k", ""));
      CHECK(writing == errc::unavailable);  // certainly not applied
      CHECK(now() - begin < 600ms + promptly);
    }
  });
}

TEST_CASE("a server that is frozen before it is connected to is unavailable") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    server.pause();
    client_options options;
    options.connect_timeout(300ms);
    auto c = connect(context, server, options);
    const auto begin = now();
    const auto why = co_await error_of(c.put("k", ""));
    CHECK(why == errc::unavailable);
    CHECK(now() - begin < 300ms + promptly);
    server.resume();
    auto works = [&]() -> asio::awaitable<bool> {
      const auto failed = co_await error_of(c.get("k"));
      co_return !failed;
    };
    co_await eventually("it connects when the server is back", works);
  });
}

TEST_CASE("a frozen server makes a read time out and a write's outcome unknown, in time") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    client_options options;
    options.request_timeout(300ms);
    auto c = connect(context, server, options);
    co_await c.status();
    server.pause();
    const auto begin = now();
    const auto reading = co_await error_of(c.get("k"));
    CHECK(reading == errc::timed_out);
    const auto writing = co_await error_of(c.put("k", ""));
    CHECK(writing == errc::outcome_unknown);
    txn read_only;
    read_only.then(range("k"));
    const auto reading_txn = co_await error_of(c.txn(read_only));
    CHECK(reading_txn == errc::timed_out);
    txn writing_txn;
    writing_txn.then(put("k", ""));
    const auto unknown = co_await error_of(c.txn(writing_txn));
    CHECK(unknown == errc::outcome_unknown);
    CHECK(now() - begin >= 1200ms);
    CHECK(now() - begin < 1200ms + promptly);
    server.resume();
    auto works = [&]() -> asio::awaitable<bool> {
      const auto failed = co_await error_of(c.get("k"));
      co_return !failed;
    };
    co_await eventually("it answers again", works);
  });
}

TEST_CASE("a read bridges a restart, a write that was under way is unknown") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("k", "v");
    server.pause();
    auto reading = start(context, [&] { return c.get("k"); });
    auto writing = start(context, [&] { return c.put("l", ""); });
    co_await let_it_begin();
    server.kill();
    server.restart();
    const auto found = co_await reading.result();
    CHECK(found.has_value());
    const auto why = co_await writing.error();
    CHECK(why == errc::outcome_unknown);
  });
}

// ---- endpoints --------------------------------------------------------------------------------------------

TEST_CASE("a dead first endpoint is passed over") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const conclave::testing::reserved_port nobody;
    const std::string dead = "http://127.0.0.1:" + std::to_string(nobody.number());
    for (const auto& list : {dead + "," + server.endpoint(), server.endpoint() + "," + dead,
                             dead + "," + dead + "," + server.endpoint()}) {
      client c{context, list};
      const auto begin = now();
      co_await c.put("k", "v");
      const auto found = co_await c.get("k");
      CHECK(found->value == "v");
      CHECK(now() - begin < 3s);
      auto s = co_await c.keep_lease(5s);
      auto w = co_await c.watch("k");
      co_await c.put("k", "w");
      const auto events = co_await w.next();
      CHECK(events.size() == 1);
    }
  });
}

namespace {

/// Passes one connection on, from ::1 to 127.0.0.1: etcd listens on one address only.
class relay {
public:
  relay(asio::io_context& context, std::uint16_t to)
      : acceptor_(context, {asio::ip::address_v6::loopback(), 0}), in_(context), out_(context), to_(to) {}

  std::uint16_t port() const { return acceptor_.local_endpoint().port(); }

  asio::awaitable<void> serve() {
    using namespace asio::experimental::awaitable_operators;
    in_ = co_await acceptor_.async_accept(asio::use_awaitable);
    co_await out_.async_connect({asio::ip::address_v4::loopback(), to_}, asio::use_awaitable);
    co_await (copy(in_, out_) || copy(out_, in_));
  }

private:
  static asio::awaitable<void> copy(asio::ip::tcp::socket& from, asio::ip::tcp::socket& to) {
    std::array<char, 4096> buffer;
    try {
      while (true) {
        const auto size = co_await from.async_read_some(asio::buffer(buffer), asio::use_awaitable);
        co_await asio::async_write(to, asio::buffer(buffer, size), asio::use_awaitable);
      }
    } catch (const asio::system_error&) {  // one side has closed
    }
  }

  asio::ip::tcp::acceptor acceptor_;
  asio::ip::tcp::socket in_;
  asio::ip::tcp::socket out_;
  std::uint16_t to_;
};

bool has_ipv6() {
  std::ifstream interfaces{"/proc/net/if_inet6"};
  std::string line;
  while (std::getline(interfaces, line))
    if (line.starts_with("00000000000000000000000000000001 ")) return true;
  return false;
}

/// A bare root file system may have no hosts file.
bool knows_localhost() {
  addrinfo* found = nullptr;
  const bool known = ::getaddrinfo("localhost", nullptr, nullptr, &found) == 0;
  if (found != nullptr) ::freeaddrinfo(found);
  return known;
}

}  // namespace

// The resolver that gRPC uses for names keeps ten bytes for good (c-ares 1.18).
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CONCLAVE_TEST_LEAK_CHECK
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(CONCLAVE_TEST_LEAK_CHECK)
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libcares"; }
#endif

TEST_CASE("an endpoint may be a name or an IPv6 address") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto by_number = connect(context, server);
    co_await by_number.put("k", "v");
    if (knows_localhost()) {
      client c{context, "localhost:" + std::to_string(server.port())};
      const auto found = co_await c.get("k");
      REQUIRE(found);
      CHECK(found->value == "v");
    } else {
      WARN("localhost is not a name here");
    }
    if (!has_ipv6()) {
      WARN("no IPv6 here");
      co_return;
    }
    relay through{context, server.port()};
    auto serving = start(context, [&] { return through.serve(); });
    {
      client c{context, "http://[::1]:" + std::to_string(through.port())};
      const auto found = co_await c.get("k");
      REQUIRE(found);
      CHECK(found->value == "v");
    }
    serving.cancel();
    (void)co_await serving.error();
  });
}

// ---- key prefix -------------------------------------------------------------------------------------------

TEST_CASE("clients with different key prefixes do not see each other") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto all = connect(context, server);
    client_options one;
    one.key_prefix("one/");
    client_options two;
    two.key_prefix("two/");
    auto a = connect(context, server, one);
    auto b = connect(context, server, two);

    auto seen_by_a = co_await a.watch_prefix("");
    co_await a.put("k", "1");
    co_await b.put("k", "2");
    const auto really = co_await all.range(range_prefix(""));
    REQUIRE(really.kvs.size() == 2);
    CHECK(really.kvs[0].key == "one/k");
    CHECK(really.kvs[1].key == "two/k");
    const auto of_a = co_await a.range(range_prefix(""));
    REQUIRE(of_a.kvs.size() == 1);
    CHECK(of_a.kvs[0].key == "k");
    CHECK(of_a.kvs[0].value == "1");
    const auto from_k = co_await a.range(conclave::range_interval("k", std::string(1, '\0')));
    CHECK(from_k.kvs.size() == 1);
    const auto events = co_await seen_by_a.next();
    REQUIRE(events.size() == 1);
    CHECK(events[0].kv->key == "k");
    CHECK(events[0].kv->value == "1");

    txn change;
    change.when(value("k") == "1")
        .then(put("k", "3", {.prev_kv = true}), range_prefix(""))
        .otherwise(range("none"));
    const auto changed = co_await a.txn(change);
    CHECK(changed.succeeded);
    CHECK(changed.at(0).put().prev_kv->key == "k");
    CHECK(changed.at(1).range().kvs.size() == 1);
    const auto unchanged = co_await b.get("k");
    CHECK(unchanged->value == "2");

    auto lease = co_await a.keep_lease(30s);
    co_await a.put("leased", "", {.lease = lease.id()});
    co_await all.put("elsewhere", "", {.lease = lease.id()});
    const auto held = co_await a.lease_time_to_live(lease.id(), true);
    CHECK(held.keys == std::vector<std::string>{"leased"});
    auto waiting = start(context, [&] { return a.wait_deleted("leased"); });
    co_await watching(server, 2);
    co_await all.delete_range(delete_key("one/leased"));
    co_await waiting.result();

    const auto gone = co_await a.delete_range(delete_prefix("", {.prev_kv = true}));
    CHECK(gone.deleted == 1);
    CHECK(gone.prev_kvs.at(0).key == "k");
    const auto left = co_await all.range(range_prefix("", {.keys_only = true}));
    REQUIRE(left.kvs.size() == 2);
    CHECK(left.kvs[0].key == "elsewhere");
    CHECK(left.kvs[1].key == "two/k");
    co_await lease.revoke();
  });
}

// ---- wait_deleted -----------------------------------------------------------------------------------------

TEST_CASE("wait_deleted ends with the deletion, and not with a change") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("k", "1");
    auto waiting = start(context, [&] { return c.wait_deleted("k"); });
    co_await watching(server, 1);
    co_await c.put("k", "2");
    co_await c.put("kk", "");
    co_await c.delete_range(delete_key("kk"));
    CHECK_FALSE(waiting.done());
    const auto deleted = co_await c.delete_range(delete_key("k"));
    const auto at = co_await waiting.result();
    CHECK(at == deleted.header.revision);
    co_await no_watch_left(server);
  });
}

TEST_CASE("wait_deleted ends at once when the key is gone, or another incarnation than the one meant") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto never = co_await c.wait_deleted("k");
    CHECK(never >= 1);
    const auto first = co_await c.put("k", "");
    co_await c.delete_range(delete_key("k"));
    const auto second = co_await c.put("k", "");
    const auto at = co_await c.wait_deleted("k", first.header.revision);
    CHECK(at >= second.header.revision);

    auto waiting = start(context, [&] { return c.wait_deleted("k", second.header.revision); });
    co_await watching(server, 1);
    co_await c.put("k", "changed");
    CHECK_FALSE(waiting.done());
    const auto deleted = co_await c.delete_range(delete_key("k"));
    co_await c.put("k", "anew");
    const auto ended = co_await waiting.result();
    CHECK(ended >= deleted.header.revision);
    co_await no_watch_left(server);
  });
}

TEST_CASE("wait_deleted bridges a restart, and notices what happened meanwhile") {
  const bool made_anew = GENERATE(false, true);
  on_etcd([made_anew](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("k", "");
    co_await c.put("l", "");
    auto of_k = start(context, [&] { return c.wait_deleted("k"); });
    auto of_l = start(context, [&] { return c.wait_deleted("l"); });
    co_await watching(server, 2);
    // The key's present incarnation is known when the read behind the watch is answered.
    co_await eventually("both are read", [&] { return calls_started(server, "KV", "Range") == 2; });
    co_await c.status();
    server.kill();
    server.restart();
    auto other = connect(context, server);  // most likely quicker than the watches of the first
    co_await other.delete_range(delete_key("k"));
    if (made_anew) co_await other.put("k", "");
    co_await of_k.result();
    CHECK_FALSE(of_l.done());
    co_await other.delete_range(delete_key("l"));
    co_await of_l.result();
    co_await no_watch_left(server);
  });
}

TEST_CASE("wait_deleted bridges a compaction") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("k", "");
    auto waiting = start(context, [&] { return c.wait_deleted("k"); });
    co_await watching(server, 1);
    auto compact = [&]() -> asio::awaitable<void> {
      conclave::put_response last;
      for (int i = 0; i < 20; ++i) last = co_await c.put("noise", "");
      co_await c.compact(last.header.revision, true);
    };
    co_await compact();
    server.kill();
    server.restart();
    co_await compact();
    CHECK_FALSE(waiting.done());
    co_await c.delete_range(delete_key("k"));
    co_await waiting.result();
  });
}

TEST_CASE("wait_deleted is cancelled promptly and leaves no watch") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    co_await c.put("k", "");
    auto waiting = start(context, [&] { return c.wait_deleted("k"); });
    co_await watching(server, 1);
    waiting.cancel();
    const auto why = co_await waiting.error(promptly);
    CHECK(why == condition::cancelled);
    co_await no_watch_left(server);

    // While nothing answers, and the watch may be on its way.
    server.pause();
    auto frozen = start(context, [&] { return c.wait_deleted("k"); });
    co_await let_it_begin();
    frozen.cancel();
    const auto frozen_too = co_await frozen.error(promptly);
    CHECK(frozen_too == condition::cancelled);
    server.resume();
    co_await c.status();
    co_await no_watch_left(server);
  });
}

// ---- compare_and_put --------------------------------------------------------------------------------------

TEST_CASE("compare_and_put writes only over what it was told to expect") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto created = co_await c.compare_and_put("k", 0, "1");
    CHECK(created.succeeded);
    CHECK_FALSE(created.current.has_value());
    const auto exists = co_await c.compare_and_put("k", 0, "2");
    CHECK_FALSE(exists.succeeded);
    REQUIRE(exists.current.has_value());
    CHECK(exists.current->value == "1");
    CHECK(exists.current->mod_revision == created.revision);
    const auto changed = co_await c.compare_and_put("k", created.revision, "3");
    CHECK(changed.succeeded);
    CHECK(changed.revision == created.revision + 1);
    co_await c.delete_range(delete_key("k"));
    const auto gone = co_await c.compare_and_put("k", changed.revision, "4");
    CHECK_FALSE(gone.succeeded);
    CHECK_FALSE(gone.current.has_value());
  });
}

TEST_CASE("counters that compare_and_put lose no increment") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto count = [&]() -> asio::awaitable<void> {
      revision expected = 0;
      int seen = 0;
      for (int done = 0; done < 20;) {
        const auto tried = co_await c.compare_and_put("counter", expected, std::to_string(seen + 1));
        if (tried.succeeded) {
          ++done;
          ++seen;
          expected = tried.revision;
        } else {
          expected = tried.current->mod_revision;
          seen = std::stoi(tried.current->value);
        }
      }
    };
    std::vector<task<void>> counting;
    for (int i = 0; i < 8; ++i) counting.push_back(start(context, count));
    for (auto& each : counting) co_await each.result(30s);
    const auto end = co_await c.get("counter");
    CHECK(end->value == "160");
  });
}

// ---- keep_lease -------------------------------------------------------------------------------------------

TEST_CASE("a kept lease lives on, and the end of its last handle ends it") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    std::optional<conclave::kept_lease> lease = co_await c.keep_lease(3s);
    const auto id = lease->id();
    const auto first = lease->valid_until();
    co_await c.put("k", "", {.lease = id});
    co_await eventually("three renewals", [&] { return lease->valid_until() > first + 2s; });
    auto copy = *lease;
    lease.reset();
    const auto key = co_await c.get("k");
    CHECK(key.has_value());
    CHECK(copy.alive());
    auto ending = start(context, [&] { return copy.lost(); });
    co_await let_it_begin();
    CHECK_FALSE(ending.done());
    co_await copy.revoke();
    const auto why = co_await ending.result();
    CHECK(why == errc::session_closed);
    co_await lease_gone(c, id);

    auto dropped = std::make_unique<conclave::kept_lease>(co_await c.keep_lease(600s));
    const auto other = dropped->id();
    dropped.reset();
    co_await lease_gone(c, other);
  });
}

TEST_CASE("a kept lease that is revoked by others is lost at the next keepalive") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto lease = co_await c.keep_lease(3s);
    auto ending = start(context, [&] { return lease.lost(); });
    co_await c.lease_revoke(lease.id());
    const auto why = co_await ending.result(1s + promptly);
    CHECK(why == errc::session_lost);
    CHECK_FALSE(lease.alive());
    co_await lease.revoke();  // nothing left to do
  });
}

TEST_CASE("a kept lease survives a short outage and does not outlive a long one") {
  const bool too_long = GENERATE(false, true);
  on_etcd([too_long](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    auto lease = co_await c.keep_lease(3s);
    const auto first = lease.valid_until();
    server.kill();
    if (too_long) {
      auto ending = start(context, [&] { return lease.lost(); });
      const auto why = co_await ending.result();
      CHECK(why == errc::session_lost);
      CHECK(now() < lease.valid_until() + 1s);  // a timer, not a poll: the second is for a busy machine
      CHECK_FALSE(lease.alive());
      server.restart();
    } else {
      co_await pause_for(1s);
      server.restart();
      co_await eventually("renewed", [&] { return lease.valid_until() > first + 2s; });
      CHECK(lease.alive());
    }
  });
}

TEST_CASE("a lease needs a time to live that can be") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    auto c = connect(context, server);
    const auto none = co_await error_of(c.keep_lease(0s));
    CHECK(none == errc::invalid_argument);
    const auto negative = co_await error_of(c.keep_lease(-5s));
    CHECK(negative == errc::invalid_argument);
  });
}
