// SPDX-License-Identifier: BSL-1.0

#include <conclave/testing/etcd_server.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/etcd_users.hpp"
#include "support/redis_server.hpp"

#include <optional>
#include <set>
#include <thread>
#include <vector>

namespace {

using conclave::test::certificate;
using conclave::test::certificate_authority;
using conclave::test::contains;
using conclave::test::etcd_users;
using conclave::test::etcdctl;
using conclave::test::output_of;
using conclave::testing::child_options;
using conclave::testing::child_process;
using conclave::testing::etcd_server;
using conclave::testing::etcd_server_options;
using conclave::testing::exit_status;
using conclave::testing::http_request;
using namespace std::chrono_literals;

// "Zm9v" is the base64 of "foo": etcd's JSON gateway takes keys and values so.
void put_foo(const etcd_server& server) {
  const auto answer = http_request(server.port(), "/v3/kv/put", R"({"key":"Zm9v","value":"Zm9v"})");
  REQUIRE(answer.status == 200);
}

bool has_foo(const etcd_server& server) {
  const auto answer = http_request(server.port(), "/v3/kv/range", R"({"key":"Zm9v"})");
  REQUIRE(answer.status == 200);
  return answer.body.find("\"value\":\"Zm9v\"") != std::string::npos;
}

bool exists(pid_t pid) { return ::kill(pid, 0) == 0; }

bool answers(const etcd_server& server, std::chrono::milliseconds limit) {
  try {
    return http_request(server.port(), "/health", {}, limit).status == 200;
  } catch (const std::system_error&) {
    return false;
  }
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> result;
  for (const auto& thread :
       std::filesystem::directory_iterator{"/proc/" + std::to_string(parent) + "/task"}) {
    std::ifstream stream{thread.path() / "children"};
    for (pid_t child = 0; stream >> child;) result.push_back(child);
  }
  return result;
}

// An orphan is for init to reap, when it likes: a zombie is dead.
bool dead(pid_t pid) {
  std::ifstream stream{"/proc/" + std::to_string(pid) + "/stat"};
  std::string line;
  return !std::getline(stream, line) || line.find(") Z ") != std::string::npos;
}

etcd_server_options with_tls(const certificate& shown) {
  etcd_server_options options;
  options.tls = {.certificate_file = shown.file, .key_file = shown.key_file};
  return options;
}

// What openssl says about the server's certificate, as one who trusts that authority and wants 127.0.0.1.
std::string handshake(const etcd_server& server, const certificate_authority& trusted) {
  return output_of({"openssl", "s_client", "-connect", "127.0.0.1:" + std::to_string(server.port()), "-alpn",
                    "h2", "-CAfile", trusted.file().string(), "-verify_ip", "127.0.0.1",
                    "-verify_return_error"});
}

// The status of a request with the token of an authenticated user.
int status_with_token(const etcd_server& server, const std::string& token) {
  conclave::testing::loopback_connection connection{server.port(), 5s};
  const std::string body = R"({"key":"Zm9v"})";
  connection.write("POST /v3/kv/range HTTP/1.0\r\nAuthorization: " + token +
                   "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  std::string answer;
  for (auto part = connection.read_some(); !part.empty(); part = connection.read_some()) answer += part;
  REQUIRE(answer.size() >= 12);
  return std::stoi(answer.substr(9, 3));
}

// A user's password costs as little as it can.
etcd_server_options with_cheap_passwords() {
  etcd_server_options options;
  options.extra_arguments = {"--bcrypt-cost", "4"};
  return options;
}

}  // namespace

TEST_CASE("a started etcd answers on its endpoint") {
  etcd_server server;
  CHECK(server.running());
  CHECK(server.endpoint() == "http://127.0.0.1:" + std::to_string(server.port()));
  CHECK_FALSE(has_foo(server));
  put_foo(server);
  CHECK(has_foo(server));
}

TEST_CASE("two private etcds do not know of each other") {
  const etcd_server first;
  const etcd_server second;
  CHECK(first.port() != second.port());
  put_foo(first);
  CHECK_FALSE(has_foo(second));
}

TEST_CASE("stop ends etcd and restart brings it back with its data on its port") {
  etcd_server server;
  put_foo(server);
  const auto port = server.port();
  const auto pid = server.pid();
  server.stop();
  CHECK_FALSE(server.running());
  CHECK_FALSE(exists(pid));
  CHECK_FALSE(answers(server, 1s));
  server.stop();  // nothing more to stop
  server.restart();
  CHECK(server.port() == port);
  CHECK(server.pid() != pid);
  CHECK(has_foo(server));
}

TEST_CASE("kill and restart keep the data, repeatedly") {
  etcd_server server;
  put_foo(server);
  for (int round = 0; round < 3; ++round) {
    server.kill();
    CHECK_FALSE(server.running());
    server.restart();
    CHECK(has_foo(server));
  }
}

TEST_CASE("a restart with empty data is a new store on the same port") {
  etcd_server server;
  put_foo(server);
  const auto port = server.port();
  server.restart_with_empty_data();
  CHECK(server.port() == port);
  CHECK_FALSE(has_foo(server));
}

TEST_CASE("a paused etcd takes connections and answers nothing until it is resumed") {
  etcd_server server;
  put_foo(server);
  server.pause();
  CHECK(server.running());
  CHECK_NOTHROW(conclave::testing::loopback_connection(server.port(), 1s));
  CHECK_FALSE(answers(server, 200ms));
  server.resume();
  CHECK(answers(server, 5s));
  CHECK(has_foo(server));
}

TEST_CASE("a paused etcd can be stopped and restarted") {
  etcd_server server;
  server.pause();
  server.stop();
  CHECK_FALSE(server.running());
  server.restart();
  server.pause();
  server.restart();
  CHECK(answers(server, 5s));
}

TEST_CASE("the destructor leaves no process and no folder behind") {
  const bool paused = GENERATE(false, true);
  pid_t pid = -1;
  std::filesystem::path folder;
  {
    etcd_server server;
    pid = server.pid();
    folder = server.folder();
    CHECK(exists(pid));
    CHECK(std::filesystem::exists(folder / "data"));
    if (paused) server.pause();
  }
  CHECK_FALSE(exists(pid));
  CHECK_FALSE(std::filesystem::exists(folder));
}

TEST_CASE("a moved etcd_server keeps its process") {
  etcd_server first;
  const auto pid = first.pid();
  const etcd_server second{std::move(first)};
  CHECK(second.pid() == pid);
  CHECK(answers(second, 5s));
}

TEST_CASE("metrics are read by name, and a misspelt name is an error") {
  const etcd_server server;
  const double before = server.metric("etcd_mvcc_put_total");
  put_foo(server);
  CHECK(server.metric("etcd_mvcc_put_total") == before + 1);
  CHECK(server.metric("etcd_debugging_mvcc_watcher_total") == 0);
  CHECK(server.metric("grpc_server_started_total") >= 1);
  CHECK_THROWS_WITH(server.metric("etcd_server_proposals"), contains("etcd_server_proposals"));
}

TEST_CASE("the error for a missing etcd names it and says what to do") {
  etcd_server_options options;
  options.binary = "/nowhere/etcd";
  CHECK_THROWS_WITH(etcd_server(options), contains("/nowhere/etcd") && contains("CONCLAVE_ETCD"));
  options.binary = "no-such-etcd-on-the-path";
  CHECK_THROWS_WITH(etcd_server(options), contains("no-such-etcd-on-the-path"));
}

TEST_CASE("the error of an etcd that does not come up contains its log") {
  etcd_server_options options;
  options.extra_arguments = {"--no-such-option"};
  CHECK_THROWS_WITH(etcd_server(options), contains("exit code") && contains("no-such-option"));
}

TEST_CASE("an etcd that never answers is given up in time") {
  etcd_server_options options;
  options.start_timeout = 300ms;
  // A stand-in that takes any options, and stays.
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto script = folder.path() / "etcd";
  std::ofstream{script} << "#!/bin/sh\necho here I sit\nexec tail -f /dev/null\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  options.binary = script.string();
  CHECK_THROWS_WITH(etcd_server(options), contains("300 ms") && contains("here I sit"));
}

TEST_CASE("a quota is passed on and a full store can be restarted") {
  etcd_server_options options;
  options.quota_backend_bytes = 64 * 1024;
  etcd_server server{options};
  const std::string value(200'000, 'A');
  int status = 200;
  // etcd learns the size of its store when it next writes it out, every 100 ms.
  for (const auto deadline = std::chrono::steady_clock::now() + 10s;
       status == 200 && std::chrono::steady_clock::now() < deadline;) {
    status = http_request(server.port(), "/v3/kv/put", R"({"key":"Zm9v","value":")" + value + "\"}").status;
  }
  CHECK(status != 200);
  CHECK_NOTHROW(server.restart());
}

TEST_CASE("the log can be kept") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  etcd_server_options options;
  options.log_file = folder.path() / "kept.log";
  {
    const etcd_server server{options};
    CHECK_FALSE(server.log_tail().empty());
  }
  CHECK(std::filesystem::file_size(options.log_file) > 0);
}

