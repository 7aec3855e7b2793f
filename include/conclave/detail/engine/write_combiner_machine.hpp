// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <map>
#include <memory_resource>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/detail/engine/numbered.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Gathers independent writes while one is under way, and sends what has gathered as one transaction: one
/// proposal to the cluster instead of many. Pure: writes, answers and times go in, actions come out.
///
/// A write that finds nothing under way goes at once, as it is. Otherwise it waits for the answer that is
/// outstanding, and goes with the others that wait, each nested with its own compares, or as it is if it is one
/// operation without any, which is less work for etcd; each gets its own part of the answer, as if it had been
/// sent alone, in the order of the batch.
///
/// Whoever has an answer often has the next write at once. After a batch of several the next one therefore goes
/// when those who were answered have had their turn (`gather`): otherwise half of them would wait while the
/// other half's batch is under way, and etcd's work for a batch hardly depends on how much is in it.
///
/// A batch is as good as its members alone because of what may *not* share one:
///
/// - Two members of which one writes a key that the other writes, reads or compares. etcd evaluates all
///   compares, nested ones too, on the state before the whole transaction, so that a compare would not see
///   what an earlier member writes. It does let a read see that; but a read does not see what a later member
///   writes at the very revision that its header then tells, and whoever watches from the one after it would
///   miss that write. And it refuses (as `duplicate_key`) two puts of one key, and a put of a key that an
///   earlier member deletes, in whichever of their branches.
/// - Two members of one *lane*, unless both say that they may share. All members of a batch are applied at
///   one revision: keys that they create have the same create revision, keys that they write the same
///   modification revision, and their headers tell the same revision. Where an order is read off revisions,
///   it would be lost: the enqueues of one queue that is ordered by modification must not share, nor the
///   joins of one line. (Fencing tokens of *different* locks may come out equal.) A recipe names its lane, by
///   the prefix of its keys, for the writes whose order counts; claims and deletions need none.
///
/// What may not share keeps its order of arrival; everything else may overtake. The oldest that may go always
/// goes, so that a member never starves for being large or often in conflict.
///
/// A batch of members that all may be sent twice may be sent twice; one that has another among them may not.
///
/// A batch that is refused for what may be one member's fault was not applied. Its halves are tried, and so
/// on, until whoever is at fault gets its own error and everybody else an answer.
///
/// Of etcd 3.4.23, two things that a batch would change, and one that it does change:
/// - Nested puts count nothing against the store's quota, and are applied in spite of the alarm for space. A
///   batch whose puts are all nested therefore names one of them, with an empty value, in the branch that is
///   never taken: that is charged, like any put.
/// - "No space" is no certain refusal: a transaction whose turn comes when the store has just become full is
///   applied, and answered so. Such a batch is never repeated. Members that put get `no_space`, as they would
///   alone; those that do not, and alone would have been let in, get `outcome_unknown`, and share no batch
///   with puts as long as the store is full.
/// - It does not check a user's permissions inside nested transactions: a member may do what alone it may not.
///   Set `most_members` to 1 where that matters.
class write_combiner_machine {
public:
  using time_point = std::chrono::steady_clock::time_point;
  using duration = std::chrono::steady_clock::duration;
  using handle = std::uint64_t;
  using batch_id = std::uint64_t;

  struct limits {
    /// Members of one batch; 1 switches combining off.
    std::size_t most_members = 127;
    /// etcd's --max-txn-ops. A level takes the largest of its numbers of compares and of operations in either
    /// branch, and leaves to the levels below it the rest: members and what the largest of them takes must
    /// not exceed it together.
    std::size_t most_operations = 128;
    /// Bytes of all members; a larger one goes alone. etcd takes 1.5 MiB.
    std::size_t most_bytes = std::size_t{1024} * 1024;
    /// Batches under way at a time. One: more would only make batches smaller, and proposals more, while a
    /// member waits for less than one round trip anyway. Above one, members of different batches are applied
    /// in any order; those that may not share a batch are not under way together.
    std::size_t most_in_flight = 1;
    /// How long a member may wait before it is sent. Looked at when an answer comes.
    duration patience = std::chrono::seconds{5};
  };

