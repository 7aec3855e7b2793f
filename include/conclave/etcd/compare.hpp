// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/key_range.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

/// Conditions of a transaction, written as comparisons:
///
///     create_revision("leader") == 0
///     value("config/mode") != "frozen"
///     mod_revision("jobs/").prefix() < 4711      // true for every key of the range

namespace conclave::inline CONCLAVE_ABI {

enum class compare_result : std::int32_t { equal = 0, greater = 1, less = 2, not_equal = 3 };

/// The property of a key that is compared. A missing key has 0 for all the numbers, and fails
/// every comparison of its value.
enum class compare_target : std::int32_t { version = 0, create = 1, mod = 2, value = 3, lease = 4 };

/// The right-hand side of a comparison with one target: text for `value`, a number for the rest.
template <compare_target Target>
struct compare_operand {
  using type = std::conditional_t<Target == compare_target::value, std::string, std::int64_t>;

  type value{};

  friend bool operator==(const compare_operand&, const compare_operand&) = default;
};

/// One condition of a transaction. The functions below build it.
struct compare {
  compare() = default;

  compare_result result = compare_result::equal;
  compare_target target = compare_target::version;
  std::string key;

  /// The operand. The server reads it as zero or empty unless it belongs to `target`.
  std::variant<std::monostate, compare_operand<compare_target::version>,
               compare_operand<compare_target::create>, compare_operand<compare_target::mod>,
               compare_operand<compare_target::value>, compare_operand<compare_target::lease>>
      target_union;

  /// If set, the condition must hold for every key in [key, range_end). A range without keys is
  /// judged like one missing key.
  std::string range_end;

  friend bool operator==(const compare&, const compare&) = default;
};

static_assert(!std::is_aggregate_v<compare>);

/// The left-hand side of a comparison: a property of one key or of each key in a range.
template <compare_target Target>
class compare_subject {
public:
  using operand_type = typename compare_operand<Target>::type;

  explicit compare_subject(std::string key) { comparison_.key = std::move(key); }

  /// Every key that starts with the key given.
  [[nodiscard]] compare_subject prefix() && {
    detail::select_prefix(comparison_);
    return std::move(*this);
  }

  /// Every key from the one given up to, not including, `range_end`; one NUL byte for no upper
  /// bound.
  /// \throws std::invalid_argument if `range_end` is empty.
  [[nodiscard]] compare_subject until(std::string range_end) && {
    detail::select_interval(comparison_, std::move(range_end));
    return std::move(*this);
  }

  [[nodiscard]] friend compare operator==(compare_subject subject, operand_type operand) {
    return std::move(subject).with(compare_result::equal, std::move(operand));
  }

  [[nodiscard]] friend compare operator!=(compare_subject subject, operand_type operand) {
    return std::move(subject).with(compare_result::not_equal, std::move(operand));
  }

  [[nodiscard]] friend compare operator<(compare_subject subject, operand_type operand) {
    return std::move(subject).with(compare_result::less, std::move(operand));
  }

  [[nodiscard]] friend compare operator>(compare_subject subject, operand_type operand) {
    return std::move(subject).with(compare_result::greater, std::move(operand));
  }

private:
  compare with(compare_result result, operand_type operand) && {
    comparison_.result = result;
    comparison_.target = Target;
    comparison_.target_union = compare_operand<Target>{std::move(operand)};
    return std::move(comparison_);
  }

  compare comparison_;
};

/// The revision that created the key; 0 if there is no such key.
[[nodiscard]] inline compare_subject<compare_target::create> create_revision(std::string key) {
  return compare_subject<compare_target::create>{std::move(key)};
}

/// The revision of the key's last write; 0 if there is no such key.
[[nodiscard]] inline compare_subject<compare_target::mod> mod_revision(std::string key) {
  return compare_subject<compare_target::mod>{std::move(key)};
}

/// The number of writes since the key was created; 0 if there is no such key.
[[nodiscard]] inline compare_subject<compare_target::version> version(std::string key) {
  return compare_subject<compare_target::version>{std::move(key)};
}

/// The key's value. Any comparison fails, `!=` included, if there is no such key.
[[nodiscard]] inline compare_subject<compare_target::value> value(std::string key) {
  return compare_subject<compare_target::value>{std::move(key)};
}

/// The key's lease; 0 if it has none or there is no such key.
[[nodiscard]] inline compare_subject<compare_target::lease> lease(std::string key) {
  return compare_subject<compare_target::lease>{std::move(key)};
}

[[nodiscard]] inline compare key_exists(std::string key) { return create_revision(std::move(key)) > 0; }

[[nodiscard]] inline compare key_missing(std::string key) { return create_revision(std::move(key)) == 0; }

}  // namespace conclave
