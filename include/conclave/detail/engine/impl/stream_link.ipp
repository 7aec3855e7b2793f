// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/stream_link.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

CONCLAVE_DECL asio::awaitable<void> stream_link::run(std::shared_ptr<stream_link> self, const char* path) {
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

CONCLAVE_DECL asio::awaitable<rpc::status> stream_link::live(std::shared_ptr<stream_link> self,
                                                             const char* path) {
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

CONCLAVE_DECL asio::awaitable<void> stream_link::write_all(std::shared_ptr<stream_link> self) {
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

}  // namespace conclave::detail::engine
