// SPDX-License-Identifier: BSL-1.0

#include <conclave/testing/etcd_cluster.hpp>

#include "support/catch.hpp"

#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using conclave::test::contains;
using conclave::testing::etcd_cluster;
using conclave::testing::etcd_cluster_options;
using conclave::testing::http_request;
using conclave::testing::loopback_connection;
using conclave::testing::peer_links;
using conclave::testing::reserved_port;
using namespace std::chrono_literals;

// The values that are written here are decimal numbers of two digits: their base64, which etcd's JSON gateway
// wants, needs no padding to be found in a text. "Zm9v" is that of "foo".
std::string base64_of(int value) {
  const char* const digits = "0123456789";
  const char* const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const unsigned first = static_cast<unsigned char>(digits[value / 10 % 10]);
  const unsigned second = static_cast<unsigned char>(digits[value % 10]);
  return {alphabet[first >> 2], alphabet[(first & 3) << 4 | second >> 4], alphabet[(second & 15) << 2], '='};
}

// Whether the member has answered the request, with success, in time.
std::optional<std::string> ask(const etcd_cluster& cluster, std::size_t member, const std::string& path,
                               const std::string& body, std::chrono::milliseconds limit) {
  try {
    const auto answer = http_request(cluster.port(member), path, body, limit);
    return answer.status == 200 ? std::optional{answer.body} : std::nullopt;
  } catch (const std::system_error&) {
    return std::nullopt;
  }
}

bool put(const etcd_cluster& cluster, std::size_t member, int value, std::chrono::milliseconds limit = 1s) {
  const std::string body = R"({"key":"Zm9v","value":")" + base64_of(value) + "\"}";
  return ask(cluster, member, "/v3/kv/put", body, limit).has_value();
}

enum class reading { linearizable, serializable };

// Whether the member says that this is the value; nothing if it does not say anything.
std::optional<bool> has(const etcd_cluster& cluster, std::size_t member, int value,
                        reading how = reading::linearizable, std::chrono::milliseconds limit = 1s) {
  const std::string body =
      how == reading::linearizable ? R"({"key":"Zm9v"})" : R"({"key":"Zm9v","serializable":true})";
  const auto answer = ask(cluster, member, "/v3/kv/range", body, limit);
  if (!answer) return std::nullopt;
  return answer->find("\"value\":\"" + base64_of(value) + '"') != std::string::npos;
}

// An election, whenever a busy machine brings one about, fails a request; so each is tried until it succeeds.
template <class Condition>
bool until(Condition condition, std::chrono::milliseconds limit = 20s) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    ::poll(nullptr, 0, 10);
  }
  return true;
}

bool put_at_last(const etcd_cluster& cluster, std::size_t member, int value) {
  return until([&] { return put(cluster, member, value); });
}

bool has_at_last(const etcd_cluster& cluster, std::size_t member, int value,
                 reading how = reading::linearizable) {
  return until([&] { return has(cluster, member, value, how) == true; });
}

std::size_t a_follower(etcd_cluster& cluster) { return (cluster.wait_for_leader() + 1) % cluster.size(); }

const std::string received_metric = "etcd_network_peer_received_bytes_total";

// The member's id, as etcd's metrics write it.
std::string hex_id(const etcd_cluster& cluster, std::size_t member) {
  const auto status = ask(cluster, member, "/v3/maintenance/status", "{}", 5s);
  REQUIRE(status.has_value());
  const std::string before = R"("member_id":")";
  char text[17];
  std::snprintf(text, sizeof text, "%llx",
                std::stoull(status->substr(status->find(before) + before.size(), 20)));
  return text;
}

bool exists(pid_t pid) { return ::kill(pid, 0) == 0; }

conclave::testing::detail::unique_fd listen_on(std::uint16_t port, int queue) {
  auto listener =
      conclave::testing::detail::checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const int yes = 1;  // a reserved port may have connections that wait out their TIME_WAIT
  ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener.get(), queue) == 0);
  return listener;
}

