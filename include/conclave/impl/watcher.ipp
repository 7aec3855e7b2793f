// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/watcher.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<std::vector<event>> watcher::next() {
  if (!state_) throw error(errc::invalid_argument, "watcher::next: the watcher was moved from");
  return next_batch(state_);
}

CONCLAVE_DECL asio::awaitable<std::vector<event>> watcher::next_batch(
    std::shared_ptr<detail::client::watch_state> state) {
  const auto on = state->client()->runtime();
  const auto cancellation = co_await asio::this_coro::cancellation_state;
  const auto before = cancellation.cancelled();
  auto start = [state](const detail::client::watch_state::batch_waiter& waiting) { state->next(waiting); };
  std::vector<event> batch = co_await detail::engine::wait<std::vector<event>>(on, std::move(start));
  if (cancellation.cancelled() != before) {
    // Events and cancellation at the same moment: whoever cancelled does not look at a result.
    auto back = [state, batch = std::move(batch)]() mutable { state->give_back(std::move(batch)); };
    on->run(std::move(back));
    throw error(errc::cancelled);
  }
  co_return batch;
}

}  // namespace conclave
