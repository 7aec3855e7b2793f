// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/detail/client/lease_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/pattern/line_member.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// How a transaction under a lock ended.
enum class commit_outcome {
  committed,       ///< The lock was held and the transaction's conditions were true: its `then` was applied.
  compare_failed,  ///< The lock was held, a condition was not true: its `otherwise` was applied.
  lock_lost,       ///< The lock was not held any more: nothing was applied.
};

/// What `unique_lock::commit` gives.
struct commit_result {
  commit_outcome outcome = commit_outcome::lock_lost;
  /// The answers of the user's transaction; none when the lock was lost.
  txn_response response;

  [[nodiscard]] bool committed() const noexcept { return outcome == commit_outcome::committed; }
};

/// A lock that is held: move-only, and released behind itself when destroyed. For one coroutine at a time.
///
/// A lock with a lease is a belief with a deadline, not a fact: the process may be stopped past it. What must
/// not happen without the lock is written with `commit`, which the store itself checks, or, in other stores,
/// carries `token()`, which grows from holder to holder: they refuse whatever comes with a smaller one than
/// they saw.
class unique_lock {
public:
  /// Holds nothing.
  unique_lock() = default;
  unique_lock(unique_lock&&) noexcept = default;
  unique_lock& operator=(unique_lock&& other) noexcept {
    if (this != &other) {
      release_behind();
      hold_ = std::move(other.hold_);
      member_ = std::move(other.member_);
      owner_ = std::move(other.owner_);
    }
    return *this;
  }
  ~unique_lock() { release_behind(); }

  /// The key that stands for the hold, without the client's prefix; empty if nothing is held.
  [[nodiscard]] const std::string& key() const noexcept {
    static const std::string none;
    return hold_ ? hold_->key : none;
  }

  /// The fencing token: the create revision of the key. It grows from holder to holder, over all locks of the
  /// cluster. Zero if nothing is held.
  [[nodiscard]] revision token() const noexcept { return hold_ ? hold_->token : 0; }

  /// Whether the lock is believed to be held: not released, its loss not known, and the session's time not
  /// over. Any thread; no round trip.
  [[nodiscard]] bool held() const noexcept {
    return hold_ && hold_->held.load(std::memory_order_acquire) && owner_->state()->alive();
  }
  [[nodiscard]] explicit operator bool() const noexcept { return held(); }

  /// The condition which is true exactly while this hold lasts, for transactions of one's own.
  /// \throws error (`invalid_argument`) if nothing is held or ever was.
  [[nodiscard]] compare fence() const {
    require();
    return create_revision(hold_->key) == hold_->token;
  }

  /// Completes when the hold ends: with `session_lost`, `session_closed` or `lock_lost` (its key was
  /// deleted), or with no error when it was released. At once if it has ended. Known without a round trip,
  /// from a watch, and never later than `session::valid_until`. A hold that nobody had to wait for is watched after its
  /// first 50 ms: until then the deletion of its key is not noticed, unless by `commit` or `unlock`. Cancellation leaves
  /// nothing behind.
  asio::awaitable<std::error_code> lost() const;

  /// Releases the lock. One round trip, one proposal: a delete which only this hold's own key can meet, so it
  /// never harms a later holder. Errors: `lock_lost` or `session_lost` when the lock had been lost before
  /// (somebody else may have held it meanwhile); `unavailable`, `outcome_unknown` when no server said so within
  /// `client_options::request_timeout`, and releasing goes on behind the caller. Cancellation: releasing goes on behind the caller.
  asio::awaitable<void> unlock();

  /// Applies a transaction on the condition that this lock is still held. One round trip, one proposal, as a
  /// nested transaction: `If fence Then [yours] Else nothing`. Errors: those of `client::txn`. After
  /// `outcome_unknown` read before trying again. Cancellation: the transaction may have been applied.
  /// It may not write the lock's own key.
  asio::awaitable<commit_result> commit(txn request) const;

  /// Applies a transaction as `commit` does, and releases the lock in the same proposal, whether or not the
  /// transaction's own conditions are true. One round trip instead of two. Errors and cancellation: as those
  /// of `commit`, and releasing goes on behind the caller.
  asio::awaitable<commit_result> commit_and_unlock(txn request);

private:
  friend class mutex;
  using hold_ptr = std::shared_ptr<detail::pattern::hold>;
  using member_ptr = std::shared_ptr<detail::pattern::line_member>;
  using owner_ptr = std::shared_ptr<detail::client::lease_owner>;

  unique_lock(hold_ptr hold, member_ptr member, owner_ptr owner)
      : hold_(std::move(hold)), member_(std::move(member)), owner_(std::move(owner)) {}

  void require() const {
    if (!hold_) throw error(errc::invalid_argument, "unique_lock: nothing is held: released or moved from");
  }

  void release_behind() noexcept {
    if (!hold_) return;
    try {
      const auto on = owner_->state()->runtime();
      on->run([hold = std::move(hold_), member = std::move(member_), owner = std::move(owner_)] {
        member->release(hold, std::nullopt, nullptr);
      });
    } catch (...) {  // out of memory: the lease's end releases it
    }
    hold_.reset();
    member_.reset();
    owner_.reset();
  }

  /// This must outlive the wait.
  asio::awaitable<detail::pattern::released> release(std::optional<txn> last) const;

  // The parameter releases if this never begins: whoever is cancelled already throws before it does.
  static asio::awaitable<void> unlock_held(unique_lock behind);

  static asio::awaitable<commit_result> commit_last(unique_lock behind, txn request);

  static asio::awaitable<commit_result> commit_held(hold_ptr hold, member_ptr member, owner_ptr owner,
                                                    txn request);

  hold_ptr hold_;
  member_ptr member_;
  owner_ptr owner_;
};

static_assert(!std::is_copy_constructible_v<unique_lock>);

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/unique_lock.ipp>
#endif
