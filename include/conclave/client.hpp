// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <concepts>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/asio.hpp>
#include <conclave/client_options.hpp>
#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/client/deletion_wait.hpp>
#include <conclave/detail/client/lease_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/rpc/grpc_transport.hpp>
#include <conclave/detail/rpc/steady_clock.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/lease.hpp>
#include <conclave/etcd/maintenance.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/kept_lease.hpp>
#include <conclave/version.hpp>
#include <conclave/watcher.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// What became of `client::compare_and_put`.
struct compare_and_put_result {
  /// The value was written.
  bool succeeded = false;
  /// The store's revision; the key's new mod revision if it was written.
  conclave::revision revision = 0;
  /// What the key is instead, if it was not written; empty when it does not exist.
  std::optional<key_value> current;
};

/// An etcd cluster. A cheap handle: copies share connections, watches and lease keeping, and may be used from
/// any coroutine and any thread at a time.
///
/// Every operation is an awaitable that completes on the executor of the coroutine which awaits it, throws
/// `conclave::error`, and is bounded by `client_options::request_timeout`, the waits for a connection and for a
/// user's token included. Common to all: `unavailable` (no server within the connect timeout; certainly not
/// applied), `timed_out` (a read without an answer, or a call that had to wait for too long to be sent; nothing
/// was written), `outcome_unknown` (a write whose answer got lost; it may have been applied),
/// `permission_denied`, `unauthenticated` (the user's name or password is wrong), `certificate_refused`,
/// `malformed_response`, `cluster_reset` (the store went back in time or is another one: data wiped, or restored
/// from a backup; every session, wait, hold and watch of the client ends with it, and the client may then be
/// used on). Cancelling an operation cancels its call and throws `cancelled` promptly; a write may have been
/// applied then. Each operation is one round trip; each write is one raft proposal.
///
/// A process that forks, and does not exec, makes its clients afterwards: gRPC does not survive a fork.
///
/// The client runs on the executor given, on a strand of its own, and must be destroyed before, or together
/// with, the executor's context; its destructor does not block. A context has work as long as a client lives
/// on it: let the last copy go if `run()` is to return.
class client {
public:
  /// Prepares connections; opens them behind itself, so that no server need be up yet.
  /// \throws error (`invalid_argument`) naming the option that cannot be.
  explicit client(const asio::any_io_executor& executor, const client_options& options = {})
      : client(executor, connect(options), std::make_shared<detail::rpc::steady_clock>(), options) {}

  /// The same from an execution context and a list of endpoints, for short programs.
  template <class Context>
    requires std::convertible_to<Context&, asio::execution_context&>
  client(Context& context, std::string_view endpoints)
      : client(asio::any_io_executor{context.get_executor()}, client_options{}.endpoints(endpoints)) {}

  /// Reads a key or a range: `co_await c.range(conclave::range_prefix("config/", {.limit = 100}))`.
  /// Linearizable unless `serializable` is set. Errors beside the common ones: `compacted`,
  /// `future_revision`, `response_too_large`.
  asio::awaitable<range_response> range(range_request request) const;

  /// Reads one key; nothing when it does not exist. Linearizable.
  asio::awaitable<std::optional<key_value>> get(std::string key) const;

  /// Writes a key. Errors beside the common ones: `lease_not_found`, `request_too_large`, `no_space`,
  /// `invalid_argument` (an empty key).
  asio::awaitable<put_response> put(std::string key, std::string value, put_options options = {}) const;
  asio::awaitable<put_response> put(put_request request) const;

  /// Deletes a key or a range; keys that do not exist are no error.
  asio::awaitable<delete_range_response> delete_range(delete_range_request request) const;

  /// Applies a transaction; `succeeded` tells which branch. Its answers are typed, nested ones included.
  /// Errors beside the common ones: `too_many_operations`, `duplicate_key`, `request_too_large`,
  /// `lease_not_found`, `no_space` (etcd 3.4 may have applied a transaction that it refuses so). A transaction
  /// that only reads is no proposal.
  asio::awaitable<txn_response> txn(conclave::txn request) const;

  /// Applies a transaction that is independent of all others, as `txn` does, and shares the cost with them: one
  /// that comes while another is under way waits for its answer, and goes with all that wait in one round trip
  /// and one proposal. For many small writes at a time, where each is a success of its own: a put is
  /// `co_await c.combined_txn(conclave::txn{}.then(conclave::put("key", "value")))`.
  ///
  /// Each has its own conditions, answer and error, as if it had been sent alone. But several may be applied at
  /// one revision, so that revisions do not tell them apart; and they are applied in any order, those that touch
  /// each other's keys in the order of their calls. Whoever needs an order awaits one before calling the next.
  /// The recipes' own writes are among those that go together; those of a client with a `user` go alone.
  ///
  /// Errors: those of `txn`, and `timed_out` (it waited for others for `client_options::request_timeout`, and was
  /// not sent) and `outcome_unknown` also when the answers of all that went together exceed
  /// `client_options::receive_limit`, or when the store is full and this one puts nothing. It may take up to
  /// twice the request timeout. Cancellation: one that waits is not sent; one under way may be applied.
  asio::awaitable<txn_response> combined_txn(conclave::txn request) const;

  /// Drops the history below revision `before`. Errors beside the common ones: `compacted`,
  /// `future_revision`.
  asio::awaitable<compaction_response> compact(conclave::revision before, bool physical = false) const;