  struct member {
    member() = default;
    txn write;
    /// What its order counts in; empty: nothing.
    std::string lane;
    /// It may share a batch with members of its lane that say the same, which keep their order in it.
    bool may_share = false;
    /// It does its work once, however often and however late its copies arrive.
    bool repeatable = false;
    /// Its encoded size.
    std::size_t bytes = 0;
  };

  /// Send this, more than once if need be and `repeatable` says so; tell `on_answer` or `on_failed`.
  struct send {
    batch_id batch = 0;
    txn request;
    bool repeatable = false;
    friend bool operator==(const send&, const send&) = default;
  };
  struct answered {
    handle who = 0;
    txn_response answer;
    /// An attempt before the one that was answered may have been applied, or may yet be.
    bool repeated = false;
    friend bool operator==(const answered&, const answered&) = default;
  };
  struct failed {
    handle who = 0;
    errc code = errc::server_error;
    friend bool operator==(const failed&, const failed&) = default;
  };
  /// Call `proceed` when those who have just been answered have had their turn.
  struct gather {
    friend bool operator==(const gather&, const gather&) = default;
  };
  using action = std::variant<send, answered, failed, gather>;
  using actions = std::vector<action>;

  write_combiner_machine() = default;
  explicit write_combiner_machine(const limits& within) : limits_(within) {}
  write_combiner_machine(const write_combiner_machine&) = delete;
  write_combiner_machine& operator=(const write_combiner_machine&) = delete;

  /// A write, and what can be said of it before it comes: on any thread.
  class candidate;
  static candidate prepare(member what);

  /// Lets it stand with those that wait for `go`. Handles ascend from 1.
  handle enter(candidate what, time_point now);

  /// Sends what may go now.
  actions go() {
    actions out;
    form(out);
    return out;
  }

  /// Nobody waits for this write any more. If it has yet to be sent, it is not; otherwise its result is
  /// dropped.
  void drop(handle id) {
    const auto found = by_handle_.take(id);
    if (!found) return;
    if ((*found)->sent)
      (*found)->dropped = true;
    else
      waiting_.erase(*found);
  }

  /// `repeated`: attempts before this one had no answer.
  actions on_answer(batch_id id, txn_response answer, time_point now, bool repeated = false) {
    actions out;
    auto members = take(id, repeated);
    if (members.empty()) return out;
    out.reserve(members.size() + 2);
    if (members.size() == 1) {
      finish(members.front(), std::move(answer), out);
    } else if (!well_formed(answer, members)) {
      for (auto& each : members) finish(each, errc::unexpected_response, out);
    } else {
      std::size_t index = 0;
      for (auto& each : members) finish(each, part_of(answer, index++), out);
    }
    if (std::any_of(members.begin(), members.end(), [](const entry& each) { return each.charged; }))
      full_ = false;
    if (members.size() > 1 && !gathering_) {
      gathering_ = true;
      out.emplace_back(gather{});
    }
    go_on(now, out);
    spent_.splice(spent_.end(), members);
    return out;
  }

  /// Frees what those who were answered had asked for: better after the next batch is on its way than before.
  void tidy() {
    if (!gathering_) spent_.clear();
  }

  /// Sends what has gathered since a `gather`.
  actions proceed() {
    gathering_ = false;
    return go();
  }

  /// The batch failed, by the error of the call. `repeated`: attempts before the last one had no answer.
  actions on_failed(batch_id id, errc code, time_point now, bool repeated = false) {
    actions out;
    auto members = take(id, repeated);
    if (members.empty()) return out;
    if (code == errc::no_space) full_ = true;
    if (members.size() > 1 && may_be_of_one(code)) {
      split(members);
    } else {
      const bool shared = members.size() > 1;
      for (auto& each : members) finish(each, shared ? share_of(code, each) : code, out);
    }
    go_on(now, out);
    return out;
  }

  /// The one operation that a write does whatever the state, if that is all it asks for: it needs no nesting.
  static const request_op* lone_operation(const txn& request) {
    if (!request.compare.empty() || !request.failure.empty() || request.success.size() != 1) return nullptr;
    const auto& only = request.success.front();
    return std::holds_alternative<txn>(only.request) ? nullptr : &only;
  }

  [[nodiscard]] std::size_t waiting() const noexcept { return waiting_.size(); }
  [[nodiscard]] std::size_t in_flight() const noexcept { return under_way_.size(); }

private:
  /// Keys [begin, end), or from `begin` on.
  struct interval {
    std::string_view begin;
    std::optional<std::string_view> end;
    bool written = false;