// A server that sends back whatever it gets, one connection after another.
class echo_server {
public:
  echo_server() : listener_{listen_on(port(), 16)} {
    thread_ = std::thread{[this] { serve(); }};
  }
  ~echo_server() {
    ::shutdown(listener_.get(), SHUT_RDWR);  // ends the accept
    thread_.join();
  }
  echo_server(const echo_server&) = delete;
  echo_server& operator=(const echo_server&) = delete;

  std::uint16_t port() const { return port_.number(); }

private:
  void serve() const {
    for (;;) {
      const int raw = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (raw < 0) return;
      const conclave::testing::detail::unique_fd socket{raw};
      char bytes[4096];
      for (ssize_t got = 0; (got = ::recv(raw, bytes, sizeof bytes, 0)) > 0;)
        if (::send(raw, bytes, static_cast<std::size_t>(got), MSG_NOSIGNAL | MSG_WAITALL) != got) break;
    }
  }

  reserved_port port_;
  conclave::testing::detail::unique_fd listener_;
  std::thread thread_;
};

// Whether what is said over the connection comes back.
bool echoes(loopback_connection& connection) {
  try {
    connection.write("hello");
    std::string got;
    while (got.size() < 5) {
      const auto part = connection.read_some();
      if (part.empty()) return false;
      got += part;
    }
    return got == "hello";
  } catch (const std::system_error&) {
    return false;
  }
}

bool new_connection_echoes(std::uint16_t port) {
  try {
    loopback_connection connection{port, 5s};
    return echoes(connection);
  } catch (const std::system_error&) {
    return false;
  }
}

}  // namespace

TEST_CASE("three members have one leader and share what is written at any of them") {
  etcd_cluster cluster;
  CHECK(cluster.size() == 3);
  std::set<std::uint16_t> ports;
  std::set<pid_t> pids;
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(cluster.running(i));
    CHECK(cluster.endpoint(i) == "http://127.0.0.1:" + std::to_string(cluster.port(i)));
    ports.insert(cluster.port(i));
    pids.insert(cluster.pid(i));
  }
  CHECK(ports.size() == 3);
  CHECK(pids.size() == 3);
  CHECK(cluster.endpoints() == cluster.endpoint(0) + "," + cluster.endpoint(1) + "," + cluster.endpoint(2));
  CHECK(cluster.wait_for_leader() < 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const int value = 10 + static_cast<int>(i);
    CHECK(put_at_last(cluster, i, value));
    for (std::size_t j = 0; j < 3; ++j) CHECK(has_at_last(cluster, j, value));
  }
  CHECK(cluster.metric(0, "etcd_server_has_leader") == 1);
  CHECK_FALSE(cluster.log_tail(2).empty());
  CHECK_THROWS_AS(cluster.endpoint(3), std::out_of_range);
  CHECK_THROWS_AS(cluster.kill(3), std::out_of_range);
  CHECK_THROWS_AS(cluster.isolate(3), std::out_of_range);
}

TEST_CASE("a cluster has as many members as are asked for") {
  const std::size_t members = GENERATE(1U, 5U);
  etcd_cluster_options options;
  options.members = members;
  etcd_cluster cluster{options};
  CHECK(cluster.size() == members);
  CHECK(put_at_last(cluster, 0, 10));
  CHECK(has_at_last(cluster, members - 1, 10));
  options.members = 0;
  CHECK_THROWS_AS(etcd_cluster{options}, std::invalid_argument);
}

TEST_CASE("the others go on without a member that is killed, and it catches up when it is restarted") {
  etcd_cluster cluster;
  const bool kill_leader = GENERATE(false, true);
  const std::size_t killed = kill_leader ? cluster.wait_for_leader() : a_follower(cluster);
  const auto pid = cluster.pid(killed);
  const auto endpoint = cluster.endpoint(killed);
  CHECK(put_at_last(cluster, killed, 10));
  cluster.kill(killed);
  CHECK_FALSE(cluster.running(killed));
  CHECK_FALSE(exists(pid));
  cluster.kill(killed);  // nothing more to kill

  const auto leader = cluster.wait_for_leader();
  CHECK(leader != killed);
  CHECK(put_at_last(cluster, leader, 11));
  CHECK_FALSE(put(cluster, killed, 12));
  cluster.wait_healthy();

  cluster.restart(killed);
  CHECK(cluster.running(killed));
  CHECK(cluster.endpoint(killed) == endpoint);
  cluster.wait_healthy();
  CHECK(has_at_last(cluster, killed, 11));
}

