// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>
#include <conclave/version.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>

namespace conclave::inline CONCLAVE_ABI::testing {

/// A TCP port of 127.0.0.1 that nobody listened on when it was chosen, kept for this object among all
/// programs that use this class, whether or not somebody listens on it meanwhile: a server can be restarted
/// on it.
///
/// It lies below the range from which the system takes ports for outgoing connections. Otherwise a client
/// that knocks at the port of a dead server could be given that very port, and be connected to itself.
class reserved_port {
public:
  reserved_port() {
    std::random_device seed;
    std::minstd_rand random{seed()};
    std::uniform_int_distribution<int> choose{10000, std::max(10100, lowest_outgoing_port() - 1)};
    for (int attempt = 0; attempt < 1000; ++attempt) {
      const int candidate = choose(random);
      if (reserve(candidate) && is_free(candidate)) {
        number_ = static_cast<std::uint16_t>(candidate);
        return;
      }
    }
    throw std::runtime_error{"no free TCP port found on 127.0.0.1"};
  }

  std::uint16_t number() const { return number_; }

private:
  static int lowest_outgoing_port() {
    std::ifstream stream{"/proc/sys/net/ipv4/ip_local_port_range"};
    int low = 0;
    return stream >> low && low > 10100 && low <= 65535 ? low : 32768;
  }

  // An abstract Unix socket serves as a lock that leaves no file and goes away with the process.
  bool reserve(int port) {
    reservation_ = detail::checked_fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    const std::string name = "conclave-testing-port-" + std::to_string(port);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    return ::bind(reservation_.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0;
  }

  static bool is_free(int port) {
    const auto probe = detail::checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    const int yes = 1;  // connections that wait out their TIME_WAIT do not count
    ::setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return ::bind(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }

  detail::unique_fd reservation_;
  std::uint16_t number_{0};
};

/// A blocking TCP connection to 127.0.0.1 with a time limit over its whole life.
class loopback_connection {
public:
  loopback_connection(std::uint16_t port, std::chrono::milliseconds limit)
      : deadline_{std::chrono::steady_clock::now() + limit},
        socket_{
            detail::checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket")} {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return;
    if (errno != EINPROGRESS) fail("connect");
    wait(POLLOUT);
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) throw std::system_error{error, std::generic_category(), "connect"};
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent >= 0) {
        bytes.remove_prefix(static_cast<std::size_t>(sent));
      } else if (errno == EAGAIN) {
        wait(POLLOUT);
      } else if (errno != EINTR) {
        fail("send");
      }
    }
  }

  /// Whatever has come, at least one byte; empty at the end of the stream.
  std::string read_some() {
    char buffer[16384];
    for (;;) {
      const ssize_t got = ::recv(socket_.get(), buffer, sizeof buffer, 0);
      if (got >= 0) return std::string(buffer, static_cast<std::size_t>(got));
      if (errno == EAGAIN) {
        wait(POLLIN);
      } else if (errno != EINTR) {
        fail("recv");
      }
    }
  }

private:
  [[noreturn]] static void fail(const char* what) {
    throw std::system_error{errno, std::generic_category(), what};
  }

  void wait(short events) {
    for (;;) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now());
      pollfd entry{.fd = socket_.get(), .events = events, .revents = 0};
      const int ready = left.count() <= 0 ? 0 : ::poll(&entry, 1, static_cast<int>(left.count()));
      if (ready > 0) return;
      if (ready == 0) throw std::system_error{ETIMEDOUT, std::generic_category(), "127.0.0.1"};
      if (errno != EINTR) fail("poll");
    }
  }

  std::chrono::steady_clock::time_point deadline_;
  detail::unique_fd socket_;
};

/// The answer to `http_request`.
struct http_response {
  int status{0};
  std::string body{};
};

/// One HTTP/1.0 request to 127.0.0.1; a POST if there is a body. Throws std::system_error when there is no
/// answer in time.
inline http_response http_request(std::uint16_t port, const std::string& path, const std::string& body = {},
                                  std::chrono::milliseconds limit = std::chrono::seconds{2}) {
  loopback_connection connection{port, limit};
  std::string request = body.empty() ? "GET " : "POST ";
  request += path + " HTTP/1.0\r\nHost: 127.0.0.1:" + std::to_string(port) + "\r\n";
  if (!body.empty()) {
    request += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  }
  connection.write(request + "\r\n" + body);
  std::string answer;
  for (auto part = connection.read_some(); !part.empty(); part = connection.read_some()) answer += part;

  http_response result;
  const auto head_end = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.") || answer.size() < 12 || head_end == std::string::npos) {
    throw std::system_error{EPROTO, std::generic_category(), "no HTTP answer"};
  }
  std::from_chars(answer.data() + 9, answer.data() + 12, result.status);
  result.body = answer.substr(head_end + 4);
  return result;
}

}  // namespace conclave::testing
