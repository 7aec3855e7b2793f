// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <asio.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace example {

/// As much of a Redis client as the comparison needs: a command, and its reply as text (nothing: "(nil)").
class redis_connection {
public:
  explicit redis_connection(asio::any_io_executor on) : socket_(std::move(on)) {}

  asio::awaitable<void> connect(std::uint16_t port) {
    const asio::ip::tcp::endpoint server{asio::ip::address_v4::loopback(), port};
    co_await socket_.async_connect(server, asio::use_awaitable);
  }

  asio::awaitable<std::string> command(std::vector<std::string> words) {
    std::string request = "*" + std::to_string(words.size()) + "\r\n";
    for (const auto& word : words) request += "$" + std::to_string(word.size()) + "\r\n" + word + "\r\n";
    co_await asio::async_write(socket_, asio::buffer(request), asio::use_awaitable);
    std::string reply = co_await line();
    if (reply.empty() || reply.front() == '-') throw std::runtime_error("redis: " + reply);
    if (reply == "$-1") co_return "(nil)";
    if (reply.front() == '$') reply = " " + co_await line();  // a string, after a line with its length
    co_return reply.substr(1);
  }

private:
  asio::awaitable<std::string> line() {
    const auto size = co_await asio::async_read_until(socket_, asio::dynamic_buffer(received_), "\r\n",
                                                      asio::use_awaitable);
    std::string result = received_.substr(0, size - 2);
    received_.erase(0, size);
    co_return result;
  }

  asio::ip::tcp::socket socket_;
  std::string received_;
};

}  // namespace example
