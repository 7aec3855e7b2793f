// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/compare.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <concepts>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace conclave::inline CONCLAVE_ABI {

struct request_op;
struct response_op;

/// A transaction: conditions, what to do if all of them hold, and what to do otherwise. It is
/// applied as a whole, at one revision. It is its own builder:
///
///     auto join = txn{}
///                     .when(create_revision(key) == 0)
///                     .then(put(key, "", {.lease = id}))
///                     .otherwise(range(key));
///
/// An operation is a put_request, range_request, delete_range_request or another txn. Repeated
/// calls append. The server refuses a branch that writes the same key twice, and by default more
/// than 128 conditions or operations on one level.
class txn {
public:
  txn() = default;

  std::vector<conclave::compare> compare;
  std::vector<request_op> success;
  std::vector<request_op> failure;

  /// Adds conditions.
  template <std::convertible_to<conclave::compare>... Compares>
  txn& when(Compares&&... compares) &;

  template <std::convertible_to<conclave::compare>... Compares>
  [[nodiscard]] txn when(Compares&&... compares) &&;

  /// Adds operations for the case that all conditions hold.
  template <std::convertible_to<request_op>... Operations>
  txn& then(Operations&&... operations) &;

  template <std::convertible_to<request_op>... Operations>
  [[nodiscard]] txn then(Operations&&... operations) &&;

  /// Adds operations for the case that a condition does not hold.
  template <std::convertible_to<request_op>... Operations>
  txn& otherwise(Operations&&... operations) &;

  template <std::convertible_to<request_op>... Operations>
  [[nodiscard]] txn otherwise(Operations&&... operations) &&;

  friend bool operator==(const txn& left, const txn& right);
};

/// One operation of a transaction. Every kind of operation converts to it.
struct request_op {
  request_op() = default;
  request_op(range_request operation) : request{std::move(operation)} {}
  request_op(put_request operation) : request{std::move(operation)} {}
  request_op(delete_range_request operation) : request{std::move(operation)} {}
  request_op(txn operation) : request{std::move(operation)} {}

  std::variant<std::monostate, range_request, put_request, delete_range_request, txn> request;

  friend bool operator==(const request_op&, const request_op&) = default;
};

/// What became of a transaction.
struct txn_response {
  response_header header;

  /// All conditions held, so that the operations given to then() were applied; otherwise those
  /// given to otherwise() were.
  bool succeeded = false;

  /// One answer for each operation of the branch taken, in order.
  std::vector<response_op> responses;

  /// The answer to operation `index` of the branch taken.
  /// \throws std::out_of_range if there is none.
  [[nodiscard]] const response_op& at(std::size_t index) const;
  [[nodiscard]] response_op& at(std::size_t index);

  friend bool operator==(const txn_response& left, const txn_response& right);
};

/// The answer to one operation of a transaction. It holds nothing (std::monostate) if the server
/// did not know the operation.
struct response_op {
  std::variant<std::monostate, range_response, put_response, delete_range_response, txn_response> response;

  /// The answer, as that of the kind of operation named.
  /// \throws std::logic_error if it is the answer to another kind.
  [[nodiscard]] const range_response& range() const { return as<range_response>(response); }
  [[nodiscard]] range_response& range() { return as<range_response>(response); }
  [[nodiscard]] const put_response& put() const { return as<put_response>(response); }
  [[nodiscard]] put_response& put() { return as<put_response>(response); }
  [[nodiscard]] const delete_range_response& delete_range() const {
    return as<delete_range_response>(response);
  }
  [[nodiscard]] delete_range_response& delete_range() { return as<delete_range_response>(response); }
  [[nodiscard]] const txn_response& txn() const { return as<txn_response>(response); }
  [[nodiscard]] txn_response& txn() { return as<txn_response>(response); }

  friend bool operator==(const response_op&, const response_op&) = default;

private:
  template <class Response, class Held>
  static std::conditional_t<std::is_const_v<Held>, const Response&, Response&> as(Held& held) {
    if (auto* wanted = std::get_if<Response>(&held)) return *wanted;
    throw std::logic_error(std::string{"conclave::response_op: answers "} +
                           std::visit([](const auto& other) { return kind_of(other); }, held) + ", not " +
                           kind_of(Response{}));
  }

  static const char* kind_of(const std::monostate&) { return "nothing known"; }
  static const char* kind_of(const range_response&) { return "a range"; }
  static const char* kind_of(const put_response&) { return "a put"; }
  static const char* kind_of(const delete_range_response&) { return "a delete_range"; }
  static const char* kind_of(const txn_response&) { return "a txn"; }
};

template <std::convertible_to<conclave::compare>... Compares>
txn& txn::when(Compares&&... compares) & {
  (compare.emplace_back(std::forward<Compares>(compares)), ...);
  return *this;
}

template <std::convertible_to<conclave::compare>... Compares>
txn txn::when(Compares&&... compares) && {
  return std::move(when(std::forward<Compares>(compares)...));
}

template <std::convertible_to<request_op>... Operations>
txn& txn::then(Operations&&... operations) & {
  (success.emplace_back(std::forward<Operations>(operations)), ...);
  return *this;
}

template <std::convertible_to<request_op>... Operations>
txn txn::then(Operations&&... operations) && {
  return std::move(then(std::forward<Operations>(operations)...));
}

template <std::convertible_to<request_op>... Operations>
txn& txn::otherwise(Operations&&... operations) & {
  (failure.emplace_back(std::forward<Operations>(operations)), ...);
  return *this;
}

template <std::convertible_to<request_op>... Operations>
txn txn::otherwise(Operations&&... operations) && {
  return std::move(otherwise(std::forward<Operations>(operations)...));
}

inline bool operator==(const txn& left, const txn& right) {
  return left.compare == right.compare && left.success == right.success && left.failure == right.failure;
}

inline bool operator==(const txn_response& left, const txn_response& right) {
  return left.header == right.header && left.succeeded == right.succeeded &&
         left.responses == right.responses;
}

inline const response_op& txn_response::at(std::size_t index) const {
  if (index >= responses.size()) {
    throw std::out_of_range("conclave::txn_response: no answer " + std::to_string(index) + ", there are " +
                            std::to_string(responses.size()));
  }
  return responses[index];
}

inline response_op& txn_response::at(std::size_t index) {
  return const_cast<response_op&>(std::as_const(*this).at(index));
}

static_assert(!std::is_aggregate_v<txn> && !std::is_aggregate_v<request_op>);

}  // namespace conclave
