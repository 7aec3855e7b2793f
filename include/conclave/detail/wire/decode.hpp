// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/decode_error.hpp>
#include <conclave/detail/wire/field.hpp>
#include <conclave/version.hpp>

#include <google/protobuf/io/coded_stream.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace conclave::inline CONCLAVE_ABI::detail::wire {

/// Reads messages from bytes that nobody vouches for. Takes time and memory in proportion to the
/// bytes read, whatever lengths they claim, and recurses no deeper than depth_limit. Accepts what
/// protobuf's own parsers accept, except that text is not checked to be UTF-8.
class reader {
public:
  /// Precondition: there are fewer than size_limit bytes; they outlive the reader.
  explicit reader(std::string_view bytes)
      : in_{reinterpret_cast<const std::uint8_t*>(bytes.data()), static_cast<int>(bytes.size())},
        end_{static_cast<int>(bytes.size())} {}

  /// Reads fields into `value` until the current limit.
  template <message M>
  [[nodiscard]] bool read_fields(M& value, int depth) {
    while (left() > 0) {
      std::uint32_t tag = 0;
      if (!read_tag(tag) || !read_field(value, tag, depth)) return false;
    }
    return true;
  }

  /// Why the last call returned false.
  [[nodiscard]] decode_error error() const noexcept { return error_; }

private:
  using coded = google::protobuf::io::CodedInputStream;

  /// What became of a tag.
  enum class outcome : std::uint8_t { not_mine, read, failed };

  static outcome taken(bool ok) noexcept { return ok ? outcome::read : outcome::failed; }

  [[nodiscard]] bool fail(decode_error error) noexcept {
    error_ = error;
    return false;
  }

  /// Bytes to the end of the innermost message.
  [[nodiscard]] int left() const { return end_ - in_.CurrentPosition(); }

  [[nodiscard]] bool read_varint(std::uint64_t& bits) {
    if (in_.ReadVarint64(&bits)) return true;
    return fail(left() == 0 ? decode_error::truncated : decode_error::malformed);
  }

  /// A varint that protobuf reads as 32 bits, in five bytes at most.
  [[nodiscard]] bool read_short_varint(std::uint64_t& bits) {
    const int before = left();
    if (!read_varint(bits)) return false;
    return before - left() <= 5 || fail(decode_error::malformed);
  }

  [[nodiscard]] bool read_tag(std::uint32_t& tag) {
    std::uint64_t bits = 0;
    if (!read_short_varint(bits)) return false;
    tag = static_cast<std::uint32_t>(bits);
    return true;
  }

  /// A length, which is proved to lie within the innermost message.
  [[nodiscard]] bool read_length(int& length) {
    std::uint64_t bits = 0;
    if (!read_short_varint(bits)) return false;
    if (bits >= size_limit) return fail(decode_error::too_large);
    length = static_cast<int>(bits);
    return length <= left() || fail(decode_error::truncated);
  }

  /// Reads a length and lets `contents` read so many bytes.
  template <class Contents>
  [[nodiscard]] bool read_delimited(Contents contents) {
    int length = 0;
    if (!read_length(length)) return false;
    const coded::Limit limit = in_.PushLimit(length);
    const int end = std::exchange(end_, in_.CurrentPosition() + length);
    const bool ok = contents();
    end_ = end;
    in_.PopLimit(limit);
    return ok;
  }

  [[nodiscard]] bool skip_bytes(int count) {
    return (count <= left() && in_.Skip(count)) || fail(decode_error::truncated);
  }

  /// Skips the rest of a field that no table names, or that has another wire type there.
  [[nodiscard]] bool skip_field(std::uint32_t tag, int depth) {
    if ((tag >> 3U) == 0) return fail(decode_error::malformed);
    std::uint64_t ignored = 0;
    int length = 0;
    switch (static_cast<wire_type>(tag & 7U)) {
      case wire_type::varint:
        return read_varint(ignored);
      case wire_type::fixed64:
        return skip_bytes(8);
      case wire_type::length_delimited:
        return read_length(length) && skip_bytes(length);
      case wire_type::group_start:
        return skip_group(tag >> 3U, depth);
      case wire_type::fixed32:
        return skip_bytes(4);
      case wire_type::group_end:
        break;
    }
    return fail(decode_error::malformed);
  }

  [[nodiscard]] bool skip_group(std::uint32_t number, int depth) {
    if (depth == 0) return fail(decode_error::too_deep);
    for (;;) {
      if (left() == 0) return fail(decode_error::truncated);
      std::uint32_t tag = 0;
      if (!read_tag(tag)) return false;
      if (tag == make_tag(number, wire_type::group_end)) return true;
      if (!skip_field(tag, depth - 1)) return false;
    }
  }

