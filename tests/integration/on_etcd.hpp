// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the tests on a real etcd share.

#include <conclave/client.hpp>
#include <conclave/session.hpp>
#include <conclave/testing/etcd_server.hpp>

#include "support/async_test.hpp"
#include "support/catch.hpp"
#include "support/eventually.hpp"

#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>

#include <chrono>
#include <concepts>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace conclave::test {

using namespace std::chrono_literals;
using testing::etcd_server;
using time_point = std::chrono::steady_clock::time_point;

inline time_point now() { return std::chrono::steady_clock::now(); }

/// How long something may take that must happen "promptly": far more than it needs on a busy machine, less
/// than any of the library's own limits (requests 5 s, connections 3 s), after which it would happen anyway.
inline constexpr auto promptly = 2000ms;

/// The code that an exception of the library's or of Asio's carries.
inline std::error_code code_of(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::system_error& e) {
    return e.code();
#if defined(CONCLAVE_USE_BOOST_ASIO)
  } catch (const boost::system::system_error& e) {
    return e.code();
#endif
  }
}

namespace detail {

struct task_base {
  asio::cancellation_signal cancellation;
  bool done = false;
  std::exception_ptr failed;
};

template <class T>
struct task_state : task_base {
  std::optional<std::conditional_t<std::is_void_v<T>, std::monostate, T>> value;
};

template <class T>
asio::awaitable<void> run_task(std::shared_ptr<task_state<T>> state,
                               std::function<asio::awaitable<T>()> make) {
  try {
    if constexpr (std::is_void_v<T>) {
      co_await make();
      state->value.emplace();
    } else {
      T value = co_await make();
      state->value.emplace(std::move(value));
    }
  } catch (...) {
    state->failed = std::current_exception();
  }
}

// No template: what Asio makes of each new type of handler takes compilers long.
inline void spawn_task(asio::io_context& context, asio::awaitable<void> work,
                       const std::shared_ptr<task_base>& state) {
  auto done = [state](std::exception_ptr) { state->done = true; };
  asio::co_spawn(context, std::move(work),
                 asio::bind_cancellation_slot(state->cancellation.slot(), std::move(done)));
}

}  // namespace detail

/// A coroutine that runs beside the test's own, on the same single thread. What it throws is kept.
template <class T>
class [[nodiscard]] task {
public:
  explicit task(std::shared_ptr<detail::task_state<T>> state) : state_(std::move(state)) {}

  bool done() const { return state_->done; }

  /// Asks the coroutine to end, as a parallel operation of Asio's or a `cancel_after` would.
  void cancel() { state_->cancellation.emit(asio::cancellation_type::terminal); }

  /// Its result, or what it threw.
  asio::awaitable<T> result(std::chrono::milliseconds limit = 10s) { return take(state_, limit); }

  /// The error that it threw; no error if it returned.
  asio::awaitable<std::error_code> error(std::chrono::milliseconds limit = 10s) {
    return look(state_, limit);
  }

private:
  using pointer = std::shared_ptr<detail::task_state<T>>;

  static asio::awaitable<void> wait(pointer state, std::chrono::milliseconds limit) {
    detail::task_state<T>* const raw = state.get();
    co_await eventually(
        "a coroutine ends", [raw] { return raw->done; }, limit);
  }
  static asio::awaitable<T> take(pointer state, std::chrono::milliseconds limit) {
    co_await wait(state, limit);
    if (state->failed) std::rethrow_exception(state->failed);
    if constexpr (!std::is_void_v<T>) {
      T value = std::move(*state->value);
      state->value.reset();
      co_return value;
    }
  }
  static asio::awaitable<std::error_code> look(pointer state, std::chrono::milliseconds limit) {
    co_await wait(state, limit);
    co_return state->failed ? code_of(state->failed) : std::error_code{};
  }

  pointer state_;
};

/// Starts the coroutine that `make` returns; `make` lives as long as the coroutine.
template <std::invocable Make>
auto start(asio::io_context& context, Make make) {
  using T = typename std::invoke_result_t<Make&>::value_type;
  auto state = std::make_shared<detail::task_state<T>>();
  detail::spawn_task(context, detail::run_task<T>(state, std::move(make)), state);
  return task<T>{state};
}

/// The error that an operation throws; no error if it succeeds.
template <class T>
asio::awaitable<std::error_code> error_of(asio::awaitable<T> operation) {
  std::error_code code;
  try {
    (void)co_await std::move(operation);
  } catch (...) {
    code = code_of(std::current_exception());
  }
  co_return code;
}

/// For what has no condition to wait for: that something does *not* happen.
inline asio::awaitable<void> pause_for(std::chrono::milliseconds time) {
  asio::steady_timer timer{co_await asio::this_coro::executor, time};
  co_await timer.async_wait(asio::use_awaitable);
}

inline asio::awaitable<std::int64_t> count_prefix(client on, std::string prefix) {
  const range_response found = co_await on.range(range_prefix(std::move(prefix), {.count_only = true}));
  co_return found.count;
}

