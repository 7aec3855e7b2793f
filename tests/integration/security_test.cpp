// SPDX-License-Identifier: BSL-1.0

// TLS and users on a real etcd: conclave/tls_options.hpp and client_options::user.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>
#include <conclave/testing/etcd_server.hpp>
#include <conclave/tls_options.hpp>

#include "on_etcd.hpp"
#include "support/certificates.hpp"
#include "support/etcd_users.hpp"

#include <string>
#include <utility>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using conclave::session;
using conclave::tls_options;
using conclave::testing::etcd_server_options;

/// What an operation throws, in full.
template <class T>
asio::awaitable<std::string> text_of(asio::awaitable<T> operation) {
  std::string text;
  try {
    (void)co_await std::move(operation);
  } catch (const std::exception& e) {
    text = e.what();
  }
  co_return text;
}

etcd_server_options with_tls(const certificate& shown, const certificate_authority* asks = nullptr) {
  conclave::testing::etcd_tls_options tls;
  tls.certificate_file = shown.file;
  tls.key_file = shown.key_file;
  if (asks != nullptr) {
    tls.trusted_ca_file = asks->file();
    tls.client_cert_auth = true;
  }
  etcd_server_options out;
  out.tls = tls;
  return out;
}

/// Makes a client for each endpoint and options, and looks whether it is served.
asio::awaitable<std::string> greet(asio::io_context& context, client_options options) {
  client c{context.get_executor(), options};
  co_return co_await text_of(c.put("k", "v"));
}

client_options to(const std::string& endpoints, tls_options how) {
  client_options out;
  out.endpoints(endpoints).tls(std::move(how)).connect_timeout(3s);
  return out;
}

constexpr const char* password = "correct horse battery staple";

/// A server with users: alice may use what begins with "app/", nobody else anything.
struct guarded_server {
  explicit guarded_server(std::chrono::seconds token_ttl = 0s)
      : server{with(token_ttl)}, users{{.endpoints = server.endpoint()}} {
    set_up();
  }

  /// The server comes back with its users, and nothing else.
  void restore() {
    server.restart_with_empty_data();
    users = etcd_users{{.endpoints = server.endpoint()}};
    set_up();
  }

  void set_up() {
    users.add_role("app");
    users.allow_prefix("app", "app/", "readwrite");
    users.add_user("alice", password);
    users.grant_role("alice", "app");
    users.enable();
  }

  static etcd_server_options with(std::chrono::seconds token_ttl) {
    etcd_server_options out;
    out.auth_token_ttl = token_ttl;
    return out;
  }

  client_options alice() const {
    client_options out;
    out.endpoints(server.endpoint()).user("alice", password);
    return out;
  }

  etcd_server server;
  etcd_users users;
};

/// Calls, streams and recipes, all below "app/".
asio::awaitable<void> use_everything(client c) {
  co_await c.put("app/k", "v");
  const auto found = co_await c.get("app/k");
  CHECK(found->value == "v");
  auto s = co_await session::open(c, {.ttl = 10s});
  conclave::mutex m{s, "app/lock"};
  {
    auto held = co_await m.lock();
    CHECK(held.held());
    co_await held.unlock();
  }
  const conclave::queue jobs{c, "app/jobs"};
  co_await jobs.enqueue("job");
  const std::string job = co_await jobs.dequeue();
  CHECK(job == "job");
  co_await s.close();
}

}  // namespace

// ---- TLS --------------------------------------------------------------------------------------------------

TEST_CASE("connections are encrypted, and both sides know whom they talk to") {
  certificate_authority ca;
  const auto shown = ca.server();
  const auto mine = ca.client();
  const bool mutual = GENERATE(false, true);
  etcd_server server{with_tls(shown, mutual ? &ca : nullptr)};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    tls_options how;
    how.ca_file(ca.file());
    if (mutual) how.certificate_files(mine.file, mine.key_file);
    {
      client c{context.get_executor(), to(server.endpoint(), how)};
      co_await use_everything(c);
    }
    tls_options by_text;
    by_text.ca(ca.pem());
    if (mutual) by_text.certificate(mine.pem(), mine.key_pem());
    std::string said = co_await greet(context, to("127.0.0.1:" + std::to_string(server.port()), by_text));
    CHECK(said.empty());
  });
}

TEST_CASE("a server that cannot be trusted is refused at once, and the error says why") {
  certificate_authority ca;
  certificate_authority stranger{"somebody else"};
  etcd_server good{with_tls(ca.server())};
  etcd_server expired{with_tls(ca.expired_server())};
  etcd_server elsewhere{with_tls(ca.server({"etcd.invalid"}))};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    tls_options trusting;
    trusting.ca(ca.pem());
    tls_options suspicious;
    suspicious.ca(stranger.pem());
    const auto refused = [&](const etcd_server& server, tls_options how) -> asio::awaitable<void> {
      client_options options = to(server.endpoint(), std::move(how));
      options.connect_timeout(20s).request_timeout(20s);
      client c{context.get_executor(), options};
      auto asking = start(context, [&] { return c.get("k"); });
      const auto code = co_await asking.error(promptly);
      CHECK(code == errc::certificate_refused);
      CHECK(code == condition::refused);
    };
    co_await refused(good, suspicious);
    co_await refused(expired, trusting);
    co_await refused(elsewhere, trusting);
    const std::string why = co_await greet(context, to(expired.endpoint(), trusting));
    CHECK_THAT(why, contains("ertificate") && contains(expired.endpoint()));

    trusting.server_name("etcd.invalid");
    const std::string renamed = co_await greet(context, to(elsewhere.endpoint(), trusting));
    CHECK(renamed.empty());
  });
}

