// SPDX-License-Identifier: BSL-1.0

// The link of conclave/testing/faulty_link.hpp: first between plain sockets, of which the test holds both ends
// (the link has a thread of its own), then between a client and a real etcd.

#include <conclave/testing/faulty_link.hpp>

#include "on_etcd.hpp"

#include <atomic>
#include <random>
#include <thread>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::errc;
using conclave::testing::direction;
using conclave::testing::etcd_server;
using conclave::testing::faulty_link;
using conclave::testing::http_request;
using conclave::testing::reserved_port;
using conclave::testing::detail::checked_fd;
using conclave::testing::detail::unique_fd;

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/// One end of a connection. Whatever takes more than ten seconds fails.
class plain_socket {
public:
  explicit plain_socket(unique_fd connected) : fd_{std::move(connected)} {
    const timeval limit{.tv_sec = 10, .tv_usec = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  }

  static plain_socket connect(std::uint16_t port) {
    auto fd = checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    const auto address = loopback(port);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      throw std::system_error{errno, std::generic_category(), "connect"};
    return plain_socket{std::move(fd)};
  }

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0) throw std::system_error{errno, std::generic_category(), "send"};
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }

  /// Exactly so many bytes.
  std::string receive(std::size_t size) {
    std::string result(size, '\0');
    for (std::size_t have = 0; have < size;) {
      const auto got = ::recv(fd_.get(), result.data() + have, size - have, 0);
      if (got < 0) throw std::system_error{errno, std::generic_category(), "recv"};
      if (got == 0) throw std::runtime_error{"the connection ended after '" + result.substr(0, have) + "'"};
      have += static_cast<std::size_t>(got);
    }
    return result;
  }

  /// How the connection ends: 0 for an orderly end, or the error. Bytes before that end are a failure.
  int ending() {
    char byte = 0;
    const auto got = ::recv(fd_.get(), &byte, 1, 0);
    if (got > 0) throw std::runtime_error{"a byte came, not the end"};
    return got == 0 ? 0 : errno;
  }

  /// Whether for so long neither bytes nor an end come.
  bool hears_nothing(std::chrono::milliseconds time = 60ms) const {
    pollfd entry{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&entry, 1, static_cast<int>(time.count())) == 0;
  }

  /// Sends until nobody has taken anything for so long, at most `limit` bytes; returns how many went.
  std::size_t fill(std::size_t limit, std::chrono::milliseconds time) {
    const std::string bytes(16384, 'f');
    std::size_t total = 0;
    while (total < limit) {
      pollfd entry{.fd = fd_.get(), .events = POLLOUT, .revents = 0};
      if (::poll(&entry, 1, static_cast<int>(time.count())) == 0) break;
      const auto sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EAGAIN) continue;
      if (sent < 0) throw std::system_error{errno, std::generic_category(), "send"};
      total += static_cast<std::size_t>(sent);
    }
    return total;
  }

  void end_sending() { ::shutdown(fd_.get(), SHUT_WR); }
  void close() { fd_.reset(); }
  void abort() {
    const linger at_once{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    fd_.reset();
  }

private:
  unique_fd fd_;
};

class plain_listener {
public:
  plain_listener() : fd_{checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket")} {
    const int yes = 1;
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    const auto address = loopback(port());
    REQUIRE(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(fd_.get(), 64) == 0);
  }

  std::uint16_t port() const { return port_.number(); }

  bool has_connection(std::chrono::milliseconds limit) const {
    pollfd entry{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&entry, 1, static_cast<int>(limit.count())) == 1;
  }

  plain_socket accept() {
    if (!has_connection(10s)) throw std::runtime_error{"nobody connected"};
    return plain_socket{checked_fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC), "accept")};
  }

private:
  reserved_port port_;
  unique_fd fd_;
};

/// A link, and a server behind it.
struct plain_line {
  plain_listener server{};
  faulty_link link{server.port()};

  struct pair {
    plain_socket client;
    plain_socket server;
  };
  pair connect() {
    auto client = plain_socket::connect(link.port());
    return {std::move(client), server.accept()};
  }
};

