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
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/detail/engine/authenticator.hpp>
#include <conclave/detail/engine/key_space.hpp>
#include <conclave/detail/engine/paced_queue.hpp>
#include <conclave/detail/engine/revision_floor.hpp>
#include <conclave/detail/engine/server_list.hpp>
#include <conclave/detail/engine/shared_strand.hpp>
#include <conclave/detail/engine/waiter.hpp>
#include <conclave/detail/rpc/clock.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

using rpc::duration;
using rpc::time_point;

struct runtime_options {
  std::chrono::milliseconds connect_timeout{3000};
  std::chrono::milliseconds request_timeout{5000};
  /// Longest answer that the transport lets in, in bytes.
  std::size_t receive_limit = 0;
};

/// Hears of what concerns everything of a client. On the strand.
class runtime_observer {
public:
  virtual ~runtime_observer() = default;
  /// A connected server is of no use for now, and there are others.
  virtual void on_suspect(const rpc::transport&) {}
  /// The store went back in time, or is another one: nothing that was known of it holds.
  virtual void on_cluster_reset() {}
};

/// What everything of one client runs on: a strand, one timer queue, and the servers.
class runtime final : public std::enable_shared_from_this<runtime>,
                      public rpc::waiting_member,
                      public strand_owner {
public:
  static std::shared_ptr<runtime> make(const asio::any_io_executor& executor,
                                       std::vector<std::shared_ptr<rpc::transport>> servers,
                                       std::shared_ptr<rpc::clock> clock, key_space keys,
                                       runtime_options options,
                                       std::unique_ptr<authenticator> user = nullptr) {
    auto self = std::make_shared<runtime>(private_tag{}, executor, std::move(servers), std::move(clock),
                                          std::move(keys), options, std::move(user));
    self->attached_ = self->service_.add(*self);
    if (!self->attached_) throw error(errc::client_closed, "the execution context is being destroyed");
    return self;
  }

  struct private_tag {};
  runtime(private_tag, const asio::any_io_executor& executor,
          std::vector<std::shared_ptr<rpc::transport>> servers, std::shared_ptr<rpc::clock> clock,
          key_space keys, runtime_options options, std::unique_ptr<authenticator> user)
      : context_(&asio::query(executor, asio::execution::context)),
        service_(rpc::context_service::of(executor)),
        strand_(shared_strand::over(executor)),
        servers_(std::move(servers)),
        clock_(std::move(clock)),
        keys_(std::move(keys)),
        options_(options),
        user_(std::move(user)),
        timer_(clock_->make_timer(*strand_)) {}

  ~runtime() {
    if (!attached_) return;
    timer_.reset();
    timers_.clear();
    strand_.reset();
    service_.remove(*this);
  }

  [[nodiscard]] time_point now() const noexcept { return clock_->now(); }
  [[nodiscard]] rpc::clock& clock() const noexcept { return *clock_; }

  /// That of the executor's context, which mostly is our own: finding another takes a search.
  [[nodiscard]] rpc::context_service& service_of(const asio::any_io_executor& executor) const {
    const bool own = &asio::query(executor, asio::execution::context) == context_;
    return own ? service_ : rpc::context_service::of(executor);
  }

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

  bool post_to_strand(std::function<void()> work) override { return post(std::move(work)); }

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

  // Any thread.

  [[nodiscard]] server_list& servers() noexcept { return servers_; }
  [[nodiscard]] revision_floor& floor() noexcept { return floor_; }
  /// Null when calls are made in nobody's name.
  [[nodiscard]] authenticator* user() const noexcept { return user_.get(); }

  /// A connected server is of no use for now: calls and streams turn to another, if there is one.
  void suspect(const rpc::transport& one) {
    if (!servers_.suspect(one, now())) return;
    run([weak = weak_from_this(), which = &one] {
      if (const auto self = weak.lock())
        self->tell([which](runtime_observer& each) { each.on_suspect(*which); });
    });
  }

  /// The same, or just the next one's turn if it is not even connected.
  void leave(const rpc::transport& one) {
    if (one.ready())
      suspect(one);
    else
      servers_.pass(one);
  }

  /// The store is not what it was when a call was sent at `sent`: whoever relies on it is told, once.
  void reset_cluster(const response_header& now, const revision_floor::mark& sent) {
    if (!floor_.reset(now, sent)) return;
    run([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->tell([](runtime_observer& each) { each.on_cluster_reset(); });
    });
  }

  /// Observers are told in the order in which they came. On the strand.
  void observe(std::weak_ptr<runtime_observer> each) {
    std::erase_if(observers_, [](const auto& other) { return other.expired(); });
    observers_.push_back(std::move(each));
  }

  /// Calls `look` when it is time for whoever waits for an event to look for itself again: one that a server has
  /// lost must not be waited for without end. It says whether it reads. In 10 to 30 s, spread, so that those who
  /// began together do not come together. On the strand.
  timer_id look_later(std::function<bool()> look) {
    const std::chrono::milliseconds spread{clock_->entropy() % 20'000};
    return look_in(std::chrono::seconds{10} + spread, std::move(look));
  }

  /// The same after `time`; later when many are to look, since all of a client read 50 times a second at most.
  timer_id look_in(duration time, std::function<bool()> look) {
    return at(now() + time, [this, look = std::move(look)]() mutable {
      looks_.push(std::move(look));
      if (!look_timer_) run_looks();
    });
  }

  [[nodiscard]] std::uint64_t seed() { return clock_->entropy(); }

private:
  template <class What>
  void tell(What what) {
    for (const auto& each : std::vector(observers_))
      if (const auto strong = each.lock()) what(*strong);
  }

  void run_looks() {
    look_timer_.reset();
    if (const auto next = looks_.run(now())) look_timer_ = at(*next, [this] { run_looks(); });
  }

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

  std::shared_ptr<void> keep() noexcept override { return weak_from_this().lock(); }

  void on_context_shutdown() noexcept override {
    attached_ = false;
    stopped_.store(true, std::memory_order_release);
    timer_.reset();
    auto timers = std::exchange(timers_, {});
    timer_order_.clear();
    timers.clear();
    strand_.reset();
  }

  const asio::execution_context* context_;  ///< Its address: it may have gone.
  rpc::context_service& service_;
  std::optional<shared_strand> strand_;
  server_list servers_;
  revision_floor floor_;
  std::shared_ptr<rpc::clock> clock_;
  key_space keys_;
  runtime_options options_;
  std::unique_ptr<authenticator> user_;
  std::vector<std::weak_ptr<runtime_observer>> observers_;
  std::atomic<bool> stopped_{false};
  bool attached_ = false;

  using timer_queue = std::multimap<time_point, std::pair<timer_id, std::function<void()>>>;
  std::unique_ptr<rpc::timer> timer_;
  timer_queue timers_;
  std::unordered_map<timer_id, timer_queue::iterator> timer_order_;
  timer_id last_timer_ = 0;
  std::optional<time_point> armed_;
  paced_queue looks_{std::chrono::milliseconds{20}};
  std::optional<timer_id> look_timer_;
};

/// Suspends the calling coroutine, on whatever executor it runs, until what `begin` set in motion completes it.
/// `begin(runtime&, std::shared_ptr<waiter<T>>)` runs at once, where the coroutine does. Cancellation resumes
/// the coroutine promptly with `cancelled`. `begin` must be a named object, moved in. The result is what
/// `convert` makes of the `T`; what it holds is kept for as long as the coroutine waits.
template <class T, class Begin, class Convert = std::identity>
asio::awaitable<std::decay_t<std::invoke_result_t<Convert&, T>>> wait_at_once(std::shared_ptr<runtime> on,
                                                                              Begin begin,
                                                                              Convert convert = {}) {
  if (on->stopped()) throw error(errc::client_closed);
  auto initiate = [&on, &begin](std::unique_ptr<rpc::receiver<outcome<T>>> receiver) {
    auto& service = on->service_of(receiver->executor());
    auto waiting = std::make_shared<waiter<T>>(std::move(receiver), service, on);
    if (!waiting->attach()) return;
    // The coroutine may be resumed by another thread, and be gone, while this one is still in here.
    const auto keep = on;
    auto detached = std::move(begin);
    detached(*keep, std::move(waiting));
  };
  outcome<T> result = co_await rpc::suspend<outcome<T>>(std::move(initiate));
  if (auto* failed = std::get_if<std::exception_ptr>(&result)) std::rethrow_exception(std::move(*failed));
  co_return convert(std::get<0>(std::move(result)));
}

/// The same with a `start` that runs on the strand.
template <class T, class Start, class Convert = std::identity>
auto wait(std::shared_ptr<runtime> on, Start start, Convert convert = {}) {
  auto begin = [start = std::move(start)](runtime& where, std::shared_ptr<waiter<T>> waiting) mutable {
    where.run(
        [waiting = std::move(waiting), start = std::move(start)]() mutable { start(std::move(waiting)); });
  };
  return wait_at_once<T>(std::move(on), std::move(begin), std::move(convert));
}

/// Waits until `when`; throws `cancelled`.
CONCLAVE_DECL asio::awaitable<void> sleep_until(std::shared_ptr<runtime> on, time_point when);

CONCLAVE_DECL asio::awaitable<void> sleep_for(std::shared_ptr<runtime> on, duration time);

}  // namespace conclave::detail::engine

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/engine/impl/runtime.ipp>
#endif
