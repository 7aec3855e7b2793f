// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/detail/engine/backoff.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Keeps the leases of one keepalive stream alive, and knows for each until when its holder may believe in
/// it. Pure: events and times go in, actions come out.
///
/// * A lease counts as valid until *send time of the answered keepalive + TTL in the answer − margin*: the
/// server
///   starts its own clock later than we sent, so we give up before it can.
/// * Renewal at a third of the TTL. An answer that does not come in time makes the stream suspect: it is
/// closed
///   and opened anew, and all that was under way is sent again.
/// * A lost lease is lost for good.
class lease_keeper_machine {
public:
  using time_point = std::chrono::steady_clock::time_point;
  using duration = std::chrono::steady_clock::duration;

  struct open_stream {
    friend bool operator==(const open_stream&, const open_stream&) = default;
  };
  /// `suspect`: it was silent for too long; prefer another server.
  struct close_stream {
    bool suspect = false;
    friend bool operator==(const close_stream&, const close_stream&) = default;
  };
  struct send_keepalive {
    lease_id id = 0;
    friend bool operator==(const send_keepalive&, const send_keepalive&) = default;
  };
  struct renewed {
    lease_id id = 0;
    time_point valid_until;
    friend bool operator==(const renewed&, const renewed&) = default;
  };
  enum class loss {
    expired,
    not_found,
    cluster_reset,  ///< Never said by the machine: its driver hears of it.
  };
  struct lost {
    lease_id id = 0;
    loss why = loss::expired;
    friend bool operator==(const lost&, const lost&) = default;
  };
  /// Ask for the lease's time to live: a member may say "unknown" to a lease whose grant it has yet to apply.
  struct confirm {
    lease_id id = 0;
    friend bool operator==(const confirm&, const confirm&) = default;
  };
  using action = std::variant<open_stream, close_stream, send_keepalive, renewed, lost, confirm>;
  using actions = std::vector<action>;

  explicit lease_keeper_machine(std::uint64_t seed)
      : backoff_(std::chrono::milliseconds{50}, std::chrono::seconds{1}, seed) {}

  /// The part of a lease's time that is not used, for clocks that run at different speeds.
  static duration margin(duration ttl) noexcept {
    return std::clamp<duration>(ttl / 20, std::chrono::milliseconds{50}, std::chrono::seconds{1});
  }

  /// Until when a lease that was asked for at `sent` and granted for `ttl` counts as valid.
  static time_point validity(time_point sent, duration ttl) noexcept { return sent + ttl - margin(ttl); }

  /// Starts keeping a lease whose grant was sent at `granted` for `ttl`.
  actions add(lease_id id, duration ttl, time_point granted, time_point now) {
    lease each;
    each.ttl = ttl;
    each.granted = granted;
    each.valid_until = validity(granted, ttl);
    each.next_send = std::max(now, granted + ttl / 3);
    leases_[id] = std::move(each);
    actions out;
    open(now, out);
    return out;
  }

  /// Stops keeping a lease; nothing is reported about it any more.
  actions remove(lease_id id) {
    leases_.erase(id);
    actions out;
    if (leases_.empty() && stream_ != stream_state::closed) {
      stream_ = stream_state::closed;
      out.emplace_back(close_stream{});
    }
    return out;
  }

  /// Asks for a lease's renewal now: there is reason to doubt that it lives.
  actions renew(lease_id id, time_point now) {
    actions out;
    const auto found = leases_.find(id);
    if (found == leases_.end()) return out;
    found->second.next_send = std::min(found->second.next_send, now);
    run(now, out);
    return out;
  }

  [[nodiscard]] std::size_t size() const noexcept { return leases_.size(); }

  actions on_stream_open(time_point now) {
    actions out;
    if (stream_ != stream_state::opening) return out;
    stream_ = stream_state::open;
    run(now, out);  // what was under way on the old stream, and may be lost, is still due
    return out;
  }

  /// The stream ended, for whatever reason, or could not be opened.
  actions on_stream_closed(time_point now) {
    actions out;
    if (stream_ == stream_state::closed) return out;
    forget_in_flight();
    stream_ = stream_state::waiting;
    reopen_at_ = now + backoff_.next();
    run(now, out);
    return out;
  }