    [[nodiscard]] bool contains(std::string_view key) const noexcept {
      return begin <= key && (!end || key < *end);
    }
    [[nodiscard]] bool meets(const interval& other) const noexcept {
      return (!other.end || begin < *other.end) && (!end || other.begin < *end);
    }
  };
  struct point {
    std::string_view key;
    bool written = false;
  };

  struct entry {
    explicit entry(member of) : what(std::move(of)) {}

    handle id = 0;  ///< They wait in this order.
    member what;
    time_point since;
    std::size_t weight = 0;
    /// Largest batch that it may be in: less than others after a refusal.
    std::size_t most = 0;
    bool charged = false;  ///< The server asks for space before it takes it.
    bool sent = false;
    bool repeated = false;  ///< It may have been applied by an attempt without an answer.
    bool dropped = false;
  };
  using entries = std::list<entry>;

  /// Asks `look` of a key or a range.
  template <class Look>
  static bool ask(const std::string& key, const std::string& range_end, bool written, const Look& look) {
    static constexpr std::string_view nul{"\0", 1};
    if (range_end.empty()) return look(point{key, written});
    // A range from the lowest key there can be begins, in a client's part of the store, with the empty one.
    interval all{key == nul ? std::string_view{} : std::string_view{key}, std::nullopt, written};
    if (range_end != nul) all.end = range_end;
    return look(all);
  }

  /// Asks `look` of all that a write names, each a `point` or an `interval`, until the answer is yes.
  template <class Look>
  static bool any_of(const txn& request, const Look& look) {
    for (const auto& each : request.compare)
      if (ask(each.key, each.range_end, false, look)) return true;
    for (const auto* branch : {&request.success, &request.failure})
      for (const auto& each : *branch) {
        bool found = false;
        if (const auto* reads = std::get_if<range_request>(&each.request))
          found = ask(reads->key, reads->range_end, false, look);
        else if (const auto* puts = std::get_if<put_request>(&each.request))
          found = ask(puts->key, {}, true, look);
        else if (const auto* deletes = std::get_if<delete_range_request>(&each.request))
          found = ask(deletes->key, deletes->range_end, true, look);
        else if (const auto* nested = std::get_if<txn>(&each.request))
          found = any_of(*nested, look);
        if (found) return true;
      }
    return false;
  }

  /// What some members touch: nobody in conflict with it may join or overtake them.
  class claims {
  public:
    explicit claims(std::pmr::memory_resource* nodes) : points_(nodes), lanes_(nodes) {}

    [[nodiscard]] bool conflict(const entry& each) const {
      if (!each.what.lane.empty()) {
        const auto lane = lanes_.find(each.what.lane);
        if (lane != lanes_.end() && !(lane->second && each.what.may_share)) return true;
      }
      return any_of(each.what.write, [this](const auto& one) { return meets(one); });
    }

    /// `open`: members of the same lane may still join it.
    void add(const entry& each, bool open) {
      any_of(each.what.write, [this](const auto& one) {
        insert(one);
        return false;
      });
      if (each.what.lane.empty()) return;
      const auto lane = lanes_.emplace(each.what.lane, true).first;
      if (!open || !each.what.may_share) lane->second = false;
    }

  private:
    [[nodiscard]] bool meets(const point& p) const {
      const auto same = points_.find(p.key);
      if (same != points_.end() && (same->second || p.written)) return true;
      return std::any_of(intervals_.begin(), intervals_.end(),
                         [&p](const interval& i) { return (i.written || p.written) && i.contains(p.key); });
    }
    [[nodiscard]] bool meets(const interval& i) const {
      for (auto p = points_.lower_bound(i.begin); p != points_.end() && i.contains(p->first); ++p)
        if (i.written || p->second) return true;
      return std::any_of(intervals_.begin(), intervals_.end(), [&i](const interval& other) {
        return (i.written || other.written) && i.meets(other);
      });
    }

    void insert(const point& p) { points_[p.key] |= p.written; }
    void insert(const interval& i) { intervals_.push_back(i); }

    std::pmr::map<std::string_view, bool> points_;
    std::vector<interval> intervals_;
    std::pmr::unordered_map<std::string_view, bool> lanes_;
  };

