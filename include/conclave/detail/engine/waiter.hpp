// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <variant>

#include <conclave/detail/rpc/context_service.hpp>
#include <conclave/detail/rpc/receiver.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Where what is waited for happens.
class strand_owner {
public:
  /// Runs `work` on the strand, later. Any thread. False when nothing runs there any more.
  virtual bool post_to_strand(std::function<void()> work) = 0;

protected:
  ~strand_owner() = default;
};

/// What a wait ends with.
template <class T>
using outcome = std::variant<T, std::exception_ptr>;

/// A coroutine, on whatever executor, that waits for something which happens on a strand. All members but the
/// cancellation are for that strand; the coroutine is resumed by a post to its own executor. That executor's
/// context may be destroyed meanwhile, on a thread of its own: the coroutine is dropped then, and the strand
/// told.
template <class T>
class waiter final : public rpc::waiting_member,
                     public rpc::cancellable,
                     public std::enable_shared_from_this<waiter<T>> {
public:
  /// `service` is that of the receiver's context.
  waiter(std::unique_ptr<rpc::receiver<outcome<T>>> receiver, rpc::context_service& service,
         std::weak_ptr<strand_owner> strand)
      : service_(service), receiver_(std::move(receiver)), strand_(std::move(strand)) {}

  ~waiter() {
    if (!attached_) return;
    receiver_.reset();
    service_.remove(*this);
  }

  /// Before anything else. False when the coroutine's context is being destroyed: drop the waiter then.
  [[nodiscard]] bool attach() {
    attached_ = service_.add(*this);
    if (attached_) receiver_->cancel_through(*this);
    return attached_;
  }

  [[nodiscard]] bool waiting() const noexcept {
    const std::lock_guard lock{mutex_};
    return receiver_ != nullptr;
  }

  /// Whether it has been cancelled, and the strand has heard of it or is about to. Any thread.
  [[nodiscard]] bool cancelled() const noexcept { return cancelled_.load(std::memory_order_acquire); }

  /// Runs on the strand when the coroutine is cancelled, before it is resumed, or dropped: take the waiter
  /// out of whatever list it stands in. `of` is kept until the wait ends: a closure that holds no more than two
  /// words needs no allocation.
  void on_cancel(std::shared_ptr<void> of, std::function<void()> forget) {
    if (!waiting()) return;
    owner_ = std::move(of);
    forget_ = std::move(forget);
  }

  /// Runs on the strand when the wait ends, however it does.
  void on_end(std::function<void()> end) {
    if (waiting()) end_ = std::make_unique<std::function<void()>>(std::move(end));
  }

  /// Ends the wait; false if it had ended before.
  bool complete(T value) { return finish(outcome<T>{std::in_place_index<0>, std::move(value)}); }
  bool fail(std::exception_ptr why) { return finish(outcome<T>{std::in_place_index<1>, std::move(why)}); }
  bool fail(errc code) { return waiting() && fail(std::make_exception_ptr(error(code))); }

private:
  bool finish(outcome<T> value) {
    std::unique_ptr<rpc::receiver<outcome<T>>> receiver;
    {
      const std::lock_guard lock{mutex_};
      if (!receiver_) return false;
      if (!service_.try_begin_handoff(*this)) {
        // The coroutine goes with its context, not here.
        kept_ = std::make_unique<std::shared_ptr<waiter>>(this->shared_from_this());
        return false;
      }
      attached_ = false;
      receiver = std::move(receiver_);
    }
    {
      auto executor = receiver->executor();
      // The waiter must outlive the cancellation slot that points to it.
      asio::post(executor, [self = this->shared_from_this(), receiver = std::move(receiver),
                            value = std::move(value)]() mutable {
        rpc::receiver<outcome<T>>::complete(std::move(receiver), std::move(value));
      });
    }
    service_.end_handoff();
    forget_ = nullptr;
    owner_.reset();
    if (const auto end = std::exchange(end_, nullptr)) (*end)();
    return true;
  }

  void cancel() noexcept override {
    try {
      // Kept here too: whoever drops those that are cancelled may have been the only one that had it.
      const auto kept = this->shared_from_this();
      const bool posted = post([self = kept] {
        if (!self->waiting()) return;
        const auto owner = self->owner_;
        if (auto forget = std::exchange(self->forget_, nullptr)) forget();
        self->fail(errc::cancelled);
      });
      if (posted) cancelled_.store(true, std::memory_order_release);
    } catch (...) {  // out of memory: the wait goes on
    }
  }

  void on_context_shutdown() noexcept override {
    std::unique_ptr<rpc::receiver<outcome<T>>> dropped;
    {
      const std::lock_guard lock{mutex_};
      attached_ = false;
      dropped = std::move(receiver_);
      kept_.reset();
    }
    dropped.reset();  // destroys the suspended coroutine
    try {
      const auto last = std::make_shared<farewell>(this->shared_from_this());
      post([last] { last->who->abandon(); });
    } catch (...) {  // out of memory: the client's end cleans up
    }
  }

  /// The strand's context may go without having run what was posted to it: then, too, the waiter lets go of what keeps
  /// it.
  struct farewell {
    explicit farewell(std::shared_ptr<waiter> whose) : who(std::move(whose)) {}
    ~farewell() {
      who->forget_ = nullptr;
      who->owner_.reset();
      who->end_ = nullptr;
    }
    farewell(const farewell&) = delete;
    farewell& operator=(const farewell&) = delete;
    std::shared_ptr<waiter> who;
  };

  std::shared_ptr<void> keep() noexcept override { return this->weak_from_this().lock(); }

  bool post(std::function<void()> work) {
    const auto on = strand_.lock();
    return on && on->post_to_strand(std::move(work));
  }

  void abandon() {
    const auto owner = std::move(owner_);
    if (const auto forget = std::exchange(forget_, nullptr)) forget();
    if (const auto end = std::exchange(end_, nullptr)) (*end)();
  }

  rpc::context_service& service_;
  mutable std::mutex mutex_;  ///< Guards the three below.
  std::unique_ptr<rpc::receiver<outcome<T>>> receiver_;
  bool attached_ = false;
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<std::shared_ptr<waiter>> kept_;  ///< There are many waiters, and hardly one needs it.
  std::weak_ptr<strand_owner> strand_;
  std::shared_ptr<void> owner_;
  std::function<void()> forget_;
  std::unique_ptr<std::function<void()>> end_;  ///< Few have one.
};

}  // namespace conclave::detail::engine
