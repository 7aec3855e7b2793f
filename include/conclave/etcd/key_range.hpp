// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

/// Ranges of keys, as etcd writes them: a first key and a `range_end`, which is one past the last
/// key in byte order. An empty `range_end` means the first key alone; one NUL byte means that
/// there is no upper bound.

namespace conclave::inline CONCLAVE_ABI {

/// The `range_end` of all keys that start with `prefix`: the smallest key above all of them, or
/// one NUL byte if there is no such key (the prefix is empty or consists of 0xff only).
[[nodiscard]] inline std::string prefix_end(std::string_view prefix) {
  while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff) prefix.remove_suffix(1);
  if (prefix.empty()) return std::string(1, '\0');

  std::string end{prefix};
  end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1U);
  return end;
}

namespace detail {

/// Turns a request for one key into one for every key that starts with it. The server rejects an
/// empty key, so the empty prefix starts at the lowest key there can be.
template <class Request>
void select_prefix(Request& request) {
  request.range_end = prefix_end(request.key);
  if (request.key.empty()) request.key.assign(1, '\0');
}

/// Turns a request for one key into one for [key, end). An empty end is refused here because the
/// server would take it for the single key.
template <class Request>
void select_interval(Request& request, std::string end) {
  if (end.empty()) {
    throw std::invalid_argument("conclave: a key interval needs an end; one NUL byte means no upper bound");
  }
  request.range_end = std::move(end);
  if (request.key.empty()) request.key.assign(1, '\0');
}

}  // namespace detail
}  // namespace conclave
