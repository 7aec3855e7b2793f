// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/priority_queue.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<revision> priority_queue::enqueue(std::string value,
                                                                std::uint16_t priority) const {
  return add(state(), keys(), name(), std::move(value), priority);
}

CONCLAVE_DECL asio::awaitable<revision> priority_queue::add(std::shared_ptr<client_state> state, grammar keys,
                                                            std::string name, std::string value,
                                                            std::uint16_t priority) {
  using lane = detail::pattern::priority_lane;
  auto start = [state, name = std::move(name), value = std::move(value),
                priority](const lane::waiter& who) mutable {
    const auto at = state->shared<lane>("lane " + std::to_string(priority) + " " + name,
                                        [&] { return std::make_shared<lane>(*state, name, priority); });
    at->add(who, std::move(value));
  };
  const auto on = state->runtime();
  const revision written = co_await detail::engine::wait<revision>(on, std::move(start));
  note_write(state, keys, written);
  co_return written;
}

}  // namespace conclave