TEST_CASE("without a certificate, or in plain text, nobody gets in, and the error names the endpoint") {
  certificate_authority ca;
  etcd_server server{with_tls(ca.server(), &ca)};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options nameless = to(server.endpoint(), tls_options{}.ca(ca.pem()));
    nameless.connect_timeout(500ms);
    const std::string first = co_await greet(context, nameless);
    CHECK_THAT(first, contains("could not connect to " + server.endpoint()));

    client_options plain;
    plain.endpoints("http://127.0.0.1:" + std::to_string(server.port())).connect_timeout(500ms);
    const std::string second = co_await greet(context, plain);
    CHECK_THAT(second, contains("could not connect to http://127.0.0.1"));
  });
}

TEST_CASE("a list of endpoints may mix TLS, plain connections and sockets") {
  certificate_authority ca;
  etcd_server_options both = with_tls(ca.server());
  both.unix_socket = true;
  etcd_server server{both};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    {
      client_options options;
      options.endpoints(server.unix_endpoint());
      client c{context.get_executor(), options};
      co_await use_everything(c);
    }
    // Nobody listens at the first; the second is served by TLS; the third by no encryption.
    const std::string list = "http://127.0.0.1:1," + server.endpoint() + "," + server.unix_endpoint();
    const std::string said = co_await greet(context, to(list, tls_options{}.ca(ca.pem())));
    CHECK(said.empty());
  });
}

TEST_CASE("TLS and users go together") {
  certificate_authority ca;
  const auto shown = ca.server();
  etcd_server server{with_tls(shown)};
  etcd_users users{{.endpoints = server.endpoint(), .ca_file = ca.file()}};
  users.add_role("app");
  users.allow_prefix("app", "app/", "readwrite");
  users.add_user("alice", password);
  users.grant_role("alice", "app");
  users.enable();
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options options = to(server.endpoint(), tls_options{}.ca(ca.pem()));
    options.user("alice", password);
    client c{context.get_executor(), options};
    co_await use_everything(c);
  });
}

// ---- users ------------------------------------------------------------------------------------------------

TEST_CASE("calls, streams and recipes are made in a user's name") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client alice{context.get_executor(), guarded.alice()};
    co_await use_everything(alice);
    const auto elsewhere = co_await error_of(alice.put("other/k", ""));
    CHECK(elsewhere == errc::permission_denied);
    CHECK(elsewhere == condition::refused);

    client nobody{context, guarded.server.endpoint()};
    const auto unnamed = co_await error_of(nobody.get("app/k"));
    CHECK(unnamed == errc::unauthenticated);
  });
}

TEST_CASE("a wrong password is refused at once, costs the server little, and is in no text") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options options = guarded.alice();
    options.user("alice", "not the password");
    client c{context.get_executor(), options};
    const double before = calls_started(guarded.server, "Auth", "Authenticate");
    auto asking = start(context, [&] { return c.get("app/k"); });
    const auto code = co_await asking.error(promptly);
    CHECK(code == errc::unauthenticated);
    for (int i = 0; i < 20; ++i) {
      const std::string why = co_await text_of(c.get("app/k"));
      CHECK_THAT(why, contains("Auth.Authenticate") && contains("invalid user ID or password"));
      CHECK(why.find("not the password") == std::string::npos);
    }
    const double spent = calls_started(guarded.server, "Auth", "Authenticate") - before;
    CHECK(spent <= 10);

    auto watched = co_await text_of(session::open(c, {.ttl = 10s}));
    CHECK(watched.find("not the password") == std::string::npos);
  });
}

TEST_CASE("a token that expires is replaced, for calls and for streams") {
  guarded_server guarded{1s};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client alice{context.get_executor(), guarded.alice()};
    auto s = co_await session::open(alice, {.ttl = 2s});
    conclave::mutex m{s, "app/lock"};
    auto held = co_await m.lock();
    // Tokens are looked at when they are used: nothing but the keepalive uses this one meanwhile.
    const double before = calls_started(guarded.server, "Auth", "Authenticate");
    co_await pause_for(4s);
    CHECK(held.held());
    CHECK(s.alive());
    auto seen = co_await alice.watch("app/k");
    co_await alice.put("app/k", "v");
    const auto events = co_await seen.next();
    CHECK(events.front().kv->value == "v");
    CHECK(calls_started(guarded.server, "Auth", "Authenticate") > before);
    co_await held.unlock();
    co_await s.close();
  });
}

