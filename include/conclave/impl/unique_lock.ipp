// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/unique_lock.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<std::error_code> unique_lock::lost() const {
  require();
  auto start = [hold = hold_,
                member = member_](const std::shared_ptr<detail::engine::waiter<std::error_code>>& w) {
    if (!hold->held.load()) {
      w->complete(hold->ended);
      return;
    }
    const auto place = hold->waiting.push_back(w);
    w->on_cancel(hold, [&waiting = hold->waiting, place] { waiting.remove(place); });
  };
  return detail::engine::wait<std::error_code>(owner_->state()->runtime(), std::move(start));
}

CONCLAVE_DECL asio::awaitable<void> unique_lock::unlock() {
  require();
  return unlock_held(std::move(*this));
}

CONCLAVE_DECL asio::awaitable<commit_result> unique_lock::commit(txn request) const {
  require();
  return commit_held(hold_, member_, owner_, std::move(request));
}

CONCLAVE_DECL asio::awaitable<commit_result> unique_lock::commit_and_unlock(txn request) {
  require();
  return commit_last(std::move(*this), std::move(request));
}

CONCLAVE_DECL asio::awaitable<detail::pattern::released> unique_lock::release(std::optional<txn> last) const {
  auto start = [hold = hold_, member = member_,
                last = std::move(last)](const detail::pattern::line_member::release_waiter& w) mutable {
    member->release(hold, std::move(last), w);
  };
  return detail::engine::wait<detail::pattern::released>(owner_->state()->runtime(), std::move(start));
}

CONCLAVE_DECL asio::awaitable<void> unique_lock::unlock_held(unique_lock behind) {
  const auto state = behind.owner_->state();
  const detail::pattern::released out = co_await behind.release(std::nullopt);
  behind.hold_.reset();
  if (out.lost) throw error(state->alive() ? errc::lock_lost : state->why_ended());
}

CONCLAVE_DECL asio::awaitable<commit_result> unique_lock::commit_last(unique_lock behind, txn request) {
  std::optional<txn> last{std::move(request)};
  detail::pattern::released out = co_await behind.release(std::move(last));
  behind.hold_.reset();
  commit_result result;
  if (out.answer) {
    result.outcome = out.answer->succeeded ? commit_outcome::committed : commit_outcome::compare_failed;
    result.response = std::move(*out.answer);
  }
  co_return result;
}

CONCLAVE_DECL asio::awaitable<commit_result> unique_lock::commit_held(hold_ptr hold, member_ptr member,
                                                                      owner_ptr owner, txn request) {
  const auto on = owner->state()->runtime();
  txn guarded;
  guarded.when(create_revision(hold->key) == hold->token).then(std::move(request));
  txn_response answer = co_await detail::engine::call(on, std::move(guarded));
  commit_result result;
  if (!answer.succeeded) {
    on->run([hold, member] { member->report_lost(hold); });
    co_return result;
  }
  result.response = std::move(answer.at(0).txn());
  result.outcome = result.response.succeeded ? commit_outcome::committed : commit_outcome::compare_failed;
  co_return result;
}

}  // namespace conclave