  /// An answer: `ttl` is zero when the server does not know the lease.
  actions on_answer(lease_id id, duration ttl, time_point now) {
    actions out;
    const auto found = leases_.find(id);
    if (found == leases_.end() || !found->second.asked_at) return out;  // not ours, or not asked for
    auto& each = found->second;
    if (now >= each.valid_until) {  // its holder knows by the time that it is lost: for good
      run(now, out);
      return out;
    }
    const auto sent = *std::exchange(each.asked_at, std::nullopt);
    backoff_.reset();
    if (ttl > duration::zero()) {
      each.ttl = ttl;
      each.renewed_once = true;
      each.valid_until = validity(sent, ttl);  // which may be sooner, if the server gives less than before
      each.next_send = std::max(now, sent + ttl / 3);
      out.emplace_back(renewed{id, each.valid_until});
    } else if (!each.renewed_once && now - each.granted < std::chrono::seconds{1}) {
      each.confirming = true;
      out.emplace_back(confirm{id});
    } else {
      leases_.erase(found);
      out.emplace_back(lost{id, loss::not_found});
    }
    run(now, out);
    return out;
  }

  /// The answer to `confirm`.
  actions on_confirmed(lease_id id, bool exists, time_point now) {
    actions out;
    const auto found = leases_.find(id);
    if (found == leases_.end()) return out;
    if (exists) {
      found->second.confirming = false;
      found->second.next_send =
          now + std::min<duration>(found->second.ttl / 6, std::chrono::milliseconds{200});
    } else {
      leases_.erase(found);
      out.emplace_back(lost{id, loss::not_found});
    }
    run(now, out);
    return out;
  }

  actions on_timer(time_point now) {
    actions out;
    run(now, out);
    return out;
  }

  /// When `on_timer` has something to do.
  [[nodiscard]] std::optional<time_point> next_wakeup() const {
    std::optional<time_point> out;
    const auto at = [&out](time_point when) { out = out ? std::min(*out, when) : when; };
    for (const auto& [id, each] : leases_) {
      at(each.valid_until);
      if (stream_ != stream_state::open || each.confirming) continue;
      at(each.asked_at ? *each.asked_at + patience(each) : each.next_send);
    }
    if (stream_ == stream_state::waiting && !leases_.empty()) at(reopen_at_);
    return out;
  }

private:
  enum class stream_state { closed, opening, open, waiting };

  struct lease {
    duration ttl{};
    time_point granted;
    time_point valid_until;
    time_point next_send;
    std::optional<time_point> asked_at;  ///< A request is under way on this stream: one at a time.
    bool renewed_once = false;
    bool confirming = false;  ///< `confirm` is under way: nothing is sent meanwhile.
  };

  static duration patience(const lease& each) noexcept {
    return std::clamp<duration>(each.ttl / 6, std::chrono::milliseconds{500}, std::chrono::seconds{3});
  }

  void open(time_point now, actions& out) {
    if (stream_ == stream_state::closed || (stream_ == stream_state::waiting && now >= reopen_at_)) {
      stream_ = stream_state::opening;
      out.emplace_back(open_stream{});
    }
  }

  void forget_in_flight() {
    for (auto& [id, each] : leases_) each.asked_at.reset();
  }

  void run(time_point now, actions& out) {
    for (auto each = leases_.begin(); each != leases_.end();) {
      if (now >= each->second.valid_until) {
        out.emplace_back(lost{each->first, loss::expired});
        each = leases_.erase(each);
      } else {
        ++each;
      }
    }
    if (leases_.empty()) {
      if (stream_ != stream_state::closed) out.emplace_back(close_stream{});
      stream_ = stream_state::closed;
      return;
    }
    if (stream_ == stream_state::open) {
      const bool silent = std::any_of(leases_.begin(), leases_.end(), [&](const auto& each) {
        return each.second.asked_at && now >= *each.second.asked_at + patience(each.second);
      });
      if (silent) {
        forget_in_flight();
        out.emplace_back(close_stream{true});
        stream_ = stream_state::opening;
        out.emplace_back(open_stream{});
      }
    }
    if (stream_ == stream_state::waiting) open(now, out);
    if (stream_ != stream_state::open) return;
    for (auto& [id, each] : leases_) {
      if (each.asked_at || each.confirming || now < each.next_send) continue;
      each.asked_at = now;
      out.emplace_back(send_keepalive{id});
    }
  }

  std::map<lease_id, lease> leases_;
  stream_state stream_ = stream_state::closed;
  time_point reopen_at_;
  backoff backoff_;
};

}  // namespace conclave::detail::engine