TEST_CASE("a paused leader is replaced, and follows the new one when it is resumed") {
  etcd_cluster cluster;
  const auto paused = cluster.wait_for_leader();
  cluster.pause(paused);
  CHECK(cluster.running(paused));
  CHECK_NOTHROW(loopback_connection(cluster.port(paused), 1s));
  CHECK_FALSE(has(cluster, paused, 10, reading::serializable, 200ms).has_value());
  const auto leader = cluster.wait_for_leader();
  CHECK(leader != paused);
  CHECK(put_at_last(cluster, leader, 11));
  cluster.resume(paused);
  cluster.wait_healthy();
  CHECK(has_at_last(cluster, paused, 11));
}

TEST_CASE("without a majority there is no leader and nothing is written; with it all is well again") {
  etcd_cluster cluster;
  CHECK(put_at_last(cluster, 0, 10));
  cluster.kill(0);
  cluster.kill(1);
  CHECK_FALSE(cluster.leader().has_value());
  CHECK_THROWS_WITH(cluster.wait_for_leader(300ms), contains("no leader after 300 ms"));
  CHECK_THROWS_WITH(cluster.wait_healthy(300ms), contains("not healthy") && contains("member-2"));
  CHECK_FALSE(put(cluster, 2, 11));
  cluster.restart(0);
  CHECK(cluster.wait_for_leader() != 1);
  CHECK(put_at_last(cluster, 2, 12));
  cluster.kill(0);
  cluster.kill(2);
  CHECK_THROWS_AS(cluster.wait_healthy(100ms), std::runtime_error);
  // A whole cluster that has lost its power comes back.
  for (std::size_t i = 0; i < 3; ++i) cluster.restart(i);
  cluster.wait_healthy();
  CHECK(has_at_last(cluster, 1, 12));
}

TEST_CASE("an isolated follower serves its clients what it knows, and learns the rest after the healing") {
  etcd_cluster cluster;
  const auto cut = a_follower(cluster);
  CHECK(put_at_last(cluster, cut, 10));
  CHECK(has_at_last(cluster, cut, 10));
  cluster.isolate(cut);
  CHECK(cluster.wait_for_leader() != cut);
  CHECK(put_at_last(cluster, cluster.wait_for_leader(), 11));
  CHECK(until([&] { return cluster.metric(cut, "etcd_server_has_leader") == 0; }));

  CHECK_FALSE(has(cluster, cut, 11, reading::linearizable, 500ms).has_value());
  CHECK(has(cluster, cut, 10, reading::serializable, 5s) == true);
  CHECK_FALSE(put(cluster, cut, 12, 500ms));
  cluster.wait_healthy();  // the others are

  // It wants to be leader, again and again, and nobody hears of it; nor does it hear of anybody.
  const auto elections = [&] {
    const std::string log = cluster.log_tail(cut, 100000);
    int count = 0;
    for (auto at = log.find("new election"); at != log.npos; at = log.find("new election", at + 1)) ++count;
    return count;
  };
  const std::string from_cut = received_metric + "{From=\"" + hex_id(cluster, cut) + "\"}";
  const auto heard = [&] {
    std::vector<double> bytes;
    for (std::size_t i = 0; i < 3; ++i) {
      try {
        bytes.push_back(cluster.metric(i, i == cut ? received_metric : from_cut));
      } catch (const std::runtime_error&) {
        bytes.push_back(0);  // two followers need not have said anything to each other
      }
    }
    return bytes;
  };
  const auto heard_before = heard();
  CHECK(std::count(heard_before.begin(), heard_before.end(), 0) <= 1);
  const int before = elections();
  CHECK(until([&] { return elections() >= before + 3; }));
  CHECK(heard() == heard_before);

  cluster.heal(cut);
  cluster.wait_healthy();
  CHECK(put_at_last(cluster, cut, 13));
  for (std::size_t i = 0; i < 3; ++i) CHECK(has_at_last(cluster, i, 13));
}

