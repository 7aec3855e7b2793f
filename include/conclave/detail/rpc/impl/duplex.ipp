// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/rpc/duplex.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

CONCLAVE_DECL asio::awaitable<bool> duplex::start() {
  auto begin = [on = stream_.get()](std::unique_ptr<receiver<bool>> done) { on->start(std::move(done)); };
  return suspend<bool>(std::move(begin));
}

CONCLAVE_DECL asio::awaitable<std::optional<std::string>> duplex::read() {
  using result = std::optional<std::string>;
  auto begin = [on = stream_.get()](std::unique_ptr<receiver<result>> done) { on->read(std::move(done)); };
  return suspend<result>(std::move(begin));
}

CONCLAVE_DECL asio::awaitable<bool> duplex::write(std::string message) {
  auto begin = [on = stream_.get(),
                message = std::move(message)](std::unique_ptr<receiver<bool>> done) mutable {
    on->write(std::move(message), std::move(done));
  };
  return suspend<bool>(std::move(begin));
}

CONCLAVE_DECL asio::awaitable<status> duplex::finish() {
  auto begin = [on = stream_.get()](std::unique_ptr<receiver<status>> done) { on->finish(std::move(done)); };
  return suspend<status>(std::move(begin));
}

}  // namespace conclave::detail::rpc
