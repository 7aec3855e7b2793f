// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/watch_hub.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

CONCLAVE_DECL asio::awaitable<void> watch_hub::look(std::shared_ptr<runtime> on, std::string key) {
  on->keys().leave(key);
  try {
    (void)co_await call(std::move(on), range(std::move(key), {.keys_only = true}));
  } catch (const error&) {  // a reset is told to all; of anything else the watch itself will hear
  }
}

}  // namespace conclave::detail::engine
