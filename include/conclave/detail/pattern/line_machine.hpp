// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// The keys of a line: `NAME/` and the participant's lease id in lower-case hexadecimal, as etcd's Go package
/// writes them. Anything else below the prefix is not a participant.
class line_grammar {
public:
  explicit line_grammar(std::string_view name) : prefix_(name) { prefix_ += '/'; }

  [[nodiscard]] const std::string& prefix() const noexcept { return prefix_; }

  [[nodiscard]] std::string key(lease_id lease) const {
    char digits[16];
    const auto end =
        std::to_chars(std::begin(digits), std::end(digits), static_cast<std::uint64_t>(lease), 16);
    return prefix_ + std::string(std::begin(digits), end.ptr);
  }

  [[nodiscard]] bool is_participant(std::string_view key) const noexcept {
    if (key.size() <= prefix_.size() || key.size() > prefix_.size() + 16 || !key.starts_with(prefix_))
      return false;
    key.remove_prefix(prefix_.size());
    return std::all_of(key.begin(), key.end(),
                       [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  }

private:
  std::string prefix_;
};

/// Who stands in a line, as told by a watch and a read. Pure.
///
/// After `begin` events are kept until the `snapshot` that was read later: what the snapshot includes is
/// dropped. From then on the state is that of revision `applied`.
class line_machine {
public:
  explicit line_machine(line_grammar grammar) : grammar_(std::move(grammar)) {}

  /// The watch is in place, anew: what was known may have changed unseen.
  void begin() {
    live_ = false;
    early_.clear();
  }

  /// All keys below the prefix at revision `at`, read after `begin`.
  void snapshot(const std::vector<key_value>& keys, revision at) {
    participants_.clear();
    create_revisions_.clear();
    foreign_ = 0;
    for (const auto& each : keys) {
      if (grammar_.is_participant(each.key))
        insert(each.key, each.create_revision);
      else
        ++foreign_;
    }
    applied_ = at;
    last_event_ = 0;
    live_ = true;
    for (const auto& each : std::exchange(early_, {})) apply(each);
  }

  /// All keys below the prefix at revision `at`, read while the watch goes on. Who is not among them is gone,
  /// whether or not an event has told of it. If the watch has told of less than that, so have those who came:
  /// their events are late, and are dropped when they come. The keys touched are as in `events`.
  std::vector<std::string> confirm(const std::vector<key_value>& keys, revision at) {
    std::vector<std::string> touched;
    if (!live_) return touched;
    std::set<std::pair<revision, std::string>> there;
    for (const auto& each : keys)
      if (grammar_.is_participant(each.key)) there.emplace(each.create_revision, each.key);
    for (const auto& each : participants_)
      if (each.first <= at && !there.contains(each)) touched.push_back(each.second);
    for (const auto& each : touched) erase(each);
    if (at > applied_) {
      for (const auto& [created, key] : there) {
        if (stands(key, created)) continue;
        insert(key, created);
        touched.push_back(key);
      }
      applied_ = at;
      last_event_ = 0;
    }
    if (!touched.empty() && !participants_.empty()) touched.push_back(participants_.begin()->second);
    return touched;
  }

  /// The keys whose own standing an event changed, or that came to the front by it.
  std::vector<std::string> events(const std::vector<event>& batch) {
    std::vector<std::string> touched;
    if (!live_) {
      early_.insert(early_.end(), batch.begin(), batch.end());
      return touched;
    }
    for (const auto& each : batch)
      if (apply(each)) touched.push_back(each.kv->key);
    if (!participants_.empty()) touched.push_back(participants_.begin()->second);
    return touched;
  }

  /// Whether the state includes everything up to `at`.
  [[nodiscard]] bool knows(revision at) const noexcept { return live_ && applied_ >= at; }

  /// Whether the key stands in line in just this incarnation.
  [[nodiscard]] bool stands(const std::string& key, revision create_revision) const {
    const auto found = create_revisions_.find(key);
    return found != create_revisions_.end() && found->second == create_revision;
  }

  /// The create revision of the key that stands in line, or 0.
  [[nodiscard]] revision since(const std::string& key) const {
    const auto found = create_revisions_.find(key);
    return found == create_revisions_.end() ? 0 : found->second;
  }

  /// Whether nobody is ahead of the key, which stands.
  [[nodiscard]] bool is_first(const std::string& key) const {
    return !participants_.empty() && participants_.begin()->second == key;
  }

  /// Whether somebody else stands in the line, as far as is known now.
  [[nodiscard]] bool shows_other_than(const std::string& key) const {
    return live_ && participants_.size() > (create_revisions_.contains(key) ? 1U : 0U);
  }

  [[nodiscard]] std::size_t size() const noexcept { return participants_.size(); }
  /// Keys below the prefix that are no participants, at the last snapshot.
  [[nodiscard]] std::size_t foreign() const noexcept { return foreign_; }
  [[nodiscard]] const line_grammar& grammar() const noexcept { return grammar_; }

private:
  bool apply(const event& each) {
    const auto& kv = *each.kv;
    if (kv.mod_revision <= applied_ && !same_revision(kv.mod_revision)) return false;
    applied_ = std::max(applied_, kv.mod_revision);
    last_event_ = kv.mod_revision;
    if (!grammar_.is_participant(kv.key)) return false;
    erase(kv.key);
    if (each.type == event_type::put) insert(kv.key, kv.create_revision);
    return true;
  }

  /// One transaction may change several keys: its events share a revision.
  [[nodiscard]] bool same_revision(revision at) const noexcept { return at == last_event_; }

  void insert(const std::string& key, revision create_revision) {
    create_revisions_[key] = create_revision;
    participants_.emplace(create_revision, key);
  }

  void erase(const std::string& key) {
    const auto found = create_revisions_.find(key);
    if (found == create_revisions_.end()) return;
    participants_.erase({found->second, key});
    create_revisions_.erase(found);
  }

  line_grammar grammar_;
  std::set<std::pair<revision, std::string>> participants_;
  std::unordered_map<std::string, revision> create_revisions_;
  std::vector<event> early_;
  revision applied_ = 0;
  revision last_event_ = 0;
  std::size_t foreign_ = 0;
  bool live_ = false;
};

}  // namespace conclave::detail::pattern
