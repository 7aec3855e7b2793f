// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/detail/engine/backoff.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/watch.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Carries many watches on one stream and resumes them over reconnects. Pure: messages and times go in,
/// actions come out.
///
/// Two kinds of watch: one that *resumes* loses nothing, and ends when what it missed has been compacted; one
/// *from now* starts anew after every gap and says so by `created`, upon which its owner reads the state
/// again.
class watch_hub_machine {
public:
  using time_point = std::chrono::steady_clock::time_point;
  using handle = std::uint64_t;

  struct spec {
    spec() = default;
    std::string key;
    std::string range_end;
    /// Zero: from now, and from now again after each gap. Otherwise the first revision wanted.
    revision start_revision = 0;
    bool prev_kv = false;
    bool progress_notify = false;
    std::vector<watch_filter> filters;
  };

  struct open_stream {
    friend bool operator==(const open_stream&, const open_stream&) = default;
  };
  struct close_stream {
    friend bool operator==(const close_stream&, const close_stream&) = default;
  };
  struct send {
    watch_request request;
    friend bool operator==(const send&, const send&) = default;
  };
  /// The server serves the watch; everything after this is delivered. For a watch from now: read the state
  /// now.
  struct created {
    handle watch = 0;
    friend bool operator==(const created&, const created&) = default;
  };
  struct events {
    handle watch = 0;
    std::vector<event> batch;
    friend bool operator==(const events&, const events&) = default;
  };
  /// Nothing up to and including `upto` is outstanding.
  struct progress {
    handle watch = 0;
    revision upto = 0;
    friend bool operator==(const progress&, const progress&) = default;
  };
  /// The watch ended: what it would have to resume from is gone, the oldest revision left is `oldest`.
  struct compacted {
    handle watch = 0;
    revision oldest = 0;
    friend bool operator==(const compacted&, const compacted&) = default;
  };
  /// The watch ended for another reason.
  struct failed {
    handle watch = 0;
    errc code = errc::server_error;
    std::string reason;
    friend bool operator==(const failed&, const failed&) = default;
  };
  using action = std::variant<open_stream, close_stream, send, created, events, progress, compacted, failed>;
  using actions = std::vector<action>;

  /// How long a server may take to acknowledge the next watch. One that hangs, or no longer reads the stream after it
  /// has refused a watch (etcd 3.4), would be waited for without end.
  static constexpr std::chrono::seconds patience{5};

  explicit watch_hub_machine(std::uint64_t seed)
      : backoff_(std::chrono::milliseconds{20}, std::chrono::seconds{1}, seed) {}

  /// Starts a watch under a handle of the caller's choice, never used before.
  actions add(handle id, spec what, time_point now) {
    actions out;
    watch each;
    each.next_revision = what.start_revision;
    each.what = std::move(what);
    auto& added = watches_.insert_or_assign(id, std::move(each)).first->second;
    if (stream_ == stream_state::open)
      create(id, added, now, out);
    else if (stream_ == stream_state::closed)
      open(out);
    return out;
  }

  /// Ends a watch; nothing is reported about it any more.
  actions remove(handle id) {
    actions out;
    const auto found = watches_.find(id);
    if (found == watches_.end()) return out;
    if (found->second.wire_id != 0 && found->second.acknowledged) cancel_on_wire(found->second.wire_id, out);
    watches_.erase(found);  // a create that is outstanding is cancelled when it is acknowledged
    return out;
  }

  [[nodiscard]] std::size_t size() const noexcept { return watches_.size(); }
  /// Messages for ids that are not, or no longer, ours.
  [[nodiscard]] std::uint64_t strays() const noexcept { return strays_; }

  /// The key of a watch that will resume from a revision, if there is one.
  [[nodiscard]] std::optional<std::string> resuming() const {
    for (const auto& [id, each] : watches_)
      if (!each.from_now()) return each.what.key;
    return std::nullopt;
  }

  /// What a server means by the text that it ends a watch with.
  static errc reason_code(const std::string& reason) {
    const auto has = [&reason](const char* part) { return reason.find(part) != std::string::npos; };
    if (has("PermissionDenied") || has("permission denied")) return errc::permission_denied;
    if (has("Unauthenticated") || has("invalid auth token")) return errc::unauthenticated;
    if (has("watcher range is empty")) return errc::invalid_argument;
    if (has("compacted")) return errc::compacted;
    return errc::server_error;
  }

