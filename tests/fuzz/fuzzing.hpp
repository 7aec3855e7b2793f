// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <source_location>
#include <string>

/// What the fuzz targets share: an input that is read as a program, and rules that end the process.

namespace conclave::test {

/// Bytes that decide what happens next. After its end every choice is the first one.
class program {
public:
  program(const std::uint8_t* bytes, std::size_t size) noexcept : at_{bytes}, end_{bytes + size} {}

  [[nodiscard]] bool more() const noexcept { return at_ != end_; }

  std::uint8_t byte() noexcept { return more() ? *at_++ : std::uint8_t{0}; }

  /// A number below `bound`, which is at most 256.
  std::size_t below(std::size_t bound) noexcept { return byte() % bound; }

  /// True for one value in `bound`; never after the end.
  bool one_in(std::size_t bound) noexcept { return more() && below(bound) == bound - 1; }

  template <class T, std::size_t Size>
  const T& among(const T (&choices)[Size]) noexcept {
    return choices[below(Size)];
  }

private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

/// Whether CONCLAVE_FUZZ_TRACE is set: each step is told, to read what a failing input does.
inline bool telling() {
  static const bool wanted = std::getenv("CONCLAVE_FUZZ_TRACE") != nullptr;
  return wanted;
}

/// Tells a step on the standard error stream, if telling().
inline void tell(const std::string& what) {
  if (telling()) std::fprintf(stderr, "%s\n", what.c_str());
}

/// Ends the process, with the input kept, unless `holds`.
inline void demand(bool holds, const char* rule,
                   const std::source_location& where = std::source_location::current()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: broken: %s\n", where.file_name(), static_cast<unsigned>(where.line()), rule);
  std::abort();
}

}  // namespace conclave::test
