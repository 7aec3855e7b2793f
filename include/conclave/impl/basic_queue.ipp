// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/basic_queue.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<std::string> basic_queue::dequeue() const {
  auto how = [](backlog& at, const waiter& who) { at.take(who, 1); };
  return first_of(request_of(std::move(how)));
}

CONCLAVE_DECL asio::awaitable<std::optional<std::string>> basic_queue::try_dequeue() const {
  auto how = [](backlog& at, const waiter& who) { at.try_take(who, 1); };
  return maybe_one(request_of(std::move(how)));
}

CONCLAVE_DECL asio::awaitable<std::optional<std::string>> basic_queue::dequeue_for(
    std::chrono::milliseconds time) const {
  constexpr std::chrono::milliseconds longest{std::chrono::hours{24 * 365}};
  auto how = [deadline = state_->runtime()->now() + std::min(time, longest)](backlog& at, const waiter& who) {
    at.take_until(who, 1, deadline);
  };
  return maybe_one(request_of(std::move(how)));
}

CONCLAVE_DECL asio::awaitable<std::vector<std::string>> basic_queue::dequeue_up_to(std::size_t most) const {
  if (most == 0) throw error(errc::invalid_argument, "dequeue_up_to: the number is zero");
  auto how = [most](backlog& at, const waiter& who) { at.take(who, most); };
  return some(request_of(std::move(how)));
}

CONCLAVE_DECL asio::awaitable<std::size_t> basic_queue::size() const {
  return count(state_->runtime(), grammar_);
}

CONCLAVE_DECL asio::awaitable<std::optional<std::string>> basic_queue::peek() const {
  return look(state_->runtime(), grammar_);
}

CONCLAVE_DECL asio::awaitable<std::size_t> basic_queue::count(std::shared_ptr<detail::engine::runtime> on,
                                                              grammar keys) {
  const range_response found = co_await detail::pattern::read_keys(std::move(on), keys.prefix());
  co_return static_cast<std::size_t>(std::count_if(
      found.kvs.begin(), found.kvs.end(), [&](const key_value& each) { return keys.is_item(each.key); }));
}

CONCLAVE_DECL asio::awaitable<std::optional<std::string>> basic_queue::look(
    std::shared_ptr<detail::engine::runtime> on, grammar keys) {
  const bool by_commit = keys.sorted() == grammar::order::by_commit;
  // Keys that are no items may stand before the first one.
  for (std::int64_t limit = by_commit ? 2 : 1;; limit *= 16) {
    range_response found = co_await detail::engine::call(
        on, range_prefix(keys.prefix(), {.limit = limit,
                                         .order = sort_order::ascend,
                                         .target = by_commit ? sort_target::mod : sort_target::key}));
    auto& kvs = found.kvs;
    auto first =
        std::find_if(kvs.begin(), kvs.end(), [&](const key_value& each) { return keys.is_item(each.key); });
    if (first == kvs.end()) {
      if (!found.more) co_return std::nullopt;
      if (kvs.size() < static_cast<std::size_t>(limit))
        throw error(errc::unexpected_response, "KV.Range: more keys, and fewer than were asked for");
      continue;
    }
    if (by_commit) {
      // Items of one transaction share a revision; their keys are in order, but the server's answer is not,
      // and may end among them.
      const auto at = first->mod_revision;
      if (found.more && kvs.back().mod_revision == at) {
        found = co_await detail::engine::call(
            on, range_prefix(keys.prefix(), {.min_mod_revision = at, .max_mod_revision = at}));
        std::erase_if(kvs, [&](const key_value& each) { return !keys.is_item(each.key); });
        if (kvs.empty()) {  // all taken meanwhile
          limit = 1;
          continue;
        }
        first = kvs.begin();
      }
      for (auto each = first; each != kvs.end() && each->mod_revision == at; ++each)
        if (each->key < first->key && keys.is_item(each->key)) first = each;
    }
    co_return std::move(first->value);
  }
}

}  // namespace conclave
