// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/queue.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<revision> queue::enqueue(std::string value) const {
  std::vector<std::string> values;
  values.push_back(std::move(value));
  return put_all(state(), keys(), std::move(values));
}

CONCLAVE_DECL asio::awaitable<revision> queue::enqueue_all(std::vector<std::string> values) const {
  return put_all(state(), keys(), std::move(values));
}

CONCLAVE_DECL asio::awaitable<revision> queue::put_all(std::shared_ptr<client_state> state, grammar keys,
                                                       std::vector<std::string> values) {
  const auto on = state->runtime();
  revision last = 0;
  // The order within a revision is that of the names, and they grow.
  const detail::engine::write_lane lane{keys.prefix(), true};
  for (std::size_t begin = 0; begin < values.size();) {
    std::size_t bytes = values[begin].size();
    std::size_t end = begin + 1;
    while (end < values.size() && end - begin < most_items && bytes + values[end].size() <= most_bytes)
      bytes += values[end++].size();
    std::vector<std::string> names;
    txn request;
    for (auto each = begin; each < end; ++each) {
      names.push_back(keys.prefix() + state->unique_number());
      request.then(put(names.back(), values[each]));
    }
    std::exception_ptr failed;
    bool unknown = false;
    try {
      const txn_response answer = co_await state->writes()->apply(std::move(request), lane);
      if (answer.header.revision <= 0 || !answer.succeeded)
        throw error(errc::unexpected_response, "enqueue: written at no revision");
      last = answer.header.revision;
    } catch (const error& e) {
      // etcd also looks at its space after it has written, and then refuses what it has done.
      unknown =
          e.code() == errc::outcome_unknown || e.code() == errc::no_space || e.code() == condition::protocol;
      failed = std::current_exception();
      if (begin > 0)
        failed = std::make_exception_ptr(error(static_cast<errc>(e.code().value()),
                                               "enqueue_all: " + std::to_string(begin) + " of " +
                                                   std::to_string(values.size()) + " written: " + e.what()));
    }
    if (unknown) {
      const revision seen = co_await written_as(on, names.front());
      if (seen != 0) {
        last = seen;
        failed = nullptr;
      }
    }
    if (failed) std::rethrow_exception(failed);
    note_write(state, keys, last);
    begin = end;
  }
  co_return last;
}

CONCLAVE_DECL asio::awaitable<revision> queue::written_as(std::shared_ptr<detail::engine::runtime> on,
                                                          std::string key) {
  try {
    const range_response found =
        co_await detail::engine::call(on, range(std::move(key), {.keys_only = true}));
    if (!found.kvs.empty()) co_return found.kvs.front().mod_revision;
  } catch (const error&) {
  }
  co_return 0;
}

}  // namespace conclave
