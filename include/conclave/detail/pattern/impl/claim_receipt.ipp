// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/pattern/claim_receipt.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

CONCLAVE_DECL asio::awaitable<lease_id> receipt_lease::get(std::shared_ptr<receipt_lease> self) {
  self->prepare();
  if (!self->asking_) co_return self->id_;
  auto start = [self](std::shared_ptr<engine::waiter<lease_id>> who) {
    if (self->asking_)
      self->waiting_.push_back(std::move(who));
    else
      who->complete(self->id_);
  };
  co_return co_await engine::wait<lease_id>(self->runtime_, std::move(start));
}

CONCLAVE_DECL asio::awaitable<void> receipt_lease::ask(std::shared_ptr<receipt_lease> self) {
  const auto on = self->runtime_;
  const auto id = client::new_lease_id(*on);
  const auto sent = on->now();
  std::exception_ptr failed;
  bool granted = false;
  bool may_exist = false;
  engine::duration time{};
  engine::resends again;
  try {
    lease_grant_request request;
    request.id = id;
    request.ttl = ttl.count();
    const lease_grant_response answer = co_await engine::call(on, std::move(request), again);
    granted = answer.id == id && answer.ttl > 0;
    may_exist = !granted;
    time = engine::lease_keeper::lease_time(answer.ttl);
  } catch (const error& e) {
    const auto code = static_cast<errc>(e.code().value());
    granted = code == errc::lease_exists && again.unanswered > 0;
    time = ttl;
    may_exist = !granted && (again.unanswered > 0 || !client::certainly_not_granted(code));
    if (rpc::worth_retrying(code)) failed = std::current_exception();
  } catch (...) {
    may_exist = true;
    failed = std::current_exception();
  }
  if (may_exist) on->spawn(client::revoke_behind(on, id, on->now() + ttl, 5));
  self->asking_ = false;
  if (granted)
    self->keep(id, time, sent);
  else if (!failed)
    self->not_before_ = on->now() + refusal_time;
  for (const auto& each : std::exchange(self->waiting_, {})) {
    if (failed)
      each->fail(failed);
    else
      each->complete(self->id_);
  }
}

CONCLAVE_DECL asio::awaitable<claim_receipt::verdict> claim_receipt::find_out(
    std::shared_ptr<engine::runtime> on, claim_receipt& of, bool may_come_late) {
  using kind = verdict::kind;
  std::optional<key_value> found;
  try {
    if (may_come_late) {
      txn request;
      request.when(mod_revision(of.key_) == of.written_)
          .then(put(of.key_, inquiry_mark, {.lease = of.lease_}))
          .otherwise(range(of.key_));
      txn_response answer = co_await engine::call(on, std::move(request));
      if (answer.succeeded) {
        of.written_ = answer.header.revision;
        co_return verdict{kind::not_applied};
      }
      auto& kvs = answer.at(0).range().kvs;
      if (!kvs.empty()) found = std::move(kvs.front());
    } else {
      range_response answer = co_await engine::call(on, range(of.key_));
      if (!answer.kvs.empty()) found = std::move(answer.kvs.front());
    }
  } catch (const error& e) {
    if (rpc::worth_retrying(static_cast<errc>(e.code().value()))) throw;
    co_return verdict{};             // the lease is gone, say, and the receipt with it
  } catch (const std::exception&) {  // an answer of another shape
    co_return verdict{};
  }
  if (!found) co_return verdict{of.written_ == 0 ? kind::not_applied : kind::unknown};
  if (found->mod_revision == of.written_) co_return verdict{kind::not_applied};
  if (found->value == claim_mark) co_return verdict{kind::applied, found->mod_revision};
  of.written_ = found->mod_revision;  // by an inquiry whose own answer got lost
  co_return verdict{kind::not_applied};
}

}  // namespace conclave::detail::pattern
