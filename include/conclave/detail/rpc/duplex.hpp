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
  asio::awaitable<bool> start();

  /// The next message, or nothing when the stream has ended.
  asio::awaitable<std::optional<std::string>> read();

  /// False when the stream has ended.
  asio::awaitable<bool> write(std::string message);

  /// How it ended; once, after a read or the start failed, or after `cancel`.
  asio::awaitable<status> finish();

  void cancel() noexcept { stream_->cancel(); }

private:
  std::shared_ptr<stream> stream_;
};

}  // namespace conclave::detail::rpc

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/rpc/impl/duplex.ipp>
#endif
