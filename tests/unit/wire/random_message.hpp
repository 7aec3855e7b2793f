// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/field.hpp>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

/// Random messages, ours by their field tables and generated ones by reflection.

namespace conclave::test {

/// The seed that random tests start from: fixed, so that a failure comes back, unless the
/// environment says otherwise.
inline std::uint64_t first_seed() {
  const char* const text = std::getenv("CONCLAVE_TEST_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 20240501;
}

/// Values that are apt to break an encoding: extremes, small numbers, every bit length.
class random_values {
public:
  explicit random_values(std::uint64_t seed) : engine_{seed} {}

  /// A number below `bound`.
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(engine_() % bound); }

  bool coin() { return below(2) == 0; }

  std::uint64_t bits() {
    switch (below(6)) {
      case 0:
        return 0;
      case 1:
        return below(300);
      case 2:
        return std::numeric_limits<std::uint64_t>::max() - below(3);
      case 3:
        return (std::uint64_t{1} << 63U) - below(2);
      default:
        return engine_() >> below(64);
    }
  }

  std::int32_t enumerator() {
    if (below(8) != 0) return static_cast<std::int32_t>(below(5));
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(engine_()));
  }

  std::string bytes() {
    const std::size_t lengths[] = {0, 1, 1 + below(12), 1 + below(12), below(12), 100 + below(100)};
    std::string text(lengths[below(6)], '\0');
    for (char& byte : text) {
      const char odd[] = {'\0', static_cast<char>(0xff), static_cast<char>(0x80), '/'};
      byte = below(4) == 0 ? odd[below(4)] : static_cast<char>(static_cast<unsigned char>(below(256)));
    }
    return text;
  }

private:
  std::mt19937_64 engine_;
};

// ---- ours --------------------------------------------------------------------------------------

template <detail::wire::message M>
void fill(M& value, random_values& random, int depth);

template <detail::wire::varint T>
void fill(T& value, random_values& random, int /*depth*/) {
  if constexpr (detail::wire::varint_enum<T>) {
    value = static_cast<T>(random.enumerator());
  } else if constexpr (std::same_as<T, bool>) {
    value = random.coin();
  } else {
    value = static_cast<T>(random.bits());
  }
}

inline void fill(std::string& value, random_values& random, int /*depth*/) { value = random.bytes(); }

template <class T>
void fill(std::optional<T>& value, random_values& random, int depth) {
  if (depth > 0 && random.coin()) fill(value.emplace(), random, depth);
}

template <class T>
void fill(std::vector<T>& values, random_values& random, int depth) {
  if (depth == 0) return;
  for (std::size_t left = random.below(4); left > 0; --left) fill(values.emplace_back(), random, depth);
}

template <auto Member, std::uint32_t Number, class M>
void fill_field(detail::wire::field<Number, Member>, M& value, random_values& random, int depth) {
  fill(value.*Member, random, depth);
}

template <auto Member, std::uint32_t... Numbers, class M>
void fill_field(detail::wire::oneof<Member, Numbers...>, M& value, random_values& random, int depth) {
  const std::size_t chosen = random.below(sizeof...(Numbers) + 1);
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    const auto set = [&]<std::size_t Index>(std::integral_constant<std::size_t, Index>) {
      fill(detail::wire::payload((value.*Member).template emplace<Index>()), random, depth);
    };
    ((chosen == I + 1 ? set(std::integral_constant<std::size_t, I + 1>{}) : void()), ...);
  }(std::make_index_sequence<sizeof...(Numbers)>{});
}

template <detail::wire::message M>
void fill(M& value, random_values& random, int depth) {
  if (depth == 0) return;
  [&]<class... Fields>(detail::wire::fields<Fields...>) {
    (fill_field(Fields{}, value, random, depth - 1), ...);
  }(typename detail::wire::table<M>::type{});
}

// ---- generated ---------------------------------------------------------------------------------

/// Fills a message by reflection. A header without contents is left unset: ours do not tell the
/// two apart.
inline void fill_generated(google::protobuf::Message& value, random_values& random, int depth) {
  using google::protobuf::FieldDescriptor;
  const auto* const type = value.GetDescriptor();
  const auto* const reflection = value.GetReflection();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* const field = type->field(i);
    const bool nested = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (nested && depth == 0) continue;
    if (field->real_containing_oneof() && random.below(3) != 0) continue;
    if (field->is_repeated()) {
      for (std::size_t left = random.below(4); left > 0; --left) {
        if (nested) {
          fill_generated(*reflection->AddMessage(&value, field), random, depth - 1);
        } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
          reflection->AddString(&value, field, random.bytes());
        } else {
          reflection->AddEnumValue(&value, field, random.enumerator());
        }
      }
      continue;
    }
    if (random.below(4) == 0) continue;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection->SetBool(&value, field, random.coin());
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection->SetEnumValue(&value, field, random.enumerator());
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        reflection->SetString(&value, field, random.bytes());
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection->SetUInt64(&value, field, random.bits());
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection->SetInt64(&value, field, static_cast<std::int64_t>(random.bits()));
        break;
      default: {
        auto* const inner = reflection->MutableMessage(&value, field);
        fill_generated(*inner, random, depth - 1);
        if (field->name() == "header" && inner->ByteSizeLong() == 0) reflection->ClearField(&value, field);
      }
    }
  }
}

}  // namespace conclave::test
