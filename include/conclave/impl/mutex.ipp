// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/mutex.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<unique_lock> mutex::lock() {
  auto enter = [](member& at, const waiter& who) { at.enter(who); };
  return acquired<unique_lock>(entry_of(std::move(enter)));
}

CONCLAVE_DECL asio::awaitable<std::optional<unique_lock>> mutex::try_lock() {
  auto enter = [](member& at, const waiter& who) { at.try_enter(who); };
  return acquired<std::optional<unique_lock>>(entry_of(std::move(enter)));
}

CONCLAVE_DECL asio::awaitable<std::optional<unique_lock>> mutex::try_lock_for(
    std::chrono::milliseconds time) {
  return try_lock_until(session_.owner()->state()->runtime()->now() + time);
}

CONCLAVE_DECL asio::awaitable<std::optional<unique_lock>> mutex::try_lock_until(
    session::time_point deadline) {
  auto enter = [deadline](member& at, const waiter& who) { at.enter_until(who, deadline); };
  return acquired<std::optional<unique_lock>>(entry_of(std::move(enter)));
}

CONCLAVE_DECL asio::awaitable<lock_line> mutex::inspect() const {
  return read_line(session_.owner()->state()->runtime(), name_);
}

CONCLAVE_DECL asio::awaitable<lock_line> mutex::read_line(std::shared_ptr<detail::engine::runtime> on,
                                                          std::string name) {
  const detail::pattern::line_grammar grammar{name};
  range_response found = co_await detail::pattern::read_keys(std::move(on), grammar.prefix());
  lock_line out;
  for (auto& each : found.kvs) {
    if (!grammar.is_participant(each.key)) {
      ++out.foreign_keys;
      continue;
    }
    lock_line::place where;
    where.key = std::move(each.key);
    where.token = each.create_revision;
    where.lease = each.lease;
    out.places.push_back(std::move(where));
  }
  std::sort(out.places.begin(), out.places.end(),
            [](const lock_line::place& a, const lock_line::place& b) { return a.token < b.token; });
  co_return out;
}

}  // namespace conclave
