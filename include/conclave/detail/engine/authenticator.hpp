// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include <conclave/detail/engine/waiter.hpp>
#include <conclave/detail/engine/waiting_list.hpp>
#include <conclave/detail/rpc/clock.hpp>
#include <conclave/detail/rpc/secret.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// What goes with a call to say who makes it.
struct token {
  /// Empty when the servers want none.
  rpc::secret text;
  std::uint64_t generation = 0;
  rpc::time_point since{};
};

/// A user's name and password, and the token they were traded for last. What talks to the servers is
/// `call.hpp`.
class authenticator {
public:
  authenticator(std::string name, rpc::secret password)
      : name_(std::move(name)), password_(std::move(password)) {}

  /// A token so young was not refused for its age.
  static constexpr std::chrono::seconds young{2};
  /// How long a refused password is not tried again: a server spends much work on each attempt, on purpose.
  static constexpr std::chrono::seconds refusal_time{1};

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const rpc::secret& password() const noexcept { return password_; }

  // Any thread.

  [[nodiscard]] std::optional<token> current() const {
    const std::lock_guard lock{mutex_};
    return token_;
  }

  /// The token was refused: another must be had. Does nothing if one has been.
  void refuse(std::uint64_t generation) {
    const std::lock_guard lock{mutex_};
    if (token_ && token_->generation == generation) token_.reset();
  }

  /// A call got an answer, whatever it says.
  void answered() {
    const std::lock_guard lock{mutex_};
    silent_ = 0;
  }

  /// A call got none. After a restore a server may wait for ever until it knows a token from before; so a token
  /// that has met silence twice in a row is dropped.
  void silent(std::uint64_t generation) {
    const std::lock_guard lock{mutex_};
    if (++silent_ < 2 || !token_ || token_->generation != generation) return;
    token_.reset();
    silent_ = 0;
  }

  // On the strand.

  using token_waiter = std::shared_ptr<waiter<token>>;

  /// True when the caller has to ask the servers, and then to call `got` or `failed`.
  bool wait(const token_waiter& each, rpc::time_point now) {
    if (auto have = current()) {
      each->complete(*std::move(have));
      return false;
    }
    if (refused_ && now < refused_until_) {
      each->fail(refused_);
      return false;
    }
    const auto place = waiting_.push_back(each);
    each->on_cancel(nullptr, [this, place] { waiting_.remove(place); });
    return !std::exchange(asking_, true);
  }

  /// An empty text: the servers want no token.
  void got(rpc::secret text, rpc::time_point now) {
    token fresh{std::move(text), ++generations_, now};
    {
      const std::lock_guard lock{mutex_};
      token_ = fresh;
      silent_ = 0;
    }
    asking_ = false;
    for (const auto& each : waiting_.take_all()) each->complete(fresh);
  }

  /// `for_good`: it is the name or the password, and no server's trouble.
  void failed(const std::exception_ptr& why, bool for_good, rpc::time_point now) {
    if (for_good) {
      refused_ = why;
      refused_until_ = now + refusal_time;
    }
    asking_ = false;
    for (const auto& each : waiting_.take_all()) each->fail(why);
  }

private:
  const std::string name_;
  const rpc::secret password_;

  mutable std::mutex mutex_;  ///< Guards the two below.
  std::optional<token> token_;
  unsigned silent_ = 0;

  waiting_list<token_waiter> waiting_;
  std::exception_ptr refused_;
  rpc::time_point refused_until_{};
  std::uint64_t generations_ = 0;
  bool asking_ = false;
};

}  // namespace conclave::detail::engine
