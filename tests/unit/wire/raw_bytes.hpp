// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// Protobuf's wire format by hand, right or wrong as a test needs it.

namespace conclave::test {

using namespace std::string_literals;

inline std::string raw_varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7U) bytes += static_cast<char>(static_cast<unsigned char>(value | 0x80U));
  bytes += static_cast<char>(static_cast<unsigned char>(value));
  return bytes;
}

inline std::string raw_tag(std::uint32_t number, std::uint32_t wire_type) {
  return raw_varint((std::uint64_t{number} << 3U) | wire_type);
}

inline std::string varint_field(std::uint32_t number, std::uint64_t value) {
  return raw_tag(number, 0) + raw_varint(value);
}

inline std::string delimited_field(std::uint32_t number, std::string_view contents) {
  return raw_tag(number, 2) + raw_varint(contents.size()) + std::string{contents};
}

inline std::string fixed64_field(std::uint32_t number) { return raw_tag(number, 1) + "12345678"; }

inline std::string fixed32_field(std::uint32_t number) { return raw_tag(number, 5) + "1234"; }

inline std::string group_field(std::uint32_t number, std::string_view contents) {
  return raw_tag(number, 3) + std::string{contents} + raw_tag(number, 4);
}

inline std::string to_hex(std::string_view bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char byte : bytes) {
    const auto bits = static_cast<unsigned char>(byte);
    text += digits[bits >> 4U];
    text += digits[bits & 15U];
  }
  return text;
}

}  // namespace conclave::test
