// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/detail/rpc/context_service.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// An operation under way that can be asked to end early. `cancel` is called on the executor of whoever
/// waits, never after the operation's receiver has been completed, and never completes the receiver inline.
class cancellable {
public:
  virtual void cancel() noexcept = 0;

protected:
  ~cancellable() = default;
};

/// Who waits for a `T`: type-erased, owned by the operation, completed once on `executor()`. Destroying it
/// instead drops the waiting coroutine (only a context that is being destroyed does so).
template <class T>
class receiver {
public:
  virtual ~receiver() = default;

  /// Where `complete` must be called. Every copy is work for its context.
  virtual const asio::any_io_executor& executor() const noexcept = 0;

  /// Forwards the waiting side's cancellation to `target` until completion. Called at most once, while the
  /// operation is being initiated.
  virtual void cancel_through(cancellable& target) = 0;

  /// Resumes the waiting side; consumes the receiver.
  static void complete(std::unique_ptr<receiver> self, T value) { self.release()->consume(std::move(value)); }

  /// Completes by a post to the receiver's executor: from any thread, never inline.
  static void post(std::unique_ptr<receiver> self, T value) {
    auto executor = self->executor();
    asio::post(executor, [self = std::move(self), value = std::move(value)]() mutable {
      complete(std::move(self), std::move(value));
    });
  }

private:
  virtual void consume(T value) = 0;
};

namespace impl {

template <class T, class Handler>
class handler_receiver final : public receiver<T> {
public:
  explicit handler_receiver(Handler handler)
      : handler_(std::move(handler)),
        executor_(asio::prefer(asio::any_io_executor{asio::get_associated_executor(handler_)},
                               asio::execution::outstanding_work.tracked)) {}

  ~handler_receiver() override { disconnect(); }

  const asio::any_io_executor& executor() const noexcept override { return executor_; }

  void cancel_through(cancellable& target) override {
    auto slot = asio::get_associated_cancellation_slot(handler_);
    if (!slot.is_connected()) return;
    slot.assign([&target](asio::cancellation_type type) {
      if (type != asio::cancellation_type::none) target.cancel();
    });
    connected_ = true;
  }

private:
  void consume(T value) override {
    disconnect();
    Handler handler = std::move(handler_);
    const auto work = std::move(executor_);
    delete this;  // the handler may free everything that this operation used
    std::move(handler)(std::move(value));
  }

  void disconnect() noexcept {
    if (!std::exchange(connected_, false)) return;
    auto slot = asio::get_associated_cancellation_slot(handler_);
    if (slot.is_connected()) slot.clear();
  }

  Handler handler_;
  asio::any_io_executor executor_;  ///< Its context has work as long as somebody waits.
  bool connected_ = false;
};

template <class T>
struct initiate {
  template <class Handler, class Start>
  void operator()(Handler&& handler, Start start) const {
    using type = handler_receiver<T, std::decay_t<Handler>>;
    std::unique_ptr<receiver<T>> waiting = std::make_unique<type>(std::forward<Handler>(handler));
    start(std::move(waiting));
  }
};

}  // namespace impl

/// Suspends the calling coroutine and hands its receiver to `start(std::unique_ptr<receiver<T>>)`; the result
/// is what the receiver is completed with. `start` must be a named object, moved in (GCC 12 destroys closures
/// that are temporaries of a co_await expression twice).
template <class T, class Start>
asio::awaitable<T> suspend(Start start) {
  return asio::async_initiate<const asio::use_awaitable_t<>, void(T)>(impl::initiate<T>{},
                                                                      asio::use_awaitable, std::move(start));
}

}  // namespace conclave::detail::rpc