  template <varint T>
  [[nodiscard]] bool read_value(T& value, int /*depth*/) {
    std::uint64_t bits = 0;
    if (!read_varint(bits)) return false;
    value = from_varint<T>(bits);
    return true;
  }

  [[nodiscard]] bool read_value(std::string& value, int /*depth*/) {
    int length = 0;
    if (!read_length(length)) return false;
    return in_.ReadString(&value, length) || fail(decode_error::truncated);
  }

  /// Merges an embedded message into `value`.
  template <message M>
  [[nodiscard]] bool read_value(M& value, int depth) {
    if (depth == 0) return fail(decode_error::too_deep);
    return read_delimited([&] { return read_fields(value, depth - 1); });
  }

  template <std::uint32_t Number, class T>
  outcome read_member(T& value, std::uint32_t tag, int depth) {
    constexpr wire_type type = varint<T> ? wire_type::varint : wire_type::length_delimited;
    if (tag != make_tag(Number, type)) return outcome::not_mine;
    return taken(read_value(value, depth));
  }

  template <std::uint32_t Number, class T>
  outcome read_member(std::optional<T>& value, std::uint32_t tag, int depth) {
    if (tag != make_tag(Number, wire_type::length_delimited)) return outcome::not_mine;
    if (!value) value.emplace();
    return taken(read_value(*value, depth));
  }

  template <std::uint32_t Number, class T>
  outcome read_member(std::vector<T>& values, std::uint32_t tag, int depth) {
    if constexpr (varint<T>) {
      if (tag == make_tag(Number, wire_type::length_delimited)) {
        return taken(read_delimited([&] {
          while (left() > 0) {
            if (!read_value(values.emplace_back(), depth)) return false;
          }
          return true;
        }));
      }
      if (tag != make_tag(Number, wire_type::varint)) return outcome::not_mine;
    } else {
      if (tag != make_tag(Number, wire_type::length_delimited)) return outcome::not_mine;
    }
    return taken(read_value(values.emplace_back(), depth));
  }

  template <std::uint32_t Number, std::size_t Index, class Variant>
  outcome read_alternative(Variant& held, std::uint32_t tag, int depth) {
    using alternative = std::variant_alternative_t<Index, Variant>;
    using payload_type = std::remove_cvref_t<decltype(payload(std::declval<alternative&>()))>;
    constexpr wire_type type = varint<payload_type> ? wire_type::varint : wire_type::length_delimited;
    if (tag != make_tag(Number, type)) return outcome::not_mine;
    if (held.index() != Index) held.template emplace<Index>();
    return taken(read_value(payload(*std::get_if<Index>(&held)), depth));
  }

  template <std::uint32_t Number, auto Member, class M>
  outcome try_field(field<Number, Member>, M& value, std::uint32_t tag, int depth) {
    return read_member<Number>(value.*Member, tag, depth);
  }

  template <auto Member, std::uint32_t... Numbers, class M>
  outcome try_field(oneof<Member, Numbers...>, M& value, std::uint32_t tag, int depth) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      outcome result = outcome::not_mine;
      static_cast<void>((... || ((result = read_alternative<Numbers, I + 1>(value.*Member, tag, depth)) !=
                                 outcome::not_mine)));
      return result;
    }(std::make_index_sequence<sizeof...(Numbers)>{});
  }

  /// Reads what follows a tag: into the member of `value` that the table names, or nowhere.
  template <message M>
  [[nodiscard]] bool read_field(M& value, std::uint32_t tag, int depth) {
    const outcome result = [&]<class... Fields>(fields<Fields...>) {
      outcome tried = outcome::not_mine;
      static_cast<void>((... || ((tried = try_field(Fields{}, value, tag, depth)) != outcome::not_mine)));
      return tried;
    }(typename table<M>::type{});
    return result == outcome::not_mine ? skip_field(tag, depth) : result == outcome::read;
  }

  coded in_;
  int end_;  // where the innermost message ends; the stream's own limit, but quicker to ask for
  decode_error error_ = decode_error::none;
};

/// Replaces `out` by the message in `bytes`. Fields that no table names are skipped; of a scalar
/// that occurs twice the last one counts; embedded messages are merged. After an error `out` holds
/// some of the message.
template <message M>
[[nodiscard]] decode_error decode(std::string_view bytes, M& out) {
  out = M{};
  if (bytes.empty()) return decode_error::none;
  if (bytes.size() >= size_limit) return decode_error::too_large;
  reader in{bytes};
  return in.read_fields(out, depth_limit) ? decode_error::none : in.error();
}

}  // namespace conclave::detail::wire
