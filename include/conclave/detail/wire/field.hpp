// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

/// The vocabulary of the field tables. A message's table pairs its members with their field
/// numbers, in ascending order; the member's type says how the field is encoded:
///
///     template <> struct table<event> {
///       using type = fields<field<1, &event::type>, field<2, &event::kv>, field<3, &event::prev_kv>>;
///     };
///
/// | member                          | field                                      |
/// |---------------------------------|--------------------------------------------|
/// | bool, 64-bit integer, enum      | varint; zero is not written                |
/// | std::string                     | bytes or string; empty is not written      |
/// | message                         | embedded message; empty is not written     |
/// | std::optional<message>          | embedded message with presence             |
/// | std::vector<enum or integer>    | repeated, packed; unpacked is read, too    |
/// | std::vector<string or message>  | repeated                                   |
/// | std::variant<monostate, …>      | oneof; the alternative held is written     |

namespace conclave::inline CONCLAVE_ABI::detail::wire {

/// One field: `Member` is a pointer to the data member.
template <std::uint32_t Number, auto Member>
struct field {
  static constexpr std::uint32_t first_number = Number;
  static constexpr std::uint32_t last_number = Number;
};

/// A oneof: `Member` is a std::variant that starts with std::monostate; `Numbers` belong to the
/// other alternatives, in their order.
template <auto Member, std::uint32_t... Numbers>
struct oneof {
  static constexpr std::uint32_t first_number = std::min({Numbers...});
  static constexpr std::uint32_t last_number = std::max({Numbers...});
};

/// Whether each field's numbers lie above those of the field before it.
template <class... Fields>
[[nodiscard]] consteval bool numbers_ascend() {
  [[maybe_unused]] std::uint32_t last = 0;
  return (... && (std::exchange(last, Fields::last_number) < Fields::first_number));
}

/// The fields of one message.
template <class... Fields>
struct fields {
  static_assert(numbers_ascend<Fields...>(), "messages are written in the order of their field numbers");
};

/// Specialised for each message; its member `type` is a `fields<…>`.
template <class Message>
struct table;

template <class T>
concept message = requires { typename table<T>::type; };

template <class T>
concept varint_enum = std::is_enum_v<T> && std::same_as<std::underlying_type_t<T>, std::int32_t>;

template <class T>
concept varint = std::same_as<T, bool> || std::same_as<T, std::int64_t> || std::same_as<T, std::uint64_t> ||
                 varint_enum<T>;

enum class wire_type : std::uint32_t {
  varint = 0,
  fixed64 = 1,
  length_delimited = 2,
  group_start = 3,
  group_end = 4,
  fixed32 = 5,
};

[[nodiscard]] constexpr std::uint32_t make_tag(std::uint32_t number, wire_type type) noexcept {
  return (number << 3U) | static_cast<std::uint32_t>(type);
}

/// The number that stands for `value` on the wire. Negative numbers and enumerators take all 64
/// bits.
template <varint T>
[[nodiscard]] constexpr std::uint64_t to_varint(T value) noexcept {
  if constexpr (varint_enum<T>) {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(value)));
  } else {
    return static_cast<std::uint64_t>(value);
  }
}

/// The inverse. Enumerators are cut to 32 bits; numbers that the enum does not name are kept.
template <varint T>
[[nodiscard]] constexpr T from_varint(std::uint64_t bits) noexcept {
  if constexpr (varint_enum<T>) {
    return static_cast<T>(static_cast<std::int32_t>(static_cast<std::uint32_t>(bits)));
  } else if constexpr (std::same_as<T, bool>) {
    return bits != 0;
  } else {
    return static_cast<T>(bits);
  }
}

/// What an alternative of a oneof encodes: itself if it is a message, otherwise its `value`,
/// which is wrapped to tell alternatives of one type apart.
template <class Alternative>
[[nodiscard]] constexpr auto& payload(Alternative& alternative) noexcept {
  if constexpr (message<std::remove_const_t<Alternative>>) {
    return alternative;
  } else {
    return alternative.value;
  }
}

/// No message of this many bytes or more is read or written; protobuf counts bytes in an int.
inline constexpr std::size_t size_limit = 0x7fffffff;

/// How many messages and groups may lie within each other below the outermost message. The same
/// as in protobuf.
inline constexpr int depth_limit = 100;

}  // namespace conclave::detail::wire
