// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/detail/engine/backoff.hpp>
#include <conclave/detail/engine/key_space.hpp>
#include <conclave/detail/engine/waiter.hpp>
#include <conclave/detail/rpc/clock.hpp>
#include <conclave/detail/rpc/methods.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/detail/wire/messages.hpp>
#include <conclave/error.hpp>

namespace conclave::detail::engine {

using rpc::duration;
using rpc::time_point;

struct runtime_options {
  std::chrono::milliseconds connect_timeout{3000};
  std::chrono::milliseconds request_timeout{5000};
  /// Longest answer that the transport lets in, in bytes.
  std::size_t receive_limit = 0;
};

/// What everything of one client runs on: a strand, one timer queue, the servers, and calls to them.
class runtime final : public std::enable_shared_from_this<runtime>, public rpc::context_member {
public:
  static std::shared_ptr<runtime> make(const asio::any_io_executor& executor,
                                       std::vector<std::shared_ptr<rpc::transport>> servers,
                                       std::shared_ptr<rpc::clock> clock, key_space keys,
                                       runtime_options options) {
    auto self = std::make_shared<runtime>(private_tag{}, executor, std::move(servers), std::move(clock),
                                          std::move(keys), options);
    self->attached_ = self->service_.add(*self);
    if (!self->attached_) throw error(errc::client_closed, "the execution context is being destroyed");
    return self;
  }

  struct private_tag {};
  runtime(private_tag, const asio::any_io_executor& executor,
          std::vector<std::shared_ptr<rpc::transport>> servers, std::shared_ptr<rpc::clock> clock,
          key_space keys, runtime_options options)
      : service_(rpc::context_service::of(executor)),
        strand_(asio::make_strand(executor)),
        servers_(std::move(servers)),
        clock_(std::move(clock)),
        keys_(std::move(keys)),
        options_(options),
        timer_(clock_->make_timer(*strand_)) {}

  ~runtime() {
    if (attached_) service_.remove(*this);
  }

  [[nodiscard]] time_point now() const noexcept { return clock_->now(); }
  [[nodiscard]] rpc::clock& clock() const noexcept { return *clock_; }
  [[nodiscard]] const key_space& keys() const noexcept { return keys_; }
  [[nodiscard]] const runtime_options& options() const noexcept { return options_; }

  /// Whether the execution context has gone: nothing runs any more.
  [[nodiscard]] bool stopped() const noexcept { return stopped_.load(std::memory_order_acquire); }

  /// Runs `work` on the strand: now if the caller is on it. Any thread; does nothing once stopped.
  template <class Work>
  void run(Work work) {
    if (!stopped()) asio::dispatch(*strand_, std::move(work));
  }

  /// Runs `work` on the strand, later. Any thread; does nothing, and says so by false, once stopped.
  template <class Work>
  bool post(Work work) {
    if (stopped()) return false;
    asio::post(*strand_, std::move(work));
    return true;
  }

  /// Starts a coroutine of our own on the strand. It must handle its failures.
  void spawn(asio::awaitable<void> work) {
    if (!stopped()) asio::co_spawn(*strand_, std::move(work), asio::detached);
  }

  using timer_id = std::uint64_t;

  /// Calls `action` on the strand at `when`. On the strand.
  timer_id at(time_point when, std::function<void()> action) {
    const timer_id id = ++last_timer_;
    timer_order_[id] = timers_.emplace(when, std::pair{id, std::move(action)});
    arm();
    return id;
  }

  /// Forgets a timer that may have fired. On the strand.
  void cancel(timer_id id) noexcept {
    const auto found = timer_order_.find(id);
    if (found == timer_order_.end()) return;
    timers_.erase(found->second);
    timer_order_.erase(found);
    if (timers_.empty() && timer_) {
      armed_.reset();
      timer_->stop();
    }
  }

  /// The server to be asked now. Any thread.
  [[nodiscard]] std::shared_ptr<rpc::transport> server() const {
    return servers_[current_.load(std::memory_order_relaxed) % servers_.size()];
  }

