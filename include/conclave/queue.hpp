// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/basic_queue.hpp>
#include <conclave/client.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// A queue by name: first in, first out, in the order in which the store committed the items; many producers,
/// many consumers, each item delivered once. Key-compatible with etcd's Go package, whose programs may stand
/// at either end.
///
/// In the store: one key an item, `NAME/` and a time in nanoseconds in decimal, without a lease: items
/// outlive whoever enqueued them. Keys of another form below `NAME/` are left alone, so queue `jobs` does not
/// touch `jobs/x` or `jobs2` (Go's takes their items). Roles need read and write permission on everything
/// below `NAME/`, and should have it below `__NAME/`, for receipts.
class queue : public basic_queue {
public:
  /// \throws error (`invalid_argument`) if the name is empty.
  queue(const client& of, std::string name)
      : basic_queue(of, std::move(name), grammar::order::by_commit, "queue") {}

  /// Puts an item at the end; completes with its revision, which orders it. One round trip, one proposal.
  /// Errors: `request_too_large` (1.5 MiB unless the server is configured otherwise), `no_space` (the store
  /// is full), `outcome_unknown` when the answer got lost and the item is not there to be seen: it was not
  /// written, or written and taken. Cancellation: the item may have been written.
  asio::awaitable<revision> enqueue(std::string value) const {
    std::vector<std::string> values;
    values.push_back(std::move(value));
    return put_all(state(), keys(), std::move(values));
  }

  /// Puts items at the end, in their order. One round trip and one proposal for every 100 items or 1 MiB, and
  /// each such group is written whole or not at all; the error's text says how many had been written before.
  /// Completes with the revision of the last group, zero if there is none. Errors and cancellation as for
  /// `enqueue`.
  asio::awaitable<revision> enqueue_all(std::vector<std::string> values) const {
    return put_all(state(), keys(), std::move(values));
  }

private:
  static constexpr std::size_t most_items = 100;
  static constexpr std::size_t most_bytes = std::size_t{1024} * 1024;

  static asio::awaitable<revision> put_all(std::shared_ptr<client_state> state, grammar keys,
                                           std::vector<std::string> values) {
    const auto on = state->runtime();
    revision last = 0;
    int taken = 0;
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
        names.push_back(keys.prefix() + std::to_string(state->unique_time()));
        request.when(create_revision(names.back()) == 0).then(put(names.back(), values[each]));
      }
      std::exception_ptr failed;
      bool unknown = false;
      try {
        const txn_response answer = co_await state->writes()->apply(std::move(request), lane);
        if (answer.header.revision <= 0) throw error(errc::unexpected_response, "KV.Txn: at no revision");
        if (!answer.succeeded) {  // another producer had the same nanosecond: take new names
          if (++taken < 10) continue;
          throw error(errc::unexpected_response, "KV.Txn: every new name is taken");
        }
        last = answer.header.revision;
      } catch (const error& e) {
        // etcd also looks at its space after it has written, and then refuses what it has done.
        unknown = taken < 10 && (e.code() == errc::outcome_unknown || e.code() == errc::no_space ||
                                 e.code() == condition::protocol);
        failed = std::current_exception();
        if (begin > 0)
          failed =
              std::make_exception_ptr(error(static_cast<errc>(e.code().value()),
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

  /// The revision at which a key of our own making was written; zero when it is not to be seen.
  static asio::awaitable<revision> written_as(std::shared_ptr<detail::engine::runtime> on, std::string key) {
    try {
      const range_response found =
          co_await detail::engine::call(on, range(std::move(key), {.keys_only = true}));
      if (!found.kvs.empty()) co_return found.kvs.front().mod_revision;
    } catch (const error&) {
    }
    co_return 0;
  }
};

}  // namespace conclave