  actions on_stream_open(time_point now) {
    actions out;
    if (stream_ != stream_state::opening) return out;
    stream_ = stream_state::open;
    opened_at_ = now;
    by_wire_id_.clear();
    outstanding_.clear();
    next_wire_id_ = 1;
    for (auto& [id, each] : watches_) create(id, each, now, out);
    return out;
  }

  /// The stream ended. A stream that ends, even with OK, is a fault; `fatal` is set when trying again cannot
  /// help.
  actions on_stream_closed(time_point now, std::optional<errc> fatal = std::nullopt,
                           const std::string& reason = {}) {
    actions out;
    if (stream_ == stream_state::closed) return out;
    for (auto& [id, each] : watches_) reset(each);
    if (fatal) {
      stream_ = stream_state::closed;
      for (auto& [id, each] : std::exchange(watches_, {})) out.emplace_back(failed{id, *fatal, reason});
      return out;
    }
    wait_to_reopen(now);
    return out;
  }

  actions on_timer(time_point now) {
    actions out;
    if (stream_ == stream_state::open && !outstanding_.empty() && now >= outstanding_.front().overdue) {
      distrust(now, out);
      return out;
    }
    if (stream_ != stream_state::waiting || now < reopen_at_) return out;
    if (watches_.empty())
      stream_ = stream_state::closed;
    else
      open(out);
    return out;
  }

  [[nodiscard]] std::optional<time_point> next_wakeup() const {
    if (stream_ == stream_state::waiting) return reopen_at_;
    if (stream_ == stream_state::open && !outstanding_.empty()) return outstanding_.front().overdue;
    return std::nullopt;
  }

  actions on_message(watch_response message, time_point now) {
    actions out;
    if (stream_ != stream_state::open) return out;
    if (message.created) {
      on_created(message, now, out);
      return out;
    }
    const auto known = by_wire_id_.find(message.watch_id);
    if (known == by_wire_id_.end()) {
      // -1 answers a progress request, which is not tied to events on older servers; the rest are leftovers.
      if (message.watch_id != -1) ++strays_;
      return out;
    }
    const handle id = known->second;
    auto& each = watches_.at(id);
    if (message.compact_revision != 0) {
      end_on_wire(each);
      if (each.from_now()) {
        create(id, each, now, out);
      } else {
        watches_.erase(id);
        out.emplace_back(compacted{id, message.compact_revision});
      }
      return out;
    }
    if (message.canceled) {
      end_on_wire(each);
      watches_.erase(id);
      out.emplace_back(failed{id, reason_code(message.cancel_reason), std::move(message.cancel_reason)});
      return out;
    }
    if (message.fragment || !each.fragments.empty()) {
      auto& all = each.fragments;
      all.insert(all.end(), std::make_move_iterator(message.events.begin()),
                 std::make_move_iterator(message.events.end()));
      if (message.fragment) return out;
      message.events = std::exchange(all, {});
    }
    if (message.events.empty()) {
      // Never trust a revision below what was asked for: some servers report those for watches of the future.
      const auto upto = message.header.revision;
      if (upto >= each.next_revision && upto >= each.what.start_revision && plausible(upto)) {
        if (!each.from_now()) each.next_revision = upto + 1;
        out.emplace_back(progress{id, upto});
      }
      return out;
    }
    deliver(id, each, std::move(message.events), now, out);
    return out;
  }

private:
  enum class stream_state { closed, opening, open, waiting };

  struct watch {
    spec what;
    revision next_revision = 0;
    std::int64_t wire_id = 0;
    bool acknowledged = false;
    std::vector<event> fragments;

    [[nodiscard]] bool from_now() const noexcept { return what.start_revision == 0; }
  };

  /// One that there can be another after.
  static bool plausible(revision at) noexcept { return at > 0 && at < std::numeric_limits<revision>::max(); }

  void open(actions& out) {
    stream_ = stream_state::opening;
    out.emplace_back(open_stream{});
  }