  /// What a transaction takes of `most_operations`.
  static std::size_t weight(const txn& request) {
    std::size_t below = 0;
    for (const auto* branch : {&request.success, &request.failure})
      for (const auto& each : *branch)
        if (const auto* nested = std::get_if<txn>(&each.request)) below = std::max(below, weight(*nested));
    return std::max({request.compare.size(), request.success.size(), request.failure.size()}) + below;
  }

  /// The put, if any, for which the server asks for space.
  static const put_request* charge_of(const txn& request) {
    for (const auto* branch : {&request.success, &request.failure})
      for (const auto& each : *branch)
        if (const auto* puts = std::get_if<put_request>(&each.request)) return puts;
    return nullptr;
  }

  /// What an operation adds to the size of what is around it.
  static constexpr std::size_t wrapping = 16;
  /// Members that are passed over in one search for more that may go.
  static constexpr std::size_t most_passed_over = 1024;

  /// Sends what may go now.
  void form(actions& out) {
    while (!gathering_ && !waiting_.empty() &&
           under_way_.size() < std::max<std::size_t>(limits_.most_in_flight, 1)) {
      auto batch = choose();
      if (batch.empty()) return;
      send next;
      next.batch = ++last_batch_;
      if (batch.size() > 1)
        next.request = compose(batch);
      else if (limits_.most_in_flight > 1)
        next.request = batch.front().what.write;
      else  // nobody else is looked at for conflicts while it is under way
        next.request = std::move(batch.front().what.write);
      next.repeatable =
          std::all_of(batch.begin(), batch.end(), [](const entry& each) { return each.what.repeatable; });
      for (auto& each : batch) each.sent = true;
      under_way_.emplace(next.batch, std::move(batch));
      out.emplace_back(std::move(next));
    }
  }

  entries choose() {
    entries batch;
    if (waiting_.size() == 1 && under_way_.empty()) {  // there is nothing to be in conflict with
      batch.swap(waiting_);
      return batch;
    }
    // Gone when the batch stands: no allocation for each key.
    std::array<std::byte, 8192> space;
    std::pmr::monotonic_buffer_resource nodes{space.data(), space.size()};
    claims ahead{&nodes};
    for (const auto& [id, members] : under_way_)
      for (const auto& each : members) ahead.add(each, false);
    std::size_t bytes = 0;
    std::size_t heaviest = 0;
    std::size_t passed_over = 0;
    for (auto next = waiting_.begin(); next != waiting_.end() && passed_over < most_passed_over;) {
      if (!batch.empty() &&
          (batch.size() >= batch.front().most || batch.size() + 1 + heaviest > limits_.most_operations))
        break;
      const auto each = next++;
      const auto size = each->what.bytes + wrapping;
      bool joins = !ahead.conflict(*each);
      if (joins && !batch.empty()) {
        const auto& first = batch.front();
        joins = each->most == first.most && bytes + size <= limits_.most_bytes &&
                batch.size() + 1 + std::max(heaviest, each->weight) <= limits_.most_operations &&
                (!full_ || each->charged == first.charged);
      }
      ahead.add(*each, joins);
      if (!joins) {
        ++passed_over;
        continue;
      }
      bytes += size;
      heaviest = std::max(heaviest, each->weight);
      batch.splice(batch.end(), waiting_, each);
    }
    return batch;
  }

  static txn compose(const entries& batch) {
    txn whole;
    whole.success.reserve(batch.size());
    const put_request* charge = nullptr;
    for (const auto& each : batch) {
      if (const auto* only = lone_operation(each.what.write))
        whole.success.push_back(*only);
      else
        whole.success.emplace_back(each.what.write);
      if (charge == nullptr) charge = charge_of(each.what.write);
    }
    if (charge != nullptr && charge_of(whole) == nullptr) {
      put_request named;
      named.key = charge->key;
      whole.failure.emplace_back(std::move(named));
    }
    return whole;
  }

  entries take(batch_id id, bool repeated) {
    entries out;
    const auto found = under_way_.find(id);
    if (found == under_way_.end()) return out;
    out = std::move(found->second);
    under_way_.erase(found);
    for (auto& each : out) each.repeated = each.repeated || repeated;
    return out;
  }