  /// Grants a lease which nobody keeps alive; see `keep_lease`. An `id` of zero lets the server choose.
  /// Errors beside the common ones: `lease_exists`, `invalid_argument` (the TTL).
  asio::awaitable<lease_grant_response> lease_grant(std::chrono::seconds ttl, lease_id id = 0) const;

  /// Ends a lease and deletes its keys, at one revision. Errors beside the common ones: `lease_not_found`.
  asio::awaitable<lease_revoke_response> lease_revoke(lease_id id) const;

  /// How long a lease has left, -1 when it does not exist; with `keys`, which keys it holds.
  asio::awaitable<lease_time_to_live_response> lease_time_to_live(lease_id id, bool keys = false) const;

  /// All leases of the cluster.
  asio::awaitable<lease_leases_response> leases() const;

  /// How the server is that answers.
  asio::awaitable<status_response> status() const;

  /// Watches one key; `watch_prefix` every key that starts with `prefix`; `watch_interval` those in [begin,
  /// end). Completes when it is certain that every change from `start_revision` on, or from now on, will be
  /// seen: at once for a revision, after one linearizable read for "now".
  asio::awaitable<watcher> watch(std::string key, watch_options options = {}) const;
  asio::awaitable<watcher> watch_prefix(std::string prefix, watch_options options = {}) const;
  asio::awaitable<watcher> watch_interval(std::string begin, std::string end,
                                          watch_options options = {}) const;

  // What the recipes are composed of; build your own on the same three.

  /// Grants a lease and keeps it alive until the handle, or the last copy of it, goes. The lease id is the
  /// client's choice, so a lost answer is asked for again and never leaves a second lease behind.
  asio::awaitable<kept_lease> keep_lease(std::chrono::seconds ttl) const;

  /// Waits until `key` does not exist; at once if so. Completes with a revision at which it was gone. With a
  /// `create_revision`, waits for the end of just that incarnation: a key made anew does not count. Bridges
  /// reconnects, restarts and compactions, and waits for as long as it takes. Cancellation leaves nothing
  /// behind. Costs a watch, on the client's one stream, and then a linearizable read: whatever happens after
  /// that read reaches the watch.
  asio::awaitable<revision> wait_deleted(std::string key, revision create_revision = 0) const;

  /// Writes `value` if the key's mod revision is still `expected`, where zero means that it must not exist.
  /// One round trip, one proposal, whatever the outcome.
  asio::awaitable<compare_and_put_result> compare_and_put(std::string key, revision expected,
                                                          std::string value, put_options options = {}) const;

  /// For tests and simulations: other servers and another clock than gRPC and real time.
  client(const asio::any_io_executor& executor, std::vector<std::shared_ptr<detail::rpc::transport>> servers,
         std::shared_ptr<detail::rpc::clock> clock, const client_options& options)
      : state_(std::make_shared<detail::client::client_state>(detail::engine::runtime::make(
            executor, std::move(servers), std::move(clock), detail::engine::key_space{options.key_prefix()},
            {options.connect_timeout(), options.request_timeout(), options.receive_limit()},
            authenticator_of(options)))) {}

private:
  friend class session;
  friend class basic_queue;

  static std::vector<std::shared_ptr<detail::rpc::transport>> connect(const client_options& options) {
    using security = detail::rpc::endpoint::security;
    const detail::rpc::tls_credentials none;
    const auto* const given = options.tls() ? &options.tls()->credentials_ : nullptr;
    bool used = false;
    std::vector<std::shared_ptr<detail::rpc::transport>> servers;
    for (const auto& text : options.endpoints()) {
      const auto endpoint = detail::rpc::parse_endpoint(text);
      const bool tls =
          endpoint.wanted == security::tls || (endpoint.wanted == security::unsaid && given != nullptr);
      used = used || tls;
      servers.push_back(std::make_shared<detail::rpc::grpc_transport>(
          endpoint.target, endpoint.text, static_cast<int>(options.receive_limit()),
          tls ? (given != nullptr ? given : &none) : nullptr));
    }
    if (given != nullptr && !used)
      throw error(errc::invalid_argument, "tls: every endpoint is a plain one (http or unix)");
    return servers;
  }

  static std::unique_ptr<detail::engine::authenticator> authenticator_of(const client_options& options) {
    if (options.user().empty()) return nullptr;
    return std::make_unique<detail::engine::authenticator>(options.user(), options.password_);
  }

  template <class Request>
  asio::awaitable<detail::rpc::response_of<Request>> call(Request request) const {
    return detail::engine::call(state_->runtime(), std::move(request));
  }

  static asio::awaitable<std::optional<key_value>> get_one(std::shared_ptr<detail::engine::runtime> on,
                                                           std::string key);

  static asio::awaitable<compare_and_put_result> compare_put(std::shared_ptr<detail::engine::runtime> on,
                                                             std::string key, revision expected,
                                                             std::string value, put_options options);

  static asio::awaitable<kept_lease> grant(std::shared_ptr<detail::client::client_state> of,
                                           std::chrono::seconds ttl);

  static asio::awaitable<watcher> start_watch(std::shared_ptr<detail::client::client_state> of,
                                              std::string key, std::string range_end, watch_options options);

  std::shared_ptr<detail::client::client_state> state_;
};

}  // namespace conclave

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/impl/client.ipp>
#endif
