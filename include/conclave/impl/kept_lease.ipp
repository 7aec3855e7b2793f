// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/kept_lease.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<std::error_code> kept_lease::lost() const {
  auto start = [state = owner_->state()](const detail::client::lease_state::end_waiter& waiting) {
    state->await_end(waiting);
  };
  return detail::engine::wait<std::error_code>(state().runtime(), std::move(start));
}

CONCLAVE_DECL asio::awaitable<void> kept_lease::revoke() { return detail::client::revoke(owner_->state()); }

}  // namespace conclave