void check_exchange(plain_line::pair& ends) {
  ends.client.send("question");
  CHECK(ends.server.receive(8) == "question");
  ends.server.send("answer");
  CHECK(ends.client.receive(6) == "answer");
}

int connect_error(std::uint16_t port) {
  try {
    (void)plain_socket::connect(port);
    return 0;
  } catch (const std::system_error& e) {
    return e.code().value();
  }
}

/// Waits, on the test's own thread.
template <class Condition>
void soon(const char* what, Condition condition) {
  run([&]() -> asio::awaitable<void> { co_await eventually(what, condition); });
}

std::string random_bytes(std::size_t size, unsigned seed) {
  std::minstd_rand random{seed};
  std::string result(size, '\0');
  for (auto& byte : result) byte = static_cast<char>(random() >> 8U);
  return result;
}

namespace http2 {

constexpr std::string_view preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
enum type : char { data = 0, headers = 1, rst_stream = 3, settings = 4, ping = 6, window_update = 8 };

std::string frame(type type, unsigned stream, const std::string& payload) {
  const auto size = payload.size();
  std::string result;
  for (const auto shift : {16U, 8U, 0U}) result += static_cast<char>(size >> shift & 0xffU);
  result += type;
  result += '\0';
  for (const auto shift : {24U, 16U, 8U, 0U}) result += static_cast<char>(stream >> shift & 0xffU);
  return result + payload;
}

}  // namespace http2

client connect_through(asio::io_context& context, const faulty_link& link, client_options options = {}) {
  options.endpoints(link.endpoint());
  return client{context.get_executor(), options};
}

}  // namespace

// ---- plain sockets ----------------------------------------------------------------------------------------

TEST_CASE("a link without faults passes all bytes on, and counts them") {
  plain_line line;
  CHECK(line.link.endpoint() == "http://127.0.0.1:" + std::to_string(line.link.port()));
  CHECK(line.link.connections_accepted() == 0);
  auto first = line.connect();
  auto second = line.connect();
  CHECK(line.link.connections_accepted() == 2);
  CHECK(line.link.connections_open() == 2);
  constexpr std::size_t size = 50'000;
  constexpr unsigned rounds = 20;
  for (unsigned i = 0; i < rounds; ++i) {
    const auto there = random_bytes(size, 2 * i + 1);
    const auto back = random_bytes(size, 2 * i + 2);
    first.client.send(there);
    first.server.send(back);
    CHECK(first.server.receive(size) == there);
    CHECK(first.client.receive(size) == back);
  }
  check_exchange(second);
  CHECK(line.link.bytes_to_server() == rounds * size + 8);
  CHECK(line.link.bytes_to_client() == rounds * size + 6);
  CHECK(first.client.hears_nothing());
}

TEST_CASE("the end of a connection passes through a link") {
  plain_line line;
  auto ends = line.connect();
  SECTION("one side ends its sending, and the other goes on") {
    ends.client.send("last words");
    ends.client.end_sending();
    CHECK(ends.server.receive(10) == "last words");
    CHECK(ends.server.ending() == 0);
    ends.server.send("more");
    CHECK(ends.client.receive(4) == "more");
    CHECK(line.link.connections_open() == 1);
    ends.server.close();
    CHECK(ends.client.ending() == 0);
  }
  SECTION("the client resets") {
    ends.client.abort();
    CHECK(ends.server.ending() == ECONNRESET);
  }
  SECTION("the server resets") {
    ends.server.abort();
    CHECK(ends.client.ending() == ECONNRESET);
  }
  soon("the link has closed the connection", [&] { return line.link.connections_open() == 0; });
}

TEST_CASE("a link whose server is away accepts and resets, and counts the attempts") {
  const reserved_port nobody;
  const faulty_link link{nobody.number()};
  for (int i = 0; i < 3; ++i) {
    auto attempt = plain_socket::connect(link.port());
    CHECK(attempt.ending() == ECONNRESET);
  }
  CHECK(link.connections_accepted() == 3);
  CHECK(link.connections_open() == 0);
}