TEST_CASE("many calls that need a token ask for one together") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client alice{context.get_executor(), guarded.alice()};
    const double before = calls_started(guarded.server, "Auth", "Authenticate");
    std::vector<task<conclave::put_response>> writing;
    for (int i = 0; i < 50; ++i)
      writing.push_back(start(context, [&, i] { return alice.put("app/" + std::to_string(i), ""); }));
    for (auto& each : writing) (void)co_await each.result();
    CHECK(calls_started(guarded.server, "Auth", "Authenticate") == before + 1);
  });
}

TEST_CASE("a server that restarts, forgetting its tokens, does not disturb a session") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client alice{context.get_executor(), guarded.alice()};
    auto s = co_await session::open(alice, {.ttl = 20s});
    conclave::mutex m{s, "app/lock"};
    auto held = co_await m.lock();
    const conclave::queue jobs{alice, "app/jobs"};
    auto job = start(context, [&] { return jobs.dequeue(); });
    guarded.server.restart();
    co_await alice.put("app/k", "v");
    co_await jobs.enqueue("job");
    const auto got = co_await job.result();
    CHECK(got == "job");
    CHECK(held.held());
    co_await held.unlock();
    co_await s.close();
  });
}

TEST_CASE("a token from before a restore, over which servers keep silent, is dropped") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    {
      // A token names the raft index that it was made at. Until a server gets there, it answers nobody who shows it.
      client filler{context.get_executor(), guarded.alice()};
      for (int round = 0; round < 10; ++round) {
        std::vector<task<conclave::put_response>> writing;
        for (int i = 0; i < 100; ++i)
          writing.push_back(start(context, [&] { return filler.put("app/filler", ""); }));
        for (auto& each : writing) (void)co_await each.result();
      }
    }
    client_options options = guarded.alice();
    options.request_timeout(1s);
    client alice{context.get_executor(), options};
    auto s = co_await session::open(alice, {.ttl = 60s});
    auto seen = co_await alice.watch("app/k");
    auto lost = start(context, [&] { return s.lost(); });
    auto next = start(context, [&] { return seen.next(); });

    guarded.restore();
    auto serves = [&]() -> asio::awaitable<bool> {
      const auto code = co_await error_of(alice.status());
      co_return !code;
    };
    co_await eventually("the server answers", serves);
    std::vector<std::error_code> said;
    while (said.size() < 10 && (said.empty() || said.back())) {
      const auto code = co_await error_of(alice.get("app/k"));
      said.push_back(code);
    }
    CHECK(said.front() == errc::timed_out);  // or this tests nothing
    CHECK_FALSE(said.back());
    CHECK(said.size() <= 5);
    const std::error_code why = co_await lost.result();
    CHECK((why == errc::cluster_reset || why == errc::session_lost));
    const auto ended = co_await next.error();
    CHECK(ended == errc::cluster_reset);
    co_await use_everything(alice);
  });
}

TEST_CASE("authentication may be turned off and on while a client lives") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client alice{context.get_executor(), guarded.alice()};
    co_await use_everything(alice);
    guarded.users.disable();
    co_await use_everything(alice);
    guarded.users.enable();
    co_await use_everything(alice);
  });
}

TEST_CASE("a watch that the user may not have fails alone") {
  guarded_server guarded;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client alice{context.get_executor(), guarded.alice()};
    auto allowed = co_await alice.watch("app/k", {.start_revision = 1});
    co_await alice.put("app/k", "1");
    (void)co_await allowed.next();
    auto denied = co_await alice.watch("other/k", {.start_revision = 1});
    const auto code = co_await error_of(denied.next());
    CHECK(code == errc::permission_denied);
    co_await alice.put("app/k", "2");
    const auto events = co_await allowed.next();
    CHECK(events.back().kv->value == "2");
  });
}

TEST_CASE("a user who may only use a recipe's own keys can use the recipe") {
  etcd_server server;
  etcd_users users{{.endpoints = server.endpoint()}};
  users.add_role("narrow");
  users.allow_prefix("narrow", "lock/", "readwrite");
  users.allow_prefix("narrow", "jobs/", "readwrite");
  users.add_user("bob", password);
  users.grant_role("bob", "narrow");
  users.enable();
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options options;
    options.endpoints(server.endpoint()).user("bob", password);
    client bob{context.get_executor(), options};
    auto s = co_await session::open(bob, {.ttl = 10s});
    auto other = co_await session::open(bob, {.ttl = 10s});
    conclave::mutex a{s, "lock"};
    conclave::mutex b{other, "lock"};
    auto held = co_await a.lock();
    auto waiting = start(context, [&] { return b.lock(); });
    co_await keys_below(bob, "lock/", 2);
    co_await held.unlock();
    auto second = co_await waiting.result();
    co_await second.unlock();
    const conclave::queue jobs{bob, "jobs"};
    co_await jobs.enqueue("job");
    const auto job = co_await jobs.try_dequeue();
    CHECK(job == "job");
    co_await s.close();
    co_await other.close();
  });
}
