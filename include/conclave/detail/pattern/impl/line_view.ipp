// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/pattern/line_view.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

CONCLAVE_DECL asio::awaitable<range_response> read_keys(std::shared_ptr<engine::runtime> on,
                                                        std::string prefix) {
  constexpr std::int64_t page = 5000;
  const std::string end = prefix_end(prefix);
  range_response all;
  std::string from = prefix;
  while (true) {
    range_response some;
    bool compacted = false;
    try {
      some = co_await engine::call(
          on, range_interval(from, end, {.limit = page, .revision = all.header.revision, .keys_only = true}));
    } catch (const error& e) {
      compacted = e.code() == errc::compacted;
      if (!compacted) throw;
    }
    if (compacted) {
      all = {};
      from = prefix;
      continue;
    }
    if (all.header.revision == 0) all.header = some.header;
    for (auto& each : some.kvs) all.kvs.push_back(std::move(each));
    if (!some.more) break;
    if (some.kvs.empty()) throw error(errc::unexpected_response, "KV.Range: more keys, and none of them");
    from = all.kvs.back().key;
    from += '\0';
  }
  all.count = static_cast<std::int64_t>(all.kvs.size());
  co_return all;
}

CONCLAVE_DECL asio::awaitable<void> line_view::look(std::shared_ptr<line_view> self, std::uint64_t round) {
  try {
    const range_response found = co_await read_keys(self->runtime_, self->machine_.grammar().prefix());
    if (self->round_ != round) co_return;
    const bool watch_is_late = !self->machine_.knows(found.header.revision);
    for (const auto& key : self->machine_.confirm(found.kvs, found.header.revision)) self->tell(key);
    // Somebody's place may have come and gone in what the watch has yet to tell, and would not be among those.
    if (watch_is_late) self->tell_all();
  } catch (const error&) {  // next time
  }
}

CONCLAVE_DECL asio::awaitable<void> line_view::read(std::shared_ptr<line_view> self, std::uint64_t round) {
  const auto on = self->runtime_;
  engine::backoff pause{std::chrono::milliseconds{20}, std::chrono::seconds{1}, on->seed()};
  while (self->round_ == round && self->watch_ != 0) {
    std::exception_ptr failed;
    try {
      const range_response found = co_await read_keys(on, self->machine_.grammar().prefix());
      if (self->round_ != round) co_return;
      self->machine_.snapshot(found.kvs, found.header.revision);
      self->tell_all();
      co_return;
    } catch (const error& e) {
      const bool again =
          rpc::worth_retrying(static_cast<errc>(e.code().value())) || e.code() == errc::compacted;
      if (!again) failed = std::current_exception();
    }
    if (failed) {
      if (self->round_ == round) self->fail(failed);
      co_return;
    }
    co_await engine::sleep_for(on, pause.next());
  }
}

}  // namespace conclave::detail::pattern
