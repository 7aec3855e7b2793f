// SPDX-License-Identifier: BSL-1.0

// What the library does when a server says what no etcd should: answers that are no messages, or of another
// shape, or lost; streams that end, repeat themselves, or talk about somebody else.

#include "on_scripted.hpp"

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using conclave::event;
using conclave::event_type;
using conclave::key_value;
using conclave::lease_grant_request;
using conclave::lease_grant_response;
using conclave::lease_keep_alive_response;
using conclave::lease_revoke_request;
using conclave::put_request;
using conclave::put_response;
using conclave::queue;
using conclave::range_request;
using conclave::range_response;
using conclave::revision;
using conclave::session;
using conclave::txn;
using conclave::txn_response;
using conclave::watch_response;
using conclave::detail::rpc::lease_keep_alive_path;
using conclave::detail::rpc::watch_path;
using conclave::detail::wire::encode;
// Not `mutex`: the standard's is in use here, too.
using lock_by_name = conclave::mutex;

using strings = std::vector<std::string>;

// ---- hostile bytes ----------------------------------------------------------------------------------------

struct bytes_case {
  const char* what;
  std::string bytes;
};

std::string good_range_answer() {
  range_response out;
  out.header.revision = 5;
  key_value each;
  each.key = "k";
  each.value = "v";
  each.create_revision = each.mod_revision = 5;
  out.kvs.push_back(each);
  out.count = 1;
  return encode(out);
}

std::vector<bytes_case> no_messages() {
  const std::string good = good_range_answer();
  return {
      {"garbage", std::string(64, '\xff')},
      {"text", "HTTP/1.1 400 Bad Request\r\n\r\n"},
      {"truncated within a number", good.substr(0, good.size() - 1)},
      {"truncated within a message", good.substr(0, good.size() / 2)},
      {"a length beyond the end", std::string{"\x0a\x7f", 2} + "short"},
      {"a length of nearly 4 GiB", std::string{"\x0a\xff\xff\xff\xff\x0f", 6} + "short"},
      {"an end of group without a begin", std::string{"\x0c", 1}},
      {"field number zero", std::string{"\x00\x00", 2}},
  };
}

}  // namespace

// ---- unary answers ----------------------------------------------------------------------------------------

TEST_CASE("an answer that is no message is an error of the protocol, and the next one is read") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    for (const auto& each : no_messages()) {
      INFO(each.what);
      proxy.next<range_request>(scripted_etcd::answered({each.bytes}));
      const auto read = co_await error_of(c.get("k"));
      CHECK(read == errc::malformed_response);
      CHECK(read == condition::protocol);
      proxy.next<put_request>(scripted_etcd::replaced(each.bytes));
      const auto write = co_await error_of(c.put("k", each.what));
      CHECK(write == condition::protocol);
      proxy.next<txn>(scripted_etcd::answered({each.bytes}));
      const auto transaction = co_await error_of(c.txn(txn{}.then(conclave::put("k", "never"))));
      CHECK(transaction == condition::protocol);
      const auto found = co_await c.get("k");
      REQUIRE(found.has_value());
      CHECK(found->value == each.what);  // etcd had applied the put
      CHECK(proxy.outstanding() == 0);
    }
    co_await check_usable(c);
  });
}

TEST_CASE("recipes pass on that an answer was no message, and leave nothing in the store") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    queue q{c, "queue"};

    proxy.next<txn>(scripted_etcd::replaced(no_message()), joins);
    const auto locking = co_await error_of(m.lock());
    CHECK(locking == condition::protocol);
    co_await keys_below(c, "lock/", 0, promptly);
    {
      // Behind what is still done about that, so that there is something to try.
      auto lock = co_await m.lock();
      co_await lock.unlock();
    }

    proxy.next<txn>(scripted_etcd::replaced(no_message()), tries);
    const auto trying = co_await error_of(m.try_lock());
    CHECK(trying == condition::protocol);
    co_await keys_below(c, "lock/", 0, promptly);

    proxy.next<put_request>(scripted_etcd::replaced(no_message()));
    co_await q.enqueue("a");  // it looks, and the item is there

    co_await q.enqueue("b");
    proxy.next<range_request>(scripted_etcd::replaced(no_message()));
    const auto listing = co_await error_of(q.dequeue());
    CHECK(listing == condition::protocol);
    const auto first = co_await q.dequeue();
    CHECK(first == "a");
    proxy.next<txn>(scripted_etcd::replaced(no_message()), claims);
    const auto second = co_await q.dequeue_for(promptly);  // it looks what was taken
    CHECK(second.value_or("nothing") == "b");
    co_await q.enqueue("c");
    const auto last = co_await q.dequeue_for(promptly);
    CHECK(last.value_or("nothing") == "c");

    // The lock works as ever.
    auto lock = co_await m.lock();
    proxy.next<txn>(scripted_etcd::replaced(no_message()), unlocks);
    const auto unlocking = co_await error_of(lock.unlock());
    CHECK(unlocking == condition::protocol);
    co_await check_free(connect(context, proxy), "lock");
    CHECK(proxy.outstanding() == 0);
    co_await s.close();
  });
}

TEST_CASE("an empty answer is a message, in which recipes find nothing that they could use") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    proxy.next<range_request>(scripted_etcd::answered({""}));
    const auto found = co_await c.range(conclave::range("k"));
    CHECK(found == range_response{});
    proxy.next<lease_grant_request>(scripted_etcd::answered({""}));
    const auto opening = co_await error_of(session::open(c));
    CHECK(opening == condition::protocol);

    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    proxy.next<txn>(scripted_etcd::answered({""}), joins);
    const auto locking = co_await error_of(m.lock());
    CHECK(locking == condition::protocol);
    {
      auto lock = co_await m.lock();
      CHECK(lock.held());
      co_await lock.unlock();
    }
    proxy.next<txn>(scripted_etcd::answered({""}), tries);
    const auto trying = co_await error_of(m.try_lock());
    CHECK(trying == condition::protocol);
    auto lock = co_await m.lock();
    CHECK(lock.held());
    co_await lock.unlock();
    CHECK(proxy.outstanding() == 0);
    co_await s.close();
  });
}

TEST_CASE("OK without a message is an error of the protocol") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    proxy.next<range_request>(scripted_etcd::answered({}));
    const auto read = co_await error_of(c.get("k"));
    CHECK(read == condition::protocol);
    proxy.next<put_request>(scripted_etcd::answered({}));
    const auto write = co_await error_of(c.put("k", "v"));
    CHECK(write == condition::protocol);
    co_await check_usable(c);
  });
}

TEST_CASE("two answers to one question do no harm beyond the call") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    client_options options;
    options.request_timeout(1s);
    auto c = connect(context, proxy, options);
    proxy.next<range_request>(scripted_etcd::answered({good_range_answer(), good_range_answer()}));
    const auto before = now();
    std::error_code why;
    std::string value;
    try {
      const auto found = co_await c.get("k");
      value = found.value().value;
    } catch (const conclave::error& e) {
      why = e.code();
    }
    // gRPC decides which: it may pass the first on, refuse both, or wait in vain for the end of the call.
    INFO(why.message());
    CHECK((value == "v" || why == condition::protocol || why == condition::timed_out));
    CHECK(now() - before < 1s + promptly);
    co_await check_usable(c);
  });
}

