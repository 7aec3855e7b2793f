// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/client.hpp>
#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/pattern/backlog.hpp>
#include <conclave/detail/pattern/line_view.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// What both kinds of queue offer to consumers. Values are bytes. A cheap handle: copies share the queue and
/// may be used from any coroutine and any thread at a time; make as many as needed.
///
/// All consumers of a client share one view of the queue, and those that wait are served by one transaction at a time,
/// which claims as many items as there are consumers: an idle consumer costs a coroutine and nothing else.
///
/// Delivery is at most once: an item is deleted by the claim that delivers it. What a consumer got and then
/// lost in a crash is gone. An item that was claimed for a consumer which is cancelled at that moment is not:
/// it goes to the client's next consumer, and if none comes within half a second, back into the store (in a
/// `queue` at the end; tried for 30 s, also behind a client that is destroyed). That holds for the loser of
/// Asio's `||` too; `dequeue_for` has the timer built in.
///
/// If the answer to a claim gets lost, it is found out what became of it, and its items are delivered: each claim
/// leaves a receipt in the store, a key below `__NAME/receipt/` under a lease that all queues of the client share
/// (60 s, one round trip for a client's first consumer; gone behind the last). A role that may not write there takes
/// items without receipts.
///
/// Errors of all operations: those of the client. `outcome_unknown` from taking an item says that it may be gone: a
/// claim's answer got lost, and no server could be asked until the lease was over, or it left no receipt (a role, or
/// a full store), or the history was compacted at that moment. A wait goes on while no server can be reached.
class basic_queue {
public:
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

  /// Waits for an item and takes the first. Completes when there is one and no other consumer was faster;
  /// survives server restarts, reconnects and compactions. One round trip for an item that is known; idle: one event
  /// and one round trip from enqueue to delivery. One proposal for up to 64 local consumers together. A client's first
  /// reads what is there; the first that then finds none left opens the watch, and reads once more. Cancellation
  /// throws `cancelled` promptly and loses no item.
  asio::awaitable<std::string> dequeue() const;

  /// Takes the first item if there is one. "Nothing" is as of a linearizable read made during the call. One
  /// round trip; two to four for a client's first, and for the first that then finds none left, which opens the
  /// watch; more while other consumers are faster. One proposal if an item was there. Does not wait for a server:
  /// `unavailable` or `timed_out`.
  asio::awaitable<std::optional<std::string>> try_dequeue() const;

  /// Waits as `dequeue` does, at most for `time`; then gives nothing.
  asio::awaitable<std::optional<std::string>> dequeue_for(std::chrono::milliseconds time) const;

  /// Waits until there is an item and takes the first ones, `most` at most (and at most 64), in their order,
  /// in one transaction. \throws error (`invalid_argument`) if `most` is zero.
  asio::awaitable<std::vector<std::string>> dequeue_up_to(std::size_t most) const;

  /// How many items wait, at one revision. A round trip for every 5000.
  asio::awaitable<std::size_t> size() const;

  /// The first item, which stays where it is. Linearizable. One round trip; a second one for the first of
  /// several that were put in one transaction.
  asio::awaitable<std::optional<std::string>> peek() const;

protected:
  using grammar = detail::pattern::backlog_grammar;
  using client_state = detail::client::client_state;

  basic_queue(const client& of, std::string name, grammar::order order, const char* what)
      : state_(of.state_), name_(std::move(name)), grammar_(name_, order) {
    if (name_.empty()) throw error(errc::invalid_argument, std::string{what} + ": the name is empty");
  }
  ~basic_queue() = default;
  basic_queue(const basic_queue&) = default;
  basic_queue& operator=(const basic_queue&) = default;
  basic_queue(basic_queue&&) = default;
  basic_queue& operator=(basic_queue&&) = default;

  [[nodiscard]] const std::shared_ptr<client_state>& state() const noexcept { return state_; }
  [[nodiscard]] const grammar& keys() const noexcept { return grammar_; }

  /// Tells this client's consumers of a write, so that what they take next takes it into account.
  static void note_write(const std::shared_ptr<client_state>& state, const grammar& keys, revision at) {
    state->runtime()->run([state, name = shared_name(keys), at] {
      if (const auto found = state->find_shared<backlog>(name)) found->wrote(at);
    });
  }

private:
  using backlog = detail::pattern::backlog;
  using waiter = backlog::waiter;

  static std::string shared_name(const grammar& keys) {
    return (keys.sorted() == grammar::order::by_commit ? "queue " : "priority queue ") + keys.prefix();
  }

  /// What a wait consists of. In one place, whatever frames and closures it passes through: thousands may wait.
  template <class How>
  struct request {
    std::shared_ptr<client_state> state;
    grammar keys;
    How how;

    [[nodiscard]] std::shared_ptr<backlog> at() const {
      return state->shared<backlog>(shared_name(keys),
                                    [&] { return std::make_shared<backlog>(*state, keys); });
    }
  };

  template <class How>
  [[nodiscard]] std::shared_ptr<request<How>> request_of(How how) const {
    return std::make_shared<request<How>>(request<How>{state_, grammar_, std::move(how)});
  }

  template <class How>
  static asio::awaitable<std::vector<std::string>> some(std::shared_ptr<request<How>> what) {
    using items = std::vector<backlog::claimed>;
    auto start = [what](const waiter& who) { what->how(*what->at(), who); };
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    const auto before = cancellation.cancelled();
    items taken = co_await detail::engine::wait<items>(what->state->runtime(), std::move(start));
    if (cancellation.cancelled() != before && !taken.empty()) {
      // An item and the cancellation at the same moment: whoever cancelled does not look at a result.
      what->state->runtime()->run(
          [what, taken = std::move(taken)]() mutable { what->at()->give_back(std::move(taken)); });
      throw error(errc::cancelled);
    }
    std::vector<std::string> values;
    for (auto& each : taken) values.push_back(std::move(each.value));
    co_return values;
  }

  template <class How>
  static asio::awaitable<std::optional<std::string>> maybe_one(std::shared_ptr<request<How>> what) {
    std::vector<std::string> values = co_await some(std::move(what));
    std::optional<std::string> out;
    if (!values.empty()) out = std::move(values.front());
    co_return out;
  }

  template <class How>
  static asio::awaitable<std::string> first_of(std::shared_ptr<request<How>> what) {
    std::vector<std::string> values = co_await some(std::move(what));
    co_return std::move(values.front());
  }

  static asio::awaitable<std::size_t> count(std::shared_ptr<detail::engine::runtime> on, grammar keys);

  static asio::awaitable<std::optional<std::string>> look(std::shared_ptr<detail::engine::runtime> on,
                                                          grammar keys);

  std::shared_ptr<client_state> state_;
  std::string name_;
  grammar grammar_;
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/basic_queue.ipp>
#endif
