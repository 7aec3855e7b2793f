// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/client.hpp>

namespace conclave::inline CONCLAVE_ABI {

CONCLAVE_DECL asio::awaitable<range_response> client::range(range_request request) const {
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<std::optional<key_value>> client::get(std::string key) const {
  return get_one(state_->runtime(), std::move(key));
}

CONCLAVE_DECL asio::awaitable<put_response> client::put(std::string key, std::string value,
                                                        put_options options) const {
  return call(conclave::put(std::move(key), std::move(value), options));
}

CONCLAVE_DECL asio::awaitable<put_response> client::put(put_request request) const {
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<delete_range_response> client::delete_range(
    delete_range_request request) const {
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<txn_response> client::txn(conclave::txn request) const {
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<txn_response> client::combined_txn(conclave::txn request) const {
  return state_->writes()->apply(std::move(request));
}

CONCLAVE_DECL asio::awaitable<compaction_response> client::compact(conclave::revision before,
                                                                   bool physical) const {
  compaction_request request;
  request.revision = before;
  request.physical = physical;
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<lease_grant_response> client::lease_grant(std::chrono::seconds ttl,
                                                                        lease_id id) const {
  lease_grant_request request;
  request.ttl = ttl.count();
  request.id = id;
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<lease_revoke_response> client::lease_revoke(lease_id id) const {
  lease_revoke_request request;
  request.id = id;
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<lease_time_to_live_response> client::lease_time_to_live(lease_id id,
                                                                                      bool keys) const {
  lease_time_to_live_request request;
  request.id = id;
  request.keys = keys;
  return call(std::move(request));
}

CONCLAVE_DECL asio::awaitable<lease_leases_response> client::leases() const {
  return call(lease_leases_request{});
}

CONCLAVE_DECL asio::awaitable<status_response> client::status() const { return call(status_request{}); }

CONCLAVE_DECL asio::awaitable<watcher> client::watch(std::string key, watch_options options) const {
  return start_watch(state_, std::move(key), {}, options);
}

CONCLAVE_DECL asio::awaitable<watcher> client::watch_prefix(std::string prefix, watch_options options) const {
  auto end = prefix_end(prefix);
  if (prefix.empty()) prefix.assign(1, '\0');
  return start_watch(state_, std::move(prefix), std::move(end), options);
}

CONCLAVE_DECL asio::awaitable<watcher> client::watch_interval(std::string begin, std::string end,
                                                              watch_options options) const {
  return start_watch(state_, std::move(begin), std::move(end), options);
}

CONCLAVE_DECL asio::awaitable<kept_lease> client::keep_lease(std::chrono::seconds ttl) const {
  return grant(state_, ttl);
}

CONCLAVE_DECL asio::awaitable<revision> client::wait_deleted(std::string key,
                                                             revision create_revision) const {
  auto start = [state = state_, key = std::move(key),
                create_revision](detail::client::deletion_wait::waiter waiting) mutable {
    std::make_shared<detail::client::deletion_wait>(std::move(state), std::move(key), create_revision,
                                                    std::move(waiting))
        ->start();
  };
  return detail::engine::wait<revision>(state_->runtime(), std::move(start));
}

CONCLAVE_DECL asio::awaitable<compare_and_put_result> client::compare_and_put(std::string key,
                                                                              revision expected,
                                                                              std::string value,
                                                                              put_options options) const {
  return compare_put(state_->runtime(), std::move(key), expected, std::move(value), options);
}

CONCLAVE_DECL asio::awaitable<std::optional<key_value>> client::get_one(
    std::shared_ptr<detail::engine::runtime> on, std::string key) {
  range_response found = co_await detail::engine::call(std::move(on), conclave::range(std::move(key)));
  std::optional<key_value> out;
  if (!found.kvs.empty()) out = std::move(found.kvs.front());
  co_return out;
}

CONCLAVE_DECL asio::awaitable<compare_and_put_result> client::compare_put(
    std::shared_ptr<detail::engine::runtime> on, std::string key, revision expected, std::string value,
    put_options options) {
  conclave::txn request;
  request.when(mod_revision(key) == expected)
      .then(conclave::put(key, std::move(value), options))
      .otherwise(conclave::range(key));
  txn_response answer = co_await detail::engine::call(std::move(on), std::move(request));
  compare_and_put_result out;
  out.succeeded = answer.succeeded;
  out.revision = answer.header.revision;
  if (!answer.succeeded) {
    auto& kvs = answer.at(0).range().kvs;
    if (!kvs.empty()) out.current = std::move(kvs.front());
  }
  co_return out;
}

CONCLAVE_DECL asio::awaitable<kept_lease> client::grant(std::shared_ptr<detail::client::client_state> of,
                                                        std::chrono::seconds ttl) {
  auto owner = co_await detail::client::grant_and_keep(std::move(of), ttl);
  co_return kept_lease{std::move(owner)};
}

CONCLAVE_DECL asio::awaitable<watcher> client::start_watch(std::shared_ptr<detail::client::client_state> of,
                                                           std::string key, std::string range_end,
                                                           watch_options options) {
  if (options.start_revision < 0)
    throw error(errc::invalid_argument, "watch: the start revision is negative");
  if (key.empty()) throw error(errc::invalid_argument, "watch: the key is empty");
  const auto on = of->runtime();
  auto from = options.start_revision;
  if (from == 0) {
    const range_response now = co_await detail::engine::call(on, conclave::range(key, {.count_only = true}));
    from = now.header.revision + 1;
  }
  auto state = std::make_shared<detail::client::watch_state>(std::move(of), std::move(key),
                                                             std::move(range_end), options);
  on->run([state, from] { state->start(from); });
  co_return watcher{std::move(state)};
}

}  // namespace conclave
