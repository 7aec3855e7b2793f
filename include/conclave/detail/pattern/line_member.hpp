// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include <conclave/detail/client/lease_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/waiting_list.hpp>
#include <conclave/detail/pattern/line_view.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// What holding a place at the front means to whoever holds it. Shared with the user's guard.
struct hold {
  hold(std::string key_held, revision token_held) : key(std::move(key_held)), token(token_held) {}

  const std::string key;
  const revision token;
  /// Any thread: not released, and not lost as far as anybody knows.
  std::atomic<bool> held{true};

  // On the strand.
  std::error_code ended;  ///< Why it was lost; empty while held and after a release.
  bool releasing = false;
  engine::waiting_list<std::shared_ptr<engine::waiter<std::error_code>>> waiting;

  void end(std::error_code why) {
    if (!held.exchange(false)) return;
    ended = why;
    for (const auto& each : waiting.take_all()) each->complete(why);
  }
};

/// What became of a release that carried a transaction.
struct released {
  bool lost = false;
  std::optional<txn_response> answer;
};

/// A session's one place in a line, and the coroutines of this process that stand in line for it. What goes
/// to the server is done by coroutines of its own on the strand, which nobody cancels: a user who gives up
/// leaves at once, and the place passes to the next local waiter or is given up behind the user's back.
///
///     idle ──enter──▶ joining ──▶ standing ──admitted──▶ held ──release──▶ leaving ──▶ idle, or joining
///
/// Algorithm: etcd's lock (one key per session, order by create revision); waiting by a standing watch.
class line_member final : public client::lease_part,
                          public line_view::member,
                          public std::enable_shared_from_this<line_member> {
public:
  /// A null hold: not admitted, and no failure.
  using waiter = std::shared_ptr<engine::waiter<std::shared_ptr<hold>>>;
  using release_waiter = std::shared_ptr<engine::waiter<released>>;

  line_member(const std::shared_ptr<client::lease_state>& of, const std::string& name, std::string part_name)
      : lease_(of),
        runtime_(of->runtime()),
        writes_(of->client()->writes()),
        grammar_(name),
        key_(grammar_.key(of->id())),
        lease_id_(of->id()),
        part_name_(std::move(part_name)),
        view_(of->client()->shared<line_view>("line " + grammar_.prefix(), [&] {
          return std::make_shared<line_view>(*of->client(), grammar_);
        })) {}

  /// A guard of the user's may be the last to go, on any thread: by then the strand has detached this, unless
  /// the strand is no more.
  ~line_member() override { detach(); }

  /// Stands in line until admitted.
  void enter(const waiter& who) {
    if (!refuse_ended(who)) line_up(who, false);
  }

  /// The same until `deadline`; then completes with nothing.
  void enter_until(const waiter& who, engine::time_point deadline) {
    if (refuse_ended(who)) return;
    const auto where = line_up(who, false);
    const auto timer = runtime_->at(deadline, [self = shared_from_this(), who, where] {
      if (!who->waiting()) return;
      self->give_up(where);
      who->complete(nullptr);
    });
    who->on_end([on = runtime_, timer] { on->cancel(timer); });
  }

  /// Takes the place if nobody stands in line, here or elsewhere.
  void try_enter(const waiter& who) {
    if (refuse_ended(who)) return;
    if (phase_ != phase::idle || !queue_.empty()) {
      who->complete(nullptr);
      return;
    }
    line_up(who, true);
  }

  /// Gives the place up; with `last`, in one transaction with the user's. `done` may be null. What fails is
  /// tried again behind the caller.
  void release(const std::shared_ptr<hold>& which, std::optional<txn> last, release_waiter done) {
    if (hold_ != which || which->releasing) {
      if (done) done->complete({which->ended != std::error_code{}, std::nullopt});
      return;
    }
    which->releasing = true;
    leave(std::move(last), std::move(done));
  }

  /// Somebody found out that the key is gone.
  void report_lost(const std::shared_ptr<hold>& which) {
    if (hold_ == which && !which->releasing) lose(make_error_code(errc::lock_lost));
  }

  void on_lease_end(errc why) override {
    const auto self = shared_from_this();
    phase_ = phase::ended;
    if (const auto last = std::exchange(hold_, nullptr)) last->end(make_error_code(why));
    for (const auto& each : queue_.take_all()) each.who->fail(why);
    detach();
  }

  void on_view_change() override {
    const auto self = shared_from_this();
    switch (phase_) {
      case phase::standing:
        evaluate();
        break;
      case phase::held:
        if (hold_ && !hold_->releasing && gone(hold_->token)) lose(make_error_code(errc::lock_lost));
        break;
      case phase::idle:
        // A put that was given up for lost was applied late.
        if (may_linger_ && view_->line().knows(0)) clear_leftover();
        break;
      case phase::joining:
      case phase::leaving:
      case phase::ended:
        break;
    }
  }

  void on_succeeded_by(revision token) override {
    const auto self = shared_from_this();
    if (phase_ == phase::held && !hold_->releasing && hold_->token < token)
      lose(make_error_code(errc::lock_lost));
  }

  [[nodiscard]] bool waits_for_change() const override { return phase_ == phase::standing; }

  [[nodiscard]] std::optional<engine::time_point> holds_since() const override {
    if (phase_ != phase::held) return std::nullopt;
    return held_since_;
  }

  void on_view_failed(std::exception_ptr why) override {
    const auto self = shared_from_this();
    view_failed_ = why;
    if (phase_ != phase::standing) return;
    fail_all(why);
    leave(std::nullopt, nullptr);
  }

private:
  enum class phase { idle, joining, standing, held, leaving, ended };

  struct local {
    waiter who;
    bool only_try = false;
  };
  using local_line = engine::waiting_list<local>;

  local_line::handle line_up(const waiter& who, bool only_try) {
    const auto where = queue_.push_back({who, only_try});
    who->on_cancel(shared_from_this(), [this, where] { give_up(where); });
    if (phase_ == phase::idle) join();
    return where;
  }

  bool refuse_ended(const waiter& who) const {
    const auto lease = lease_.lock();
    if (phase_ != phase::ended && lease && lease->alive()) return false;
    who->fail(lease ? lease->why_ended() : errc::session_lost);
    return true;
  }

  void join() {
    phase_ = phase::joining;
    token_ = 0;
    waited_ = false;
    view_failed_ = nullptr;
    view_->attach(key_, this);
    attached_ = true;
    runtime_->spawn(join_line(shared_from_this(), queue_.front().only_try));
  }

  /// What the first transaction of a join said.
  struct joined {
    revision token = 0;
    bool first = false;
  };

  /// With `ask`, both branches also tell whether the key is the only one below the prefix.
  [[nodiscard]] txn join_request(bool ask) const {
    txn request;
    request.when(create_revision(key_) == 0)
        .then(put(key_, "", {.lease = lease_id_}))
        .otherwise(range(key_, {.keys_only = true}));
    if (ask) {
      const request_op whether_alone = range_prefix(grammar_.prefix(), {.limit = 2, .keys_only = true});
      request.then(whether_alone).otherwise(whether_alone);
    }
    return request;
  }

  /// The lock is free when nothing at all stands below the prefix: then a failed try leaves nothing behind.
  [[nodiscard]] txn try_request() const {
    txn request;
    request.when(create_revision(grammar_.prefix()).prefix() == 0)
        .then(put(key_, "", {.lease = lease_id_}))
        .otherwise(range_prefix(grammar_.prefix(), {.limit = 64, .keys_only = true}));
    return request;
  }

  static asio::awaitable<void> join_line(std::shared_ptr<line_member> self, bool only_try);

  static revision token_of(const txn_response& written) {
    if (written.header.revision <= 0)
      throw error(errc::unexpected_response, "KV.Txn: written at no revision");
    return written.header.revision;
  }

  void detach() {
    if (std::exchange(attached_, false)) view_->detach(key_, this);
  }

  void on_joined(joined result) {
    token_ = result.token;
    if (queue_.empty()) {
      leave(std::nullopt, nullptr);
      return;
    }
    if (result.first) {
      admit();
      return;
    }
    if (view_failed_) {  // nobody would tell when it is our turn
      fail_all(view_failed_);
      leave(std::nullopt, nullptr);
      return;
    }
    phase_ = phase::standing;
    waited_ = true;
    view_->need();
    view_->expect(token_);
    evaluate();
  }

  /// A try that had to stand in line because of foreign keys, and is not first.
  void on_refused_in_line() {
    const auto first = queue_.pop_front();
    first.who->complete(nullptr);
    if (queue_.empty()) leave(std::nullopt, nullptr);
  }

  void on_refused() {
    phase_ = phase::idle;
    if (!queue_.empty() && queue_.front().only_try) {
      const auto first = queue_.pop_front();
      first.who->complete(nullptr);
    }
    next();
  }

  [[nodiscard]] bool gone(revision token) const {
    return view_->line().knows(token) && !view_->line().stands(key_, token);
  }

  void evaluate() {
    if (!view_->line().knows(token_)) return;
    if (gone(token_)) {
      const auto first = queue_.pop_front();
      phase_ = phase::idle;
      doubt_lease();
      first.who->fail(errc::lock_lost);
      next();
    } else if (view_->line().is_first(key_)) {
      admit();
    } else if (queue_.front().only_try) {
      on_refused_in_line();
    }
  }

  void admit() {
    view_->before_admitted(this, token_);
    phase_ = phase::held;
    hold_ = std::make_shared<hold>(key_, token_);
    held_since_ = runtime_->now();
    if (waited_)
      view_->need();
    else
      view_->need_soon();
    const auto first = queue_.pop_front();
    if (!first.who->complete(hold_))
      release(hold_, std::nullopt, nullptr);  // its context is being destroyed
    else if (gone(token_))
      lose(make_error_code(errc::lock_lost));
  }

  void lose(std::error_code why) {
    const auto last = std::exchange(hold_, nullptr);
    phase_ = phase::idle;
    doubt_lease();
    last->end(why);
    next();
  }

  /// A key goes with its lease, or by hand.
  void doubt_lease() {
    if (const auto lease = lease_.lock()) lease->doubt();
  }

  /// A waiter that was cancelled or timed out.
  void give_up(local_line::handle where) {
    queue_.remove(where);
    if (phase_ == phase::standing && queue_.empty()) leave(std::nullopt, nullptr);
  }

  void leave(std::optional<txn> last, release_waiter done) {
    phase_ = phase::leaving;
    if (waited_ || (hold_ && runtime_->now() - held_since_ >= line_view::unwatched_hold)) view_->need();
    runtime_->spawn(leave_line(shared_from_this(), std::move(last), std::move(done)));
  }

  static asio::awaitable<void> leave_line(std::shared_ptr<line_member> self, std::optional<txn> last,
                                          release_waiter done);

  void next() {
    if (phase_ != phase::idle) return;
    if (!queue_.empty()) {
      join();
      return;
    }
    if (may_linger_) {  // the view must be able to tell of a late put
      view_->need();
      return;
    }
    detach();
    if (const auto lease = lease_.lock()) lease->drop_part(part_name_);
  }

  void clear_leftover() {
    const auto since = view_->line().since(key_);
    if (since <= left_) return;  // nothing, or the view has yet to hear that it is gone
    token_ = since;
    may_linger_ = false;
    leave(std::nullopt, nullptr);
  }

  void fail_try(const std::exception_ptr& why) {
    if (queue_.empty() || !queue_.front().only_try) return;
    const auto first = queue_.pop_front();
    first.who->fail(why);
  }

  void fail_all(const std::exception_ptr& why) {
    for (const auto& each : queue_.take_all()) each.who->fail(why);
  }

  std::weak_ptr<client::lease_state> lease_;
  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::write_combiner> writes_;
  line_grammar grammar_;
  std::string key_;
  lease_id lease_id_;
  std::string part_name_;
  std::shared_ptr<line_view> view_;
  local_line queue_;
  phase phase_ = phase::idle;
  revision token_ = 0;
  revision left_ = 0;    ///< The last token that was given up.
  bool waited_ = false;  ///< Somebody was ahead of the place that is held or was last.
  std::shared_ptr<hold> hold_;
  engine::time_point held_since_{};
  std::exception_ptr view_failed_;
  bool may_linger_ = false;
  bool attached_ = false;
};

}  // namespace conclave::detail::pattern

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/pattern/impl/line_member.ipp>
#endif
