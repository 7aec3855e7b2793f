// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/watch_hub.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/watch.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// What a watch may be told besides its keys.
struct watch_options {
  /// The first revision to report; zero: everything that happens from now on.
  conclave::revision start_revision = 0;
  /// Report what the key was before each change.
  bool prev_kv = false;
  /// Leave out puts, or deletions.
  bool no_put = false;
  bool no_delete = false;
  /// Events kept for a slow consumer, and bytes of memory that they take. Beyond either the watch stops, and later
  /// continues where it stopped: nothing is lost unless the server compacts it meanwhile, which is then
  /// reported. What comes together (up to a thousand revisions, when a watch has to catch up) is taken whole.
  std::size_t max_buffered_events = 4096;
  std::size_t max_buffered_bytes = std::size_t{16} * 1024 * 1024;
};
static_assert(std::is_trivially_destructible_v<watch_options>);

namespace detail::client {

/// The state behind a watcher; on the strand.
class watch_state final : public engine::watch_listener, public std::enable_shared_from_this<watch_state> {
public:
  using batch_waiter = std::shared_ptr<engine::waiter<std::vector<event>>>;

  watch_state(std::shared_ptr<client_state> of, std::string key, std::string range_end, watch_options options)
      : client_(std::move(of)), key_(std::move(key)), range_end_(std::move(range_end)), options_(options) {}

  [[nodiscard]] const std::shared_ptr<client_state>& client() const noexcept { return client_; }

  void start(revision from) {
    engine::watch_hub::spec what;
    what.key = key_;
    what.range_end = range_end_;
    what.start_revision = from;
    what.prev_kv = options_.prev_kv;
    // Keeps the resume point young while nothing happens, so that a compaction does not hit it.
    what.progress_notify = true;
    if (options_.no_put) what.filters.push_back(watch_filter::no_put);
    if (options_.no_delete) what.filters.push_back(watch_filter::no_delete);
    watch_ = client_->hub()->add(std::move(what), weak_from_this());
  }

  void stop() {
    if (watch_ != 0) client_->hub()->remove(std::exchange(watch_, 0));
  }

  void next(const batch_waiter& each) {
    if (waiting_ && waiting_->waiting()) {
      each->fail(
          std::make_exception_ptr(error(errc::invalid_argument, "watcher::next: another next is under way")));
      return;
    }
    if (!buffer_.empty()) {
      auto batch = std::move(buffer_.front());
      buffer_.pop_front();
      buffered_ -= batch.size();
      buffered_bytes_ -= bytes_of(batch);
      each->complete(std::move(batch));
      if (buffer_.empty() && resume_at_ != 0) start(std::exchange(resume_at_, 0));
      return;
    }
    if (ended_) {
      each->fail(ended_);
      return;
    }
    waiting_ = each;
    each->on_cancel(shared_from_this(), [this] { waiting_.reset(); });
  }

  /// Nobody has seen it yet.
  void give_back(std::vector<event> batch) {
    count(batch);
    buffer_.push_front(std::move(batch));
  }

  void on_created() override {}

  void on_events(std::vector<event> batch) override {
    if (const auto to = std::exchange(waiting_, nullptr)) {
      to->complete(std::move(batch));
      return;
    }
    const bool fits = buffered_ + batch.size() <= options_.max_buffered_events &&
                      buffered_bytes_ + bytes_of(batch) <= options_.max_buffered_bytes;
    if (!buffer_.empty() && !fits) {
      resume_at_ = batch.front().kv->mod_revision;
      stop();
      return;
    }
    count(batch);
    buffer_.push_back(std::move(batch));
  }

  void on_compacted(revision oldest) override {
    end(std::make_exception_ptr(
        error(errc::compacted,
              "the watch fell behind the history, whose oldest revision is " + std::to_string(oldest))));
  }
  void on_failed(errc code, const std::string& reason) override {
    end(std::make_exception_ptr(error(code, "Watch.Watch", "", 0, reason)));
  }

private:
  static std::size_t bytes_of(const std::vector<event>& batch) {
    std::size_t sum = 0;
    for (const auto& each : batch) {
      sum += sizeof(event);
      for (const auto* kv : {&each.kv, &each.prev_kv})
        if (*kv) sum += (*kv)->key.size() + (*kv)->value.size();
    }
    return sum;
  }

  void count(const std::vector<event>& batch) {
    buffered_ += batch.size();
    buffered_bytes_ += bytes_of(batch);
  }

  void end(std::exception_ptr why) {
    watch_ = 0;
    ended_ = std::move(why);
    if (const auto to = std::exchange(waiting_, nullptr)) to->fail(ended_);
  }

  std::shared_ptr<client_state> client_;
  std::string key_;
  std::string range_end_;
  watch_options options_;
  engine::watch_hub::handle watch_ = 0;
  std::deque<std::vector<event>> buffer_;
  std::size_t buffered_ = 0;
  std::size_t buffered_bytes_ = 0;
  revision resume_at_ = 0;
  batch_waiter waiting_;
  std::exception_ptr ended_;
};

}  // namespace detail::client

/// A watch on a key or a range, made by `client::watch`. Movable; for one coroutine at a time. Its end
/// cancels the watch behind itself.
class watcher {
public:
  watcher(watcher&&) noexcept = default;
  watcher& operator=(watcher&& other) noexcept {
    if (this != &other) {
      stop();
      state_ = std::move(other.state_);
    }
    return *this;
  }
  ~watcher() { stop(); }

  /// The next changes: at least one, in revision order, all changes of a revision together. Reconnects and
  /// server restarts are bridged: nothing is lost and nothing comes twice.
  ///
  /// Completes when something has changed. Errors: `compacted` when the changes to resume from are gone (the
  /// text says from where on there are any: list again, then watch anew), `permission_denied` and what else
  /// the server refuses the watch with; the watcher has ended then and repeats the error. Cancellation loses
  /// no event: the next call returns it. No round trip.
  asio::awaitable<std::vector<event>> next();

private:
  friend class client;
  explicit watcher(std::shared_ptr<detail::client::watch_state> state) : state_(std::move(state)) {}

  static asio::awaitable<std::vector<event>> next_batch(std::shared_ptr<detail::client::watch_state> state);

  void stop() noexcept {
    if (!state_) return;
    const auto on = state_->client()->runtime();
    try {
      on->run([state = std::move(state_)] { state->stop(); });
    } catch (...) {  // out of memory: the client's end stops it
    }
  }

  std::shared_ptr<detail::client::watch_state> state_;
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/watcher.ipp>
#endif
