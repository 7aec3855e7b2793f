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
/// In the store: one key an item, `NAME/` and a time in nanoseconds in decimal, with twenty random digits
/// behind it, without a lease: items outlive whoever enqueued them. Keys of another form below `NAME/` are
/// left alone, so queue `jobs` does not touch `jobs/x` or `jobs2` (Go's takes their items). Roles need read
/// and write permission on everything below `NAME/`, and should have it below `__NAME/`, for receipts.
class queue : public basic_queue {
public:
  /// \throws error (`invalid_argument`) if the name is empty.
  queue(const client& of, std::string name)
      : basic_queue(of, std::move(name), grammar::order::by_commit, "queue") {}

  /// Puts an item at the end; completes with its revision, which orders it. One round trip, one proposal.
  /// Errors: `request_too_large` (1.5 MiB unless the server is configured otherwise), `no_space` (the store
  /// is full), `outcome_unknown` when the answer got lost and the item is not there to be seen: it was not
  /// written, or written and taken. Cancellation: the item may have been written.
  asio::awaitable<revision> enqueue(std::string value) const;

  /// Puts items at the end, in their order. One round trip and one proposal for every 100 items or 1 MiB, and
  /// each such group is written whole or not at all; the error's text says how many had been written before.
  /// Completes with the revision of the last group, zero if there is none. Errors and cancellation as for
  /// `enqueue`.
  asio::awaitable<revision> enqueue_all(std::vector<std::string> values) const;

private:
  static constexpr std::size_t most_items = 100;
  static constexpr std::size_t most_bytes = std::size_t{1024} * 1024;

  static asio::awaitable<revision> put_all(std::shared_ptr<client_state> state, grammar keys,
                                           std::vector<std::string> values);

  /// The revision at which a key of our own making was written; zero when it is not to be seen.
  static asio::awaitable<revision> written_as(std::shared_ptr<detail::engine::runtime> on, std::string key);
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/queue.ipp>
#endif
