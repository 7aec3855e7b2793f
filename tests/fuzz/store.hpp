// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/etcd/types.hpp>

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace conclave::test {

/// A store that remembers each of its revisions, and a watch on all of it that is told them when asked.
class store {
public:
  using content = std::map<std::string, key_value>;

  [[nodiscard]] revision now() const noexcept { return static_cast<revision>(revisions_.size()); }

  /// The keys as they were at a revision from 1 to now().
  [[nodiscard]] const content& at(revision when) const { return of(when).keys; }

  /// One transaction, if it changes anything.
  void write(const std::vector<std::string>& puts, const std::vector<std::string>& removals,
             const std::string& value) {
    past next{revisions_.back().keys, {}};
    const revision when = now() + 1;
    for (const auto& key : puts) {
      auto& each = next.keys[key];
      if (each.mod_revision == when) continue;
      if (each.create_revision == 0) each.create_revision = when;
      each.key = key;
      each.mod_revision = when;
      each.value = value;
      next.events.push_back({event_type::put, each, {}});
    }
    for (const auto& key : removals) {
      const auto found = next.keys.find(key);
      if (found == next.keys.end() || found->second.mod_revision == when) continue;
      next.keys.erase(found);
      event gone{event_type::delete_, key_value{}, {}};
      gone.kv->key = key;
      gone.kv->mod_revision = when;
      next.events.push_back(std::move(gone));
    }
    if (!next.events.empty()) revisions_.push_back(std::move(next));
  }

  /// The watch is in place: it will be told what happens from now on.
  void watch() { told_ = now(); }

  /// The last revision that the watch was told.
  [[nodiscard]] revision told() const noexcept { return told_; }

  /// The events of the next revisions, after those of some that were told before.
  std::vector<event> tell(std::size_t revisions, std::size_t again) {
    auto from = std::max<revision>(1, told_ + 1 - static_cast<revision>(again));
    told_ = std::min(now(), told_ + static_cast<revision>(revisions));
    std::vector<event> out;
    for (; from <= told_; ++from) {
      const auto& events = of(from).events;
      out.insert(out.end(), events.begin(), events.end());
    }
    return out;
  }

private:
  struct past {
    content keys;
    std::vector<event> events;
  };

  [[nodiscard]] const past& of(revision when) const { return revisions_[static_cast<std::size_t>(when - 1)]; }

  std::vector<past> revisions_{1};  // the first revision is that of an empty store
  revision told_ = 1;
};

}  // namespace conclave::test
