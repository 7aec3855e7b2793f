// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include <conclave/asio.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// An intrusive list node of something that must not outlive its execution context.
class context_member {
public:
  context_member(const context_member&) = delete;
  context_member& operator=(const context_member&) = delete;

protected:
  context_member() = default;
  virtual ~context_member() = default;

private:
  friend class context_service;

  /// Called once, by the context's destructor, with no lock held: let go of executors, handlers and timers.
  virtual void on_context_shutdown() noexcept = 0;

  context_member* previous_ = nullptr;
  context_member* next_ = nullptr;
};

/// One that waits on the context alone. Its last owner, on whatever thread, may let go of it while the context is being
/// destroyed: its destructor first gives up what it has of the context, and then calls `remove`.
class waiting_member : public context_member {
private:
  friend class context_service;

  /// Null when its destructor is running.
  virtual std::shared_ptr<void> keep() noexcept = 0;
};

/// One per execution context. It ends what is under way when the context is destroyed, in whatever order the
/// user destroys things: calls that another thread will complete are cancelled and waited for until that
/// thread has let go of them (gRPC completes a cancelled call at once, even when the server is frozen);
/// everything that merely waits is dropped, and with it the suspended coroutines.
class context_service final : public asio::execution_context::service {
public:
  inline static asio::execution_context::id id;
  using key_type = context_service;

  explicit context_service(asio::execution_context& context) : asio::execution_context::service(context) {
    for (list* each : {&waiting_, &foreign_}) each->head.next_ = each->head.previous_ = &each->head;
  }

  /// The service of the context behind `executor`.
  static context_service& of(const asio::any_io_executor& executor) {
    auto& context = asio::query(executor, asio::execution::context);
    // Services shut down in the reverse order of their creation. Asio's strand service must be the older one:
    // what this service lets go of may still post through a strand.
    if (!asio::has_service<context_service>(context)) (void)asio::make_strand(executor);
    return asio::use_service<context_service>(context);
  }

  /// Registers something that waits on this context only. False once the context is shutting down.
  [[nodiscard]] bool add(waiting_member& member) { return add(waiting_, member); }
  void remove(waiting_member& member) noexcept {
    std::lock_guard lock{mutex_};
    unlink(member);
    if (stopped_) changed_.notify_all();
  }

  /// Registers an operation that a foreign thread completes. False once the context is shutting down.
  [[nodiscard]] bool add_foreign(context_member& member) { return add(foreign_, member); }

  /// The foreign thread hands the operation's result over between these two calls; the context is not
  /// destroyed before the second. No copy of an executor may live on the foreign thread after it.
  void begin_handoff(context_member& member) noexcept {
    std::lock_guard lock{mutex_};
    unlink(member);
    ++handoffs_;
  }
  /// The same for a member of the waiting list; false once the context is shutting down, which drops it.
  [[nodiscard]] bool try_begin_handoff(waiting_member& member) noexcept {
    std::lock_guard lock{mutex_};
    if (stopped_) return false;
    unlink(member);
    ++handoffs_;
    return true;
  }
  void end_handoff() noexcept {
    std::lock_guard lock{mutex_};
    --handoffs_;
    changed_.notify_all();
  }

private:
  class sentinel final : public context_member {
    friend class context_service;
    void on_context_shutdown() noexcept override {}
  };
  struct list {
    sentinel head;
  };

  bool add(list& where, context_member& member) {
    std::lock_guard lock{mutex_};
    if (stopped_) return false;
    context_member& head = where.head;
    member.previous_ = head.previous_;
    member.next_ = &head;
    head.previous_->next_ = &member;
    head.previous_ = &member;
    return true;
  }

  static void unlink(context_member& member) noexcept {
    if (member.next_ == nullptr) return;
    member.previous_->next_ = member.next_;
    member.next_->previous_ = member.previous_;
    member.previous_ = member.next_ = nullptr;
  }

  void shutdown() override {
    std::unique_lock lock{mutex_};
    stopped_ = true;
    context_member& foreign = foreign_.head;
    for (auto* each = foreign.next_; each != &foreign; each = each->next_) each->on_context_shutdown();
    changed_.wait(lock, [&] { return foreign.next_ == &foreign && handoffs_ == 0; });
    context_member& waiting = waiting_.head;
    while (waiting.next_ != &waiting) {
      auto& each = static_cast<waiting_member&>(*waiting.next_);
      auto kept = each.keep();
      if (!kept) {  // whoever destroys it removes it
        changed_.wait(lock, [&] { return waiting.next_ != &each; });
        continue;
      }
      unlink(each);
      lock.unlock();
      each.on_context_shutdown();
      kept.reset();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  list waiting_;
  list foreign_;
  int handoffs_ = 0;
  bool stopped_ = false;
};

}  // namespace conclave::detail::rpc
