// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <cstdint>
#include <string_view>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

/// Why bytes are not a message.
enum class decode_error : std::uint8_t {
  none,
  truncated,  ///< a field runs past the end of its message
  malformed,  ///< no encoder writes this: field number 0, a stray end of group, an endless varint …
  too_deep,   ///< more than 100 messages or groups within each other
  too_large,  ///< a length of 2 GiB - 1 or more
};

[[nodiscard]] constexpr std::string_view to_string(decode_error error) noexcept {
  switch (error) {
    case decode_error::none:
      return "no error";
    case decode_error::truncated:
      return "truncated message";
    case decode_error::malformed:
      return "malformed message";
    case decode_error::too_deep:
      return "message nested too deeply";
    case decode_error::too_large:
      return "message too large";
  }
  return "unknown decode error";
}

}  // namespace conclave::detail::wire