  /// Moves on to the next server after `failed` could not be reached. Any thread.
  void avoid(const rpc::transport& failed) noexcept {
    auto now = current_.load(std::memory_order_relaxed);
    if (servers_[now % servers_.size()].get() == &failed)
      current_.compare_exchange_strong(now, now + 1, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t seed() { return clock_->entropy(); }

private:
  void arm() {
    if (!timer_ || timers_.empty()) return;
    const auto first = timers_.begin()->first;
    if (armed_ && *armed_ <= first) return;
    armed_ = first;
    timer_->expire_at(first, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->fire();
    });
  }

  void fire() {
    armed_.reset();
    const auto now = this->now();
    while (!timers_.empty() && timers_.begin()->first <= now) {
      auto node = timers_.extract(timers_.begin());
      timer_order_.erase(node.mapped().first);
      node.mapped().second();
    }
    arm();
  }

  void on_context_shutdown() noexcept override {
    attached_ = false;
    const auto self = shared_from_this();
    stopped_.store(true, std::memory_order_release);
    timer_.reset();
    auto timers = std::exchange(timers_, {});
    timer_order_.clear();
    timers.clear();
    strand_.reset();
  }

  rpc::context_service& service_;
  std::optional<asio::strand<asio::any_io_executor>> strand_;
  std::vector<std::shared_ptr<rpc::transport>> servers_;
  std::shared_ptr<rpc::clock> clock_;
  key_space keys_;
  runtime_options options_;
  std::atomic<bool> stopped_{false};
  std::atomic<std::size_t> current_{0};
  bool attached_ = false;

  using timer_queue = std::multimap<time_point, std::pair<timer_id, std::function<void()>>>;
  std::unique_ptr<rpc::timer> timer_;
  timer_queue timers_;
  std::unordered_map<timer_id, timer_queue::iterator> timer_order_;
  timer_id last_timer_ = 0;
  std::optional<time_point> armed_;
};

/// Suspends the calling coroutine, on whatever executor it runs, until what `start` set in motion completes
/// it. `start(std::shared_ptr<waiter<T>>)` runs on the strand. Cancellation resumes the coroutine promptly
/// with `cancelled`. `start` must be a named object, moved in.
template <class T, class Start>
asio::awaitable<T> wait(std::shared_ptr<runtime> on, Start start) {
  if (on->stopped()) throw error(errc::client_closed);
  auto begin = [&on, &start](std::unique_ptr<rpc::receiver<outcome<T>>> receiver) {
    auto post = [weak = std::weak_ptr<runtime>(on)](std::function<void()> work) {
      const auto strong = weak.lock();
      return strong && strong->post(std::move(work));
    };
    auto waiting = std::make_shared<waiter<T>>(std::move(receiver), std::move(post));
    if (!waiting->attach()) return;
    // The coroutine may be resumed by another thread, and be gone, while this one is still in here.
    const auto keep = on;
    keep->run([waiting, start = std::move(start)]() mutable { start(std::move(waiting)); });
  };
  outcome<T> result = co_await rpc::suspend<outcome<T>>(std::move(begin));
  if (auto* failed = std::get_if<std::exception_ptr>(&result)) std::rethrow_exception(std::move(*failed));
  co_return std::get<0>(std::move(result));
}

/// Waits until `when`; throws `cancelled`.
inline asio::awaitable<void> sleep_until(std::shared_ptr<runtime> on, time_point when) {
  runtime* const where = on.get();
  auto start = [where, when](std::shared_ptr<waiter<std::monostate>> waiting) {
    const auto id = where->at(when, [waiting] { waiting->complete({}); });
    waiting->on_cancel([where, id] { where->cancel(id); });
  };
  (void)co_await wait<std::monostate>(std::move(on), std::move(start));
}

inline asio::awaitable<void> sleep_for(std::shared_ptr<runtime> on, duration time) {
  const auto when = on->now() + time;
  return sleep_until(std::move(on), when);
}

namespace impl {

/// For `co_await asio::this_coro::cancellation_state`.
inline void throw_if_cancelled(const asio::cancellation_state& state) {
  if (state.cancelled() != asio::cancellation_type::none) throw error(errc::cancelled);
}

/// A server that is connected; tries each in turn. Throws `unavailable` after the connect timeout.
inline asio::awaitable<std::shared_ptr<rpc::transport>> connected_server(std::shared_ptr<runtime> on,
                                                                         std::chrono::milliseconds limit) {
  auto server = on->server();
  if (server->ready()) co_return server;
  const auto deadline = on->now() + limit;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - on->now());
    if (left.count() <= 0) break;
    const auto slice =
        std::min(left, std::max<std::chrono::milliseconds>(limit / 4, std::chrono::milliseconds{500}));
    rpc::transport* const asked = server.get();
    auto start = [asked, slice](std::unique_ptr<rpc::receiver<bool>> receiver) {
      asked->connect(slice, std::move(receiver));
    };
    const bool ready = co_await rpc::suspend<bool>(std::move(start));
    if (ready) co_return server;
    throw_if_cancelled(co_await asio::this_coro::cancellation_state);
    on->avoid(*server);
    server = on->server();
  }
  throw error(errc::unavailable, "could not connect to " + server->endpoint() + " within " +
                                     std::to_string(limit.count()) + " ms");
}

inline rpc::metadata unary_headers() { return {{"hasleader", "true"}}; }

template <class Request>
rpc::metadata headers_for(const Request&) {
  return unary_headers();
}
/// A stale read must work without a leader, and a status must tell about its absence.
inline rpc::metadata headers_for(const range_request& request) {
  if (request.serializable) return {};
  return unary_headers();
}
inline rpc::metadata headers_for(const status_request&) { return {}; }

}  // namespace impl