TEST_CASE("a link keeps to its limit of connections") {
  plain_listener server;
  const faulty_link link{server.port(), 2};
  auto first = plain_socket::connect(link.port());
  auto second = plain_socket::connect(link.port());
  auto third = plain_socket::connect(link.port());
  (void)server.accept();  // closed at once
  auto of_second = server.accept();
  first.close();
  auto of_third = server.accept();
  CHECK(link.connections_open() == 2);
  third.send("x");
  CHECK(of_third.receive(1) == "x");
  auto fourth = plain_socket::connect(link.port());
  CHECK_FALSE(server.has_connection(60ms));
  CHECK(link.connections_accepted() == 3);
  CHECK(link.connections_open() == 2);
  second.close();
  of_second.close();
  (void)server.accept();
  CHECK(link.connections_accepted() == 4);
}

TEST_CASE("a cut link has no connections and refuses new ones until it is healed") {
  plain_line line;
  auto ends = line.connect();
  check_exchange(ends);
  line.link.cut();
  CHECK(line.link.connections_open() == 0);
  CHECK(ends.client.ending() == 0);
  CHECK(ends.server.ending() == 0);
  for (int i = 0; i < 3; ++i) CHECK(connect_error(line.link.port()) == ECONNREFUSED);
  line.link.cut();
  CHECK(connect_error(line.link.port()) == ECONNREFUSED);
  line.link.reset();
  CHECK(connect_error(line.link.port()) == ECONNREFUSED);
  CHECK(line.link.connections_accepted() == 1);
  line.link.heal();
  line.link.heal();
  auto again = line.connect();
  check_exchange(again);
  CHECK(line.link.connections_accepted() == 2);
}

