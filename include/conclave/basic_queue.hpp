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
/// All consumers of a client share one watch, and those that wait are served by one transaction at a time,
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
  /// survives server restarts, reconnects and compactions. Idle: one event and one round trip from enqueue to
  /// delivery; one proposal for up to 64 local consumers together. Cancellation throws `cancelled` promptly
  /// and loses no item.
  asio::awaitable<std::string> dequeue() const { return one(state_, grammar_); }

  /// Takes the first item if there is one. "Nothing" is as of a linearizable read made during the call. One
  /// round trip, two to four for a client's first, and more while other consumers are faster; one proposal
  /// if an item was there. Does not wait for a server: `unavailable` or `timed_out`.
  asio::awaitable<std::optional<std::string>> try_dequeue() const {
    auto how = [](backlog& at, const waiter& who) { at.try_take(who, 1); };
    return maybe_one(state_, grammar_, how);
  }

  /// Waits as `dequeue` does, at most for `time`; then gives nothing.
  asio::awaitable<std::optional<std::string>> dequeue_for(std::chrono::milliseconds time) const {
    constexpr std::chrono::milliseconds longest{std::chrono::hours{24 * 365}};
    auto how = [deadline = state_->runtime()->now() + std::min(time, longest)](
                   backlog& at, const waiter& who) { at.take_until(who, 1, deadline); };
    return maybe_one(state_, grammar_, how);
  }

  /// Waits until there is an item and takes the first ones, `most` at most (and at most 64), in their order,
  /// in one transaction. \throws error (`invalid_argument`) if `most` is zero.
  asio::awaitable<std::vector<std::string>> dequeue_up_to(std::size_t most) const {
    if (most == 0) throw error(errc::invalid_argument, "dequeue_up_to: the number is zero");
    auto how = [most](backlog& at, const waiter& who) { at.take(who, most); };
    return some(state_, grammar_, how);
  }

  /// How many items wait, at one revision. A round trip for every 5000.
  asio::awaitable<std::size_t> size() const { return count(state_->runtime(), grammar_); }

  /// The first item, which stays where it is. Linearizable. One round trip; a second one for the first of
  /// several that were put in one transaction.
  asio::awaitable<std::optional<std::string>> peek() const { return look(state_->runtime(), grammar_); }

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

  template <class How>
  static asio::awaitable<std::vector<std::string>> some(std::shared_ptr<client_state> state, grammar keys,
                                                        How how) {
    auto start = [state, keys, how](const waiter& who) {
      const auto at =
          state->shared<backlog>(shared_name(keys), [&] { return std::make_shared<backlog>(*state, keys); });
      how(*at, who);
    };
    const auto on = state->runtime();
    using items = std::vector<backlog::claimed>;
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    const auto before = cancellation.cancelled();
    items taken = co_await detail::engine::wait<items>(on, std::move(start));
    if (cancellation.cancelled() != before && !taken.empty()) {
      // An item and the cancellation at the same moment: whoever cancelled does not look at a result.
      auto back = [state, keys = std::move(keys), taken = std::move(taken)]() mutable {
        state->shared<backlog>(shared_name(keys), [&] { return std::make_shared<backlog>(*state, keys); })
            ->give_back(std::move(taken));
      };
      on->run(std::move(back));
      throw error(errc::cancelled);
    }
    std::vector<std::string> values;
    for (auto& each : taken) values.push_back(std::move(each.value));
    co_return values;
  }

  template <class How>
  static asio::awaitable<std::optional<std::string>> maybe_one(std::shared_ptr<client_state> state,
                                                               grammar keys, How how) {
    std::vector<std::string> values = co_await some(std::move(state), std::move(keys), how);
    std::optional<std::string> out;
    if (!values.empty()) out = std::move(values.front());
    co_return out;
  }

  static asio::awaitable<std::string> one(std::shared_ptr<client_state> state, grammar keys) {
    auto how = [](backlog& at, const waiter& who) { at.take(who, 1); };
    std::vector<std::string> values = co_await some(std::move(state), std::move(keys), how);
    co_return std::move(values.front());
  }

  static asio::awaitable<std::size_t> count(std::shared_ptr<detail::engine::runtime> on, grammar keys) {
    const range_response found = co_await detail::pattern::read_keys(std::move(on), keys.prefix());
    co_return static_cast<std::size_t>(std::count_if(
        found.kvs.begin(), found.kvs.end(), [&](const key_value& each) { return keys.is_item(each.key); }));
  }

  static asio::awaitable<std::optional<std::string>> look(std::shared_ptr<detail::engine::runtime> on,
                                                          grammar keys) {
    const bool by_commit = keys.sorted() == grammar::order::by_commit;
    // Keys that are no items may stand before the first one.
    for (std::int64_t limit = by_commit ? 2 : 1;; limit *= 16) {
      range_response found = co_await detail::engine::call(
          on, range_prefix(keys.prefix(), {.limit = limit,
                                           .order = sort_order::ascend,
                                           .target = by_commit ? sort_target::mod : sort_target::key}));
      auto& kvs = found.kvs;
      auto first =
          std::find_if(kvs.begin(), kvs.end(), [&](const key_value& each) { return keys.is_item(each.key); });
      if (first == kvs.end()) {
        if (!found.more) co_return std::nullopt;
        if (kvs.size() < static_cast<std::size_t>(limit))
          throw error(errc::unexpected_response, "KV.Range: more keys, and fewer than were asked for");
        continue;
      }
      if (by_commit) {
        // Items of one transaction share a revision; their keys are in order, but the server's answer is not,
        // and may end among them.
        const auto at = first->mod_revision;
        if (found.more && kvs.back().mod_revision == at) {
          found = co_await detail::engine::call(
              on, range_prefix(keys.prefix(), {.min_mod_revision = at, .max_mod_revision = at}));
          std::erase_if(kvs, [&](const key_value& each) { return !keys.is_item(each.key); });
          if (kvs.empty()) {  // all taken meanwhile
            limit = 1;
            continue;
          }
          first = kvs.begin();
        }
        for (auto each = first; each != kvs.end() && each->mod_revision == at; ++each)
          if (each->key < first->key && keys.is_item(each->key)) first = each;
      }
      co_return std::move(first->value);
    }
  }

  std::shared_ptr<client_state> state_;
  std::string name_;
  grammar grammar_;
};

}  // namespace conclave