TEST_CASE("an answer beyond the receive limit is told as such, and the next one is read") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    client_options options;
    options.receive_limit(std::size_t{64} * 1024);
    auto c = connect(context, proxy, options);
    range_response large;
    large.kvs.emplace_back().value.assign(std::size_t{100} * 1024, 'x');
    proxy.next<range_request>(scripted_etcd::answered({encode(large)}));
    const auto read = co_await error_of(c.get("k"));
    CHECK(read == errc::response_too_large);
    co_await check_usable(c);
  });
}

TEST_CASE("an answer of very many empty keys is read") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    constexpr std::size_t many = 1'000'000;
    std::string bytes;
    for (std::size_t i = 0; i < many; ++i) bytes += std::string_view{"\x12\x00", 2};
    proxy.next<range_request>(scripted_etcd::answered({bytes}));
    const auto found = co_await c.range(conclave::range_prefix("k"));
    CHECK(found.kvs.size() == many);
    co_await check_usable(c);
  });
}

TEST_CASE("a transaction's answers of another number or kind are an error of the protocol") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    queue q{c, "queue"};

    struct shape_case {
      const char* what;
      std::function<void(txn_response&)> edit;
    };
    const std::vector<shape_case> shapes{
        {"no answers", [](txn_response& r) { r.responses.clear(); }},
        {"the last one is missing", [](txn_response& r) { r.responses.pop_back(); }},
        {"puts",
         [](txn_response& r) {
           for (auto& each : r.responses) each.response = conclave::put_response{};
         }},
        {"of no kind",
         [](txn_response& r) {
           for (auto& each : r.responses) each.response = std::monostate{};
         }},
        {"transactions without answers",
         [](txn_response& r) {
           for (auto& each : r.responses) {
             txn_response none;
             none.succeeded = true;
             each.response = none;
           }
         }},
    };
    for (const auto& each : shapes) {
      INFO(each.what);
      proxy.next<txn>(scripted_etcd::edited<txn_response>(each.edit), joins);
      const auto locking = co_await error_of(m.lock());
      CHECK(locking == condition::protocol);
      co_await keys_below(c, "lock/", 0, promptly);
      {
        auto lock = co_await m.lock();
        CHECK(lock.held());
        co_await lock.unlock();
      }

      // A claim that was answered so has been applied, and what it took is found out. The queue goes on.
      co_await q.enqueue("taken");
      proxy.next<txn>(scripted_etcd::edited<txn_response>(each.edit), claims);
      const auto first = co_await q.dequeue_for(promptly);
      CHECK(first.value_or("nothing") == "taken");
      co_await q.enqueue("next");
      const auto taken = co_await q.dequeue_for(promptly);
      CHECK(taken.value_or("nothing") == "next");

      // Several items are claimed by a transaction each, within one.
      for (const char* of : {"one", "two"}) co_await q.enqueue(of);
      proxy.next<txn>(scripted_etcd::edited<txn_response>(each.edit), claims);
      const auto both = co_await q.dequeue_up_to(2);
      CHECK(both == strings{"one", "two"});
      CHECK(proxy.outstanding() == 0);
    }

    // It looks, and the item is there, once.
    proxy.next<put_request>(scripted_etcd::edited<put_response>([](put_response& r) { r.header = {}; }));
    co_await q.enqueue("only");
    const auto size = co_await q.size();
    CHECK(size == 1);
    const auto only = co_await q.dequeue();
    CHECK(only == "only");
    co_await s.close();
  });
}

TEST_CASE("a claimed item that is answered without its value is read from the history") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    queue q{c, "queue"};
    // Before there is a consumer, so that the claims have to ask for the values.
    for (const char* each : {"first", "second", "third"}) co_await q.enqueue(each);
    auto without = [](txn_response& r) { r.at(0).delete_range().prev_kvs.clear(); };
    proxy.next<txn>(scripted_etcd::edited<txn_response>(without), claims);
    const auto first = co_await q.dequeue_for(promptly);
    CHECK(first.value_or("nothing") == "first");
    auto one_without = [](txn_response& r) { r.at(1).txn().at(0).delete_range().prev_kvs.clear(); };
    proxy.next<txn>(scripted_etcd::edited<txn_response>(one_without), claims);
    const auto others = co_await q.dequeue_up_to(2);
    CHECK(others == strings{"second", "third"});
    CHECK(proxy.outstanding() == 0);
    co_await q.enqueue("fourth");
    const auto taken = co_await q.dequeue_for(promptly);
    CHECK(taken.value_or("nothing") == "fourth");
  });
}

TEST_CASE("a call that the server does not offer, or ends with a status that nobody knows, is an error") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    proxy.next<range_request>(scripted_etcd::refused({status_code::unimplemented, "unknown method Range"}));
    const auto read = co_await error_of(c.get("k"));
    CHECK(read == errc::unimplemented);
    CHECK(read == condition::protocol);
    proxy.next<put_request>(scripted_etcd::refused({status_code::unimplemented, "unknown method Put"}));
    const auto write = co_await error_of(c.put("k", "v"));
    CHECK(write == errc::unimplemented);

    const auto strange = static_cast<status_code>(20);
    proxy.next<range_request>(scripted_etcd::refused({strange, "from the future"}));
    const auto strange_read = co_await error_of(c.get("k"));
    CHECK(strange_read == errc::server_error);
    proxy.next<put_request>(scripted_etcd::lost({strange, "from the future"}));
    const auto strange_write = co_await error_of(c.put("k", "v"));
    CHECK(strange_write == condition::outcome_unknown);
    const auto found = co_await c.get("k");
    CHECK(found.has_value());

    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    proxy.next<txn>(scripted_etcd::refused({status_code::unimplemented, "unknown method Txn"}), joins);
    const auto locking = co_await error_of(m.lock());
    CHECK(locking == condition::protocol);
    auto lock = co_await m.lock();
    co_await lock.unlock();
    co_await s.close();
    co_await check_usable(c);
  });
}

TEST_CASE("a call that is never answered ends with its time") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    client_options options;
    options.request_timeout(700ms);
    auto c = connect(context, proxy, options);
    co_await check_usable(c);
    const auto begin = now();
    proxy.next<range_request>(scripted_etcd::silent());
    const auto read = co_await error_of(c.get("k"));
    CHECK(read == errc::timed_out);
    proxy.next<put_request>(scripted_etcd::silent());
    const auto write = co_await error_of(c.put("k", "v"));
    CHECK(write == errc::outcome_unknown);
    CHECK(now() - begin >= 1400ms);
    CHECK(now() - begin < 1400ms + promptly);

    auto patient = connect(context, proxy);
    proxy.next<range_request>(scripted_etcd::silent());
    auto waiting = start(context, [&] { return patient.get("k"); });
    co_await eventually("the call is with the server", [&] { return proxy.outstanding() == 0; });
    waiting.cancel();
    const auto cancelled = co_await waiting.error(promptly);
    CHECK(cancelled == condition::cancelled);
    co_await check_usable(c);
  });
}

