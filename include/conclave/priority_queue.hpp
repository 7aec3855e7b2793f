// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/basic_queue.hpp>
#include <conclave/client.hpp>
#include <conclave/detail/pattern/priority_lane.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// A queue by name that gives the item of the smallest priority first, and of those the one that was enqueued
/// first. Otherwise as `queue`. Key-compatible with etcd's Go package.
///
/// In the store: `NAME/`, five digits of priority, `/` and sixteen digits, a key an item; and, to number the
/// items, one key `__NAME/`, five digits, for each priority that was ever used. Roles need read and
/// write permission below `NAME/` and below `__NAME/`.
///
/// What is taken is the first item at the moment of taking: the transaction that takes it makes sure that
/// nothing goes before it (unless keys of another form stand below `NAME/`: then, as far as this client has
/// seen).
class priority_queue : public basic_queue {
public:
  /// \throws error (`invalid_argument`) if the name is empty.
  priority_queue(const client& of, std::string name)
      : basic_queue(of, std::move(name), grammar::order::by_key, "priority_queue") {}

  /// Adds an item; smaller priorities are taken first. Completes with its revision. One round trip and one
  /// proposal for all that this client has gathered for a priority meanwhile; a round trip more for the
  /// first, and after another process has enqueued with the same priority. Errors: `request_too_large`,
  /// `no_space`; `outcome_unknown` when the answer got lost and no server said afterwards what became of the item
  /// (one that is certain not to be there is sent again, three times in all). Cancellation: the item may have been
  /// written.
  asio::awaitable<revision> enqueue(std::string value, std::uint16_t priority) const;

private:
  static asio::awaitable<revision> add(std::shared_ptr<client_state> state, grammar keys, std::string name,
                                       std::string value, std::uint16_t priority);
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/priority_queue.ipp>
#endif