TEST_CASE("an isolated leader is replaced and can write nothing more") {
  etcd_cluster cluster;
  CHECK(put_at_last(cluster, 0, 10));
  auto cut = cluster.wait_for_leader();
  for (int round = 0; round < 3; ++round) {
    cluster.isolate(cut);
    const auto leader = cluster.wait_for_leader();
    CHECK(leader != cut);
    CHECK(put_at_last(cluster, leader, 20 + round));
    CHECK_FALSE(has(cluster, cut, 20 + round, reading::linearizable, 300ms).has_value());
    CHECK(has(cluster, cut, 20 + round, reading::serializable, 5s) == false);
    cluster.heal(cut);
    cluster.wait_healthy();
    CHECK(has_at_last(cluster, cut, 20 + round));
    cut = cluster.wait_for_leader();
  }
}

TEST_CASE("an isolation outlasts a restart") {
  etcd_cluster cluster;
  const auto cut = a_follower(cluster);
  cluster.isolate(cut);
  cluster.restart(cut);
  CHECK(put_at_last(cluster, cluster.wait_for_leader(), 11));
  CHECK_FALSE(has(cluster, cut, 11, reading::linearizable, 500ms).has_value());
  cluster.heal(cut);
  cluster.wait_healthy();
  CHECK(has_at_last(cluster, cut, 11));
}

TEST_CASE("two isolated members do not hear each other either") {
  etcd_cluster cluster;
  cluster.isolate(0);
  cluster.isolate(1);
  CHECK_FALSE(cluster.leader().has_value());
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(until([&] { return cluster.metric(i, "etcd_server_has_leader") == 0; }));
  cluster.heal(0);
  CHECK(cluster.wait_for_leader() != 1);
  cluster.heal(1);
  cluster.wait_healthy();
}

TEST_CASE("the leader can be moved") {
  etcd_cluster cluster;
  for (const std::size_t to : {0U, 1U, 2U, 0U}) {
    cluster.move_leader(to);
    CHECK(put_at_last(cluster, to, 10 + static_cast<int>(to)));
  }
  cluster.kill(2);
  CHECK_THROWS_WITH(cluster.move_leader(2, 300ms), contains("member 2 not leader"));
}

TEST_CASE("the cluster's destructor leaves no process and no folder behind, whatever state it is in") {
  std::vector<pid_t> pids;
  std::filesystem::path folder;
  {
    etcd_cluster first;
    etcd_cluster cluster{std::move(first)};
    folder = cluster.folder();
    CHECK(std::filesystem::exists(folder));
    for (std::size_t i = 0; i < 3; ++i) pids.push_back(cluster.pid(i));
    cluster.pause(0);
    cluster.isolate(1);
  }
  for (const pid_t pid : pids) CHECK_FALSE(exists(pid));
  CHECK_FALSE(std::filesystem::exists(folder));
}

TEST_CASE("the error of a cluster that does not come up contains its members' logs") {
  etcd_cluster_options options;
  options.extra_arguments = {"--no-such-option"};
  CHECK_THROWS_WITH(etcd_cluster(options),
                    contains("exit code") && contains("no-such-option") && contains("member-1"));
  options.extra_arguments.clear();
  options.binary = "/nowhere/etcd";
  CHECK_THROWS_WITH(etcd_cluster(options), contains("/nowhere/etcd") && contains("CONCLAVE_ETCD"));
}

TEST_CASE("a cluster that never answers is given up in time") {
  etcd_cluster_options options;
  options.start_timeout = 300ms;
  // A stand-in that takes any options, and stays.
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  const auto script = folder.path() / "etcd";
  std::ofstream{script} << "#!/bin/sh\necho here I sit\nexec tail -f /dev/null\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  options.binary = script.string();
  CHECK_THROWS_WITH(etcd_cluster(options), contains("does not begin") && contains("here I sit"));
}

