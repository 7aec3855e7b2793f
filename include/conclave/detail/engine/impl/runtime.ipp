// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/runtime.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

CONCLAVE_DECL asio::awaitable<void> sleep_until(std::shared_ptr<runtime> on, time_point when) {
  runtime* const where = on.get();
  auto start = [where, when](std::shared_ptr<waiter<std::monostate>> waiting) {
    const auto id = where->at(when, [waiting] { waiting->complete({}); });
    waiting->on_cancel(nullptr, [where, id] { where->cancel(id); });
  };
  (void)co_await wait<std::monostate>(std::move(on), std::move(start));
}

CONCLAVE_DECL asio::awaitable<void> sleep_for(std::shared_ptr<runtime> on, duration time) {
  const auto when = on->now() + time;
  return sleep_until(std::move(on), when);
}

}  // namespace conclave::detail::engine
