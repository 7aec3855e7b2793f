// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/client/deletion_wait.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::client {

CONCLAVE_DECL asio::awaitable<void> deletion_wait::read(std::shared_ptr<deletion_wait> self) {
  engine::backoff pause{std::chrono::milliseconds{50}, std::chrono::seconds{1},
                        self->client_->runtime()->seed()};
  while (self->done_->waiting()) {
    std::exception_ptr failed;
    try {
      const range_response found =
          co_await engine::call(self->client_->runtime(), range(self->key_, {.keys_only = true}));
      const bool gone = found.kvs.empty() ||
                        (self->incarnation_ != 0 && found.kvs.front().create_revision != self->incarnation_);
      if (gone)
        self->finish(found.header.revision);
      else
        self->incarnation_ = found.kvs.front().create_revision;
      co_return;
    } catch (const error& e) {
      if (!rpc::worth_retrying(static_cast<errc>(e.code().value()))) failed = std::current_exception();
    }
    if (failed) {
      self->fail(failed);
      co_return;
    }
    co_await engine::sleep_for(self->client_->runtime(), pause.next());
  }
}

}  // namespace conclave::detail::client