TEST_CASE("a token that is refused once is told, and does not stay") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    const scripted_etcd::status refused{status_code::unauthenticated, "etcdserver: invalid auth token"};
    proxy.next<range_request>(scripted_etcd::refused(refused));
    const auto read = co_await error_of(c.get("k"));
    CHECK(read == errc::unauthenticated);
    CHECK(read == condition::refused);
    proxy.next<lease_grant_request>(scripted_etcd::refused(refused));
    const auto opening = co_await error_of(session::open(c));
    CHECK(opening == condition::refused);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    proxy.next<txn>(scripted_etcd::refused(refused), joins);
    const auto locking = co_await error_of(m.lock());
    CHECK(locking == condition::refused);
    auto lock = co_await m.lock();
    co_await lock.unlock();
    co_await s.close();
    co_await check_usable(c);
  });
}

// ---- answers that get lost --------------------------------------------------------------------------------

TEST_CASE("a lock whose join is answered by a broken connection is got all the same, once") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    proxy.next<txn>(scripted_etcd::lost(), joins);
    auto lock = co_await m.lock();
    CHECK(proxy.outstanding() == 0);
    CHECK(lock.held());
    const auto found = co_await c.get(lock.key());
    REQUIRE(found.has_value());
    CHECK(found->create_revision == lock.token());
    const auto keys = co_await count_prefix(c, "lock/");
    CHECK(keys == 1);
    co_await lock.unlock();
    co_await keys_below(c, "lock/", 0, promptly);
    const auto writes = co_await writes_below(c, "lock/");
    CHECK(writes == 1);
    co_await check_free(c, "lock");
    co_await s.close();
  });
}

TEST_CASE("a try whose answer gets lost holds nothing, says so, and leaves no key") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    proxy.next<txn>(scripted_etcd::lost(), tries);
    const auto trying = co_await error_of(m.try_lock());
    CHECK(trying == condition::outcome_unknown);
    co_await keys_below(c, "lock/", 0, promptly);
    co_await check_free(c, "lock");
    // A server that says beforehand that it can do nothing is asked again instead.
    proxy.next<txn>(scripted_etcd::refused({status_code::unavailable, "etcdserver: no leader"}), tries);
    auto lock = co_await m.try_lock();
    REQUIRE(lock.has_value());
    co_await lock->unlock();
    co_await s.close();
  });
}

TEST_CASE(
    "a lock that was lost leaves no key when the next attempt on it is answered by nonsense or by nobody") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    const bool garbled = GENERATE(false, true);
    CAPTURE(garbled);
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    auto lock = co_await m.lock();
    co_await c.delete_range(conclave::delete_key(lock.key()));
    const auto why = co_await lock.lost();
    CHECK(why == errc::lock_lost);
    if (garbled) {
      proxy.next<txn>(scripted_etcd::replaced(no_message()), joins);
      const auto locking = co_await error_of(m.lock());
      CHECK(locking == condition::protocol);
    } else {
      proxy.next<txn>(scripted_etcd::lost(), tries);
      const auto trying = co_await error_of(m.try_lock());
      CHECK(trying == condition::outcome_unknown);
    }
    co_await keys_below(c, "lock/", 0, promptly);
    co_await check_free(c, "lock");
    co_await s.close();
  });
}

TEST_CASE("an unlock whose answer gets lost is asked for again, and the lock is free") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    auto lock = co_await m.lock();
    proxy.next<txn>(scripted_etcd::lost(), unlocks);
    co_await lock.unlock();
    CHECK(proxy.outstanding() == 0);
    CHECK_FALSE(lock.held());
    co_await keys_below(c, "lock/", 0, promptly);
    co_await check_free(c, "lock");
    // The same session gets it anew, with a larger token.
    auto again = co_await m.lock();
    CHECK(again.held());
    co_await again.unlock();
    co_await s.close();
  });
}

TEST_CASE("an unlock that never reaches the server is an unknown outcome, and goes on behind the caller") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    conclave::client_options options;
    options.request_timeout(500ms);
    auto c = connect(context, proxy, options);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    auto lock = co_await m.lock();
    proxy.each<txn>(scripted_etcd::refused({status_code::unavailable, "Socket closed"}), unlocks);
    const auto unlocking = co_await error_of(lock.unlock());
    CHECK(unlocking == condition::outcome_unknown);
    proxy.forget();
    co_await keys_below(c, "lock/", 0, promptly);
    co_await check_free(c, "lock");
    co_await s.close();
  });
}

TEST_CASE("a grant whose answer gets lost is one session, and one lease") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    proxy.next<lease_grant_request>(scripted_etcd::lost());
    auto s = co_await session::open(c, {.ttl = 3s});
    CHECK(proxy.outstanding() == 0);
    const auto leases = co_await c.leases();
    REQUIRE(leases.leases.size() == 1);
    CHECK(leases.leases[0].id == s.lease_id());
    const auto before = s.valid_until();
    co_await eventually("the session is renewed", [&] { return s.valid_until() > before; });
    CHECK(s.alive());
    co_await s.close();
    co_await lease_gone(c, leases.leases[0].id, promptly);
  });
}

TEST_CASE("a revocation whose answer gets lost is asked for again, and the lease is gone") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    const auto id = s.lease_id();
    proxy.next<lease_revoke_request>(scripted_etcd::lost());
    co_await s.close();
    CHECK(proxy.outstanding() == 0);
    CHECK_FALSE(s.alive());
    co_await lease_gone(c, id, promptly);
    auto again = co_await session::open(c);
    co_await again.close();
  });
}

TEST_CASE("an item whose answer gets lost is looked for, and put once") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    queue q{c, "queue"};
    proxy.next<put_request>(scripted_etcd::lost());
    const auto at = co_await q.enqueue("a");
    CHECK(at > 0);
    auto size = co_await q.size();
    CHECK(size == 1);
    // Not written: it says so.
    proxy.next<put_request>(scripted_etcd::refused({status_code::unavailable, "Socket closed"}));
    const auto unwritten = co_await error_of(q.enqueue("b"));
    CHECK(unwritten == condition::outcome_unknown);
    size = co_await q.size();
    CHECK(size == 1);
    const auto item = co_await q.dequeue();
    CHECK(item == "a");
    const auto none = co_await q.try_dequeue();
    CHECK_FALSE(none.has_value());
  });
}

TEST_CASE("a claim whose answer gets lost is found out, and each item delivered once") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    queue q{c, "queue"};
    for (const char* each : {"a", "b", "c"}) co_await q.enqueue(each);
    proxy.next<txn>(scripted_etcd::lost(), claims);
    const auto first = co_await q.dequeue_for(promptly);
    CHECK(first.value_or("nothing") == "a");
    // One that was not applied.
    proxy.next<txn>(scripted_etcd::refused({status_code::unavailable, "Socket closed"}), claims);
    const auto second = co_await q.dequeue_for(promptly);
    CHECK(second.value_or("nothing") == "b");
    // The answer to the inquiry gets lost as well.
    proxy.next<txn>(scripted_etcd::lost(), claims);
    proxy.next<txn>(scripted_etcd::lost(), inquires);
    const auto third = co_await q.dequeue_for(promptly);
    CHECK(third.value_or("nothing") == "c");
    CHECK(proxy.outstanding() == 0);
    // Of several, by a transaction each within one.
    for (const char* each : {"d", "e"}) co_await q.enqueue(each);
    proxy.next<txn>(scripted_etcd::lost(), claims);
    const auto others = co_await q.dequeue_up_to(2);
    CHECK(others == strings{"d", "e"});
    CHECK(proxy.outstanding() == 0);
    const auto none = co_await q.try_dequeue();
    CHECK_FALSE(none.has_value());
  });
}

