// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/pattern/line_machine.hpp>
#include <conclave/detail/pattern/line_member.hpp>
#include <conclave/detail/pattern/line_view.hpp>
#include <conclave/error.hpp>
#include <conclave/session.hpp>
#include <conclave/unique_lock.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// Who stands in line for a lock, as of one revision; see `mutex::inspect`.
struct lock_line {
  struct place {
    std::string key;
    revision token = 0;  ///< The fencing token that it has, or will have, as a holder.
    conclave::lease_id lease = 0;
  };
  /// In order: the first holds the lock.
  std::vector<place> places;
  /// Keys below the lock's name which are not of a participant's form. They are ignored.
  std::size_t foreign_keys = 0;
};

/// A lock by name, held by one session of the cluster at a time and handed on in the order of arrival.
/// Key-compatible with etcd's Go package and `etcdctl lock`, which may stand in the same line.
///
/// In the store: one key a waiting or holding session, `NAME/` and the lease id in hexadecimal, under its
/// lease. Who has the smallest create revision holds the lock. Names may contain slashes: only keys of just
/// this form take part, so `a` and `a/b` are two locks. Roles need read and write permission on everything
/// below `NAME/`.
///
/// Coroutines that use the same session stand in a local line and only its head stands in the cluster's: a
/// session neither excludes itself for ever nor enters twice.
///
/// A waiting lock costs a coroutine and no thread. A hand-over costs one watch event; all waiters of a client
/// share one watch for each name. (Mind, when racing a wait by Asio's `||`: that waits for the first that
/// *succeeds*, so a wait that fails with its session does not end the race.) A mutex object is for one
/// coroutine at a time; make as many as needed.
class mutex {
public:
  /// \throws error (`invalid_argument`) if the name is empty.
  mutex(session of, std::string name) : session_(std::move(of)), name_(std::move(name)) {
    if (name_.empty()) throw error(errc::invalid_argument, "mutex: the name is empty");
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }

  /// Waits until the lock is held. Completes when every session ahead has left; survives server restarts and
  /// reconnects. One round trip and one proposal when it is free.
  ///
  /// Errors: `session_lost`, `session_closed`: at once when the session ends; `lock_lost`: somebody deleted
  /// the key that stood for the place in line; `permission_denied`, `no_space` and what else the server
  /// refuses the key with. While no server can be reached the wait goes on until the session is lost.
  /// Cancellation throws `cancelled` promptly, cluster or not; the place passes to the session's next local
  /// waiter, or its key is deleted behind the caller.
  asio::awaitable<unique_lock> lock();

  /// Takes the lock if it is free; nothing otherwise, at once also when another coroutine of the same session
  /// holds or awaits it. One round trip, one proposal; a failed try leaves no key. Errors: those of `lock`,
  /// and `unavailable` and `outcome_unknown`: no lock is held then, and what may have been written is removed
  /// behind the caller.
  asio::awaitable<std::optional<unique_lock>> try_lock();

  /// Waits as `lock` does, at most for `time`; then gives nothing, and its key is deleted behind the caller.
  asio::awaitable<std::optional<unique_lock>> try_lock_for(std::chrono::milliseconds time);

  /// The same until a moment of the client's clock.
  asio::awaitable<std::optional<unique_lock>> try_lock_until(session::time_point deadline);

  /// Who holds and who awaits the lock. A linearizable read; a round trip for every 5000 keys.
  asio::awaitable<lock_line> inspect() const;

private:
  using member = detail::pattern::line_member;
  using waiter = member::waiter;

  /// What a wait consists of. In one place, whatever frames and closures it passes through: thousands may wait; and
  /// shared with the strand, which may still write it when the coroutine has been destroyed.
  template <class Enter>
  struct entry {
    std::shared_ptr<detail::client::lease_owner> owner;
    std::string name;
    Enter enter;
    std::shared_ptr<member> at{};
  };

  template <class Enter>
  [[nodiscard]] std::shared_ptr<entry<Enter>> entry_of(Enter enter) const {
    return std::make_shared<entry<Enter>>(entry<Enter>{session_.owner(), name_, std::move(enter)});
  }

  /// A `Result` is a lock, or the lack of one.
  template <class Result, class Enter>
  static asio::awaitable<Result> acquired(std::shared_ptr<entry<Enter>> what) {
    auto start = [what](const waiter& who) {
      const auto& state = what->owner->state();
      if (state->now_in() != detail::client::lease_state::phase::alive) {
        who->fail(state->why_ended());
        return;
      }
      const std::string part = "mutex " + what->name;
      what->at = state->template part<member>(
          part, [&] { return std::make_shared<member>(state, what->name, part); });
      what->enter(*what->at, who);
    };
    auto finish = [what](std::shared_ptr<detail::pattern::hold> hold) {
      Result out;
      if (hold) out = unique_lock{std::move(hold), std::move(what->at), what->owner};
      return out;
    };
    const auto& on = what->owner->state()->runtime();
    return detail::engine::wait<std::shared_ptr<detail::pattern::hold>>(on, std::move(start),
                                                                        std::move(finish));
  }

  static asio::awaitable<lock_line> read_line(std::shared_ptr<detail::engine::runtime> on, std::string name);

  session session_;
  std::string name_;
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/mutex.ipp>
#endif
