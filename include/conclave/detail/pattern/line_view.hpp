// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/linger.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/watch_hub.hpp>
#include <conclave/detail/pattern/line_machine.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// Reads all keys below a prefix, page by page, at one revision; from the beginning when that is compacted
/// meanwhile.
CONCLAVE_DECL asio::awaitable<range_response> read_keys(std::shared_ptr<engine::runtime> on,
                                                        std::string prefix);

/// What a client knows about one line: a standing watch that all its local participants share. On the strand.
///
/// The watch begins when somebody needs it, and goes when nobody has needed it for a while: a lock that is taken and
/// given back with nobody in the way would only make the server tell of its own two writes, each time.
class line_view final : public engine::watch_listener,
                        public engine::lingering,
                        public std::enable_shared_from_this<line_view> {
public:
  /// A local participant.
  class member {
  public:
    /// Its standing, or what is known about it, may have changed.
    virtual void on_view_change() = 0;
    /// The line cannot be watched.
    virtual void on_view_failed(std::exception_ptr why) = 0;
    /// Another local participant, who came at revision `token`, is first now.
    virtual void on_succeeded_by(revision token) = 0;
    /// Whether it waits for a change.
    [[nodiscard]] virtual bool waits_for_change() const = 0;
    /// Since when it holds what it would have to hear the loss of, if it does.
    [[nodiscard]] virtual std::optional<engine::time_point> holds_since() const = 0;

  protected:
    ~member() = default;
  };

  line_view(const client::client_state& of, line_grammar grammar)
      : runtime_(of.runtime()), hub_(of.hub()), lingering_(of.lingering()), machine_(std::move(grammar)) {}

  [[nodiscard]] const line_machine& line() const noexcept { return machine_; }

  void attach(const std::string& key, member* who) { members_[key] = who; }

  /// How long a hold may last that is not watched.
  static constexpr std::chrono::milliseconds unwatched_hold{50};

  /// A member waits for what happens in the line, or did until now.
  void need() {
    needed_ = runtime_->now();
    watch();
    if (!look_timer_) plan_look();
  }

  /// A member holds, and needs the watch if it goes on holding.
  void need_soon() {
    if (watch_ == 0 && !hold_timer_) plan_hold_watch(runtime_->now() + unwatched_hold);
  }

  /// A member is first with the place that it took at revision `token`, as the server said in whatever way: an
  /// older holder here has lost the lock, and is told before the new one is.
  void before_admitted(member* who, revision token) {
    if (holder_ && token < holder_since_) return;  // late news
    auto* const last = std::exchange(holder_, who);
    holder_since_ = token;
    if (last && last != who) last->on_succeeded_by(token);
  }

  /// Something was written to the line at revision `at`, and the watch must tell of it. If it does not in time it
  /// tells of nothing else either, and the line is read.
  void expect(revision at) {
    expected_ = std::max(expected_, at);
    if (!expect_timer_ && !machine_.knows(at)) plan_probe(at);
  }

  /// Does nothing if another member has taken the key over.
  void detach(const std::string& key, const member* who) {
    if (holder_ == who) holder_ = nullptr;
    const auto found = members_.find(key);
    if (found == members_.end() || found->second != who) return;
    members_.erase(found);
    if (!members_.empty()) return;
    if (runtime_->now() - needed_ >= client::client_state::standing_watch_time) on_forgotten();
    if (const auto list = lingering_.lock())
      list->idle(shared_from_this());
    else
      on_forgotten();
  }

  [[nodiscard]] bool in_use() const override { return !members_.empty(); }

  void on_forgotten() override {
    if (watch_ == 0) return;
    hub_->remove(std::exchange(watch_, 0));
    ++round_;
    machine_.begin();
  }

  void on_created() override {
    patience_.reset();
    machine_.begin();
    expected_ = 0;  // what was written before will be in what is read now
    runtime_->spawn(read(shared_from_this(), ++round_));
  }

  void on_events(std::vector<event> batch) override {
    const auto self = shared_from_this();
    for (const auto& key : machine_.events(batch)) tell(key);
  }

  void on_compacted(revision) override { fail(std::make_exception_ptr(error(errc::compacted))); }

  void on_failed(errc code, const std::string& reason) override {
    fail(std::make_exception_ptr(error(code, "Watch.Watch", "", 0, reason)));
  }

private:
  void watch() {
    if (watch_ != 0) return;
    engine::watch_hub::spec what;
    what.key = machine_.grammar().prefix();
    what.range_end = prefix_end(what.key);
    watch_ = hub_->add(std::move(what), weak_from_this());
  }

  void plan_hold_watch(engine::time_point when) {
    hold_timer_ = runtime_->at(when, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->watch_long_holds();
    });
  }

  void watch_long_holds() {
    hold_timer_.reset();
    std::optional<engine::time_point> oldest;
    for (const auto& [key, who] : members_) {
      const auto since = who->holds_since();
      if (since && (!oldest || *since < *oldest)) oldest = since;
    }
    if (!oldest || watch_ != 0) return;
    if (runtime_->now() - *oldest >= unwatched_hold)
      need();
    else
      plan_hold_watch(*oldest + unwatched_hold);
  }

  void plan_look() {
    look_timer_ = runtime_->look_later([weak = weak_from_this()] {
      const auto self = weak.lock();
      return self && self->look_again();
    });
  }

  bool look_again() {
    look_timer_.reset();
    if (members_.empty()) return false;
    plan_look();
    const bool waiting = std::any_of(members_.begin(), members_.end(),
                                     [](const auto& each) { return each.second->waits_for_change(); });
    if (waiting) runtime_->spawn(look(shared_from_this(), round_));
    return waiting;
  }

  void plan_probe(revision at) {
    expect_timer_ = runtime_->look_in(std::chrono::seconds{1}, [weak = weak_from_this(), at] {
      const auto self = weak.lock();
      return self && self->probe(at);
    });
  }

  bool probe(revision at) {
    expect_timer_.reset();
    if (members_.empty() || machine_.knows(expected_)) return false;
    plan_probe(expected_);
    const bool late = machine_.knows(0) && !machine_.knows(at);
    if (late) runtime_->spawn(look(shared_from_this(), round_));
    return late;
  }

  /// See `runtime::look_later`.
  static asio::awaitable<void> look(std::shared_ptr<line_view> self, std::uint64_t round);

  static asio::awaitable<void> read(std::shared_ptr<line_view> self, std::uint64_t round);

  void tell(const std::string& key) {
    const auto found = members_.find(key);
    if (found != members_.end()) found->second->on_view_change();
  }

  void tell_all() {
    for (const auto& [key, who] : std::unordered_map(members_))
      if (members_.contains(key)) who->on_view_change();
  }

  void fail(std::exception_ptr why) {
    const auto self = shared_from_this();
    on_forgotten();
    ++round_;
    machine_.begin();
    for (const auto& [key, who] : std::unordered_map(members_))
      if (members_.contains(key)) who->on_view_failed(why);
    if (members_.empty()) return;
    // Those who hold the lock stay, and have to hear of its loss.
    runtime_->at(runtime_->now() + patience_.next(), [weak = weak_from_this()] {
      if (const auto again = weak.lock(); again && again->in_use()) again->watch();
    });
  }

  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::watch_hub> hub_;
  std::weak_ptr<engine::linger_list> lingering_;  // which keeps this
  line_machine machine_;
  std::unordered_map<std::string, member*> members_;
  member* holder_ = nullptr;  ///< The last that was admitted, while attached.
  revision holder_since_ = 0;
  engine::watch_hub::handle watch_ = 0;
  std::uint64_t round_ = 0;
  engine::backoff patience_{std::chrono::milliseconds{500}, std::chrono::seconds{30}, 1};
  engine::time_point needed_{};
  std::optional<engine::runtime::timer_id> hold_timer_;
  std::optional<engine::runtime::timer_id> look_timer_;
  revision expected_ = 0;  ///< The last that the watch must tell of.
  std::optional<engine::runtime::timer_id> expect_timer_;
};

}  // namespace conclave::detail::pattern

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/pattern/impl/line_view.ipp>
#endif
