// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/linger.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/waiting_list.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// The local producers of one priority of one queue. Items are numbered; whoever adds some must touch the
/// priority's own key in the same transaction, on the condition that nobody else did since the last number
/// was read. So that local producers do not conflict with each other, what has gathered goes in one
/// transaction at a time.
///
/// That key tells what became of a write whose answer got lost, too: each of ours leaves another value in it, and
/// whoever asks writes it as well, so that the write cannot come later.
///
/// Algorithm: etcd's priority queue recipe, whose programs may enqueue meanwhile. On the strand.
class priority_lane final : public engine::lingering, public std::enable_shared_from_this<priority_lane> {
public:
  using waiter = std::shared_ptr<engine::waiter<revision>>;

  priority_lane(const client::client_state& of, const std::string& queue, std::uint16_t priority)
      : runtime_(of.runtime()), writes_(of.writes()), lingering_(of.lingering()) {
    char digits[8];
    std::snprintf(digits, sizeof digits, "%05u", static_cast<unsigned>(priority));
    base_ = "__" + queue + "/" + digits;
    items_ = queue + "/" + digits + "/";
    mark_ = std::to_string(runtime_->seed()) + ".";
  }

  void add(const waiter& who, std::string value) {
    const auto place = pending_.push_back({who, std::move(value)});
    // One that is on its way to the server stays: the write may happen.
    who->on_cancel(shared_from_this(), [this, place] { pending_.remove(place); });
    if (!std::exchange(writing_, true)) runtime_->spawn(write_all(shared_from_this()));
  }

  [[nodiscard]] bool in_use() const override { return writing_; }

private:
  struct item {
    waiter who;
    std::string value;
    int attempts = 0;
  };

  static constexpr std::size_t most_items = 60;  // each takes a compare and a put of the 128 operations
  static constexpr std::size_t most_bytes = std::size_t{1024} * 1024;
  /// How often an item is sent that was certainly not written.
  static constexpr int most_attempts = 3;
  /// How many writes of others are looked through for one of ours.
  static constexpr int most_looked_through = 256;

  static asio::awaitable<void> write_all(std::shared_ptr<priority_lane> self);

  [[nodiscard]] range_request last_item() const {
    // From the first digit to the last: other keys below the prefix are no items.
    return range_interval(
        items_ + "0", items_ + ":",
        {.limit = 1, .order = sort_order::descend, .target = sort_target::key, .keys_only = true});
  }

  static asio::awaitable<void> look(std::shared_ptr<priority_lane> self);

  void learn(const txn_response& answer) {
    const auto& base = answer.at(0).range().kvs;
    const auto& last = answer.at(1).range().kvs;
    base_revision_ = base.empty() ? 0 : base.front().mod_revision;
    next_number_ = last.empty() ? 0 : number_of(last.front().key) + 1;
    known_ = true;
  }

  [[nodiscard]] std::uint64_t number_of(std::string_view key) const {
    key.remove_prefix(items_.size());
    std::uint64_t out = 0;
    // Sixteen digits; an item that was put back behind another has more.
    for (const char c : key.substr(0, 16)) {
      if (c < '0' || c > '9') break;
      out = out * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return out;
  }

  [[nodiscard]] std::string key_of(std::uint64_t number) const {
    char digits[24];
    std::snprintf(digits, sizeof digits, "%016llu", static_cast<unsigned long long>(number));
    return items_ + digits;
  }

  /// False when another process was faster.
  static asio::awaitable<bool> write_some(std::shared_ptr<priority_lane> self);

  void written(revision at) {
    for (const auto& each : std::exchange(sending_, {})) each.who->complete(at);
  }

  /// Those whose producers have left meanwhile were not written: they stay out.
  void send_again() {
    for (auto each = sending_.rbegin(); each != sending_.rend(); ++each)
      if (each->who->waiting()) requeue(std::move(*each));
    sending_.clear();
  }

  // ---- a write whose answer got lost ----------------------------------------------------------------------

  enum class fate { not_written, written, unknown };

  /// Another value each time, for the priority's own key.
  [[nodiscard]] std::string next_mark() { return mark_ + std::to_string(++marks_); }
  [[nodiscard]] std::string last_mark() const { return mark_ + std::to_string(marks_); }

  /// Whether a failure leaves open what became of the write. Only after the first may it still come.
  static bool leaves_open(errc code) noexcept {
    return code == errc::outcome_unknown || code == errc::no_space || code == errc::response_too_large ||
           code == errc::malformed_response || code == errc::unexpected_response;
  }

  /// What became of the last write. Keeps one that `may_come_late` from coming.
  static asio::awaitable<fate> find_out(std::shared_ptr<priority_lane> self, bool may_come_late);

  static asio::awaitable<fate> ask(std::shared_ptr<priority_lane> self, std::string ours, bool may_come_late);

  void conclude(fate what, errc code, const std::exception_ptr& why) {
    known_ = false;
    if (what == fate::written) {
      written(written_at_);
      return;
    }
    const bool again = what == fate::not_written && code == errc::outcome_unknown;
    if (again && std::all_of(sending_.begin(), sending_.end(),
                             [](const item& each) { return each.attempts + 1 < most_attempts; })) {
      for (auto& each : sending_) ++each.attempts;
      send_again();
      return;
    }
    if (again)
      fail(std::make_exception_ptr(error(errc::unavailable, "KV.Txn: not written, after several attempts")));
    else
      fail(why);
  }

  void requeue(item each) {
    const auto who = each.who;
    const auto place = pending_.push_front(std::move(each));
    who->on_cancel(shared_from_this(), [this, place] { pending_.remove(place); });
  }

  void fail(const std::exception_ptr& why) {
    // A request that is too large, or refused for its size, must not take its neighbours with it.
    if (sending_.empty()) {
      for (const auto& each : pending_.take_all()) each.who->fail(why);
      return;
    }
    for (auto& each : std::exchange(sending_, {})) each.who->fail(why);
  }

  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::write_combiner> writes_;
  std::weak_ptr<engine::linger_list> lingering_;  // which keeps this
  std::string base_;
  std::string items_;
  engine::waiting_list<item> pending_;
  std::vector<item> sending_;
  std::string mark_;
  std::uint64_t marks_ = 0;
  revision base_revision_ = 0;
  revision written_at_ = 0;
  std::uint64_t next_number_ = 0;
  unsigned conflicts_ = 0;
  bool known_ = false;
  bool writing_ = false;
};

}  // namespace conclave::detail::pattern

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/pattern/impl/priority_lane.ipp>
#endif
