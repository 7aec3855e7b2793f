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
  static asio::awaitable<void> run(std::shared_ptr<stream_link> self, const char* path) {
    rpc::status ended{rpc::status_code::unavailable, "not connected"};
    try {
      ended = co_await live(self, path);
    } catch (const error& failed) {
      ended.message = failed.what();
      if (failed.code() == errc::unauthenticated) ended.code = rpc::status_code::unauthenticated;
    } catch (...) {  // out of memory
    }
    if (self->duplex_) self->duplex_->cancel();  // of use after an exception alone
    if (std::exchange(self->closed_, true)) co_return;
    auto closed = std::move(self->to_.on_closed);
    self->to_ = {};
    if (closed) closed(std::move(ended));
  }

  /// From the connection to the end of the stream.
  static asio::awaitable<rpc::status> live(std::shared_ptr<stream_link> self, const char* path) {
    auto& on = self->runtime_;
    auto server = co_await impl::connected_server(on, on->options().connect_timeout);
    if (on->user() != nullptr)
      self->token_ = co_await impl::current_token(on, on->now() + on->options().request_timeout);
    rpc::status ended;
    if (self->closed_) co_return ended;
    self->server_ = std::move(server);
    rpc::metadata headers{{"hasleader", "true"}};
    if (!self->token_.text.empty()) headers.emplace_back("token", self->token_.text.reveal());
    self->duplex_.emplace(self->server_->open(path, std::move(headers)));
    const bool started = co_await self->duplex_->start();
    if (started && !self->closed_) {
      self->opened_ = true;
      // What the owner sends from here on is written by a coroutine beside this one.
      auto opened = self->to_.on_open;
      if (opened) opened();
      while (true) {
        std::optional<std::string> message = co_await self->duplex_->read();
        if (!message || self->closed_) break;
        auto deliver = self->to_.on_message;
        deliver(std::move(*message));
      }
    }
    // One that the server has ended must not be cancelled: that would be all that is told of it.
    if (self->closed_) self->duplex_->cancel();
    ended = co_await self->duplex_->finish();
    if (!self->closed_) self->judge(ended);
    co_return ended;
  }

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

  static asio::awaitable<void> write_all(std::shared_ptr<stream_link> self) {
    try {
      while (!self->queue_.empty() && !self->closed_) {
        std::string message = std::move(self->queue_.front());
        self->queue_.pop_front();
        const bool sent = co_await self->duplex_->write(std::move(message));
        if (!sent) break;  // the reading side says why
      }
    } catch (...) {  // out of memory
      self->duplex_->cancel();
    }
    self->writing_ = false;
  }

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