TEST_CASE("an etcd with TLS is reached by those who trust its authority") {
  certificate_authority ca;
  const certificate_authority stranger;
  etcd_server server{with_tls(ca.server())};
  CHECK(server.endpoint() == "https://127.0.0.1:" + std::to_string(server.port()));
  CHECK(server.metrics_port() != server.port());
  CHECK_THAT(handshake(server, ca), contains("Verification: OK"));
  CHECK_THROWS_WITH(handshake(server, stranger), contains("verify error"));

  etcdctl({.endpoints = server.endpoint(), .ca_file = ca.file()}, {"put", "name", "value"});
  CHECK_THROWS(etcdctl({.endpoints = server.endpoint(), .ca_file = stranger.file()}, {"get", "name"}));
  CHECK_THROWS_AS(http_request(server.port(), "/health", {}, 500ms).status, std::system_error);
  CHECK(server.metric("etcd_mvcc_put_total") == 1);

  server.kill();
  server.restart();
  CHECK_THAT(etcdctl({.endpoints = server.endpoint(), .ca_file = ca.file()}, {"get", "name"}),
             contains("value"));
}

TEST_CASE("a certificate for another name, and one whose time is over, are found out") {
  certificate_authority ca;
  const etcd_server elsewhere{with_tls(ca.server({"etcd.invalid", "127.0.0.2"}))};
  CHECK_THROWS_WITH(handshake(elsewhere, ca), contains("IP address mismatch"));
  CHECK_THROWS(etcdctl({.endpoints = elsewhere.endpoint(), .ca_file = ca.file()}, {"get", "name"}));
  const etcd_server expired{with_tls(ca.expired_server())};
  CHECK_THROWS_WITH(handshake(expired, ca), contains("certificate has expired"));
  CHECK_THROWS(etcdctl({.endpoints = expired.endpoint(), .ca_file = ca.file()}, {"get", "name"}));
}

