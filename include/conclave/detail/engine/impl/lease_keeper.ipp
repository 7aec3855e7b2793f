// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/lease_keeper.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

CONCLAVE_DECL asio::awaitable<void> lease_keeper::ask(std::shared_ptr<lease_keeper> self, shard* where,
                                                      lease_id id) {
  bool exists = true;  // without an answer the lease's own time decides
  try {
    lease_time_to_live_request request;
    request.id = id;
    const lease_time_to_live_response answer = co_await call(self->runtime_, std::move(request));
    exists = answer.ttl >= 0;  // rounded down; -1 stands for a lease that is not there
  } catch (const error&) {
  }
  if (self->closed_) co_return;
  self->act(*where, where->machine.on_confirmed(id, exists, self->runtime_->now()));
}

}  // namespace conclave::detail::engine
