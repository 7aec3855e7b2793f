// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// The keys of queued items, as etcd's Go package writes them. Anything else below the prefix is no item.
class backlog_grammar {
public:
  enum class order {
    by_commit,  ///< `NAME/` and digits, of a time at first; the order is that of the mod revisions.
    by_key,     ///< `NAME/`, five digits of priority, `/`, sixteen digits or more; the order is that of the
                ///< keys.
  };

  backlog_grammar(std::string_view name, order sorted) : prefix_(name), order_(sorted) { prefix_ += '/'; }

  [[nodiscard]] const std::string& prefix() const noexcept { return prefix_; }
  [[nodiscard]] order sorted() const noexcept { return order_; }

  [[nodiscard]] bool is_item(std::string_view key) const noexcept {
    if (!key.starts_with(prefix_)) return false;
    key.remove_prefix(prefix_.size());
    if (order_ == order::by_commit) return !key.empty() && all_digits(key);
    return key.size() >= 22 && key[5] == '/' && all_digits(key.substr(0, 5)) && all_digits(key.substr(6));
  }

private:
  static bool all_digits(std::string_view text) noexcept {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  }

  std::string prefix_;
  order order_;
};

/// What a client knows of a queue: a window on its oldest items, bounded in number and in bytes, kept up to
/// date by a watch. Pure.
///
/// While `complete`, the window is all there is. Otherwise there is more behind it, and when it runs empty
/// the queue has to be listed anew.
class backlog_machine {
public:
  struct item {
    std::string key;
    revision mod_revision = 0;
    std::optional<std::string> value;  ///< Known only while the window has room for values.
  };

  explicit backlog_machine(backlog_grammar grammar, std::size_t most_items = 4096,
                           std::size_t most_bytes = std::size_t{1024} * 1024)
      : grammar_(std::move(grammar)), most_items_(most_items), most_bytes_(most_bytes) {}

  [[nodiscard]] const backlog_grammar& grammar() const noexcept { return grammar_; }
  [[nodiscard]] std::size_t most_items() const noexcept { return most_items_; }

  /// A listing is about to be read: what happens from now on is kept until it is there.
  void begin() {
    forget();
    listing_ = true;
  }

  /// What was known may have changed unseen. A listing that is being read may be from before that: it is
  /// worthless.
  void forget() {
    live_ = false;
    listing_ = false;
    early_.clear();
  }

  /// The first keys below the prefix, in the queue's order, at revision `at`, read after `begin`; `more` if
  /// there are others behind them; `foreign` that were no items have been left out. False, and nothing is
  /// known, if the listing became worthless meanwhile.
  bool snapshot(std::vector<key_value> keys, bool more, revision at, std::size_t foreign = 0) {
    if (!listing_) return false;
    listing_ = false;
    clear();
    foreign_ = foreign;
    complete_ = !more;
    // The server's order within one revision is arbitrary: a page that ends within one must not split it.
    if (more && grammar_.sorted() == backlog_grammar::order::by_commit && !keys.empty() &&
        keys.front().mod_revision != keys.back().mod_revision) {
      const auto last = keys.back().mod_revision;
      std::erase_if(keys, [last](const key_value& each) { return each.mod_revision == last; });
    }
    for (auto& each : keys) {
      if (grammar_.is_item(each.key))
        insert(std::move(each.key), each.mod_revision, std::nullopt);
      else
        ++foreign_;
    }
    applied_ = at;
    last_event_ = 0;
    live_ = true;
    for (auto& each : std::exchange(early_, {})) apply(std::move(each));
    return true;
  }

  void events(std::vector<event> batch) {
    for (auto& each : batch) {
      if (live_)
        apply(std::move(each));
      else if (listing_)
        early_.push_back(std::move(each));
    }
  }

  /// Whether the window says what the oldest items are, as of `applied`.
  [[nodiscard]] bool live() const noexcept { return live_; }
  [[nodiscard]] revision applied() const noexcept { return applied_; }
  [[nodiscard]] bool complete() const noexcept { return complete_; }
  [[nodiscard]] bool empty() const noexcept { return items_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] std::size_t value_bytes() const noexcept { return bytes_; }
  /// Keys in the last listing that are no items.
  [[nodiscard]] std::size_t foreign() const noexcept { return foreign_; }

  /// The oldest items, at most `count`. Those whose value has to be asked for number at most
  /// `unknown_values`.
  [[nodiscard]] std::vector<item> first(std::size_t count, std::size_t unknown_values) const {
    std::vector<item> out;
    for (const auto& [where, each] : items_) {
      if (out.size() == count) break;
      if (!each.value && unknown_values-- == 0) break;
      out.push_back(each);
    }
    return out;
  }

  /// The item was taken, by us or by others.
  void taken(const std::string& key, revision mod_revision) {
    const auto found = positions_.find(key);
    if (found != positions_.end() && items_.find(found->second)->second.mod_revision <= mod_revision)
      erase(found);
  }

private:
  /// By commit: (mod revision, key). By key: (0, key).
  using position = std::pair<revision, std::string>;

  [[nodiscard]] position position_of(const std::string& key, revision mod_revision) const {
    return {grammar_.sorted() == backlog_grammar::order::by_commit ? mod_revision : 0, key};
  }

  void apply(event each) {
    auto& kv = *each.kv;
    if (kv.mod_revision <= applied_ && kv.mod_revision != last_event_) return;
    applied_ = std::max(applied_, kv.mod_revision);
    last_event_ = kv.mod_revision;
    if (!grammar_.is_item(kv.key)) {
      if (each.type == event_type::put) ++foreign_;
      return;
    }
    if (const auto found = positions_.find(kv.key); found != positions_.end()) erase(found);
    if (each.type != event_type::put) return;
    const auto where = position_of(kv.key, kv.mod_revision);
    const bool behind = !complete_ && (items_.empty() || std::prev(items_.end())->first < where);
    if (!behind) insert(std::move(kv.key), kv.mod_revision, std::move(kv.value));
  }

  void insert(std::string key, revision mod_revision, std::optional<std::string> value) {
    if (value && bytes_ + value->size() > most_bytes_) value.reset();
    if (value) bytes_ += value->size();
    const auto where = position_of(key, mod_revision);
    positions_.insert_or_assign(key, where);
    items_.emplace(where, item{std::move(key), mod_revision, std::move(value)});
    if (items_.size() <= most_items_) return;
    complete_ = false;
    erase(positions_.find(std::prev(items_.end())->second.key));
  }

  void erase(std::unordered_map<std::string, position>::iterator found) {
    const auto where = items_.find(found->second);
    if (where->second.value) bytes_ -= where->second.value->size();
    items_.erase(where);
    positions_.erase(found);
  }

  void clear() {
    items_.clear();
    positions_.clear();
    bytes_ = 0;
  }

  backlog_grammar grammar_;
  std::size_t most_items_;
  std::size_t most_bytes_;
  std::map<position, item> items_;
  std::unordered_map<std::string, position> positions_;
  std::vector<event> early_;
  std::size_t bytes_ = 0;
  std::size_t foreign_ = 0;
  revision applied_ = 0;
  revision last_event_ = 0;
  bool complete_ = false;
  bool live_ = false;
  bool listing_ = false;
};

}  // namespace conclave::detail::pattern