TEST_CASE("an etcd that asks for certificates takes none, a stranger's or an expired one from nobody") {
  certificate_authority ca;
  certificate_authority stranger;
  etcd_server_options options = with_tls(ca.server());
  options.tls->trusted_ca_file = ca.file();
  options.tls->client_cert_auth = GENERATE(false, true);  // to name an authority is enough
  const etcd_server server{options};
  const auto put_as = [&](std::optional<certificate> shown) {
    etcdctl({.endpoints = server.endpoint(), .ca_file = ca.file(), .shown = std::move(shown)},
            {"put", "name", "value"});
  };
  put_as(ca.client());
  CHECK_THROWS(put_as({}));
  CHECK_THROWS(put_as(stranger.client()));
  CHECK_THROWS(put_as(ca.issue({.common_name = "late", .expired = true})));
  CHECK(server.metric("etcd_mvcc_put_total") == 1);
  // etcd's own gateway gets in with the server's certificate.
  CHECK(server.log_tail(1000).find("incompatible key usage") == std::string::npos);
}

TEST_CASE("certificates and keys are PEM texts, and openssl's complaint is told") {
  certificate_authority ca;
  const auto client = ca.client("alice");
  for (const auto& text : {ca.pem(), client.pem()})
    CHECK_THAT(text, contains("-----BEGIN CERTIFICATE-----") && contains("-----END CERTIFICATE-----\n"));
  CHECK_THAT(client.key_pem(), contains("-----BEGIN PRIVATE KEY-----"));
  CHECK_THAT(output_of({"openssl", "x509", "-in", client.file.string(), "-noout", "-subject"}),
             contains("alice"));
  const auto verified = output_of({"openssl", "verify", "-CAfile", ca.file().string(), client.file.string()});
  CHECK_THAT(verified, contains("OK"));
  const auto server = ca.server();
  const auto text = output_of({"openssl", "x509", "-in", server.file.string(), "-noout", "-text"});
  CHECK_THAT(text, contains("IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:localhost"));
  CHECK_THROWS_WITH(ca.server({"not a name\nnor = this"}), contains("openssl") && contains("exit code"));
}

