// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/pattern/line_member.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

CONCLAVE_DECL asio::awaitable<void> line_member::join_line(std::shared_ptr<line_member> self, bool only_try) {
  engine::backoff pause{std::chrono::milliseconds{20}, std::chrono::seconds{1}, self->runtime_->seed()};
  bool ask_only = only_try;
  while (self->phase_ == phase::joining) {
    std::exception_ptr failed;
    try {
      if (ask_only) {
        const auto tried = co_await self->writes_->apply_here(self->try_request());
        const txn_response& answer = tried.answer;
        if (self->phase_ != phase::joining) co_return;
        if (answer.succeeded) {
          self->on_joined({token_of(answer), true});
          co_return;
        }
        const auto& found = answer.at(0).range();
        bool somebody = false;
        for (const auto& each : found.kvs) somebody = somebody || self->grammar_.is_participant(each.key);
        if (somebody) {
          self->on_refused();
          co_return;
        }
        // Only foreign keys, as far as was looked: stand in line and see who is first.
        ask_only = false;
      }
      // Behind somebody it is the view that tells of the turn. The question would cost the server a walk along
      // the line, and make the request wait for the answers to releases that are under way.
      const bool ask = !self->view_->line().shows_other_than(self->key_);
      engine::write_lane line{self->grammar_.prefix()};
      const auto applied = co_await self->writes_->apply_repeatable(self->join_request(ask), std::move(line));
      // A copy that had no answer may put the key when this one's has been deleted.
      if (applied.repeated) self->may_linger_ = true;
      if (self->phase_ != phase::joining) co_return;
      const txn_response& answer = applied.answer;
      joined result;
      if (ask) {
        const auto& there = answer.at(1).range().kvs;
        result.first = there.size() == 1 && there.front().key == self->key_;
      }
      if (answer.succeeded) {
        result.token = token_of(answer);
      } else {
        const auto& mine = answer.at(0).range().kvs;
        if (mine.empty()) throw error(errc::unexpected_response, "KV.Txn: the key exists and does not");
        result.token = mine.front().create_revision;
      }
      self->on_joined(result);
      co_return;
    } catch (const error& e) {
      if (e.code() == errc::outcome_unknown) self->may_linger_ = true;
      if (e.code() == errc::lease_not_found) {
        if (const auto lease = self->lease_.lock()) lease->mark_lost();
        co_return;
      }
      if (!rpc::worth_retrying(static_cast<errc>(e.code().value()))) {
        failed = std::current_exception();
      } else if (only_try) {
        // Whoever has come to wait behind it goes on.
        only_try = ask_only = false;
        self->fail_try(std::current_exception());
      }
    } catch (const std::exception&) {  // an answer of another shape
      failed = std::make_exception_ptr(error(errc::unexpected_response, "KV.Txn"));
    }
    if (self->phase_ != phase::joining) co_return;
    if (failed) self->fail_all(failed);
    if (self->queue_.empty()) {
      self->leave(std::nullopt, nullptr);
      co_return;
    }
    co_await engine::sleep_for(self->runtime_, pause.next());
  }
}

CONCLAVE_DECL asio::awaitable<void> line_member::leave_line(std::shared_ptr<line_member> self,
                                                            std::optional<txn> last, release_waiter done) {
  engine::backoff pause{std::chrono::milliseconds{20}, std::chrono::seconds{1}, self->runtime_->seed()};
  const auto token = self->token_;
  bool asked_before = false;
  while (self->phase_ == phase::leaving) {
    try {
      txn request;
      if (token != 0) request.when(create_revision(self->key_) == token);
      if (last) request.then(std::move(*last));
      request.then(delete_key(self->key_));
      const bool carries = last.has_value();
      last.reset();  // never sent twice
      txn_response answer;
      if (carries) {
        answer = co_await engine::call(self->runtime_, std::move(request));
      } else if (token == 0) {  // a copy that arrives late could meet a later place
        auto applied = co_await self->writes_->apply_here(std::move(request));
        answer = std::move(applied.answer);
      } else if (self->waited_ || self->view_->line().shows_other_than(self->key_)) {
        // There is somebody who waits for just this, or who was ahead and may be on the way back into the line: behind
        // the answer to their join they would have the lock one round trip later.
        auto applied = co_await self->writes_->apply_at_once(std::move(request));
        answer = std::move(applied.answer);
        asked_before = asked_before || applied.repeated;
      } else {
        auto applied = co_await self->writes_->apply_repeatable(std::move(request));
        answer = std::move(applied.answer);
        asked_before = asked_before || applied.repeated;
      }
      released result;
      // If the guard fails after an answer got lost, it was that attempt which deleted the key.
      result.lost = !answer.succeeded && !asked_before;
      if (carries && answer.succeeded) result.answer = std::move(answer.at(0).txn());
      if (done) std::exchange(done, nullptr)->complete(std::move(result));
      break;
    } catch (const error& e) {
      asked_before = true;
      if (done) std::exchange(done, nullptr)->fail(std::current_exception());
      const bool again = rpc::worth_retrying(static_cast<errc>(e.code().value()));
      // What the server refuses for good ends with the lease; a transaction that it refused did nothing.
      if (!again && e.code() == errc::permission_denied) break;
    } catch (const std::exception&) {
      if (done) std::exchange(done, nullptr)->fail(errc::unexpected_response);
      break;
    }
    co_await engine::sleep_for(self->runtime_, pause.next());
  }
  if (done) done->fail(errc::session_lost);
  if (self->phase_ != phase::leaving) co_return;
  self->phase_ = phase::idle;
  self->left_ = std::max(self->left_, std::exchange(self->token_, 0));
  if (const auto left = std::exchange(self->hold_, nullptr)) left->end({});
  self->next();
}

}  // namespace conclave::detail::pattern
