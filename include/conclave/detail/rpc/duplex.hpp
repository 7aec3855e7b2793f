// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <conclave/detail/rpc/transport.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// A duplex stream as awaitables. Copies share the stream. At most one read and one write at a time;
/// cancelling either ends the stream.
class duplex {
public:
  explicit duplex(std::shared_ptr<stream> on) : stream_(std::move(on)) {}

  /// False when it could not be opened; then `finish` tells why.
  asio::awaitable<bool> start() {
    auto begin = [on = stream_.get()](std::unique_ptr<receiver<bool>> done) { on->start(std::move(done)); };
    return suspend<bool>(std::move(begin));
  }

  /// The next message, or nothing when the stream has ended.
  asio::awaitable<std::optional<std::string>> read() {
    using result = std::optional<std::string>;
    auto begin = [on = stream_.get()](std::unique_ptr<receiver<result>> done) { on->read(std::move(done)); };
    return suspend<result>(std::move(begin));
  }

  /// False when the stream has ended.
  asio::awaitable<bool> write(std::string message) {
    auto begin = [on = stream_.get(),
                  message = std::move(message)](std::unique_ptr<receiver<bool>> done) mutable {
      on->write(std::move(message), std::move(done));
    };
    return suspend<bool>(std::move(begin));
  }

  /// How it ended; once, after a read or the start failed, or after `cancel`.
  asio::awaitable<status> finish() {
    auto begin = [on = stream_.get()](std::unique_ptr<receiver<status>> done) {
      on->finish(std::move(done));
    };
    return suspend<status>(std::move(begin));
  }

  void cancel() noexcept { stream_->cancel(); }

private:
  std::shared_ptr<stream> stream_;
};

}  // namespace conclave::detail::rpc
