// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/rpc/duplex.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// One life of a stream: connects, opens, sends what is queued in order, passes on what comes in, and says
/// how it ended. On the strand; after `close` it says nothing more.
class stream_link final : public runtime_observer, public std::enable_shared_from_this<stream_link> {
public:
  struct events {
    std::function<void()> on_open;
    std::function<void(std::string)> on_message;
    /// Once, unless closed before: also when the stream could not be opened.
    std::function<void(rpc::status)> on_closed;
  };

  stream_link(std::shared_ptr<runtime> on, events to) : runtime_(std::move(on)), to_(std::move(to)) {}

  void open(const char* path) {
    runtime_->observe(weak_from_this());
    runtime_->spawn(run(shared_from_this(), path));
  }

  void send(std::string message) {
    queue_.push_back(std::move(message));
    if (opened_ && !closed_ && !std::exchange(writing_, true)) runtime_->spawn(write_all(shared_from_this()));
  }

  /// Ends the stream at once. With `suspect`, another server is asked next time.
  void close(bool suspect = false) {
    if (std::exchange(closed_, true)) return;
    to_ = {};
    queue_.clear();
    if (suspect && server_) runtime_->suspect(*server_);
    if (duplex_) duplex_->cancel();
  }

  /// What the stream was opened with; only while it is open.
  [[nodiscard]] const token& signed_by() const noexcept { return token_; }

  void on_suspect(const rpc::transport& which) override {
    if (server_.get() == &which && duplex_) duplex_->cancel();  // ends as if the server had ended it
  }

private:
  static asio::awaitable<void> run(std::shared_ptr<stream_link> self, const char* path);

  /// From the connection to the end of the stream.
  static asio::awaitable<rpc::status> live(std::shared_ptr<stream_link> self, const char* path);

  /// What the end of an open stream says about its server and its token.
  void judge(rpc::status& ended) {
    const auto code = rpc::classify(ended, rpc::call_kind::read);
    if (code == errc::unauthenticated && runtime_->user() != nullptr) {
      runtime_->user()->refuse(token_.generation);
      ended.code = rpc::status_code::unavailable;  // to be opened anew, with another token
    } else if (code == errc::unavailable || code == errc::timed_out) {
      runtime_->leave(*server_);
    }
  }

  static asio::awaitable<void> write_all(std::shared_ptr<stream_link> self);

  std::shared_ptr<runtime> runtime_;
  events to_;
  std::shared_ptr<rpc::transport> server_;
  token token_;
  std::optional<rpc::duplex> duplex_;
  std::deque<std::string> queue_;
  bool opened_ = false;
  bool writing_ = false;
  bool closed_ = false;
};

}  // namespace conclave::detail::engine

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/engine/impl/stream_link.ipp>
#endif