TEST_CASE("an etcd listens on a Unix socket as well, again after a restart") {
  const bool tls = GENERATE(false, true);
  certificate_authority ca;
  etcd_server_options options;
  if (tls) options = with_tls(ca.server());
  options.unix_socket = true;
  etcd_server server{options};
  CHECK(server.unix_endpoint() == "unix://" + (server.folder() / "etcd.sock").string());
  etcdctl({.endpoints = server.unix_endpoint()}, {"put", "name", "value"});
  const std::filesystem::path ca_file = tls ? ca.file() : std::filesystem::path{};
  CHECK_THAT(etcdctl({.endpoints = server.endpoint(), .ca_file = ca_file}, {"get", "name"}),
             contains("value"));
  server.kill();
  server.restart();
  CHECK_THAT(etcdctl({.endpoints = server.unix_endpoint()}, {"get", "name"}), contains("value"));
  server.stop();
  server.restart();
  CHECK_THAT(etcdctl({.endpoints = server.unix_endpoint()}, {"get", "name"}), contains("value"));
}

TEST_CASE("there is no Unix endpoint without a Unix socket") {
  const etcd_server server;
  CHECK_THROWS_AS(server.unix_endpoint(), std::logic_error);
}

TEST_CASE("an unused token is void when its time is over") {
  etcd_server_options options = with_cheap_passwords();
  options.auth_token_ttl = 1s;
  const etcd_server server{options};
  etcd_users users{{.endpoints = server.endpoint()}};
  users.enable();
  const auto fresh_token = [&] {
    const auto answer = http_request(server.port(), "/v3/auth/authenticate",
                                     R"({"name":"root","password":")" + users.root_password() + "\"}");
    REQUIRE(answer.status == 200);
    const auto begin = answer.body.find(R"("token":")") + 9;
    return answer.body.substr(begin, answer.body.find('"', begin) - begin);
  };
  CHECK(status_with_token(server, fresh_token()) == 200);
  // Each use prolongs a token: so each is tried once, after a longer time than the one before it.
  std::vector<std::string> unused;
  for (int i = 0; i < 60; ++i) unused.push_back(fresh_token());
  int answer = 200;
  for (; answer != 401 && !unused.empty(); unused.pop_back()) {
    ::poll(nullptr, 0, 200);
    answer = status_with_token(server, unused.back());
  }
  CHECK(answer == 401);
}

TEST_CASE("a user may do what his roles allow, while authentication is on") {
  const etcd_server server{with_cheap_passwords()};
  const conclave::test::etcdctl_options nobody{.endpoints = server.endpoint()};
  const conclave::test::etcdctl_options alice{
      .endpoints = server.endpoint(), .user = "alice", .password = "secret: \"$1' word"};
  etcd_users users{nobody};
  users.add_role("worker");
  users.allow_prefix("worker", "app/");
  users.allow_range("worker", "k1", "k3", "read");
  users.add_user("alice", alice.password);
  users.grant_role("alice", "worker");
  etcdctl(nobody, {"put", "k2", "two"});
  users.enable();
  const auto denied = contains("permission denied");

  CHECK_THROWS_WITH(etcdctl(nobody, {"put", "app/x", "1"}), contains("user name is empty"));
  etcdctl(alice, {"put", "app/x", "1"});
  CHECK_THAT(etcdctl(alice, {"get", "k2"}), contains("two"));
  CHECK_THROWS_WITH(etcdctl(alice, {"put", "k2", "3"}), denied);
  CHECK_THROWS_WITH(etcdctl(alice, {"get", "k3"}), denied);

  users.revoke_range("worker", "k1", "k3");
  CHECK_THROWS_WITH(etcdctl(alice, {"get", "k2"}), denied);
  users.revoke_prefix("worker", "app/");
  CHECK_THROWS_WITH(etcdctl(alice, {"put", "app/x", "2"}), denied);
  users.allow_prefix("worker", "app/", "write");
  etcdctl(alice, {"put", "app/x", "2"});
  CHECK_THROWS_WITH(etcdctl(alice, {"get", "app/x"}), denied);
  users.revoke_role("alice", "worker");
  CHECK_THROWS_WITH(etcdctl(alice, {"put", "app/x", "3"}), denied);
  users.grant_role("alice", "worker");

  auto renewed = alice;
  renewed.password = "another";
  CHECK_THROWS_WITH(etcdctl(renewed, {"put", "app/x", "4"}), contains("invalid user ID or password"));
  users.change_password("alice", renewed.password);
  etcdctl(renewed, {"put", "app/x", "4"});
  CHECK_THROWS_WITH(etcdctl(alice, {"put", "app/x", "5"}), contains("invalid user ID or password"));
  users.delete_user("alice");
  CHECK_THROWS_WITH(etcdctl(renewed, {"put", "app/x", "5"}), contains("invalid user ID or password"));
  users.delete_role("worker");
  CHECK_THROWS_WITH(users.delete_role("worker"), contains("role name not found"));

  users.disable();
  CHECK_THAT(etcdctl(nobody, {"get", "app/x"}), contains("4"));
  users.enable();
  CHECK_THROWS_WITH(etcdctl(nobody, {"get", "app/x"}), contains("user name is empty"));
}

