// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/asio.hpp>

#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace conclave::test {

/// Looks every few milliseconds until `condition` (returning bool or awaitable<bool>) holds. Throws, naming
/// `what` was waited for, when it still does not after `limit`.
///
/// `co_await eventually("the key is gone", [&] { return gone; });`
///
/// `condition` is used by reference until the wait ends. It must not own anything (capture by reference): GCC
/// 12 destroys such temporaries of a co_await expression twice.
template <class Condition>
asio::awaitable<void> eventually(std::string_view what, Condition&& condition,
                                 std::chrono::milliseconds limit = std::chrono::seconds{10}) {
  static_assert(std::is_lvalue_reference_v<Condition> || std::is_trivially_destructible_v<Condition>,
                "capture by reference, or name the condition first");
  asio::steady_timer timer{co_await asio::this_coro::executor};
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (;;) {
    bool holds = false;
    if constexpr (std::is_convertible_v<std::invoke_result_t<Condition&>, bool>) {
      holds = condition();
    } else {
      holds = co_await condition();
    }
    if (holds) co_return;
    if (std::chrono::steady_clock::now() >= deadline) {
      throw std::runtime_error{"waited " + std::to_string(limit.count()) +
                               " ms in vain for: " + std::string{what}};
    }
    timer.expires_after(std::chrono::milliseconds{5});
    co_await timer.async_wait(asio::use_awaitable);
  }
}

}  // namespace conclave::test