/// Waits until exactly `count` keys begin with `prefix`.
inline asio::awaitable<void> keys_below(client on, std::string prefix, std::int64_t count,
                                        std::chrono::milliseconds limit = 10s) {
  auto reached = [&]() -> asio::awaitable<bool> {
    const auto found = co_await count_prefix(on, prefix);
    co_return found == count;
  };
  const std::string what = std::to_string(count) + " keys below " + prefix;
  co_await eventually(what, reached, limit);
}

inline asio::awaitable<bool> lease_exists(client on, lease_id id) {
  const lease_time_to_live_response left = co_await on.lease_time_to_live(id);
  co_return left.ttl >= 0;
}

inline asio::awaitable<void> lease_gone(client on, lease_id id, std::chrono::milliseconds limit = 10s) {
  auto gone = [&]() -> asio::awaitable<bool> {
    const bool exists = co_await lease_exists(on, id);
    co_return !exists;
  };
  co_await eventually("the lease is gone", gone, limit);
}

inline constexpr const char* watchers_metric = "etcd_debugging_mvcc_watcher_total";
inline constexpr const char* watch_streams_metric = "etcd_debugging_mvcc_watch_stream_total";

/// How many calls of a method the server has begun to serve.
inline double calls_started(const etcd_server& server, std::string_view service, std::string_view method) {
  const bool stream = method == "Watch" || method == "LeaseKeepAlive";
  return server.metric("grpc_server_started_total{grpc_method=\"" + std::string{method} +
                       "\",grpc_service=\"etcdserverpb." + std::string{service} + "\",grpc_type=\"" +
                       (stream ? "bidi_stream" : "unary") + "\"}");
}

/// How many calls of a method the server is serving.
inline double calls_open(const etcd_server& server, std::string_view service, std::string_view method) {
  const std::string of = "grpc_method=\"" + std::string{method} + "\",grpc_service=\"etcdserverpb." +
                         std::string{service} + "\"";
  double handled = 0;
  std::istringstream lines{server.metrics()};
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("grpc_server_handled_total{") && line.find(of) != std::string::npos)
      handled += std::stod(line.substr(line.rfind(' ') + 1));
  return calls_started(server, service, method) - handled;
}

/// Runs `test(io_context&)` on this thread. Afterwards no coroutine may be left on the context; a test that throws
/// takes those that it started with it.
inline void on_context(const std::function<asio::awaitable<void>(asio::io_context&)>& test,
                       std::chrono::milliseconds limit = 60s) {
  asio::io_context context{1};
  std::exception_ptr failed;
  auto guarded = [&]() -> asio::awaitable<void> {
    try {
      co_await test(context);
    } catch (...) {
      failed = std::current_exception();
      context.stop();  // tasks that still run use variables which are gone
    }
  };
  run_on(context, guarded, limit);
  if (failed) std::rethrow_exception(failed);
}

/// Runs `test(io_context&, etcd_server&)` on a private etcd. Afterwards nothing of it may be left: no
/// coroutine on the context, and on the server no watch, no stream, no lease, no key below `lock/`.
inline void on_etcd(const std::function<asio::awaitable<void>(asio::io_context&, etcd_server&)>& test,
                    std::chrono::milliseconds limit = 60s) {
  etcd_server server;
  on_context([&](asio::io_context& context) { return test(context, server); }, limit);

  server.resume();
  if (!server.running()) server.restart();
  run([&](asio::io_context& after) -> asio::awaitable<void> {
    client observer{after, server.endpoint()};
    auto no_watch = [&] {
      return server.metric(watchers_metric) == 0 && server.metric(watch_streams_metric) == 0;
    };
    co_await eventually("no watch is left", no_watch);
    auto no_lease = [&]() -> asio::awaitable<bool> {
      const lease_leases_response left = co_await observer.leases();
      co_return left.leases.empty();
    };
    co_await eventually("no lease is left", no_lease);
    co_await keys_below(observer, "lock/", 0);
  });
}

/// Everything that ever happened to the keys of the store, in order.
inline asio::awaitable<std::vector<event>> history(client on) {
  const put_response last = co_await on.put("end of history", "");
  watcher events = co_await on.watch_prefix("", {.start_revision = 1});
  std::vector<event> all;
  while (all.empty() || all.back().kv->mod_revision < last.header.revision) {
    auto some = co_await events.next();
    for (auto& each : some) all.push_back(std::move(each));
  }
  co_return all;
}

/// How often keys below `prefix` were written, by the store's own record.
inline asio::awaitable<int> writes_below(client on, std::string prefix) {
  const auto all = co_await history(on);
  int writes = 0;
  for (const auto& each : all)
    writes += each.type == event_type::put && each.kv->key.starts_with(prefix) ? 1 : 0;
  co_return writes;
}

inline client connect(asio::io_context& context, const etcd_server& server) {
  return client{context, server.endpoint()};
}

inline client connect(asio::io_context& context, const etcd_server& server, client_options options) {
  options.endpoints(server.endpoint());
  return client{context.get_executor(), options};
}

}  // namespace conclave::test