TEST_CASE("a certificate stands for the user of its name") {
  certificate_authority ca;
  etcd_server_options options = with_tls(ca.server());
  options.tls->trusted_ca_file = ca.file();
  options.tls->client_cert_auth = true;
  options.extra_arguments = {"--bcrypt-cost", "4"};
  const etcd_server server{options};
  const auto as = [&](const std::string& name) {
    return conclave::test::etcdctl_options{
        .endpoints = server.endpoint(), .ca_file = ca.file(), .shown = ca.client(name)};
  };
  etcd_users users{as("an operator")};
  users.add_role("worker");
  users.allow_prefix("worker", "app/");
  users.add_user_without_password("alice");
  users.grant_role("alice", "worker");
  users.enable();
  etcdctl(as("alice"), {"put", "app/x", "1"});
  CHECK_THROWS_WITH(etcdctl(as("alice"), {"put", "other/x", "1"}), contains("permission denied"));
  CHECK_THROWS_WITH(etcdctl(as("bob"), {"put", "app/x", "1"}), contains("permission denied"));
}

TEST_CASE("an etcd outlives the thread that started it") {
  std::optional<etcd_server> server;
  std::thread{[&] { server.emplace(); }}.join();
  CHECK(answers(*server, 5s));
  CHECK(server->running());
}

TEST_CASE("ETCD_ variables of the environment do not disturb a private etcd") {
  ::setenv("ETCD_NAME", "somebody-else", 1);
  ::setenv("ETCD_DATA_DIR", "/nowhere", 1);
  const etcd_server server;
  CHECK(answers(server, 5s));
  ::unsetenv("ETCD_NAME");
  ::unsetenv("ETCD_DATA_DIR");
}

TEST_CASE("a child tells how it ended") {
  child_process coded{{.command = {"sh", "-c", "exit 3"}}};
  CHECK(coded.wait_for(10s) == exit_status{3, 0});
  child_process killed{{.command = {"sh", "-c", "kill -9 $$"}}};
  CHECK(killed.wait_for(10s) == exit_status{0, 9});
  CHECK(to_string(*killed.status()) == "signal 9");
}

TEST_CASE("a program that cannot be executed is an error at the start") {
  CHECK_THROWS_WITH(child_process(child_options{.command = {"/nowhere/program"}}),
                    contains("/nowhere/program"));
  // It is there and has the right mode, but it is no program.
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto file = folder.path() / "broken";
  std::ofstream{file} << "\x7f"
                         "ELF";
  std::filesystem::permissions(file, std::filesystem::perms::owner_all);
  CHECK_THROWS_AS(child_process(child_options{.command = {file.string()}}), std::system_error);
}

TEST_CASE("a child that ignores SIGTERM is killed when the grace is over") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto output = folder.path() / "output";
  child_process child{
      {.command = {"sh", "-c", "trap '' TERM; echo ready; exec tail -f /dev/null"}, .output_file = output}};
  while (conclave::testing::file_tail(output, 100).find("ready") == std::string::npos) ::poll(nullptr, 0, 5);
  child.stop(100ms);
  CHECK(child.status() == exit_status{0, SIGKILL});
}

