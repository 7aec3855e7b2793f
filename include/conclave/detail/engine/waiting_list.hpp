// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Those who wait, in order. Whoever leaves out of turn is found by a handle, however many wait: thousands may
/// be cancelled at a time.
template <class T>
class waiting_list {
public:
  /// Of one place, for ever: the handle of someone who has left finds nobody.
  enum class handle : std::int64_t {};

  handle push_back(T each) { return insert(end_++, std::move(each)); }
  /// Ahead of all the others.
  handle push_front(T each) { return insert(--begin_, std::move(each)); }

  [[nodiscard]] bool empty() const noexcept { return all_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return all_.size(); }
  [[nodiscard]] T& front() noexcept { return all_.begin()->second; }
  [[nodiscard]] const T& front() const noexcept { return all_.begin()->second; }

  T pop_front() { return take(all_.begin()); }

  /// Nothing if nobody stands there any more.
  std::optional<T> remove(handle place) {
    std::optional<T> out;
    const auto found = all_.find(static_cast<std::int64_t>(place));
    if (found != all_.end()) out.emplace(take(found));
    return out;
  }

  /// Asks in order, until the answer is yes.
  template <class Condition>
  [[nodiscard]] bool any_of(Condition condition) const {
    for (const auto& [place, each] : all_)
      if (condition(each)) return true;
    return false;
  }

  /// Takes all out, in order.
  std::vector<T> take_all() {
    return take_if([](const T&) { return true; });
  }

  /// Takes out those for whom `condition` holds, in order.
  template <class Condition>
  std::vector<T> take_if(Condition condition) {
    std::vector<T> out;
    for (auto each = all_.begin(); each != all_.end();) {
      const auto here = each++;
      if (condition(std::as_const(here->second))) out.push_back(take(here));
    }
    return out;
  }

private:
  using places = std::map<std::int64_t, T>;

  handle insert(std::int64_t place, T each) {
    all_.emplace_hint(place < 0 ? all_.begin() : all_.end(), place, std::move(each));
    return handle{place};
  }

  T take(typename places::iterator which) {
    T out = std::move(which->second);
    all_.erase(which);
    return out;
  }

  places all_;
  std::int64_t begin_ = 0;
  std::int64_t end_ = 0;
};

}  // namespace conclave::detail::engine
