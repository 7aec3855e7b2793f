// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the tests of the lock share.

#include <conclave/session.hpp>

#include "on_etcd.hpp"

#include <sstream>

namespace conclave::test {

/// The place of a session in the line of a lock, as etcd's Go package names it.
inline std::string key_of(const std::string& name, const session& of) {
  std::ostringstream out;
  out << name << '/' << std::hex << of.lease_id();
  return out.str();
}

/// Waits until so many sessions hold or await the lock.
inline asio::awaitable<void> in_line(client on, const std::string& name, std::int64_t count) {
  co_await keys_below(on, name + "/", count);
}

inline asio::awaitable<bool> exists(client on, std::string key) {
  const auto found = co_await on.get(std::move(key));
  co_return found.has_value();
}

/// Checks, without an await inside an assertion.
inline asio::awaitable<void> there(client on, std::string key) {
  const bool found = co_await exists(on, key);
  INFO(key);
  CHECK(found);
}
inline asio::awaitable<void> not_there(client on, std::string key) {
  const bool found = co_await exists(on, key);
  INFO(key);
  CHECK_FALSE(found);
}

/// Time for a request to be under way. There is nothing to look at: a frozen server tells nothing.
inline asio::awaitable<void> let_it_begin() { return pause_for(50ms); }

/// The ways to lose what is held under a session.
enum class fate { lease_revoked, key_deleted, session_closed };

inline asio::awaitable<void> strike(fate how, client administrator, session& victim, std::string key) {
  switch (how) {
    case fate::lease_revoked:
      co_await administrator.lease_revoke(victim.lease_id());
      break;
    case fate::key_deleted:
      co_await administrator.delete_range(delete_key(key));
      break;
    case fate::session_closed:
      co_await victim.close();
      break;
  }
}

}  // namespace conclave::test
