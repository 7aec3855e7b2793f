// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
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
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>

namespace conclave::detail::pattern {

/// The local producers of one priority of one queue. Items are numbered; whoever adds some must touch the
/// priority's own key in the same transaction, on the condition that nobody else did since the last number
/// was read. So that local producers do not conflict with each other, what has gathered goes in one
/// transaction at a time.
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
  }

  void add(const waiter& who, std::string value) {
    pending_.push_back({who, std::move(value)});
    // One that is on its way to the server stays: the write may happen.
    who->on_cancel([self = shared_from_this(), raw = who.get()] {
      std::erase_if(self->pending_, [raw](const item& each) { return each.who.get() == raw; });
    });
    if (!std::exchange(writing_, true)) runtime_->spawn(write_all(shared_from_this()));
  }

  [[nodiscard]] bool in_use() const override { return writing_; }

private:
  struct item {
    waiter who;
    std::string value;
  };

  static constexpr std::size_t most_items = 60;  // each takes a compare and a put of the 128 operations
  static constexpr std::size_t most_bytes = std::size_t{1024} * 1024;

  static asio::awaitable<void> write_all(std::shared_ptr<priority_lane> self) {
    engine::backoff pause{std::chrono::milliseconds{2}, std::chrono::milliseconds{100},
                          self->runtime_->seed()};
    while (!self->pending_.empty()) {
      bool conflict = false;
      try {
        if (!self->known_)
          co_await look(self);
        else
          conflict = !co_await write_some(self);
        if (!conflict) pause.reset();
      } catch (const error&) {
        self->fail(std::current_exception());
      } catch (const std::exception&) {  // an answer of another shape
        self->fail(std::make_exception_ptr(error(errc::unexpected_response, "KV.Txn")));
      }
      // Another process was faster, more than once in a row: give it room.
      if (conflict && ++self->conflicts_ > 1) co_await engine::sleep_for(self->runtime_, pause.next());
      if (!conflict) self->conflicts_ = 0;
    }
    self->writing_ = false;
    if (const auto list = self->lingering_.lock()) list->idle(self);
  }

  [[nodiscard]] range_request last_item() const {
    // From the first digit to the last: other keys below the prefix are no items.
    return range_interval(
        items_ + "0", items_ + ":",
        {.limit = 1, .order = sort_order::descend, .target = sort_target::key, .keys_only = true});
  }

  static asio::awaitable<void> look(std::shared_ptr<priority_lane> self) {
    txn request;
    request.then(range(self->base_, {.keys_only = true}), self->last_item());
    const txn_response answer = co_await engine::call(self->runtime_, std::move(request));
    self->learn(answer);
  }

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
  static asio::awaitable<bool> write_some(std::shared_ptr<priority_lane> self) {
    txn request;
    request.when(mod_revision(self->base_) == self->base_revision_).then(put(self->base_, ""));
    std::size_t bytes = 0;
    auto number = self->next_number_;
    self->sending_.clear();
    while (!self->pending_.empty() && self->sending_.size() < most_items) {
      auto& each = self->pending_.front();
      if (!self->sending_.empty() && bytes + each.value.size() > most_bytes) break;
      bytes += each.value.size();
      auto key = self->key_of(number++);
      request.when(create_revision(key) == 0).then(put(std::move(key), each.value));
      self->sending_.push_back(std::move(each));
      self->pending_.pop_front();
    }
    for (const auto& each : self->sending_) each.who->on_cancel(nullptr);
    request.otherwise(range(self->base_, {.keys_only = true}), self->last_item());
    const txn_response answer = co_await self->writes_->apply(std::move(request));
    if (!answer.succeeded) {
      self->learn(answer);
      // Those whose producers have left meanwhile were not written: they stay out.
      for (auto each = self->sending_.rbegin(); each != self->sending_.rend(); ++each)
        if (each->who->waiting()) self->requeue(std::move(*each));
      self->sending_.clear();
      co_return false;
    }
    self->base_revision_ = answer.header.revision;
    self->next_number_ = number;
    for (const auto& each : self->sending_) each.who->complete(answer.header.revision);
    self->sending_.clear();
    co_return true;
  }

  void requeue(item each) {
    each.who->on_cancel([self = shared_from_this(), raw = each.who.get()] {
      std::erase_if(self->pending_, [raw](const item& other) { return other.who.get() == raw; });
    });
    pending_.push_front(std::move(each));
  }

  void fail(const std::exception_ptr& why) {
    known_ = false;
    // A request that is too large, or refused for its size, must not take its neighbours with it.
    if (sending_.empty()) {
      for (auto& each : std::exchange(pending_, {})) each.who->fail(why);
      return;
    }
    for (auto& each : std::exchange(sending_, {})) each.who->fail(why);
  }

  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::write_combiner> writes_;
  std::weak_ptr<engine::linger_list> lingering_;  // which keeps this
  std::string base_;
  std::string items_;
  std::deque<item> pending_;
  std::vector<item> sending_;
  revision base_revision_ = 0;
  std::uint64_t next_number_ = 0;
  unsigned conflicts_ = 0;
  bool known_ = false;
  bool writing_ = false;
};

}  // namespace conclave::detail::pattern
