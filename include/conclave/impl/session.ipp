// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/session.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<session> session::open(client on, session_options options) {
  auto lease = co_await on.keep_lease(options.ttl);
  co_return session{std::move(lease)};
}

CONCLAVE_DECL asio::awaitable<std::error_code> session::lost() const { return lease_.lost(); }

CONCLAVE_DECL asio::awaitable<void> session::close() { return lease_.revoke(); }

}  // namespace conclave
