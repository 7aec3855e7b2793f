// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/pattern/priority_lane.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

CONCLAVE_DECL asio::awaitable<void> priority_lane::write_all(std::shared_ptr<priority_lane> self) {
  engine::backoff pause{std::chrono::milliseconds{2}, std::chrono::milliseconds{100}, self->runtime_->seed()};
  while (!self->pending_.empty()) {
    bool conflict = false;
    errc code{};
    std::exception_ptr failed;
    try {
      if (!self->known_)
        co_await look(self);
      else
        conflict = !co_await write_some(self);
      if (!conflict) pause.reset();
    } catch (const error& e) {
      code = static_cast<errc>(e.code().value());
      failed = std::current_exception();
    } catch (const std::exception&) {  // an answer of another shape
      code = errc::unexpected_response;
      failed = std::make_exception_ptr(error(code, "KV.Txn"));
    }
    if (failed) {
      const bool open = !self->sending_.empty() && leaves_open(code);
      fate what = open ? fate::unknown : fate::not_written;
      if (open) what = co_await find_out(self, code == errc::outcome_unknown);
      self->conclude(what, code, failed);
    }
    // Another process was faster, more than once in a row: give it room.
    if (conflict && ++self->conflicts_ > 1) co_await engine::sleep_for(self->runtime_, pause.next());
    if (!conflict) self->conflicts_ = 0;
  }
  self->writing_ = false;
  if (const auto list = self->lingering_.lock()) list->idle(self);
}

CONCLAVE_DECL asio::awaitable<void> priority_lane::look(std::shared_ptr<priority_lane> self) {
  txn request;
  request.then(range(self->base_, {.keys_only = true}), self->last_item());
  const txn_response answer = co_await engine::call(self->runtime_, std::move(request));
  self->learn(answer);
}

CONCLAVE_DECL asio::awaitable<bool> priority_lane::write_some(std::shared_ptr<priority_lane> self) {
  txn request;
  request.when(mod_revision(self->base_) == self->base_revision_).then(put(self->base_, self->next_mark()));
  std::size_t bytes = 0;
  auto number = self->next_number_;
  self->sending_.clear();
  while (!self->pending_.empty() && self->sending_.size() < most_items) {
    const auto size = self->pending_.front().value.size();
    if (!self->sending_.empty() && bytes + size > most_bytes) break;
    bytes += size;
    auto each = self->pending_.pop_front();
    auto key = self->key_of(number++);
    request.when(create_revision(key) == 0).then(put(std::move(key), each.value));
    self->sending_.push_back(std::move(each));
  }
  for (const auto& each : self->sending_) each.who->on_cancel(nullptr, nullptr);
  request.otherwise(range(self->base_, {.keys_only = true}), self->last_item());
  const auto applied = co_await self->writes_->apply_here(std::move(request));
  const txn_response& answer = applied.answer;
  if (!answer.succeeded) {
    self->learn(answer);
    self->send_again();
    co_return false;
  }
  if (answer.header.revision <= 0) throw error(errc::unexpected_response, "KV.Txn: written at no revision");
  self->base_revision_ = answer.header.revision;
  self->next_number_ = number;
  self->written(answer.header.revision);
  co_return true;
}

CONCLAVE_DECL asio::awaitable<priority_lane::fate> priority_lane::find_out(
    std::shared_ptr<priority_lane> self, bool may_come_late) {
  const std::string ours = self->last_mark();
  for (int i = 0; i < most_attempts; ++i) {
    bool again = false;
    try {
      co_return co_await ask(self, ours, may_come_late);
    } catch (const error& e) {
      again = rpc::worth_retrying(static_cast<errc>(e.code().value()));
    } catch (const std::exception&) {  // an answer of another shape
    }
    if (!again) break;
  }
  co_return fate::unknown;
}

CONCLAVE_DECL asio::awaitable<priority_lane::fate> priority_lane::ask(std::shared_ptr<priority_lane> self,
                                                                      std::string ours, bool may_come_late) {
  std::vector<key_value> found;
  if (may_come_late) {
    txn request;
    request.when(mod_revision(self->base_) == self->base_revision_)
        .then(put(self->base_, self->next_mark()))
        .otherwise(range(self->base_));
    txn_response answer = co_await engine::call(self->runtime_, std::move(request));
    if (answer.succeeded) co_return fate::not_written;
    found = std::move(answer.at(0).range().kvs);
  } else {
    range_response answer = co_await engine::call(self->runtime_, range(self->base_));
    found = std::move(answer.kvs);
  }
  // From the last write of the key, whosever, back to the one that was known.
  for (int i = 0; i < most_looked_through; ++i) {
    const auto at = found.empty() ? 0 : found.front().mod_revision;
    if (at <= self->base_revision_) co_return fate::not_written;
    if (found.front().value == ours) {
      self->written_at_ = at;
      co_return fate::written;
    }
    range_response before = co_await engine::call(self->runtime_, range(self->base_, {.revision = at - 1}));
    found = std::move(before.kvs);
  }
  co_return fate::unknown;
}

}  // namespace conclave::detail::pattern