  void go_on(time_point now, actions& out) {
    while (!waiting_.empty() && now - waiting_.front().since >= limits_.patience) {
      finish(waiting_.front(), errc::timed_out, out);
      waiting_.pop_front();
    }
    form(out);
  }

  template <class Result>
  void finish(entry& each, Result result, actions& out) {
    if (each.dropped) return;
    by_handle_.take(each.id);
    if constexpr (std::is_same_v<Result, errc>)
      out.emplace_back(
          failed{each.id, each.repeated && says_not_applied(result) ? errc::outcome_unknown : result});
    else
      out.emplace_back(answered{each.id, std::move(result), each.repeated});
  }

  /// It is said of the last attempt, and no comfort if one before it had no answer.
  static bool says_not_applied(errc code) noexcept {
    return code == errc::timed_out || code == errc::unavailable || code == errc::too_many_requests;
  }

  static bool well_formed(const txn_response& answer, const entries& members) {
    return answer.succeeded && std::equal(answer.responses.begin(), answer.responses.end(), members.begin(),
                                          members.end(), [](const response_op& part, const entry& each) {
                                            const auto* only = lone_operation(each.what.write);
                                            return only == nullptr
                                                       ? std::holds_alternative<txn_response>(part.response)
                                                       : answers(part, *only);
                                          });
  }

  static bool answers(const response_op& part, const request_op& asked) {
    if (std::holds_alternative<put_request>(asked.request))
      return std::holds_alternative<put_response>(part.response);
    if (std::holds_alternative<delete_range_request>(asked.request))
      return std::holds_alternative<delete_range_response>(part.response);
    return std::holds_alternative<range_request>(asked.request) &&
           std::holds_alternative<range_response>(part.response);
  }

  /// What a member would have heard alone.
  static txn_response part_of(txn_response& answer, std::size_t index) {
    auto& part = answer.responses[index];
    txn_response out;
    if (auto* nested = std::get_if<txn_response>(&part.response)) {
      out = std::move(*nested);
    } else {
      out.succeeded = true;
      out.responses.push_back(std::move(part));
    }
    out.header = answer.header;
    return out;
  }

  /// Refusals, before anything was applied, for which one member may be the reason.
  static bool may_be_of_one(errc code) noexcept {
    switch (code) {
      case errc::invalid_argument:
      case errc::request_too_large:
      case errc::too_many_operations:
      case errc::duplicate_key:
      case errc::lease_not_found:
      case errc::permission_denied:
      case errc::compacted:
      case errc::future_revision:
        return true;
      default:
        return false;
    }
  }

  /// What the failure of a batch of several means to one of its members.
  static errc share_of(errc code, const entry& each) noexcept {
    if (code == errc::no_space && !each.charged) return errc::outcome_unknown;
    // The others' answers may be what was too large; in any case it was applied.
    if (code == errc::response_too_large) return errc::outcome_unknown;
    return code;
  }

  void split(entries& members) {
    const auto half = (members.size() + 1) / 2;
    members.remove_if([](const entry& each) { return each.dropped; });
    for (auto& each : members) {
      each.sent = false;
      each.most = half;
    }
    // Back where they were: those that they have overtaken are not to wait for them now.
    waiting_.merge(members, [](const entry& a, const entry& b) { return a.id < b.id; });
  }

  limits limits_;
  entries waiting_;
  entries spent_;
  std::map<batch_id, entries> under_way_;
  numbered<entries::iterator> by_handle_;
  batch_id last_batch_ = 0;
  bool full_ = false;
  bool gathering_ = false;
};

class write_combiner_machine::candidate {
  friend class write_combiner_machine;
  entries one_;
};

inline write_combiner_machine::candidate write_combiner_machine::prepare(member what) {
  candidate out;
  auto& each = out.one_.emplace_back(std::move(what));
  each.weight = weight(each.what.write);
  each.charged = charge_of(each.what.write) != nullptr;
  return out;
}

inline write_combiner_machine::handle write_combiner_machine::enter(candidate what, time_point now) {
  const auto added = what.one_.begin();
  added->id = by_handle_.push_back(added);
  added->since = now;
  added->most = std::max<std::size_t>(limits_.most_members, 1);
  waiting_.splice(waiting_.end(), what.one_);
  return added->id;
}

}  // namespace conclave::detail::engine