TEST_CASE("the port of a cut link stays its own") {
  plain_line line;
  line.link.cut();
  const auto other = checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const auto address = loopback(line.link.port());
  CHECK(::bind(other.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0);
}

TEST_CASE("a reset ends the connections there are, those not yet accepted too, and no others") {
  plain_line line;
  auto one = line.connect();
  auto two = plain_socket::connect(line.link.port());
  line.link.reset();
  CHECK(one.client.ending() == ECONNRESET);
  CHECK(one.server.ending() == ECONNRESET);
  CHECK(two.ending() == ECONNRESET);
  CHECK(line.link.connections_open() == 0);
  if (line.server.has_connection(0ms)) (void)line.server.accept();
  auto next = line.connect();
  check_exchange(next);
  CHECK(next.client.hears_nothing());
}

TEST_CASE("a stalled link is silent and loses nothing") {
  plain_line line;
  auto ends = line.connect();
  check_exchange(ends);
  const auto there = line.link.bytes_to_server();
  const auto back = line.link.bytes_to_client();
  SECTION("to the server") {
    line.link.stall(direction::to_server);
    ends.client.send("12");
    ends.client.send("34");
    ends.client.end_sending();
    ends.server.send("heard");
    CHECK(ends.client.receive(5) == "heard");
    CHECK(ends.server.hears_nothing());
    CHECK(line.link.bytes_to_server() == there);
    line.link.heal();
    CHECK(ends.server.receive(4) == "1234");
    CHECK(ends.server.ending() == 0);
  }
  SECTION("to the client") {
    line.link.stall(direction::to_client);
    ends.server.send("12");
    ends.server.send("34");
    ends.server.end_sending();
    ends.client.send("heard");
    CHECK(ends.server.receive(5) == "heard");
    CHECK(ends.client.hears_nothing());
    CHECK(line.link.bytes_to_client() == back);
    line.link.heal();
    CHECK(ends.client.receive(4) == "1234");
    CHECK(ends.client.ending() == 0);
  }
  SECTION("both ways, for connections made meanwhile too") {
    line.link.stall();
    auto late = line.connect();
    CHECK(line.link.connections_open() == 2);
    for (auto* const each : {&ends, &late}) {
      each->client.send("from the client");
      each->server.send("from the server");
    }
    CHECK(ends.client.hears_nothing());
    CHECK(ends.server.hears_nothing());
    CHECK(late.client.hears_nothing());
    CHECK(late.server.hears_nothing());
    CHECK(line.link.bytes_to_server() == there);
    CHECK(line.link.bytes_to_client() == back);
    line.link.heal();
    for (auto* const each : {&ends, &late}) {
      CHECK(each->server.receive(15) == "from the client");
      CHECK(each->client.receive(15) == "from the server");
    }
  }
  SECTION("not even a reset is noticed") {
    line.link.stall();
    ends.client.abort();
    CHECK(ends.server.hears_nothing());
    CHECK(line.link.connections_open() == 1);
    line.link.heal();
    CHECK(ends.server.ending() == ECONNRESET);
  }
  SECTION("it can be cut") {
    line.link.stall();
    line.link.cut();
    CHECK(ends.client.ending() == 0);
    line.link.heal();
    auto next = line.connect();
    check_exchange(next);
  }
}

TEST_CASE("a stalled or slow link holds a fast sender up") {
  plain_line line;
  auto ends = line.connect();
  constexpr std::size_t endless = std::size_t{256} * 1024 * 1024;
  SECTION("stalled") { line.link.stall(); }
  SECTION("delayed by long") { line.link.delay(direction::both, 1h); }
  const auto sent = ends.client.fill(endless, 500ms);
  CHECK(sent < endless);
  line.link.heal();
  for (std::size_t got = 0; got < sent;) {
    const auto size = std::min<std::size_t>(sent - got, 65536);
    REQUIRE(ends.server.receive(size) == std::string(size, 'f'));
    got += size;
  }
  CHECK(line.link.bytes_to_server() == sent);
}

TEST_CASE("a delayed link passes everything on later, in its order") {
  plain_line line;
  auto ends = line.connect();
  constexpr auto time = 120ms;
  SECTION("to the server") {
    line.link.delay(direction::to_server, time);
    const auto start = now();
    ends.client.send("question");
    CHECK(ends.server.receive(8) == "question");
    CHECK(now() - start >= time);
  }
  SECTION("to the client") {
    line.link.delay(direction::to_client, time);
    const auto start = now();
    ends.server.send("answer");
    CHECK(ends.client.receive(6) == "answer");
    CHECK(now() - start >= time);
  }
  SECTION("both ways") {
    line.link.delay(direction::both, time);
    const auto start = now();
    check_exchange(ends);
    CHECK(now() - start >= 2 * time);
  }
  SECTION("the end comes after the last byte") {
    line.link.delay(direction::to_server, time);
    ends.client.send("last words");
    const auto start = now();
    ends.client.end_sending();
    CHECK(ends.server.receive(10) == "last words");
    CHECK(ends.server.ending() == 0);
    CHECK(now() - start >= time);
  }
  SECTION("a shorter delay lets nothing overtake") {
    const auto start = now();
    line.link.delay(direction::to_server, time);
    ends.client.send("first");
    line.link.delay(direction::to_server, 0ms);
    ends.client.send("second");
    CHECK(ends.server.receive(11) == "firstsecond");
    CHECK(now() - start >= time);
  }
  SECTION("healing it lets all pass at once") {
    line.link.delay(direction::both, 1h);
    ends.client.send("question");
    CHECK(ends.server.hears_nothing());
    line.link.heal();
    CHECK(ends.server.receive(8) == "question");
    check_exchange(ends);
  }
  CHECK_THROWS_AS(line.link.delay(direction::both, -1ms), std::invalid_argument);
}

TEST_CASE("a trickling link passes no more than so many bytes in an interval") {
  plain_line line;
  auto ends = line.connect();
  line.link.trickle(100, 30ms);
  const auto there = random_bytes(1000, 1);
  const auto back = random_bytes(500, 2);
  const auto start = now();
  ends.client.send(there);
  ends.server.send(back);
  CHECK(ends.client.receive(500) == back);
  CHECK(now() - start >= 4 * 30ms);  // the first hundred pass at once
  CHECK(ends.server.receive(1000) == there);
  CHECK(now() - start >= 9 * 30ms);

  line.link.trickle(1, 1h);
  ends.client.send("question");
  CHECK(ends.server.receive(1) == "q");
  CHECK(ends.server.hears_nothing());
  line.link.heal();
  CHECK(ends.server.receive(7) == "uestion");
  check_exchange(ends);
  CHECK_THROWS_AS(line.link.trickle(0, 1ms), std::invalid_argument);
  CHECK_THROWS_AS(line.link.trickle(1, 0ms), std::invalid_argument);
}

TEST_CASE("an answer is swallowed after its request has passed, once") {
  plain_line line;
  auto ends = line.connect();
  CHECK_FALSE(line.link.wait_swallowed(10s));  // nothing to wait for
  check_exchange(ends);
  const auto back = line.link.bytes_to_client();
  line.link.swallow_next_answer();
  ends.server.send("unasked");
  CHECK(ends.client.receive(7) == "unasked");
  ends.client.send("question");
  CHECK(ends.server.receive(8) == "question");
  CHECK(ends.client.hears_nothing());
  CHECK_FALSE(line.link.wait_swallowed(0ms));
  ends.server.send("answer");
  CHECK(line.link.wait_swallowed(10s));
  CHECK(ends.client.ending() == ECONNRESET);
  CHECK(ends.server.ending() == ECONNRESET);
  CHECK(line.link.bytes_to_client() == back + 7);
  CHECK(line.link.connections_open() == 0);

  auto next = line.connect();
  check_exchange(next);
  line.link.heal();
  CHECK(line.link.wait_swallowed(0ms));  // that it happened remains true
  line.link.swallow_next_answer();
  CHECK_FALSE(line.link.wait_swallowed(0ms));
}

TEST_CASE("a swallow that was armed can wait, move on, and be called off") {
  plain_line line;
  auto ends = line.connect();
  line.link.swallow_next_answer();
  SECTION("the connection of the request ends before the answer") {
    ends.client.send("question");
    CHECK(ends.server.receive(8) == "question");
    ends.server.abort();
    CHECK(ends.client.ending() == ECONNRESET);
    CHECK_FALSE(line.link.wait_swallowed(0ms));
    auto other = line.connect();
    other.client.send("again");
    CHECK(other.server.receive(5) == "again");
    other.server.send("answer");
    CHECK(line.link.wait_swallowed(10s));
    CHECK(other.client.ending() == ECONNRESET);
  }
  SECTION("only the first request's answer is meant") {
    auto other = line.connect();
    ends.client.send("question");
    CHECK(ends.server.receive(8) == "question");
    check_exchange(other);
    ends.server.send("answer");
    CHECK(ends.client.ending() == ECONNRESET);
    check_exchange(other);
  }
  SECTION("somebody waits while it happens") {
    bool happened = false;
    std::thread waiter{[&] { happened = line.link.wait_swallowed(10s); }};
    ends.client.send("question");
    const auto heard = ends.server.receive(8);
    ends.server.send("answer");
    waiter.join();
    CHECK(heard == "question");
    CHECK(happened);
  }
  SECTION("it is called off, and whoever waits hears of it") {
    bool happened = true;
    std::thread waiter{[&] { happened = line.link.wait_swallowed(1h); }};
    ends.client.send("question");
    const auto heard = ends.server.receive(8);
    line.link.heal();
    waiter.join();
    CHECK(heard == "question");
    CHECK_FALSE(happened);
    ends.server.send("answer");
    CHECK(ends.client.receive(6) == "answer");
  }
}

TEST_CASE("on an HTTP/2 connection the next stream's answer is swallowed, and nothing before it") {
  using http2::frame;
  plain_line line;
  auto ends = line.connect();
  const auto to_server = [&](const std::string& bytes) {
    ends.client.send(bytes);
    REQUIRE(ends.server.receive(bytes.size()) == bytes);
  };
  const auto to_client = [&](const std::string& bytes) {
    ends.server.send(bytes);
    REQUIRE(ends.client.receive(bytes.size()) == bytes);
  };
  // The payloads look like the head of an answer themselves: whoever lost the frames would be deceived.
  const std::string decoy = frame(http2::headers, 7, "") + frame(http2::headers, 7, "");
  to_server(std::string{http2::preface} + frame(http2::settings, 0, ""));
  to_client(frame(http2::settings, 0, decoy));
  to_server(frame(http2::headers, 1, "a stream that was there before") + frame(http2::data, 1, decoy));

  line.link.swallow_next_answer();
  to_client(frame(http2::headers, 1, "its answer") + frame(http2::data, 1, decoy));
  to_server(frame(http2::data, 1, decoy));
  to_client(frame(http2::data, 1, random_bytes(40'000, 1)));
  to_server(frame(http2::ping, 0, "12345678"));
  to_client(frame(http2::ping, 0, "12345678"));

  const std::string given_up = frame(http2::headers, 3, "a request that is given up");
  to_server(given_up.substr(0, 5));
  to_server(given_up.substr(5));
  to_server(frame(http2::rst_stream, 3, "1234"));
  to_client(frame(http2::headers, 3, "its answer, too late"));
  to_server(frame(http2::headers, 5, "a request that is refused"));
  to_client(frame(http2::rst_stream, 5, "1234"));

  to_server(frame(http2::headers, 7, "the request"));
  to_server(frame(http2::headers, 9, "one behind it"));
  to_client(frame(http2::window_update, 7, "1234") + frame(http2::ping, 0, "abcdefgh"));
  to_client(frame(http2::headers, 9, "the other's answer") + frame(http2::data, 9, decoy));
  to_client(frame(http2::headers, 1, "the end of a stream"));
  CHECK(ends.client.hears_nothing());
  CHECK_FALSE(line.link.wait_swallowed(0ms));
  const auto passed = line.link.bytes_to_client();
  ends.server.send(frame(http2::ping, 0, "gets lost") + frame(http2::headers, 7, "the answer"));
  CHECK(line.link.wait_swallowed(10s));
  CHECK(ends.client.ending() == ECONNRESET);
  CHECK(ends.server.ending() == ECONNRESET);
  CHECK(line.link.bytes_to_client() == passed);

  auto next = line.connect();
  next.client.send(std::string{http2::preface} + frame(http2::headers, 1, ""));
  CHECK(next.server.receive(33).ends_with(frame(http2::headers, 1, "")));
  next.server.send(frame(http2::headers, 1, ""));
  CHECK(next.client.receive(9) == frame(http2::headers, 1, ""));
}

TEST_CASE("a link with all faults at once and bytes held up goes promptly, and ends its connections") {
  plain_listener server;
  auto link = std::make_unique<faulty_link>(server.port());
  auto client = plain_socket::connect(link->port());
  auto other = server.accept();
  link->stall(direction::to_server);
  link->delay(direction::to_client, 1h);
  link->trickle(1, 1h);
  link->swallow_next_answer();
  client.send("held up");
  other.send("held up");
  const auto port = link->port();
  const auto start = now();
  link.reset();
  CHECK(now() - start < promptly);
  for (auto* const each : {&client, &other}) {
    const auto how = each->ending();
    CHECK((how == 0 || how == ECONNRESET));  // the latter where bytes were left unread
  }
  CHECK(connect_error(port) == ECONNREFUSED);
}

TEST_CASE("a link obeys many threads at a time") {
  plain_line line;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&line, &failures, seed] {
      std::minstd_rand random{seed + 1};
      std::uint64_t accepted = 0;
      for (int i = 0; i < 200; ++i) {
        switch (random() / 16 % 8) {
          case 0:
            line.link.cut();
            break;
          case 1:
            line.link.reset();
            break;
          case 2:
            line.link.stall(direction::to_client);
            break;
          case 3:
            line.link.delay(direction::both, 1ms);
            break;
          case 4:
            line.link.trickle(10, 1ms);
            break;
          case 5:
            line.link.swallow_next_answer();
            (void)line.link.wait_swallowed(0ms);
            break;
          default:
            line.link.heal();
        }
        const auto next = line.link.connections_accepted();
        if (next < accepted) ++failures;
        accepted = next;
        try {
          auto some = plain_socket::connect(line.link.port());
          some.send("whatever");
        } catch (const std::system_error&) {
          ;  // as it may
        }
      }
    });
  }
  for (auto& each : threads) each.join();
  CHECK(failures == 0);
  line.link.reset();
  line.link.heal();
  while (line.server.has_connection(0ms)) (void)line.server.accept();
  auto ends = line.connect();
  check_exchange(ends);
}

// ---- a real etcd ------------------------------------------------------------------------------------------

TEST_CASE("a client works through a link") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const faulty_link link{server.port()};
    auto c = connect_through(context, link);
    const std::string bytes = random_bytes(1'000'000, 1);
    co_await c.put("k", bytes);
    const auto found = co_await c.get("k");
    REQUIRE(found.has_value());
    CHECK(found->value == bytes);
    CHECK(link.connections_accepted() == 1);
    CHECK(link.connections_open() == 1);
    CHECK(link.bytes_to_server() > bytes.size());
    CHECK(link.bytes_to_client() > bytes.size());
  });
}

