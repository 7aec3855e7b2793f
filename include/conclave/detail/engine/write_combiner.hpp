// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/numbered.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/write_combiner_machine.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// What the order of a write counts in; see `write_combiner_machine`. Not an aggregate, because of GCC 12.
struct write_lane {
  write_lane() = default;
  write_lane(std::string of, bool shares = false) : name(std::move(of)), may_share(shares) {}

  /// Writes of one lane keep their order, and share no revision; empty: none.
  std::string name;
  /// They may share a revision all the same.
  bool may_share = false;
};

/// Sends the independent writes of a client, those that have gathered together. On the strand, but for
/// `apply`; and all but that one are for coroutines which nobody cancels.
class write_combiner final : public std::enable_shared_from_this<write_combiner> {
public:
  using limits = write_combiner_machine::limits;

  /// The limits that suit a client: nobody waits unsent for longer than a request may take.
  static limits limits_for(const runtime& on) {
    limits out;
    out.patience = on.options().request_timeout;
    // Servers have not looked at a user's permissions for what is nested. What cannot go together goes side by side.
    if (on.user() != nullptr) {
      out.most_members = 1;
      out.most_in_flight = 128;
    }
    return out;
  }

  explicit write_combiner(std::shared_ptr<runtime> on) : write_combiner(on, limits_for(*on)) {}
  write_combiner(std::shared_ptr<runtime> on, const limits& within)
      : runtime_(std::move(on)), machine_(within) {}

  /// Applies a write that is independent of all others, as `call` does; its keys are the client's, without
  /// its prefix. From any executor.
  ///
  /// The answer is what the write alone would have got, but that its header's revision may be that of others
  /// as well. Throws `error`: what `call` throws for a transaction, and
  /// - `timed_out`: it waited for the answer to others for as long as a request may take, and was not sent;
  /// - `outcome_unknown`: also if the answer to a batch is too large for the receive limit, or the store is
  ///   full and the write itself puts nothing.
  ///
  /// A write that comes while another is under way has its own time only from when it is sent: on a server
  /// that does not answer it fails after up to twice the request timeout.
  ///
  /// Cancellation: a write that waits is not sent; one that is on its way may be applied.
  asio::awaitable<txn_response> apply(txn write, write_lane lane = {});

  struct applied {
    txn_response answer;
    /// An attempt before the one that was answered may have been applied, or may yet be.
    bool repeated = false;
  };

  /// The same on the strand: a write that goes alone is carried by who asks for it.
  asio::awaitable<applied> apply_here(txn write, write_lane lane = {});

  /// The same for a write that does its work once, however often and however late its copies arrive: it goes
  /// again when there is no answer, unless it shares its batch with one that must not.
  asio::awaitable<applied> apply_repeatable(txn write, write_lane lane = {});

  /// The same for one that somebody waits for: it goes by itself and does not wait for the answer to others. With
  /// those that have nobody behind them once `most_aside` are under way so: thousands at a time are more than
  /// servers take.
  asio::awaitable<applied> apply_at_once(txn write);

  /// Writes that have yet to be sent, and batches that are under way.
  [[nodiscard]] std::size_t waiting() const noexcept { return machine_.waiting(); }
  [[nodiscard]] std::size_t in_flight() const noexcept { return machine_.in_flight(); }

private:
  using handle = write_combiner_machine::handle;
  using caller = std::shared_ptr<waiter<applied>>;
  using candidate = write_combiner_machine::candidate;

  /// What became of a batch: what is to be done now, what it failed with if it did, and how long it was under way.
  struct report {
    write_combiner_machine::actions next;
    std::exception_ptr why;
    write_combiner_machine::duration took{};
  };

  [[nodiscard]] candidate candidate_of(txn write, write_lane lane, bool repeatable) const {
    write_combiner_machine::member what;
    what.lane = std::move(lane.name);
    what.may_share = lane.may_share;
    what.repeatable = repeatable;
    what.bytes = size_of(write) + 2 * runtime_->keys().prefix().size() * count_keys(write);
    what.write = std::move(write);
    return write_combiner_machine::prepare(std::move(what));
  }

  static std::size_t size_of(const txn& write) {
    wire::size_list sizes;
    wire::meter measured{sizes};
    wire::walk(write, measured);
    return measured.size();
  }

  static std::size_t count_keys(const txn& write) {
    auto out = write.compare.size();
    for (const auto* branch : {&write.success, &write.failure})
      for (const auto& each : *branch) {
        const auto* nested = std::get_if<txn>(&each.request);
        out += nested != nullptr ? count_keys(*nested) : 1;
      }
    return out;
  }

