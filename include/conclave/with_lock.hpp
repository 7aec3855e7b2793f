// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <exception>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/error.hpp>
#include <conclave/mutex.hpp>
#include <conclave/unique_lock.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

namespace detail {

// Ends when the lock is lost, and fails when it is released: a failure does not end the race, so that a body
// which releases the lock itself goes on.
CONCLAVE_DECL asio::awaitable<void> note_loss(const unique_lock& lock, std::error_code& why);

// A body that throws must end the race as one that returns does, so it leaves its exception here.
template <class Body>
asio::awaitable<void> run_body(Body& body, unique_lock& lock, std::exception_ptr& failed) {
  try {
    co_await body(lock);
  } catch (...) {
    failed = std::current_exception();
  }
}

template <class Body, class Result>
asio::awaitable<void> run_body(Body& body, unique_lock& lock, std::exception_ptr& failed,
                               std::optional<Result>& result) {
  try {
    Result value = co_await body(lock);
    result.emplace(std::move(value));
  } catch (...) {
    failed = std::current_exception();
  }
}

template <class Body>
using body_result = typename std::invoke_result_t<Body&, unique_lock&>::value_type;

/// Runs `run` until it ends or the lock is lost, and then releases the lock.
CONCLAVE_DECL asio::awaitable<void> guard_body(asio::awaitable<void> run, unique_lock& lock,
                                               std::exception_ptr& failed);

}  // namespace detail

/// Runs `body(unique_lock&)`, a coroutine that returns `asio::awaitable<T>`, while `on` is held, and returns
/// its result. The lock is released in every case: also when the body throws, whose exception is passed on.
/// When the lock is lost the body is cancelled (terminally, as Asio cancels) and, once it has ended,
/// `ownership_lost` is thrown: whatever it did is then in doubt, unless it wrote by `unique_lock::commit`.
///
/// The body may release the lock itself, by `commit_and_unlock` for example.
///
/// Errors: those of `mutex::lock`, of `unique_lock::unlock`, and the body's. Cancellation cancels the wait or
/// the body; the lock is released behind the caller. Costs what `lock` and `unlock` cost.
///
/// The body must outlive the call: pass a named object, or one without state of its own (GCC 12 destroys a
/// closure with captures twice when it is a temporary of a co_await expression).
template <class Body>
asio::awaitable<detail::body_result<Body>> with_lock(mutex& on, Body&& body) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
  static_assert(
      std::is_lvalue_reference_v<Body> || std::is_trivially_copyable_v<std::remove_reference_t<Body>>,
      "with GCC 12 pass the body of with_lock as a named object (an lvalue)");
#endif
  unique_lock lock = co_await on.lock();
  std::exception_ptr failed;
  if constexpr (std::is_void_v<detail::body_result<Body>>) {
    co_await detail::guard_body(detail::run_body(body, lock, failed), lock, failed);
  } else {
    std::optional<detail::body_result<Body>> result;
    co_await detail::guard_body(detail::run_body(body, lock, failed, result), lock, failed);
    co_return std::move(*result);
  }
}

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/with_lock.ipp>
#endif