TEST_CASE("a claim about which nothing can be found out is told to its consumer, and nobody else's item is") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    queue q{c, "queue"};
    for (const char* each : {"a", "b", "c"}) co_await q.enqueue(each);

    // The inquiry is answered by nonsense.
    proxy.next<txn>(scripted_etcd::lost(), claims);
    proxy.next<txn>(scripted_etcd::replaced(no_message()), inquires);
    const auto taking = co_await error_of(q.dequeue());
    CHECK(taking == condition::outcome_unknown);

    // The history that tells what was taken is compacted before it is read.
    proxy.next<txn>(scripted_etcd::lost(), claims);
    proxy.next<txn>(scripted_etcd::refused({status_code::unavailable, "etcdserver: no leader"}), inquires);
    auto compacted = start(context, [&] { return error_of(q.dequeue()); });
    auto asked = [&] { return proxy.outstanding() == 0; };
    co_await eventually("the first inquiry is refused", asked);
    const auto last = co_await c.put("last", "");
    co_await c.compact(last.header.revision, true);
    const auto untold = co_await compacted.result();
    // It may have been read before.
    CHECK((!untold || untold == condition::outcome_unknown));

    const auto next = co_await q.dequeue_for(promptly);
    CHECK(next.value_or("nothing") == "c");
  });
}

// ---- watches ----------------------------------------------------------------------------------------------

TEST_CASE("a watch whose stream says what is no message, or ends, is resumed and misses nothing") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    auto w = co_await c.watch("k");
    co_await c.put("k", "1");
    auto seen = co_await values(w, 1);
    CHECK(seen == strings{"1"});

    struct fault_case {
      const char* what;
      std::function<void(const call_ptr&)> fault;
    };
    const std::vector<fault_case> faults{
        {"no message", [](const call_ptr& on) { on->send(no_message()); }},
        {"ended with OK", [](const call_ptr& on) { on->end(); }},
        {"ended for want of a leader",
         [](const call_ptr& on) {
           on->end({status_code::unavailable, "etcdserver: no leader"});
         }},
        {"ended with a status that nobody knows",
         [](const call_ptr& on) {
           on->end({static_cast<status_code>(20), "from the future"});
         }},
        {"an event without a key",
         [](const call_ptr& on) {
           watch_response bad;
           bad.watch_id = 1;
           bad.events.emplace_back();
           on->send(bad);
         }},
        {"an acknowledgement that nobody asked for",
         [](const call_ptr& on) {
           watch_response bad;
           bad.watch_id = 77;
           bad.created = true;
           on->send(bad);
         }},
    };
    for (const auto& each : faults) {
      INFO(each.what);
      const auto before = log.opened();
      // The fault hits between two events: etcd's are held back on the old stream.
      auto* const broken = log.last().get();
      log.edit([broken](const call_ptr& on, const std::string&) { return on.get() == broken; });
      co_await c.put("k", "while nobody sees it");
      each.fault(log.last());
      seen = co_await values(w, 1);
      CHECK(seen == strings{"while nobody sees it"});
      CHECK(log.opened() > before);
      co_await c.put("k", "afterwards");
      seen = co_await values(w, 1);
      CHECK(seen == strings{"afterwards"});
    }
    co_await check_usable(c);
  });
}

TEST_CASE("events that come twice, late or from before the watch are seen once and in order") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    const auto first = co_await c.put("k", "before");
    auto w = co_await c.watch("k");

    // From before its start.
    treat_next_events(log, [&first](const call_ptr& on, watch_response answer) {
      event old;
      old.kv.emplace();
      old.kv->key = "k";
      old.kv->value = "before";
      old.kv->create_revision = old.kv->mod_revision = first.header.revision;
      old.kv->version = 1;
      answer.events.insert(answer.events.begin(), old);
      on->send(answer);
    });
    co_await c.put("k", "1");
    auto seen = co_await values(w, 1);
    CHECK(seen == strings{"1"});

    // Twice, in an answer of its own.
    treat_next_events(log, [](const call_ptr& on, const watch_response& answer) {
      on->send(answer);
      on->send(answer);
    });
    co_await c.put("k", "2");
    co_await c.put("k", "3");
    seen = co_await values(w, 2);
    CHECK(seen == strings{"2", "3"});
    CHECK(log.opened() == 1);

    // In the wrong order within one answer. Both come from etcd: the first is held back.
    auto held = std::make_shared<std::vector<event>>();
    log.edit([held, swapped = std::make_shared<bool>(false)](const call_ptr& on, const std::string& bytes) {
      auto answer = scripted_etcd::decoded<watch_response>(bytes);
      if (*swapped || answer.events.empty()) return false;
      for (auto& each : answer.events) held->push_back(std::move(each));
      if (held->size() < 2) return true;
      answer.events.assign(held->rbegin(), held->rend());
      *swapped = true;
      on->send(answer);
      return true;
    });
    co_await c.put("k", "4");
    co_await c.put("k", "5");
    seen = co_await values(w, 2);
    CHECK(seen == strings{"4", "5"});
    CHECK(log.opened() == 2);  // such a stream is not trusted any more
    co_await c.put("k", "6");
    seen = co_await values(w, 1);
    CHECK(seen == strings{"6"});
  });
}

TEST_CASE("what a stream says of watches that are not there is not heard") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    auto w = co_await c.watch("k");
    co_await c.put("k", "1");
    auto seen = co_await values(w, 1);

    for (const std::int64_t id : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{2}, std::int64_t{1} << 40,
                                  std::numeric_limits<std::int64_t>::min()}) {
      watch_response stray;
      stray.watch_id = id;
      stray.header.revision = 1'000'000;
      auto& each = stray.events.emplace_back();
      each.kv.emplace();
      each.kv->key = "k";
      each.kv->value = "nobody's";
      each.kv->mod_revision = 1'000'000;
      log.last()->send(stray);
      stray.events.clear();
      stray.canceled = true;
      stray.compact_revision = 5;
      log.last()->send(stray);
    }
    co_await c.put("k", "2");
    seen = co_await values(w, 1);
    CHECK(seen == strings{"2"});
    CHECK(log.opened() == 1);
  });
}

TEST_CASE("a watch that is acknowledged under another id starts over, and misses nothing") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    treat_next_created(log, [](const call_ptr& on, watch_response answer) {
      answer.watch_id += 5;
      on->send(answer);
    });
    auto c = connect(context, proxy);
    const auto first = co_await c.put("k", "1");
    auto w = co_await c.watch("k", {.start_revision = first.header.revision});
    co_await c.put("k", "2");
    const auto seen = co_await values(w, 2);
    CHECK(seen == strings{"1", "2"});
    CHECK(log.opened() == 2);
  });
}