TEST_CASE("a client whose link is cut hears 'unavailable' soon, and works again when it is healed") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link, client_options{}.connect_timeout(300ms));
    auto direct = connect(context, server);
    co_await c.put("before", "");
    link.cut();
    const auto start = now();
    const auto read = co_await error_of(c.get("before"));
    CHECK(read == errc::unavailable);
    CHECK(now() - start < promptly);
    const auto write = co_await error_of(c.put("meanwhile", ""));
    CHECK(write == errc::unavailable);
    const auto accepted = link.connections_accepted();
    const auto written = co_await direct.get("meanwhile");
    CHECK_FALSE(written.has_value());

    link.heal();
    auto works = [&]() -> asio::awaitable<bool> {
      const auto code = co_await error_of(c.put("after", ""));
      co_return !code;
    };
    co_await eventually("the client works again", works, 20s);
    CHECK(link.connections_accepted() == accepted + 1);
  });
}

TEST_CASE("a client is back after its connections were reset") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link);
    co_await c.put("k", "v");
    for (unsigned i = 1; i <= 3; ++i) {
      link.reset();
      const auto found = co_await c.get("k");  // a read is repeated while there is time
      CHECK(found.has_value());
      CHECK(link.connections_accepted() == i + 1);
    }
  });
}

TEST_CASE("a client behind a stalled link times out, and goes on with the same connection afterwards") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link, client_options{}.request_timeout(600ms));
    auto direct = connect(context, server);
    co_await c.put("before", "");
    link.stall();
    const auto start = now();
    const auto read = co_await error_of(c.get("before"));
    CHECK(read == errc::timed_out);
    CHECK(now() - start >= 600ms);
    const auto write = co_await error_of(c.put("meanwhile", ""));
    CHECK(write == errc::outcome_unknown);
    const auto meanwhile = co_await direct.get("meanwhile");
    CHECK_FALSE(meanwhile.has_value());

    link.heal();
    auto works = [&]() -> asio::awaitable<bool> {
      const auto code = co_await error_of(c.put("after", ""));
      co_return !code;
    };
    co_await eventually("the client works again", works);
    const auto after = co_await direct.get("after");
    CHECK(after.has_value());
    CHECK(link.connections_accepted() == 1);
  });
}