  /// Waits for what `convert` makes of the result of a write.
  template <class Convert>
  auto wait_for(candidate what, Convert convert) {
    auto self = shared_from_this();
    auto begin = [self, what = std::move(what)](runtime&, caller who) mutable {
      self->arrive(std::move(who), std::move(what));
    };
    // Kept while the coroutine waits: it may be the last that has a part in the client.
    auto finish = [self, convert](applied&& got) { return convert(std::move(got)); };
    return wait_at_once<applied>(runtime_, std::move(begin), std::move(finish));
  }

  /// A put that goes alone goes as such: for a transaction, were it without any condition, etcd takes a view of the
  /// store first, and that costs it more.
  static asio::awaitable<txn_response> put_alone(std::shared_ptr<runtime> on, put_request what);

  static asio::awaitable<applied> send_aside(std::shared_ptr<write_combiner> self, txn write);

  static asio::awaitable<applied> send_here(std::shared_ptr<write_combiner> self, candidate what);

  static constexpr int most_aside = 4;
  static constexpr int turns_to_gather = 4;

  /// Any thread. Many come together, most of all those whose batch was answered: the strand hears of it once.
  void arrive(caller who, candidate what) {
    {
      const std::lock_guard lock{mutex_};
      arrivals_.push_back({std::move(who), std::move(what)});
      if (arrivals_.size() > 1) return;
    }
    runtime_->run([self = shared_from_this()] { self->admit(); });
  }

  void admit() {
    std::vector<arrival> all;
    {
      const std::lock_guard lock{mutex_};
      all.swap(arrivals_);
    }
    const auto now = runtime_->now();
    for (auto& each : all) {
      if (!each.who->waiting() || each.who->cancelled()) continue;
      expect(machine_.enter(std::move(each.what), now), each.who);
    }
    act({machine_.go(), nullptr, {}});
  }

  void expect(handle id, const caller& who) {
    callers_.insert(id, who);
    who->on_cancel(shared_from_this(), [this, id] { drop(id); });
  }

  void drop(handle id) {
    callers_.take(id);
    machine_.drop(id);
  }

  void act(report of) {
    const auto& why = of.why;
    for (auto& each : of.next) {
      if (auto* sends = std::get_if<write_combiner_machine::send>(&each)) {
        runtime_->spawn(carry(shared_from_this(), std::move(*sends)));
      } else if (auto* done = std::get_if<write_combiner_machine::answered>(&each)) {
        if (const auto who = callers_.take(done->who))
          (*who)->complete({std::move(done->answer), done->repeated});
      } else if (const auto* failed = std::get_if<write_combiner_machine::failed>(&each)) {
        if (const auto who = callers_.take(failed->who)) (*who)->fail(reason(failed->code, why));
      } else {
        proceed_in(turns_to_gather, runtime_->now() + of.took);
      }
    }
    machine_.tidy();
  }

  /// Resumed callers come to the strand behind what is posted to it now, those of a lock after a few turns more.
  /// On an overloaded executor a turn takes long: what waits does so no longer than it would have for a batch.
  void proceed_in(int turns, rpc::time_point until) {
    const auto posted = runtime_->post([weak = weak_from_this(), turns, until] {
      const auto self = weak.lock();
      if (!self) return;
      if (turns > 1 && self->runtime_->now() < until)
        self->proceed_in(turns - 1, until);
      else
        self->act({self->machine_.proceed(), nullptr, {}});
    });
    static_cast<void>(posted);  // not if it has stopped: then nobody is served any more
  }

  static errc code_of(const std::exception_ptr& why) noexcept {
    try {
      std::rethrow_exception(why);
    } catch (const error& e) {
      return static_cast<errc>(e.code().value());
    } catch (...) {
      return errc::server_error;
    }
  }

  /// The error of the batch, if it is the member's as well.
  static std::exception_ptr reason(errc code, const std::exception_ptr& why) {
    if (why && code_of(why) == code) return why;
    return std::make_exception_ptr(error(code, rpc::method<txn>::name));
  }

  static asio::awaitable<report> deliver(std::shared_ptr<write_combiner> self,
                                         write_combiner_machine::send what);

  static asio::awaitable<void> carry(std::shared_ptr<write_combiner> self, write_combiner_machine::send what);

  std::shared_ptr<runtime> runtime_;
  write_combiner_machine machine_;
  numbered<caller> callers_;  ///< By the machine's handles.
  int aside_ = 0;

  struct arrival {
    caller who;
    candidate what;
  };
  std::mutex mutex_;
  std::vector<arrival> arrivals_;  ///< Guarded by it.
};

}  // namespace conclave::detail::engine

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/engine/impl/write_combiner.ipp>
#endif
