// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/with_lock.hpp>

namespace conclave::inline CONCLAVE_ABI::detail {

CONCLAVE_DECL asio::awaitable<void> note_loss(const unique_lock& lock, std::error_code& why) {
  const std::error_code ended = co_await lock.lost();
  if (!ended) throw error(errc::cancelled);
  why = ended;
}

CONCLAVE_DECL asio::awaitable<void> guard_body(asio::awaitable<void> run, unique_lock& lock,
                                               std::exception_ptr& failed) {
  using namespace asio::experimental::awaitable_operators;
  std::error_code lost;
  (void)co_await (std::move(run) || note_loss(lock, lost));
  if (lost) throw error(static_cast<errc>(lost.value()), "with_lock: the body was cancelled");
  // Cancelled: the guard's destructor releases behind the caller.
  const auto state = co_await asio::this_coro::cancellation_state;
  if (state.cancelled() != asio::cancellation_type::none) {
    if (failed) std::rethrow_exception(failed);
    throw error(errc::cancelled);
  }
  const bool released = lock.token() == 0;  // by the body
  if (failed) {
    std::exception_ptr unlock_failed;
    try {
      if (!released) co_await lock.unlock();
    } catch (...) {
      unlock_failed = std::current_exception();  // the body's own exception says more
    }
    std::rethrow_exception(failed);
  }
  if (!released) co_await lock.unlock();
}

}  // namespace conclave::detail
