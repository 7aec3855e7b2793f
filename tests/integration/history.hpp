// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the store's own record must say of locks and queues, whatever happened to those who used them.

#include <conclave/unique_lock.hpp>

#include "on_etcd.hpp"

#include <algorithm>
#include <map>

namespace conclave::test {

/// What happened to the keys of the store from a revision on, in order; the record may begin after a compaction.
inline asio::awaitable<std::vector<event>> history_from(client on, revision first) {
  const put_response last = co_await on.put("end of history", "");
  watcher events = co_await on.watch_prefix("", {.start_revision = first});
  std::vector<event> all;
  while (all.empty() || all.back().kv->mod_revision < last.header.revision) {
    auto some = co_await events.next();
    for (auto& each : some) all.push_back(std::move(each));
  }
  co_return all;
}

inline constexpr const char* claim_prefix = "claim/";

/// Puts on record that a lock is held, if the store agrees; whether it did. No server, no record.
inline asio::awaitable<bool> claim(const unique_lock& held, std::string lock) {
  txn write;
  write.then(put(claim_prefix + lock, std::to_string(held.token())));
  bool committed = false;
  try {
    const commit_result done = co_await held.commit(std::move(write));
    committed = done.committed();
  } catch (const std::system_error&) {
  }
  co_return committed;
}

/// Where the record of all locks below `lock/` breaks a rule: who stands first in a line never came before one who
/// stood first earlier; each claim is that of who stands first at its revision, and larger than those before;
/// no key is left.
inline std::vector<std::string> lock_violations(const std::vector<event>& all) {
  std::vector<std::string> found;
  std::map<std::string, std::map<std::string, revision>> lines;
  std::map<std::string, revision> last_first;
  std::map<std::string, revision> last_claim;
  const std::string claims = std::string{claim_prefix} + "lock/";
  const auto first_of = [](const std::map<std::string, revision>& line) {
    revision first = 0;
    for (const auto& [key, created] : line) first = first == 0 ? created : std::min(first, created);
    return first;
  };
  for (const auto& each : all) {
    const auto& key = each.kv->key;
    const std::string at = " at revision " + std::to_string(each.kv->mod_revision);
    if (key.starts_with(claims) && each.type == event_type::put) {
      const auto lock = key.substr(std::string_view{claim_prefix}.size());
      const revision token = std::stoll(each.kv->value);
      const auto first = first_of(lines[lock]);
      if (first != token)
        found.push_back(lock + " is claimed by " + std::to_string(token) + " while " + std::to_string(first) +
                        " stands first" + at);
      if (token < last_claim[lock])
        found.push_back(lock + " is claimed by an earlier token than before" + at);
      last_claim[lock] = token;
    } else if (key.starts_with("lock/")) {
      const auto lock = key.substr(0, key.rfind('/'));
      auto& line = lines[lock];
      if (each.type == event_type::put)
        line[key] = each.kv->create_revision;
      else
        line.erase(key);
      const auto first = first_of(line);
      if (first != 0 && first < last_first[lock])
        found.push_back(lock + " went back to an earlier holder" + at);
      last_first[lock] = std::max(last_first[lock], first);
    }
  }
  for (const auto& [lock, line] : lines)
    if (!line.empty()) found.push_back(lock + " has a key left: " + line.begin()->first);
  return found;
}

/// Values that were written more than once below `jobs`: an item that was enqueued twice.
inline std::vector<std::string> item_violations(const std::vector<event>& all) {
  std::vector<std::string> found;
  std::map<std::string, int> written;
  for (const auto& each : all)
    if (each.type == event_type::put && each.kv->key.starts_with("jobs") && ++written[each.kv->value] == 2)
      found.push_back("the item " + each.kv->value + " was written twice");
  return found;
}

}  // namespace conclave::test
