// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/linger.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/waiting_list.hpp>
#include <conclave/detail/engine/watch_hub.hpp>
#include <conclave/detail/pattern/backlog_machine.hpp>
#include <conclave/detail/pattern/claim_receipt.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// The local consumers of one queue, served together: one view of what waits, and one transaction at a time
/// which claims as many of the oldest items as there are consumers. Several are nested, each with a compare of
/// its own: where another process was faster, just that item is not ours. Each claim leaves a receipt, by which
/// it is found out what became of it if the answer gets lost. On the strand.
///
/// The view is a listing, and a watch once it is needed. A queue that is ordered by commit needs none as long as
/// there are items, and nobody else takes them: whatever comes goes behind what is known, and of what is taken here
/// the server would tell for nothing.
class backlog final : public engine::watch_listener,
                      public engine::runtime_observer,
                      public engine::lingering,
                      public std::enable_shared_from_this<backlog> {
public:
  /// An item that was claimed.
  struct claimed {
    std::string key;
    std::string value;
  };

  /// Completes with at least one item, or none for one that does not wait.
  using waiter = std::shared_ptr<engine::waiter<std::vector<claimed>>>;

  backlog(client::client_state& of, backlog_grammar grammar)
      : runtime_(of.runtime()),
        writes_(of.writes()),
        hub_(of.hub()),
        lingering_(of.lingering()),
        receipts_(of.shared<receipt_lease>("receipts", [&] { return std::make_shared<receipt_lease>(of); })),
        receipt_(grammar.prefix()),
        machine_(std::move(grammar)) {}

  /// Takes up to `most` items as soon as there is one.
  void take(const waiter& who, std::size_t most) { add({who, most, std::nullopt}); }

  /// The same until `deadline`; then completes with nothing.
  void take_until(const waiter& who, std::size_t most, engine::time_point deadline) {
    const auto place = add({who, most, std::nullopt});
    if (!who->waiting()) return;
    const auto timer = runtime_->at(deadline, [self = shared_from_this(), who, place] {
      if (!who->waiting()) return;
      self->remove(place);
      who->complete({});
    });
    who->on_end([on = runtime_, timer] { on->cancel(timer); });
  }

  /// Takes up to `most` items that are there, or nothing.
  void try_take(const waiter& who, std::size_t most) { add({who, most, listings_begun_}); }

  /// Items that a consumer got at the very moment at which it was cancelled: they go to the next one.
  void give_back(std::vector<claimed> items) {
    spare_.insert(spare_.begin(), std::make_move_iterator(items.begin()),
                  std::make_move_iterator(items.end()));
    pump();
    rest();
  }

  /// This client wrote an item at `at`: what is taken from now on takes it into account.
  void wrote(revision at) { written_ = std::max(written_, at); }

  [[nodiscard]] bool in_use() const override { return !consumers_.empty() || pumping_; }

  void on_forgotten() override {
    if (watch_ != 0) hub_->remove(std::exchange(watch_, 0));
    watching_ = false;
    machine_.forget();
    put_back();
  }

  /// The watch, if there is one, says so itself.
  void on_cluster_reset() override {
    if (watch_ == 0) watch_failed(std::make_exception_ptr(error(errc::cluster_reset)));
  }

  void on_created() override {
    watching_ = true;
    machine_.forget();  // there may have been a gap, also since a listing that is being read
    pump();
  }

  void on_events(std::vector<event> batch) override {
    machine_.events(std::move(batch));
    pump();
  }

  void on_compacted(revision) override { watch_failed(std::make_exception_ptr(error(errc::compacted))); }

  void on_failed(errc code, const std::string& reason) override {
    watch_failed(std::make_exception_ptr(error(code, "Watch.Watch", "", 0, reason)));
  }

private:
  struct consumer {
    waiter who;
    std::size_t most = 1;
    /// Set for one that does not wait: how many listings had been begun when it came. It is told "nothing"
    /// only by a later one.
    std::optional<std::uint64_t> listings_before;

    [[nodiscard]] bool waits() const noexcept { return !listings_before.has_value(); }
  };

  /// Those that do not wait are counted: with each event it is asked whether there are any.
  class consumer_line {
  public:
    using handle = engine::waiting_list<consumer>::handle;

    handle push_back(consumer each) {
      if (!each.waits()) ++not_waiting_;
      return all_.push_back(std::move(each));
    }
    consumer pop_front() { return uncounted(all_.pop_front()); }
    void remove(handle place) {
      if (auto each = all_.remove(place)) uncounted(*std::move(each));
    }
    template <class Condition>
    std::vector<consumer> take_if(Condition condition) {
      auto out = all_.take_if(condition);
      not_waiting_ -= static_cast<std::size_t>(
          std::count_if(out.begin(), out.end(), [](const consumer& each) { return !each.waits(); }));
      return out;
    }
    std::vector<consumer> take_all() {
      not_waiting_ = 0;
      return all_.take_all();
    }

    [[nodiscard]] bool empty() const noexcept { return all_.empty(); }
    [[nodiscard]] bool any_that_does_not_wait() const noexcept { return not_waiting_ != 0; }

    /// How many items they want together, as far as `limit`.
    [[nodiscard]] std::size_t wanted(std::size_t limit) const {
      std::size_t sum = 0;
      (void)all_.any_of([&](const consumer& each) {
        sum += std::min(each.most, limit - sum);
        return sum == limit;
      });
      return sum;
    }

  private:
    consumer uncounted(consumer each) {
      if (!each.waits()) --not_waiting_;
      return each;
    }

    engine::waiting_list<consumer> all_;
    std::size_t not_waiting_ = 0;
  };

  /// Claims in one transaction. etcd takes 128 operations a level, and a nested one has what is left of them.
  static constexpr std::size_t most_claims = 64;
  /// The largest value that a server takes unless configured otherwise, and some.
  static constexpr std::size_t largest_value = std::size_t{1600} * 1024;

  consumer_line::handle add(consumer each) {
    const auto who = each.who;
    if (each.waits() && !receipts_refused_) receipts_->prepare();
    if (!std::exchange(observing_, true)) runtime_->observe(weak_from_this());
    const auto place = consumers_.push_back(std::move(each));
    who->on_cancel(shared_from_this(), [this, place] { remove(place); });
    // What comes may go before what is known.
    if (machine_.grammar().sorted() == backlog_grammar::order::by_key) need_watch();
    if (!look_timer_) plan_look();
    pump();
    return place;
  }

  void need_watch() {
    if (watch_ != 0) return;
    engine::watch_hub::spec what;
    what.key = machine_.grammar().prefix();
    what.range_end = prefix_end(what.key);
    watch_ = hub_->add(std::move(what), weak_from_this());
  }

  /// See `runtime::look_later`.
  void plan_look() {
    look_timer_ = runtime_->look_later([weak = weak_from_this()] {
      const auto self = weak.lock();
      return self && self->look_again();
    });
  }

  bool look_again() {
    look_timer_.reset();
    if (consumers_.empty()) return false;
    plan_look();
    if (pumping_ || !must_wait()) return false;
    machine_.forget();
    pump();
    return true;
  }

  void remove(consumer_line::handle place) {
    consumers_.remove(place);
    rest();
  }

  void rest() {
    if (in_use()) return;
    if (!spare_.empty() && !put_back_timer_) {
      // A consumer that comes soon gets them in their order; otherwise they go back to the store.
      put_back_timer_ =
          runtime_->at(runtime_->now() + std::chrono::milliseconds{500}, [weak = weak_from_this()] {
            const auto self = weak.lock();
            if (!self) return;
            self->put_back_timer_.reset();
            if (self->consumers_.empty()) self->put_back();
          });
    }
    if (const auto list = lingering_.lock())
      list->idle(shared_from_this());
    else
      on_forgotten();
  }

  void pump() {
    hand_out();
    if (pumping_ || !served()) return;
    pumping_ = true;
    runtime_->spawn(run(shared_from_this()));
  }

  static asio::awaitable<void> run(std::shared_ptr<backlog> self);

  /// Something may have come while the last round ended.
  void pump_on() {
    if (served() && (must_list() || !must_wait())) pump();
  }

  /// Those that wait do so for the watch too, once it is needed. The others must not: there may be no server to be
  /// watched for a long time. A listing serves them as well; what it says may be old when they claim, and the claims
  /// are guarded.
  [[nodiscard]] bool served() const {
    return !consumers_.empty() && (watching_ || watch_ == 0 || consumers_.any_that_does_not_wait());
  }

  /// An event of our own is under way that may go before all the others.
  [[nodiscard]] bool behind() const {
    return machine_.grammar().sorted() == backlog_grammar::order::by_key && machine_.applied() < written_;
  }

  [[nodiscard]] bool must_list() const {
    if (!machine_.live()) return true;
    if (machine_.empty()) return !machine_.complete() || consumers_.any_that_does_not_wait();
    return behind() && consumers_.any_that_does_not_wait();
  }

  /// What was known of a queue of which all was known has been taken: the next item is told of by a watch, and
  /// not looked for each time.
  [[nodiscard]] bool ran_empty() const { return machine_.live() && machine_.empty() && machine_.complete(); }

  /// Given that there is no reason to list.
  [[nodiscard]] bool must_wait() const { return machine_.empty() || behind(); }

  static asio::awaitable<void> list(std::shared_ptr<backlog> self);

  static asio::awaitable<void> list_beyond(std::shared_ptr<backlog> self, std::uint64_t number, revision at);

  /// Those that do not wait, and came before listing `number` was begun, which found nothing.
  void tell_empty(std::uint64_t number) {
    if (!machine_.empty() || !machine_.complete() || !spare_.empty()) return;
    const auto told = consumers_.take_if(
        [number](const consumer& each) { return !each.waits() && *each.listings_before < number; });
    for (const auto& each : told) each.who->complete({});
  }

  using item_list = std::vector<backlog_machine::item>;

  static asio::awaitable<void> claim(std::shared_ptr<backlog> self);

  /// Whether claims leave receipts: not where the servers do not let them.
  static asio::awaitable<bool> receipt_is_ready(std::shared_ptr<backlog> self);

  [[nodiscard]] txn claim_of(const item_list& asked_for, bool with_receipt) const {
    txn request;
    if (machine_.grammar().sorted() == backlog_grammar::order::by_key && machine_.foreign() == 0) {
      // Nothing that goes before may have come unseen: the range before the first, and between two, is empty.
      std::string from = machine_.grammar().prefix();
      for (const auto& each : asked_for) {
        request.when(create_revision(from).until(each.key) == 0);
        from = each.key;
        from += '\0';
      }
    }
    const bool alone = goes_alone(asked_for);
    for (const auto& each : asked_for) {
      txn one;
      auto& to = alone ? request : one;
      to.when(mod_revision(each.key) == each.mod_revision)
          .then(delete_key(each.key, {.prev_kv = !each.value.has_value()}));
      if (!alone) request.then(std::move(one));
    }
    if (with_receipt) receipt_.add_to(request);
    return request;
  }

  /// Whether a claim is the transaction for its one item, with none around it: that is less work for etcd.
  [[nodiscard]] bool goes_alone(const item_list& asked_for) const {
    return asked_for.size() == 1 && machine_.grammar().sorted() == backlog_grammar::order::by_commit;
  }

  /// What a claim took, all of it or, if the answer makes no sense, nothing.
  void settle(const item_list& asked_for, const txn_response& answer, bool with_receipt) {
    const bool alone = goes_alone(asked_for);
    if (!answer.succeeded) {
      const bool receipt_was_known = !with_receipt || receipt_.learn(answer);
      if (alone && receipt_was_known) {
        machine_.taken(asked_for.front().key, asked_for.front().mod_revision);
        lost();
      } else {
        machine_.forget();  // list again
      }
      return;
    }
    std::vector<claimed> got;
    std::size_t next = 0;
    for (const auto& each : asked_for) {
      const auto& one = alone ? answer : answer.at(next++).txn();
      if (!one.succeeded) continue;  // another consumer was faster
      if (each.value) {
        got.push_back({each.key, *each.value});
        continue;
      }
      const auto& deleted = one.at(0).delete_range().prev_kvs;
      if (deleted.empty()) throw error(errc::unexpected_response, "KV.Txn: a deleted key without its value");
      got.push_back({each.key, deleted.front().value});
    }
    if (with_receipt) receipt_.learn(answer);
    for (const auto& each : asked_for) machine_.taken(each.key, each.mod_revision);
    if (got.size() < asked_for.size()) lost();
    add_spare(std::move(got));
  }

  /// Others take items too. Who does not hear of it would go on to ask for what is gone.
  void lost() {
    if (!watching_) machine_.forget();
    need_watch();
  }

  void add_spare(std::vector<claimed> got) {
    spare_.insert(spare_.end(), std::make_move_iterator(got.begin()), std::make_move_iterator(got.end()));
  }

  /// A claim of which nobody knows yet whether it was applied.
  struct doubtful_claim {
    item_list asked_for;
    errc code{};
    std::exception_ptr why;
  };

  /// Whether the failure of a claim leaves open what became of it. Only the first may still be applied.
  static bool leaves_open(errc code) noexcept {
    return code == errc::outcome_unknown || code == errc::no_space || code == errc::response_too_large ||
           code == errc::malformed_response || code == errc::unexpected_response;
  }

  void claim_failed(const item_list& asked_for, bool with_receipt, errc code, const std::exception_ptr& why) {
    machine_.forget();
    if (with_receipt && leaves_open(code)) {
      in_doubt_.emplace(doubtful_claim{asked_for, code, why});
      return;
    }
    if (with_receipt && code == errc::permission_denied) {  // without a receipt it may be allowed
      receipts_refused_ = true;
      return;
    }
    if (code == errc::outcome_unknown) {
      tell_unknown(asked_for.size(), why);
      return;
    }
    if (with_receipt && code == errc::lease_not_found) {
      receipts_->forget(receipt_.lease());
      no_receipts_before_ =
          runtime_->now() + std::chrono::seconds{1};  // whatever the server says of the next
      return;
    }
    std::rethrow_exception(why);
  }

  /// As many items may be gone: whoever would have got them has to know.
  void tell_unknown(std::size_t count, const std::exception_ptr& why) {
    while (count > 0 && !consumers_.empty()) {
      const auto first = consumers_.pop_front();
      count -= std::min(count, first.most);
      first.who->fail(why);
    }
  }

  static asio::awaitable<void> find_out(std::shared_ptr<backlog> self);

  struct taking {
    std::vector<claimed> got;
    std::size_t unknown = 0;
  };

  /// What a claim took, by the store's history: the conditions of all its parts were judged on the revision before
  /// `applied`. Where that is unknown, or compacted, an item that is still there was certainly not taken.
  static asio::awaitable<taking> look_behind(std::shared_ptr<backlog> self, item_list asked_for,
                                             revision applied);

  /// Gives what has been claimed to who waits longest.
  void hand_out() {
    while (!spare_.empty() && !consumers_.empty()) {
      const auto first = consumers_.pop_front();
      const auto end = spare_.begin() + static_cast<std::ptrdiff_t>(std::min(first.most, spare_.size()));
      if (first.who->complete({spare_.begin(), end})) spare_.erase(spare_.begin(), end);
    }
  }

  void on_error(const error& e) {
    const auto code = static_cast<errc>(e.code().value());
    machine_.forget();
    // Compacted: while a listing of many pages was being read.
    if (!rpc::worth_retrying(code) && code != errc::compacted) {
      fail_all(std::make_exception_ptr(e));
      return;
    }
    if (code == errc::compacted) return;
    for (const auto& each : consumers_.take_if([](const consumer& which) { return !which.waits(); }))
      each.who->fail(std::make_exception_ptr(e));
  }

  void fail_all(const std::exception_ptr& why) {
    for (const auto& each : consumers_.take_all()) each.who->fail(why);
  }

  void watch_failed(const std::exception_ptr& why) {
    watch_ = 0;
    watching_ = false;
    machine_.forget();
    fail_all(why);
  }

  /// Items that were claimed for a consumer which has left go back under their keys.
  void put_back() {
    if (spare_.empty()) return;
    std::vector<claimed> items(std::make_move_iterator(spare_.begin()),
                               std::make_move_iterator(spare_.end()));
    spare_.clear();
    runtime_->spawn(put_back_all(runtime_, machine_.grammar().sorted(), std::move(items)));
  }

  /// Puts an item back under its key, which is free. A priority's own key is touched as by any producer:
  /// another one that has read the last number would write over this item otherwise (Go's does not look).
  static txn put_request_for(const claimed& each, backlog_grammar::order sorted) {
    txn request;
    request.when(create_revision(each.key) == 0).then(put(each.key, each.value));
    if (sorted == backlog_grammar::order::by_key) {
      request.then(put("__" + each.key.substr(0, each.key.rfind('/')), ""));
    }
    return request;
  }

  static asio::awaitable<void> put_back_all(std::shared_ptr<engine::runtime> on,
                                            backlog_grammar::order sorted, std::vector<claimed> items);

  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::write_combiner> writes_;
  std::shared_ptr<engine::watch_hub> hub_;
  std::weak_ptr<engine::linger_list> lingering_;  // which keeps this
  std::shared_ptr<receipt_lease> receipts_;
  claim_receipt receipt_;
  backlog_machine machine_;
  consumer_line consumers_;
  std::deque<claimed> spare_;  ///< Claimed, and not handed out yet.
  std::optional<engine::runtime::timer_id> put_back_timer_;
  std::optional<engine::runtime::timer_id> look_timer_;
  engine::watch_hub::handle watch_ = 0;
  bool watching_ = false;
  bool observing_ = false;
  bool pumping_ = false;
  std::optional<doubtful_claim> in_doubt_;
  bool receipts_refused_ = false;
  engine::time_point no_receipts_before_{};
  std::uint64_t listings_begun_ = 0;
  revision written_ = 0;
};

}  // namespace conclave::detail::pattern

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/pattern/impl/backlog.ipp>
#endif
