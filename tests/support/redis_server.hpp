// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>
#include <conclave/testing/loopback.hpp>

namespace conclave::test {

/// A private redis-server on a free port of 127.0.0.1, for the example that compares; keeps nothing on disk.
/// The program is $CONCLAVE_REDIS, else `redis-server` on PATH.
class redis_server {
public:
  redis_server() : folder_{"conclave-redis-"} {
    const char* const variable = std::getenv("CONCLAVE_REDIS");
    const auto log = folder_.path() / "redis.log";
    process_ = testing::child_process{{
        .command = {variable != nullptr && *variable != '\0' ? variable : "redis-server", "--bind",
                    "127.0.0.1", "--port", std::to_string(port()), "--dir", folder_.path().string(), "--save",
                    "", "--appendonly", "no"},
        .output_file = log,
    }};
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (!answers()) {
      if (!process_.running() || std::chrono::steady_clock::now() >= deadline) {
        process_.kill();
        throw std::runtime_error{"redis-server does not answer; the end of its log:\n" +
                                 testing::file_tail(log, 20)};
      }
      ::poll(nullptr, 0, 5);
    }
  }

  std::uint16_t port() const { return port_.number(); }
  pid_t pid() const { return process_.pid(); }

private:
  bool answers() const {
    try {
      testing::loopback_connection connection{port(), std::chrono::seconds{1}};
      connection.write("PING\r\n");
      return connection.read_some().starts_with("+PONG");
    } catch (const std::system_error&) {
      return false;
    }
  }

  testing::temporary_folder folder_;
  testing::reserved_port port_;
  testing::child_process process_;
};

}  // namespace conclave::test
