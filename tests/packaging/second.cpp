// SPDX-License-Identifier: BSL-1.0

// A second translation unit with the single header: what the header defines twice does not link.

#include <conclave/conclave.hpp>

conclave::asio::awaitable<void> second(conclave::client client) {
  conclave::queue queue{std::move(client), "second"};
  co_await queue.enqueue("item");
}