TEST_CASE("a socket's owner is found, whether the kernel can be asked or its table has to be read") {
  namespace detail = conclave::testing::detail;
  const echo_server echo;
  const int client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const auto guard = detail::checked_fd(client, "socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(echo.port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(client, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  socklen_t size = sizeof address;
  REQUIRE(::getsockname(client, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  const std::uint16_t port = ntohs(address.sin_port);
  const auto link = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(client)).string();

  for (const auto inode : {detail::socket_inode, detail::listed_socket_inode}) {
    std::uint64_t found = 0;
    CHECK(until([&] { return (found = inode(port, echo.port())) != 0; }));
    CHECK("socket:[" + std::to_string(found) + "]" == link);
    CHECK(detail::owns_socket(::getpid(), found));
    CHECK_FALSE(detail::owns_socket(::getppid(), found));
    std::uint64_t listener = 0;
    CHECK(until([&] { return (listener = inode(echo.port(), 0)) != 0; }));
    CHECK(listener != found);
    CHECK(detail::owns_socket(::getpid(), listener));
    const reserved_port nobody;
    CHECK(inode(nobody.number(), 0) == 0);
    CHECK(inode(nobody.number(), echo.port()) == 0);
    CHECK(inode(echo.port(), nobody.number()) == 0);  // a listener is no connection
  }
  CHECK_FALSE(detail::owns_socket(::getpid(), 0));
}

TEST_CASE("a link carries what a member says to another, until one of them is isolated") {
  const std::size_t isolated = GENERATE(0U, 1U);
  const echo_server echo;
  const reserved_port nobody;
  peer_links links{{nobody.number(), echo.port()}};
  links.set_process(0, ::getpid());
  {
    loopback_connection connection{links.port(1), 10s};
    CHECK(echoes(connection));
    CHECK(links.connections(0, 1) == 1);
    CHECK(links.connections(1, 0) == 0);
    links.isolate(isolated);
    CHECK(links.isolated(isolated));
    CHECK_FALSE(links.isolated(1 - isolated));
    CHECK(links.connections(0, 1) == 0);
    CHECK_FALSE(echoes(connection));
  }
  CHECK_FALSE(new_connection_echoes(links.port(1)));
  links.heal(isolated);
  CHECK(new_connection_echoes(links.port(1)));
  CHECK(until([&] { return links.connections(0, 1) == 0; }));  // closed with its ends
}

TEST_CASE("a link is for members, and leads to a member that listens") {
  const echo_server echo;
  const reserved_port nobody;
  peer_links links{{nobody.number(), echo.port()}};
  CHECK_FALSE(new_connection_echoes(links.port(1)));  // this process is no member
  links.set_process(0, ::getpid());
  CHECK(new_connection_echoes(links.port(1)));
  CHECK_FALSE(new_connection_echoes(links.port(0)));
  links.set_process(0, -1);
  CHECK_FALSE(new_connection_echoes(links.port(1)));
  CHECK_THROWS_AS(links.port(2), std::out_of_range);
}

TEST_CASE("a link loses nothing of much data, though its reader is slow") {
  const echo_server echo;
  const reserved_port nobody;
  peer_links links{{nobody.number(), echo.port()}};
  links.set_process(0, ::getpid());
  loopback_connection connection{links.port(1), 60s};
  // More than all buffers on the way hold, so that each side has to wait for the other.
  std::string sent(32 << 20, '\0');
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 2654435761U >> 13);
  std::thread writer{[&] { connection.write(sent); }};
  std::string got;
  while (got.size() < sent.size()) {
    const auto part = connection.read_some();
    if (part.empty()) break;
    got += part;
  }
  writer.join();
  CHECK((got == sent));
}

TEST_CASE("links end at once with connections that wait for a reader") {
  const reserved_port silent_port;
  const reserved_port nobody;
  const auto silent = listen_on(silent_port.number(), 1);  // and never takes what comes
  std::optional<peer_links> links{std::in_place, std::vector{nobody.number(), silent_port.number()}};
  links->set_process(0, ::getpid());
  loopback_connection full{links->port(1), 500ms};
  const std::string much(32 << 20, 'x');
  CHECK_THROWS_AS(full.write(much), std::system_error);
  std::vector<loopback_connection> waiting;  // more than the queue of the listener takes
  for (int i = 0; i < 5; ++i) waiting.emplace_back(links->port(1), 5s);
  CHECK(until([&] { return links->connections(0, 1) == 6; }));
  const auto begin = std::chrono::steady_clock::now();
  links->isolate(1);
  CHECK(links->connections(0, 1) == 0);
  links.reset();
  CHECK(std::chrono::steady_clock::now() - begin < 2s);
}
