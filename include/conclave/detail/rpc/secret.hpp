// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// A password, token or private key: shared between copies, overwritten when the last goes, and without any way
/// to print it.
class secret {
public:
  secret() = default;
  explicit secret(std::string text) : text_(new std::string(std::move(text)), wipe) {
    overwrite(text);  // a short text stays behind when it is moved
  }

  [[nodiscard]] bool empty() const noexcept { return !text_ || text_->empty(); }
  /// To be handed on at once and not to be kept.
  [[nodiscard]] const std::string& reveal() const noexcept {
    static const std::string none;
    return text_ ? *text_ : none;
  }

  /// Overwrites a copy that was needed for a moment.
  static void overwrite(std::string& text) noexcept {
    volatile char* bytes = text.data();
    for (std::size_t i = 0; i < text.capacity(); ++i) bytes[i] = '\0';
    text.clear();
  }

private:
  static void wipe(std::string* text) noexcept {
    overwrite(*text);
    delete text;
  }

  std::shared_ptr<std::string> text_;
};

}  // namespace conclave::detail::rpc