TEST_CASE("a put whose answer is swallowed was applied, and its caller does not know") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link);
    auto direct = connect(context, server);
    const auto warm = co_await error_of(c.get("warm"));
    CHECK_FALSE(warm);
    for (unsigned i = 1; i <= 4; ++i) {
      const auto key = "k" + std::to_string(i);
      link.swallow_next_answer();
      const auto code = co_await error_of(c.put(key, "applied"));
      CHECK(code == errc::outcome_unknown);
      CHECK(link.wait_swallowed(0ms));
      const auto found = co_await direct.get(key);
      REQUIRE(found.has_value());
      CHECK(found->value == "applied");
      CHECK(found->version == 1);
      const auto again = co_await c.get(key);
      CHECK(again.has_value());
      CHECK(link.connections_accepted() == i + 1);
    }
  });
}

TEST_CASE("what shares a connection goes on until the answer that is to be swallowed comes") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link);
    auto direct = connect(context, server);
    auto lease = co_await c.keep_lease(10s);
    auto events = co_await c.watch_prefix("watched/");
    // Both are requests of their own, which the client makes behind itself.
    auto streams = [&] {
      return calls_started(server, "Lease", "LeaseKeepAlive") == 1 && server.metric(watchers_metric) == 1;
    };
    co_await eventually("the streams of the lease and of the watch are open", streams);
    link.swallow_next_answer();
    // Each event is a message of the watch's stream, to the client and, in HTTP/2's own frames, back.
    for (int i = 0; i < 20; ++i) {
      const auto key = "watched/" + std::to_string(i);
      co_await direct.put(key, random_bytes(10'000, 1));
      const auto seen = co_await events.next();
      REQUIRE_FALSE(seen.empty());
      CHECK(seen.back().kv->key == key);
    }
    CHECK_FALSE(link.wait_swallowed(0ms));
    CHECK(link.connections_accepted() == 1);

    const auto code = co_await error_of(c.put("k", "applied"));
    CHECK(code == errc::outcome_unknown);
    CHECK(link.wait_swallowed(0ms));
    const auto found = co_await direct.get("k");
    CHECK(found.has_value());
    co_await direct.put("watched/last", "");
    const auto seen = co_await events.next();  // the watch is resumed over a new connection
    REQUIRE_FALSE(seen.empty());
    CHECK(seen.back().kv->key == "watched/last");
    CHECK(link.connections_accepted() == 2);
    const bool kept = co_await lease_exists(direct, lease.id());
    CHECK(kept);
    co_await lease.revoke();
  });
}

