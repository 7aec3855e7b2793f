// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>
#include <conclave/version.hpp>

#include <google/protobuf/io/coded_stream.h>

#include <array>
#include <cassert>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

/// Encoding walks a message twice in the same order: a meter adds up sizes, then a writer fills a
/// buffer of just that size. The size of an embedded message is needed before its contents can be
/// written; the meter leaves these sizes in a list from which the writer takes them.

namespace conclave::inline CONCLAVE_ABI::detail::wire {

/// Sizes of embedded messages in the order in which the walk enters them. As many as a large batch of writes has need
/// no allocation.
class size_list {
public:
  /// Reserves the next place and returns its index.
  [[nodiscard]] std::size_t claim() {
    if (count_ >= near_.size()) {
      if (far_.capacity() == 0) far_.reserve(near_.size());
      far_.push_back(0);
    }
    return count_++;
  }

  void set(std::size_t index, std::size_t size) noexcept {
    (index < near_.size() ? near_[index] : far_[index - near_.size()]) = static_cast<std::uint32_t>(size);
  }

  /// Gives back the places from `count` on.
  void shrink(std::size_t count) noexcept {
    count_ = count;
    far_.resize(count > near_.size() ? count - near_.size() : 0);
  }

  [[nodiscard]] std::uint32_t take() noexcept {
    const std::size_t index = taken_++;
    return index < near_.size() ? near_[index] : far_[index - near_.size()];
  }

private:
  // Left uninitialised: set() precedes take().
  std::array<std::uint32_t, 1024> near_;
  std::vector<std::uint32_t> far_;
  std::size_t count_ = 0;
  std::size_t taken_ = 0;
};

template <class Sink, message M>
void walk(const M& value, Sink& sink);

/// Adds up what a writer would write.
class meter {
public:
  explicit meter(size_list& sizes) noexcept : sizes_{sizes} {}

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  void bare_varint(std::uint64_t value) noexcept { size_ += coded::VarintSize64(value); }

  void varint(std::uint32_t tag, std::uint64_t value) noexcept {
    size_ += coded::VarintSize32(tag) + coded::VarintSize64(value);
  }

  void bytes(std::uint32_t tag, const std::string& value) noexcept {
    size_ += coded::VarintSize32(tag) + coded::VarintSize64(value.size()) + value.size();
  }

  /// A field whose contents, produced by `contents`, come after their size. With `elide` a field
  /// without contents is left out.
  template <class Contents>
  void nested(std::uint32_t tag, bool elide, Contents contents) {
    const std::size_t place = sizes_.claim();
    const std::size_t before = std::exchange(size_, 0);
    contents();
    const std::size_t inner = std::exchange(size_, before);
    sizes_.set(place, inner);
    if (inner == 0) {
      sizes_.shrink(place + 1);
      if (elide) return;
    }
    size_ += coded::VarintSize32(tag) + coded::VarintSize64(inner) + inner;
  }

private:
  using coded = google::protobuf::io::CodedOutputStream;

  size_list& sizes_;
  std::size_t size_ = 0;
};

/// Writes into a buffer that a meter has measured.
class writer {
public:
  writer(std::uint8_t* at, size_list& sizes) noexcept : at_{at}, sizes_{sizes} {}

  [[nodiscard]] const std::uint8_t* position() const noexcept { return at_; }

  void bare_varint(std::uint64_t value) noexcept { at_ = coded::WriteVarint64ToArray(value, at_); }

  void varint(std::uint32_t tag, std::uint64_t value) noexcept {
    at_ = coded::WriteVarint32ToArray(tag, at_);
    at_ = coded::WriteVarint64ToArray(value, at_);
  }

  void bytes(std::uint32_t tag, const std::string& value) noexcept {
    at_ = coded::WriteVarint32ToArray(tag, at_);
    at_ = coded::WriteVarint32ToArray(static_cast<std::uint32_t>(value.size()), at_);
    at_ = coded::WriteRawToArray(value.data(), static_cast<int>(value.size()), at_);
  }