  void wait_to_reopen(time_point now) {
    // A stream that stood for a while shows that all was well; one that is ended again and again does not.
    if (now - opened_at_ >= patience) backoff_.reset();
    opened_at_ = now;
    stream_ = stream_state::waiting;
    reopen_at_ = now + backoff_.next();
  }

  static void reset(watch& each) {
    each.wire_id = 0;
    each.acknowledged = false;
    each.fragments.clear();
    if (each.from_now()) each.next_revision = 0;
  }

  void create(handle id, watch& each, time_point now, actions& out) {
    reset(each);
    each.wire_id =
        next_wire_id_++;  // ids are never used twice on a stream: late events would hit the wrong watch
    watch_create_request request;
    request.key = each.what.key;
    request.range_end = each.what.range_end;
    request.start_revision = each.next_revision;
    request.prev_kv = each.what.prev_kv;
    request.progress_notify = each.what.progress_notify;
    request.filters = each.what.filters;
    request.watch_id = each.wire_id;
    request.fragment = true;
    outstanding_.push_back({id, each.wire_id, now + patience});
    out.emplace_back(send{watch_request{std::move(request)}});
  }

  void cancel_on_wire(std::int64_t wire_id, actions& out) {
    by_wire_id_.erase(wire_id);
    watch_cancel_request request;
    request.watch_id = wire_id;
    out.emplace_back(send{watch_request{request}});
  }

  void end_on_wire(watch& each) { by_wire_id_.erase(each.wire_id); }

  void on_created(watch_response& message, time_point now, actions& out) {
    // Creates are answered in their order; a refused one carries no id.
    if (outstanding_.empty() ||
        (message.watch_id != -1 && message.watch_id != outstanding_.front().wire_id)) {
      distrust(now, out);
      return;
    }
    const auto expected = outstanding_.front();
    outstanding_.pop_front();
    // Thousands take their time: what counts is that the server gets on.
    if (!outstanding_.empty()) outstanding_.front().overdue = now + patience;
    const auto found = watches_.find(expected.id);
    const bool wanted = found != watches_.end() && found->second.wire_id == expected.wire_id;
    if (message.canceled) {
      if (!wanted) return;
      watches_.erase(found);
      if (message.compact_revision != 0)
        out.emplace_back(compacted{expected.id, message.compact_revision});
      else
        out.emplace_back(
            failed{expected.id, reason_code(message.cancel_reason), std::move(message.cancel_reason)});
      return;
    }
    if (!wanted) {
      cancel_on_wire(expected.wire_id, out);
      return;
    }
    found->second.acknowledged = true;
    by_wire_id_[expected.wire_id] = expected.id;
    out.emplace_back(created{expected.id});
  }

  void deliver(handle id, watch& each, std::vector<event> batch, time_point now, actions& out) {
    const bool complete = std::all_of(batch.begin(), batch.end(), [](const event& e) {
      return e.kv.has_value() && plausible(e.kv->mod_revision);
    });
    // Servers have sent events twice, and events from before the start of a watch.
    if (complete)
      std::erase_if(batch, [&](const event& e) { return e.kv->mod_revision < each.next_revision; });
    if (batch.empty()) return;
    const bool ordered =
        complete && std::is_sorted(batch.begin(), batch.end(), [](const event& a, const event& b) {
          return a.kv->mod_revision < b.kv->mod_revision;
        });
    if (!ordered) {
      distrust(now, out);
      return;
    }
    each.next_revision = batch.back().kv->mod_revision + 1;
    out.emplace_back(events{id, std::move(batch)});
  }

  /// The server violates the protocol: start over on a new stream, from what was delivered last.
  void distrust(time_point now, actions& out) {
    for (auto& [id, each] : watches_) reset(each);
    out.emplace_back(close_stream{});
    wait_to_reopen(now);
  }

  struct outstanding_create {
    handle id = 0;
    std::int64_t wire_id = 0;
    time_point overdue;
  };

  std::map<handle, watch> watches_;
  std::unordered_map<std::int64_t, handle> by_wire_id_;
  std::deque<outstanding_create> outstanding_;
  std::int64_t next_wire_id_ = 1;
  std::uint64_t strays_ = 0;
  stream_state stream_ = stream_state::closed;
  time_point opened_at_;
  time_point reopen_at_;
  backoff backoff_;
};

}  // namespace conclave::detail::engine