TEST_CASE("an answer in fragments is one batch, and none at all if the stream breaks among them") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    auto w = co_await c.watch_prefix("k/");
    txn four;
    for (const char* name : {"k/a", "k/b", "k/c", "k/d"}) four.then(conclave::put(name, name));
    const strings all{"k/a", "k/b", "k/c", "k/d"};

    treat_next_events(log, [](const call_ptr& on, const watch_response& answer) {
      for (std::size_t i = 0; i < answer.events.size(); ++i) {
        watch_response part;
        part.header = answer.header;
        part.watch_id = answer.watch_id;
        part.events = {answer.events[i]};
        part.fragment = i + 1 < answer.events.size();
        on->send(part);
      }
    });
    co_await c.txn(four);
    auto batch = co_await w.next();
    CHECK(batch.size() == 4);
    CHECK(log.opened() == 1);

    // The last fragment may be empty.
    treat_next_events(log, [](const call_ptr& on, watch_response answer) {
      answer.fragment = true;
      on->send(answer);
      answer.fragment = false;
      answer.events.clear();
      on->send(answer);
    });
    co_await c.txn(four);
    batch = co_await w.next();
    CHECK(batch.size() == 4);

    treat_next_events(log, [](const call_ptr& on, watch_response answer) {
      answer.fragment = true;
      answer.events.resize(2);
      on->send(answer);
      on->end({status_code::unavailable, "Socket closed"});
    });
    co_await c.txn(four);
    batch = co_await w.next();
    REQUIRE(batch.size() == 4);
    strings seen;
    for (const auto& each : batch) seen.push_back(each.kv->value);
    std::sort(seen.begin(), seen.end());
    CHECK(seen == all);
    CHECK(log.opened() == 2);
    co_await c.put("k/e", "last");
    seen = co_await values(w, 1);
    CHECK(seen == strings{"last"});
  });
}

TEST_CASE("a watch that is refused ends with the reason, and the client's others go on") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    auto other = co_await c.watch("other");
    co_await c.put("other", "1");
    auto seen = co_await values(other, 1);

    // etcd itself has made the watch; the client is told that it has not, the way etcd says it.
    treat_next_created(log, [](const call_ptr& on, watch_response answer) {
      answer.watch_id = -1;
      answer.canceled = true;
      answer.cancel_reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
      on->send(answer);
    });
    auto w = co_await c.watch("k");
    const auto why = co_await error_of(w.next());
    CHECK(why == errc::permission_denied);
    CHECK(why == condition::refused);
    const auto again = co_await error_of(w.next());
    CHECK(again == errc::permission_denied);
    co_await c.put("other", "2");
    seen = co_await values(other, 1);
    CHECK(seen == strings{"2"});
    CHECK(log.opened() == 1);

    // A cancellation that nobody asked for.
    const auto creates = log.creates().size();
    auto cancelled = co_await c.watch("k");
    co_await eventually("the watch is asked for", [&] { return log.creates().size() > creates; });
    const auto id = log.creates().back().watch_id;
    co_await c.put("k", "seen");
    seen = co_await values(cancelled, 1);
    watch_response cancel;
    cancel.watch_id = id;
    cancel.canceled = true;
    cancel.cancel_reason = "etcdserver: something else";
    log.last()->send(cancel);
    const auto reason = co_await error_of(cancelled.next());
    CHECK(reason == errc::server_error);
    co_await c.put("other", "3");
    seen = co_await values(other, 1);
    CHECK(seen == strings{"3"});
    auto anew = co_await c.watch("k");
    co_await c.put("k", "anew");
    seen = co_await values(anew, 1);
    CHECK(seen == strings{"anew"});
  });
}

TEST_CASE("a watch that has fallen behind the history says so") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    const bool while_created = GENERATE(false, true);
    CAPTURE(while_created);
    watch_response compacted;
    compacted.canceled = true;
    compacted.compact_revision = 17;
    auto w = co_await c.watch("k");
    co_await c.put("k", "1");
    const auto seen = co_await values(w, 1);
    if (while_created) {
      treat_next_created(log, [](const call_ptr& on, watch_response answer) {
        answer.canceled = true;
        answer.compact_revision = 17;
        on->send(answer);
      });
      log.last()->end();
    } else {
      compacted.watch_id = log.creates().back().watch_id;
      log.last()->send(compacted);
    }
    std::string text;
    std::error_code why;
    try {
      co_await w.next();
    } catch (const conclave::error& e) {
      why = e.code();
      text = e.what();
    }
    CHECK(why == errc::compacted);
    CHECK_THAT(text, contains("17"));
    const auto again = co_await error_of(w.next());
    CHECK(again == errc::compacted);
    auto anew = co_await c.watch("k");
    co_await c.put("k", "2");
    const auto later = co_await values(anew, 1);
    CHECK(later == strings{"2"});
  });
}

TEST_CASE("a waiter for a lock is admitted, whatever happens to the watch meanwhile") {
  on_scripted(
      [](asio::io_context& context, scripted_etcd& proxy, etcd_server& server) -> asio::awaitable<void> {
        struct fault_case {
          const char* what;
          std::function<void(const call_ptr&, std::int64_t, revision)> fault;
        };
        const std::vector<fault_case> faults{
            {"no message", [](const call_ptr& on, std::int64_t, revision) { on->send(no_message()); }},
            {"ended with OK", [](const call_ptr& on, std::int64_t, revision) { on->end(); }},
            {"compacted",
             [](const call_ptr& on, std::int64_t id, revision) {
               watch_response compacted;
               compacted.watch_id = id;
               compacted.canceled = true;
               compacted.compact_revision = 1;
               on->send(compacted);
             }},
            {"events for a foreign key",
             [](const call_ptr& on, std::int64_t id, revision at) {
               watch_response foreign;
               foreign.watch_id = id;
               foreign.events.emplace_back();
               foreign.events[0].type = event_type::delete_;
               foreign.events[0].kv.emplace();
               foreign.events[0].kv->key = "elsewhere/1234";
               foreign.events[0].kv->mod_revision = at;
               on->send(foreign);
             }},
        };
        for (const auto& each : faults) {
          INFO(each.what);
          auto direct = connect(context, server);
          auto holder = co_await session::open(direct);
          lock_by_name held_by{holder, "lock"};
          auto held = co_await held_by.lock();

          stream_log log{proxy, watch_path};
          auto c = connect(context, proxy);
          auto s = co_await session::open(c);
          lock_by_name m{s, "lock"};
          auto waiting = start(context, [&] { return m.lock(); });
          co_await keys_below(direct, "lock/", 2);
          co_await eventually("the line is watched", [&] { return log.creates().size() == 1; });
          // All that etcd says on the stream of the fault is held back, the hand-over too.
          auto* const broken = log.last().get();
          const bool same_stream = std::string_view{each.what} == "compacted" ||
                                   std::string_view{each.what} == "events for a foreign key";
          if (!same_stream)
            log.edit([broken](const call_ptr& on, const std::string&) { return on.get() == broken; });
          each.fault(log.last(), log.creates().back().watch_id, held.token() + 1);
          co_await pause_for(50ms);
          CHECK_FALSE(waiting.done());
          co_await held.unlock();
          auto lock = co_await waiting.result(promptly + 2s);
          CHECK(lock.held());
          CHECK(lock.token() > held.token());
          co_await lock.unlock();
          co_await s.close();
          co_await holder.close();
          proxy.forget();
        }
      });
}

