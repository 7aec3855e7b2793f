// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/client/lease_state.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::client {

CONCLAVE_DECL asio::awaitable<void> revoke_behind(std::shared_ptr<engine::runtime> on, lease_id id,
                                                  engine::time_point over, int not_yet) {
  engine::backoff pause{std::chrono::milliseconds{50}, std::chrono::seconds{1}, on->seed()};
  while (on->now() < over) {
    try {
      lease_revoke_request request;
      request.id = id;
      engine::resends again;
      (void)co_await engine::call(on, std::move(request), again);
      co_return;
    } catch (const error& failed) {
      const bool again = rpc::worth_retrying(static_cast<errc>(failed.code().value())) ||
                         (failed.code() == errc::lease_not_found && not_yet-- > 0);
      if (!again) co_return;
    }
    try {
      co_await engine::sleep_for(on, pause.next());
    } catch (const error&) {
      co_return;
    }
  }
}

CONCLAVE_DECL asio::awaitable<void> revoke(std::shared_ptr<lease_state> state) {
  const auto on = state->runtime();
  const auto over = state->valid_until();
  const bool first = state->now_in() == lease_state::phase::alive;
  state->mark_closed();
  if (!first) co_return;
  std::exception_ptr failed;
  try {
    lease_revoke_request request;
    request.id = state->id();
    engine::resends again;
    (void)co_await engine::call(on, std::move(request), again);
  } catch (const error& e) {
    if (e.code() == errc::lease_not_found) co_return;
    failed = std::current_exception();
  } catch (...) {
    failed = std::current_exception();
  }
  if (!failed) co_return;
  on->spawn(revoke_behind(on, state->id(), over));
  std::rethrow_exception(failed);
}

CONCLAVE_DECL asio::awaitable<std::shared_ptr<lease_owner>> grant_and_keep(std::shared_ptr<client_state> of,
                                                                           std::chrono::seconds ttl) {
  if (ttl < std::chrono::seconds{1} || ttl > std::chrono::hours{24 * 365})
    throw error(errc::invalid_argument, "ttl: must be 1 second to 365 days");
  const auto on = of->runtime();
  const auto id = new_lease_id(*on);
  engine::backoff pause{std::chrono::milliseconds{50}, std::chrono::milliseconds{500}, on->seed()};
  const auto first_sent = on->now();
  engine::resends again;
  bool may_exist = false;
  std::exception_ptr failed;
  while (true) {
    const auto sent = on->now();
    try {
      lease_grant_request request;
      request.id = id;
      request.ttl = ttl.count();
      const lease_grant_response granted = co_await engine::call(on, std::move(request), again);
      if (granted.id != id || granted.ttl <= 0)
        throw error(errc::unexpected_response, "Lease.LeaseGrant answered for another lease");
      auto state = std::make_shared<lease_state>(of, id, engine::lease_keeper::lease_time(granted.ttl), sent);
      auto owner = std::make_shared<lease_owner>(state);
      on->run([state] { state->start(); });
      co_return owner;
    } catch (const error& e) {
      may_exist = may_exist || again.unanswered > 0;
      const bool exists = e.code() == errc::lease_exists;
      if (exists && may_exist) {
        // An earlier attempt went through though its answer got lost; count from its beginning.
        auto state = std::make_shared<lease_state>(of, id, ttl, first_sent);
        auto owner = std::make_shared<lease_owner>(state);
        on->run([state] { state->start(); });
        co_return owner;
      }
      may_exist = may_exist || !certainly_not_granted(static_cast<errc>(e.code().value()));
      const bool once_more = e.code() == errc::outcome_unknown && on->now() - first_sent < ttl &&
                             on->now() - first_sent < 2 * on->options().request_timeout;
      if (!once_more) failed = std::current_exception();
    } catch (...) {
      may_exist = true;
      failed = std::current_exception();
    }
    if (failed) break;
    try {
      co_await engine::sleep_for(on, pause.next());
    } catch (...) {
      failed = std::current_exception();
      break;
    }
  }
  if (may_exist) on->spawn(revoke_behind(on, id, on->now() + ttl, 5));
  std::rethrow_exception(failed);
}

}  // namespace conclave::detail::client