  template <class Contents>
  void nested(std::uint32_t tag, bool elide, Contents contents) {
    const std::uint32_t inner = sizes_.take();
    if (inner == 0 && elide) return;
    at_ = coded::WriteVarint32ToArray(tag, at_);
    at_ = coded::WriteVarint32ToArray(inner, at_);
    if (inner != 0) contents();
  }

private:
  using coded = google::protobuf::io::CodedOutputStream;

  std::uint8_t* at_;
  size_list& sizes_;
};

enum class presence : bool { implicit, explicit_ };

/// Puts one value out. Without explicit presence a zero or empty one is left out.
template <std::uint32_t Number, presence Presence, class T, class Sink>
void walk_value(const T& value, Sink& sink) {
  constexpr bool elide = Presence == presence::implicit;
  constexpr std::uint32_t varint_tag = make_tag(Number, wire_type::varint);
  constexpr std::uint32_t delimited_tag = make_tag(Number, wire_type::length_delimited);
  if constexpr (varint<T>) {
    if (!elide || value != T{}) sink.varint(varint_tag, to_varint(value));
  } else if constexpr (std::same_as<T, std::string>) {
    if (!elide || !value.empty()) sink.bytes(delimited_tag, value);
  } else {
    sink.nested(delimited_tag, elide, [&] { walk(value, sink); });
  }
}

template <std::uint32_t Number, class T, class Sink>
void walk_member(const T& value, Sink& sink) {
  walk_value<Number, presence::implicit>(value, sink);
}

template <std::uint32_t Number, class T, class Sink>
void walk_member(const std::optional<T>& value, Sink& sink) {
  if (value) walk_value<Number, presence::explicit_>(*value, sink);
}

template <std::uint32_t Number, class T, class Sink>
void walk_member(const std::vector<T>& values, Sink& sink) {
  if constexpr (varint<T>) {
    if (values.empty()) return;
    sink.nested(make_tag(Number, wire_type::length_delimited), true, [&] {
      for (const T value : values) sink.bare_varint(to_varint(value));
    });
  } else {
    for (const T& value : values) walk_value<Number, presence::explicit_>(value, sink);
  }
}

template <std::uint32_t Number, auto Member, class M, class Sink>
void walk_field(field<Number, Member>, const M& value, Sink& sink) {
  walk_member<Number>(value.*Member, sink);
}

template <auto Member, std::uint32_t... Numbers, class M, class Sink>
void walk_field(oneof<Member, Numbers...>, const M& value, Sink& sink) {
  const auto& held = value.*Member;
  static_assert(std::variant_size_v<std::remove_cvref_t<decltype(held)>> == sizeof...(Numbers) + 1);
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    ((held.index() == I + 1
          ? walk_value<Numbers, presence::explicit_>(payload(*std::get_if<I + 1>(&held)), sink)
          : void()),
     ...);
  }(std::make_index_sequence<sizeof...(Numbers)>{});
}

template <class Sink, message M>
void walk(const M& value, Sink& sink) {
  [&]<class... Fields>(fields<Fields...>) {
    (walk_field(Fields{}, value, sink), ...);
  }(typename table<M>::type{});
}

/// The bytes of a message, in the order of its field numbers.
/// \throws std::length_error if there would be 2 GiB - 1 or more of them.
template <message M>
[[nodiscard]] std::string encode(const M& value) {
  size_list sizes;
  meter measured{sizes};
  walk(value, measured);
  if (measured.size() >= size_limit) throw std::length_error("conclave: message too large to encode");

  std::string bytes(measured.size(), '\0');
  auto* const begin = reinterpret_cast<std::uint8_t*>(bytes.data());
  writer out{begin, sizes};
  walk(value, out);
  assert(out.position() == begin + bytes.size());
  return bytes;
}

}  // namespace conclave::detail::wire