TEST_CASE("a waiter for a key's end goes on when its watch is compacted, and ends when it is refused") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    co_await c.put("k", "v");
    auto waiting = start(context, [&] { return c.wait_deleted("k"); });
    co_await eventually("the key is watched", [&] { return log.creates().size() == 1; });
    co_await eventually("the key is read", [&] { return proxy.calls("/etcdserverpb.KV/Range") == 1; });
    watch_response compacted;
    compacted.watch_id = log.creates().back().watch_id;
    compacted.canceled = true;
    compacted.compact_revision = 1;
    log.last()->send(compacted);
    co_await eventually("it is watched anew", [&] { return log.creates().size() == 2; });
    CHECK_FALSE(waiting.done());
    const auto deleted = co_await c.delete_range(conclave::delete_key("k"));
    const auto at = co_await waiting.result();
    CHECK(at >= deleted.header.revision);

    co_await c.put("k", "v");
    treat_next_created(log, [](const call_ptr& on, watch_response answer) {
      answer.watch_id = -1;
      answer.canceled = true;
      answer.cancel_reason = "etcdserver: permission denied";
      on->send(answer);
    });
    const auto refused = co_await error_of(c.wait_deleted("k"));
    CHECK(refused == errc::permission_denied);
  });
}

TEST_CASE("consumers of a queue take no foreign key for an item") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    queue q{c, "queue"};
    auto waiting = start(context, [&] { return q.dequeue(); });
    co_await eventually("the queue is watched", [&] { return log.creates().size() == 1; });
    treat_next_events(log, [](const call_ptr& on, watch_response answer) {
      event foreign = answer.events.front();
      foreign.kv->value = "foreign";
      foreign.kv->key = "elsewhere/1";
      answer.events.insert(answer.events.begin(), foreign);
      foreign.kv->key = "queue/no number";
      answer.events.insert(answer.events.begin(), foreign);
      // An item that does not exist: the claim finds that out.
      foreign.kv->key = "queue/1";
      answer.events.insert(answer.events.begin(), foreign);
      on->send(answer);
    });
    co_await q.enqueue("item");
    const auto item = co_await waiting.result();
    CHECK(item == "item");
  });
}

// ---- keepalives -------------------------------------------------------------------------------------------

TEST_CASE("a lease that is unknown right after its grant is asked about, and not given up") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    // "Right after" is a second. On a machine that is too busy for that the attempt says nothing.
    bool in_time = false;
    for (int attempt = 0; attempt < 5 && !in_time; ++attempt) {
      stream_log log{proxy, lease_keep_alive_path};
      auto unknown_since = std::make_shared<std::atomic<time_point>>(time_point::max());
      log.edit([unknown_since](const call_ptr& on, const std::string& bytes) {
        if (unknown_since->load() != time_point::max()) return false;
        auto answer = scripted_etcd::decoded<lease_keep_alive_response>(bytes);
        answer.ttl = 0;
        on->send(answer);
        *unknown_since = now();
        return true;
      });
      auto c = connect(context, proxy);
      const int asked_before = proxy.calls("/etcdserverpb.Lease/LeaseTimeToLive");
      const auto begin = now();
      auto s = co_await session::open(c, {.ttl = 2s});
      const auto before = s.valid_until();
      co_await eventually("the session is renewed or lost",
                          [&] { return s.valid_until() > before || !s.alive(); });
      in_time = unknown_since->load() - begin < 850ms;
      if (in_time) {
        CHECK(s.alive());
        CHECK(proxy.calls("/etcdserverpb.Lease/LeaseTimeToLive") == asked_before + 1);
        CHECK(log.opened() == 1);
      }
      co_await s.close();
      proxy.forget();
    }
    CHECK(in_time);
  });
}

TEST_CASE("a session is lost when the server says later that it does not know the lease") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, lease_keep_alive_path};
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 3s});
    lock_by_name m{s, "lock"};
    auto lock = co_await m.lock();
    auto waiting = start(context, [&] { return lock.lost(); });
    const auto before = s.valid_until();
    co_await eventually("the session is renewed", [&] { return s.valid_until() > before; });
    log.edit([](const call_ptr& on, const std::string& bytes) {
      auto answer = scripted_etcd::decoded<lease_keep_alive_response>(bytes);
      answer.ttl = 0;
      on->send(answer);
      return true;
    });
    const auto why = co_await s.lost();
    CHECK(why == errc::session_lost);
    CHECK(now() < s.valid_until());  // it was told, and did not wait for the time to pass
    CHECK_FALSE(s.alive());
    CHECK_FALSE(lock.held());
    const auto lock_why = co_await waiting.result();
    CHECK(lock_why == errc::session_lost);
    const auto closing = co_await error_of(s.close());
    CHECK_FALSE(closing);
    // etcd has the lease still, in truth: nobody keeps it, so that it ends by itself.
    auto anew = co_await session::open(c, {.ttl = 3s});
    log.edit(nullptr);
    CHECK(anew.alive());
    co_await anew.close();
  });
}

TEST_CASE("keepalive answers for other leases, or that nobody asked for, change nothing") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, lease_keep_alive_path};
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 3s});
    co_await eventually("the stream is open", [&] { return log.opened() == 1; });
    const auto before = s.valid_until();
    lease_keep_alive_response stray;
    for (const std::int64_t id : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{42}}) {
      stray.id = id;
      stray.ttl = 0;
      log.last()->send(stray);
      stray.ttl = 1000;
      log.last()->send(stray);
    }
    stray.id = s.lease_id();
    stray.ttl = 0;
    log.last()->send(stray);
    stray.ttl = 1000;
    log.last()->send(stray);
    co_await eventually("the session is renewed", [&] { return s.valid_until() > before; });
    CHECK(s.valid_until() - now() < 4s);
    CHECK(s.alive());
    CHECK(log.opened() == 1);
    co_await s.close();
  });
}

TEST_CASE("a keepalive stream that is silent, ends or says what is no message is opened anew in time") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    struct fault_case {
      const char* what;
      std::function<void(const call_ptr&)> fault;
    };
    const std::vector<fault_case> faults{
        {"silent", [](const call_ptr&) {}},
        {"ended with OK", [](const call_ptr& on) { on->end(); }},
        {"ended with a refusal",
         [](const call_ptr& on) {
           on->end({status_code::permission_denied, "no"});
         }},
        {"no message", [](const call_ptr& on) { on->send(no_message()); }},
    };
    auto c = connect(context, proxy);
    for (const auto& each : faults) {
      INFO(each.what);
      stream_log log{proxy, lease_keep_alive_path};
      log.edit(
          [done = std::make_shared<bool>(false), fault = each.fault](const call_ptr& on, const std::string&) {
            if (std::exchange(*done, true)) return false;
            fault(on);
            return true;
          });
      auto s = co_await session::open(c, {.ttl = 4s});
      const auto before = s.valid_until();
      co_await eventually("the session is renewed", [&] { return s.valid_until() > before || !s.alive(); });
      CHECK(s.alive());
      CHECK(log.opened() == 2);
      co_await s.close();
      proxy.forget();
    }
  });
}