TEST_CASE("an answer of etcd's HTTP/1 gateway is swallowed too") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto direct = connect(context, server);
    link.swallow_next_answer();
    // "Zm9v" is the base64 of "foo".
    CHECK_THROWS_AS(http_request(link.port(), "/v3/kv/put", R"({"key":"Zm9v","value":"Zm9v"})", 10s),
                    std::system_error);
    CHECK(link.wait_swallowed(0ms));
    const auto found = co_await direct.get("foo");
    REQUIRE(found.has_value());
    CHECK(found->value == "foo");
    CHECK(http_request(link.port(), "/health").status == 200);
  });
}

TEST_CASE("a client's calls take as long as the link delays them") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link);
    co_await c.put("k", "v");
    link.delay(direction::both, 100ms);
    const auto start = now();
    co_await c.put("k", "w");
    CHECK(now() - start >= 200ms);
    link.heal();
    link.delay(direction::to_client, 150ms);
    const auto second = now();
    const auto found = co_await c.get("k");
    CHECK(now() - second >= 150ms);
    REQUIRE(found.has_value());
    CHECK(found->value == "w");
    CHECK(link.connections_accepted() == 1);
  });
}

TEST_CASE("a client behind a link that trickles gets its answer in the end") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    faulty_link link{server.port()};
    auto c = connect_through(context, link);
    const std::string bytes = random_bytes(20'000, 1);
    co_await c.put("k", bytes);
    link.trickle(1000, 10ms);
    const auto start = now();
    const auto found = co_await c.get("k");
    CHECK(now() - start >= 19 * 10ms);
    REQUIRE(found.has_value());
    CHECK(found->value == bytes);
    CHECK(link.connections_accepted() == 1);
  });
}

TEST_CASE("a client whose server is away does not connect without a pause") {
  on_etcd([](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    const faulty_link link{server.port()};
    auto c = connect_through(context, link);
    co_await c.put("k", "v");
    server.kill();
    co_await pause_for(3s);
    const auto attempts = link.connections_accepted() - 1;
    CHECK(attempts >= 1);
    CHECK(attempts <= 10);
    server.restart();
    auto works = [&]() -> asio::awaitable<bool> {
      const auto code = co_await error_of(c.get("k"));
      co_return !code;
    };
    co_await eventually("the client works again", works, 20s);
  });
}
