// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <chrono>
#include <deque>
#include <functional>
#include <optional>
#include <utility>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Lets many do a thing of the same kind one after another, in the order in which they ask, and not more often
/// than a server should be bothered. Pure: times go in.
class paced_queue {
public:
  using time_point = std::chrono::steady_clock::time_point;
  using duration = std::chrono::steady_clock::duration;

  /// False: nothing had to be done any more, so that the next one's turn has come.
  using work = std::function<bool()>;

  explicit paced_queue(duration apart) : apart_(apart) {}

  void push(work each) { waiting_.push_back(std::move(each)); }

  /// Does what may be done at `now`; then says when to come again, unless nobody waits.
  std::optional<time_point> run(time_point now) {
    while (!waiting_.empty() && next_ <= now) {
      const auto first = std::move(waiting_.front());
      waiting_.pop_front();
      if (first()) next_ = now + apart_;
    }
    if (waiting_.empty()) return std::nullopt;
    return next_;
  }

private:
  duration apart_;
  time_point next_{};
  std::deque<work> waiting_;
};

}  // namespace conclave::detail::engine