TEST_CASE("a lease's time that shrinks is kept up with") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, lease_keep_alive_path};
    log.edit([](const call_ptr& on, const std::string& bytes) {
      auto answer = scripted_etcd::decoded<lease_keep_alive_response>(bytes);
      answer.ttl = 1;
      on->send(answer);
      return true;
    });
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 3s});
    // Every third of a second now, and not of three.
    co_await eventually(
        "the lease is renewed more often", [&] { return log.messages().size() >= 6; }, 5s);
    CHECK(s.alive());
    co_await s.close();
  });
}

// ---- servers that never work ------------------------------------------------------------------------------

TEST_CASE("streams that the server ends at once are opened anew now and then, not in a loop") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    script refuse;
    const bool with_ok = GENERATE(true, false);
    refuse.on_open = [with_ok](const call_ptr& on) {
      on->end(with_ok ? scripted_etcd::status{}
                      : scripted_etcd::status{status_code::unavailable, "etcdserver: no leader"});
    };
    proxy.each_stream(watch_path, refuse);
    proxy.each_stream(lease_keep_alive_path, refuse);
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 10s});
    auto w = co_await c.watch("k");
    co_await pause_for(3s);
    const int watches = proxy.calls(watch_path);
    const int keepalives = proxy.calls(lease_keep_alive_path);
    CAPTURE(watches, keepalives);
    CHECK(watches >= 3);
    CHECK(watches <= 15);
    CHECK(keepalives >= 3);
    CHECK(keepalives <= 15);
    // Whole again, both go on.
    proxy.forget();
    const auto before = s.valid_until();
    co_await c.put("k", "1");
    const auto seen = co_await values(w, 1);
    CHECK(seen == strings{"1"});
    co_await eventually("the session is renewed", [&] { return s.valid_until() > before; });
    co_await s.close();
  });
}

TEST_CASE("a session whose keepalives are refused is lost when its time is over, and not before") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    script refuse;
    refuse.on_open = [](const call_ptr& on) { on->end({status_code::unimplemented, "unknown service"}); };
    proxy.each_stream(lease_keep_alive_path, refuse);
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 2s});
    const auto until = s.valid_until();
    const auto lost = co_await s.lost();
    CHECK(lost == errc::session_lost);
    CHECK(now() >= until);
    CHECK(now() < until + promptly);
    co_await check_usable(c);
  });
}

// ---- nonsense that must not last ---------------------------------------------------------------------------

TEST_CASE("a server without watches is told as such") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    const auto code =
        GENERATE(status_code::unimplemented, status_code::permission_denied, status_code::unauthenticated);
    script refuse;
    refuse.on_open = [code](const call_ptr& on) { on->end({code, "refused"}); };
    proxy.each_stream(watch_path, refuse);
    auto c = connect(context, proxy);
    auto w = co_await c.watch("k");
    auto waiting = start(context, [&] { return w.next(); });
    const auto why = co_await waiting.error(promptly);
    if (code == status_code::unimplemented)
      CHECK(why == condition::protocol);
    else
      CHECK(why == condition::refused);
    co_await check_usable(c);
  });
}

TEST_CASE("a lock whose line may not be watched fails, also when that is known before its join is answered") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy,
                 etcd_server& server) -> asio::awaitable<void> {
    auto direct = connect(context, server);
    auto holder = co_await session::open(direct);
    lock_by_name held_by{holder, "lock"};
    auto held = co_await held_by.lock();

    stream_log log{proxy, watch_path};
    auto refusal = std::make_shared<std::pair<call_ptr, watch_response>>();
    std::atomic<bool> asked{false};
    treat_next_created(log, [refusal, &asked](const call_ptr& on, watch_response answer) {
      answer.watch_id = -1;
      answer.canceled = true;
      answer.cancel_reason = "etcdserver: permission denied";
      *refusal = {on, std::move(answer)};
      asked = true;
    });
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    auto t = co_await session::open(c);
    lock_by_name standing{s, "lock"};
    lock_by_name joining{t, "lock"};
    auto stands = start(context, [&] { return standing.lock(); });
    co_await eventually("the watch is asked for", [&] { return asked.load(); });

    auto answer = std::make_shared<std::pair<call_ptr, std::string>>();
    std::atomic<bool> joined{false};
    script late;
    late.on_answer = [answer](const call_ptr& on, std::string bytes) { *answer = {on, std::move(bytes)}; };
    late.on_end = [&joined](const call_ptr&, const scripted_etcd::status&) { joined = true; };
    proxy.next<txn>(late, joins);
    auto joins_late = start(context, [&] { return joining.lock(); });
    co_await eventually("it has joined", [&] { return joined.load(); });

    refusal->first->send(refusal->second);
    const auto why = co_await stands.error(promptly);
    CHECK(why == errc::permission_denied);
    CHECK_FALSE(joins_late.done());
    answer->first->send(answer->second);
    answer->first->end();
    *answer = {};
    *refusal = {};
    const auto why_late = co_await joins_late.error(promptly);
    CHECK(why_late == errc::permission_denied);
    co_await held.unlock();
    co_await s.close();
    co_await t.close();
    co_await holder.close();
  });
}

TEST_CASE("a lock that was lost leaves no key when the next local waiter's join is answered by nonsense") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    lock_by_name other{s, "lock"};
    auto lock = co_await m.lock();
    auto waiting = start(context, [&] { return other.lock(); });
    co_await pause_for(100ms);
    CHECK_FALSE(waiting.done());
    proxy.next<txn>(scripted_etcd::replaced(no_message()), joins);
    co_await c.delete_range(conclave::delete_key(lock.key()));
    const auto why = co_await waiting.error();
    CHECK(why == condition::protocol);
    co_await keys_below(c, "lock/", 0, promptly);
    co_await s.close();
  });
}

TEST_CASE("a grant whose answer is no message leaves no lease behind") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    const bool other_id = GENERATE(false, true);
    CAPTURE(other_id);
    auto c = connect(context, proxy);
    if (other_id)
      proxy.next<lease_grant_request>(
          scripted_etcd::edited<lease_grant_response>([](lease_grant_response& r) { ++r.id; }));
    else
      proxy.next<lease_grant_request>(scripted_etcd::replaced(no_message()));
    const auto opening = co_await error_of(session::open(c, {.ttl = 5s}));
    CHECK(opening == condition::protocol);
    auto no_lease = [&]() -> asio::awaitable<bool> {
      const auto left = co_await c.leases();
      co_return left.leases.empty();
    };
    co_await eventually("no lease is left", no_lease, promptly);
  });
}

TEST_CASE("a short lease that is unknown right after its grant is asked about, and not given up") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, lease_keep_alive_path};
    log.edit([done = std::make_shared<bool>(false)](const call_ptr& on, const std::string& bytes) {
      if (std::exchange(*done, true)) return false;
      auto answer = scripted_etcd::decoded<lease_keep_alive_response>(bytes);
      answer.ttl = 0;
      on->send(answer);
      return true;
    });
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 1s});
    const auto before = s.valid_until();
    co_await eventually("the session is renewed or lost",
                        [&] { return s.valid_until() > before || !s.alive(); });
    CHECK(s.alive());
    CHECK(now() < before);
    co_await s.close();
  });
}

