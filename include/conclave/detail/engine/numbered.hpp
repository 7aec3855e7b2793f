// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Values under consecutive numbers. Each is found at once and costs no allocation of its own, as it would in a map;
/// but a place is free again only when those before it are, so that they should go in about the order in which they
/// came.
template <class T>
class numbered {
public:
  using number = std::uint64_t;

  /// The number that the next value will have.
  [[nodiscard]] number next() const noexcept { return first_ + values_.size(); }

  number push_back(T value) {
    values_.emplace_back(std::move(value));
    return next() - 1;
  }

  /// Under a number that is not below `next`; nothing has those that are left out.
  void insert(number which, T value) {
    if (values_.empty()) first_ = which;  // no places for those that were left out before
    while (next() < which) values_.emplace_back(std::nullopt);
    values_.emplace_back(std::move(value));
  }

  /// Takes a value out; nothing if there is none of that number, or none any more.
  std::optional<T> take(number which) {
    if (which < first_ || which >= next()) return std::nullopt;
    auto out = std::exchange(values_[static_cast<std::size_t>(which - first_)], std::nullopt);
    while (!values_.empty() && !values_.front()) {
      values_.pop_front();
      ++first_;
    }
    return out;
  }

private:
  std::deque<std::optional<T>> values_;
  number first_ = 1;
};

}  // namespace conclave::detail::engine