TEST_CASE("a child inherits no open file, environment as told, and no blocked signal") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto output = folder.path() / "output";
  const int leaked = ::open("/dev/null", O_RDONLY);  // without O_CLOEXEC, as many libraries do it
  REQUIRE(leaked >= 3);
  ::setenv("CONCLAVE_TEST_GONE", "1", 1);
  sigset_t term;
  sigset_t before;
  ::sigemptyset(&term);
  ::sigaddset(&term, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &term, &before);
  child_process child{
      {.command = {"sh", "-c",
                   "ls /proc/self/fd | wc -l; echo gone=$CONCLAVE_TEST_GONE new=$CONCLAVE_TEST_NEW; "
                   "grep SigBlk /proc/self/status"},
       .environment = {{"CONCLAVE_TEST_NEW", "2"}},
       .drop_environment_prefixes = {"CONCLAVE_TEST_G"},
       .output_file = output}};
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  CHECK(child.wait_for(10s) == exit_status{0, 0});
  ::unsetenv("CONCLAVE_TEST_GONE");
  ::close(leaked);
  const auto text = conclave::testing::file_tail(output, 10);
  CHECK_THAT(text, contains("4\n"));  // 0, 1, 2 and the folder that ls itself has open
  CHECK_THAT(text, contains("gone= new=2"));
  CHECK_THAT(text, contains("SigBlk:\t0000000000000000"));
}

TEST_CASE("a child starts in the folder that it is given") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto script = folder.path() / "script";
  std::ofstream{script} << "#!/bin/sh\npwd\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  const auto output = folder.path() / "output";
  child_process child{{.command = {std::filesystem::relative(script).string()},
                       .output_file = std::filesystem::relative(output),
                       .working_folder = folder.path()}};
  CHECK(child.wait_for(10s) == exit_status{0, 0});
  CHECK_THAT(conclave::testing::file_tail(output, 10),
             contains(std::filesystem::canonical(folder.path()).string() + "\n"));
  CHECK_THROWS_AS(child_process(child_options{.command = {"true"}, .working_folder = "/nowhere"}),
                  std::system_error);
}

TEST_CASE("with_etcd runs a command on a private etcd and ends with its exit code") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto output = folder.path() / "output";
  child_process tool{{.command = {CONCLAVE_WITH_ETCD, "sh", "-c", "echo at $ETCD_ENDPOINTS; exit 7"},
                      .output_file = output}};
  CHECK(tool.wait_for(60s) == exit_status{7, 0});
  CHECK_THAT(conclave::testing::file_tail(output, 10), contains("at http://127.0.0.1:"));
  child_process unknown{{.command = {CONCLAVE_WITH_ETCD, "/nowhere/program"}, .output_file = output}};
  CHECK(unknown.wait_for(60s) == exit_status{1, 0});
  CHECK_THAT(conclave::testing::file_tail(output, 10), contains("/nowhere/program"));
}

TEST_CASE("an etcd and a command die with a parent that is killed") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto output = folder.path() / "output";
  child_process tool{
      {.command = {CONCLAVE_WITH_ETCD, "sh", "-c", "echo ready; exec tail -f /dev/null"},
       .environment = {{"TMPDIR", folder.path().string()}},  // what a killed program leaves goes here
       .output_file = output}};
  while (conclave::testing::file_tail(output, 100).find("ready") == std::string::npos) {
    REQUIRE(tool.running());
    ::poll(nullptr, 0, 5);
  }
  const auto children = children_of(tool.pid());
  REQUIRE(children.size() == 2);
  tool.kill();
  for (const pid_t child : children) {
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    while (!dead(child) && std::chrono::steady_clock::now() < deadline) ::poll(nullptr, 0, 5);
    CHECK(dead(child));
  }
}

TEST_CASE("a reserved port stays reserved while nobody listens on it") {
  std::set<std::uint16_t> seen;
  std::vector<conclave::testing::reserved_port> ports(50);
  for (const auto& port : ports) {
    CHECK(port.number() >= 10000);
    CHECK(seen.insert(port.number()).second);
  }
}

TEST_CASE("a private redis answers") {
  const conclave::test::redis_server redis;
  conclave::testing::loopback_connection connection{redis.port(), 5s};
  connection.write("SET key value NX PX 3000\r\n");
  CHECK(connection.read_some() == "+OK\r\n");
}