TEST_CASE("a session is not believed in for longer than the last answer says") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, lease_keep_alive_path};
    log.edit([](const call_ptr& on, const std::string& bytes) {
      auto answer = scripted_etcd::decoded<lease_keep_alive_response>(bytes);
      answer.ttl = 1;
      on->send(answer);
      return true;
    });
    auto c = connect(context, proxy);
    auto s = co_await session::open(c, {.ttl = 6s});
    co_await eventually("the lease is renewed more often", [&] { return log.messages().size() >= 3; });
    CHECK(s.alive());
    CHECK(s.valid_until() <= now() + 1s);
    co_await s.close();
  });
}

TEST_CASE("a time to live beyond the clock's range is no reason to lose the lease") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    const bool in_grant = GENERATE(false, true);
    CAPTURE(in_grant);
    stream_log log{proxy, lease_keep_alive_path};
    constexpr std::int64_t huge = std::int64_t{1} << 35;  // about 1000 years: beyond 2^63 ns
    if (in_grant) {
      proxy.next<lease_grant_request>(
          scripted_etcd::edited<lease_grant_response>([](lease_grant_response& r) { r.ttl = huge; }));
    } else {
      log.edit([](const call_ptr& on, const std::string& bytes) {
        auto answer = scripted_etcd::decoded<lease_keep_alive_response>(bytes);
        answer.ttl = huge;
        on->send(answer);
        return true;
      });
    }
    auto c = connect(context, proxy);
    std::optional<session> s;
    std::error_code why;
    try {
      s = co_await session::open(c, {.ttl = 2s});
    } catch (const conclave::error& e) {
      why = e.code();
    }
    if (s) {
      if (!in_grant) co_await eventually("it is renewed", [&] { return log.messages().size() >= 1; });
      co_await pause_for(1500ms);
      CHECK(s->alive());
      CHECK(s->ttl() > 0s);
      co_await s->close();
    } else {
      CHECK(why == condition::protocol);
    }
  });
}

TEST_CASE("a server that acknowledges watches and then ends the stream is not asked in a loop") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    log.edit([](const call_ptr& on, const std::string& bytes) {
      on->send(bytes);
      on->end();
      return true;
    });
    auto c = connect(context, proxy);
    auto w = co_await c.watch("k");
    co_await pause_for(3s);
    const auto opened = log.opened();
    CHECK(opened >= 3);
    CHECK(opened <= 20);
  });
}
TEST_CASE("a server that sends events in the wrong order for ever is not asked in a loop") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    auto w = co_await c.watch("k");
    co_await eventually("the watch is asked for", [&] { return log.creates().size() == 1; });
    log.edit([](const call_ptr& on, const std::string& bytes) {
      auto answer = scripted_etcd::decoded<watch_response>(bytes);
      std::reverse(answer.events.begin(), answer.events.end());
      on->send(answer);
      return true;
    });
    const auto last = log.last();
    watch_response bad;
    bad.watch_id = 1;
    bad.events.emplace_back();
    last->send(bad);
    co_await c.put("k", "1");
    co_await c.put("k", "2");
    co_await pause_for(3s);
    const auto opened = log.opened();
    CHECK(opened <= 20);
  });
}

TEST_CASE("a listing that never ends is an error of the protocol") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    const int which = GENERATE(0, 1, 2);
    CAPTURE(which);
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "line"};
    queue q{c, "line"};
    co_await c.put("line/foreign", "");
    proxy.each<range_request>(
        scripted_etcd::edited<range_response>([](range_response& r) { r.more = true; }));
    auto list = [&]() -> asio::awaitable<void> {
      if (which == 0) (void)co_await m.inspect();
      if (which == 1) (void)co_await q.size();
      if (which == 2) (void)co_await q.peek();
    };
    auto listing = start(context, list);
    INFO(proxy.calls("/etcdserverpb.KV/Range") << " calls");
    const auto why = co_await listing.error(promptly);
    CHECK(why == condition::protocol);
    listing.cancel();
    proxy.forget();
    co_await eventually("it ends", [&] { return listing.done(); });
    co_await s.close();
  });
}

TEST_CASE("a lock is not held with a token of zero") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    proxy.next<txn>(scripted_etcd::edited<txn_response>([](txn_response& r) { r.header = {}; }), joins);
    const auto why = co_await error_of(m.lock());
    CHECK(why == condition::protocol);
    co_await keys_below(c, "lock/", 0, promptly);
    co_await s.close();
  });
}

TEST_CASE("an item whose put is answered by nothing is not put twice") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    auto c = connect(context, proxy);
    queue q{c, "queue"};
    proxy.next<put_request>(scripted_etcd::replaced(""));
    co_await q.enqueue("a");  // it looks whether the item is there
    auto size = co_await q.size();
    CHECK(size == 1);
    // Nor items whose transaction, which has no condition, is said to have met one that did not hold.
    proxy.next<txn>(scripted_etcd::edited<txn_response>([](txn_response& r) { r.succeeded = false; }));
    const std::vector<std::string> pair{"b", "c"};
    co_await q.enqueue_all(pair);
    size = co_await q.size();
    CHECK(size == 3);
    CHECK(proxy.outstanding() == 0);
  });
}

TEST_CASE("a waiter for a key's end does not take another key's for it") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    const auto made = co_await c.put("k", "v");
    auto waiting = start(context, [&] { return c.wait_deleted("k"); });
    co_await eventually("the key is watched", [&] { return log.creates().size() == 1; });
    co_await eventually("the key is read", [&] { return proxy.calls("/etcdserverpb.KV/Range") == 1; });
    watch_response foreign;
    foreign.watch_id = log.creates().back().watch_id;
    foreign.events.emplace_back();
    foreign.events[0].type = event_type::delete_;
    foreign.events[0].kv.emplace();
    foreign.events[0].kv->key = "other";
    foreign.events[0].kv->mod_revision = made.header.revision;
    log.last()->send(foreign);
    co_await pause_for(300ms);
    CHECK_FALSE(waiting.done());
    co_await c.delete_range(conclave::delete_key("k"));
    (void)co_await waiting.result();
  });
}

TEST_CASE("the loss of a lock is told also after its watch was cancelled") {
  on_scripted([](asio::io_context& context, scripted_etcd& proxy, etcd_server&) -> asio::awaitable<void> {
    stream_log log{proxy, watch_path};
    auto c = connect(context, proxy);
    auto s = co_await session::open(c);
    lock_by_name m{s, "lock"};
    auto lock = co_await m.lock();
    co_await eventually("the line is watched", [&] { return log.creates().size() == 1; });
    co_await eventually("the line is read", [&] { return proxy.calls("/etcdserverpb.KV/Range") == 1; });
    watch_response cancel;
    cancel.watch_id = log.creates().back().watch_id;
    cancel.canceled = true;
    cancel.cancel_reason = "etcdserver: something else";
    log.last()->send(cancel);
    co_await pause_for(300ms);
    co_await c.delete_range(conclave::delete_key(lock.key()));
    auto losing = start(context, [&] { return lock.lost(); });
    const auto why = co_await losing.result(promptly);
    CHECK(why == errc::lock_lost);
    losing.cancel();
    co_await s.close();
  });
}