/// One call to the store, from any executor. Calls that certainly had no effect are repeated while there is
/// time. Throws `error`.
template <class Request>
asio::awaitable<rpc::response_of<Request>> call(std::shared_ptr<runtime> on, Request request) {
  using method = rpc::method<Request>;
  if (on->stopped()) throw error(errc::client_closed);
  const auto kind = method::kind(request);
  const auto headers = impl::headers_for(request);
  on->keys().enter(request);
  const std::string bytes = wire::encode(request);
  const auto deadline = on->now() + on->options().request_timeout;
  std::optional<backoff> pause;
  while (true) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - on->now());
    const auto connect_limit =
        std::min(on->options().connect_timeout, std::max(left, std::chrono::milliseconds{1}));
    const std::shared_ptr<rpc::transport> server = co_await impl::connected_server(on, connect_limit);
    left = std::max(std::chrono::milliseconds{1},
                    std::chrono::ceil<std::chrono::milliseconds>(deadline - on->now()));
    rpc::transport* const asked = server.get();
    auto start = [asked, left, &bytes, &headers](std::unique_ptr<rpc::receiver<rpc::unary_result>> receiver) {
      asked->unary(method::path, bytes, headers, left, std::move(receiver));
    };
    rpc::unary_result result = co_await rpc::suspend<rpc::unary_result>(std::move(start));
    if (result.state.ok()) {
      rpc::response_of<Request> response;
      const auto failed = wire::decode(result.body, response);
      if (failed != wire::decode_error::none)
        throw error(errc::malformed_response, method::name, server->endpoint(), 0, wire::to_string(failed));
      on->keys().leave(response);
      co_return response;
    }
    impl::throw_if_cancelled(co_await asio::this_coro::cancellation_state);
    auto code = rpc::classify(result.state, kind);
    // A server that is going away cancels; nobody here did.
    if (code == errc::cancelled)
      code = kind == rpc::call_kind::write ? errc::outcome_unknown : errc::unavailable;
    if (code == errc::unavailable) {
      on->avoid(*server);
      if (!pause) pause.emplace(std::chrono::milliseconds{20}, std::chrono::milliseconds{500}, on->seed());
      const auto next = on->now() + pause->next();
      if (next < deadline) {
        co_await sleep_until(on, next);
        continue;
      }
    }
    throw error(code, method::name, server->endpoint(), static_cast<int>(result.state.code),
                result.state.message);
  }
}

}  // namespace conclave::detail::engine
