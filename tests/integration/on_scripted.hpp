// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the tests with a server that misbehaves share.

#include <conclave/mutex.hpp>
#include <conclave/queue.hpp>

#include "on_etcd.hpp"
#include "support/scripted_server.hpp"

#include <mutex>

namespace conclave::test {

using call_ptr = scripted_etcd::call_ptr;
using script = scripted_etcd::script;
using status_code = scripted_etcd::status_code;

/// Runs `test` on a real etcd behind a scripted server, which outlives all that the test leaves behind.
inline void on_scripted(
    const std::function<asio::awaitable<void>(asio::io_context&, scripted_etcd&, etcd_server&)>& test) {
  std::optional<scripted_etcd> proxy;
  on_etcd([&](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
    proxy.emplace(server.endpoint());
    co_await test(context, *proxy, server);
  });
}

inline client connect(asio::io_context& context, const scripted_etcd& proxy, client_options options = {}) {
  options.endpoints(proxy.endpoint());
  return client{context.get_executor(), options};
}

/// The client does what it is for.
inline asio::awaitable<void> check_usable(client c) {
  co_await c.put("usable", "yes");
  const auto found = co_await c.get("usable");
  REQUIRE(found.has_value());
  CHECK(found->value == "yes");
}

/// The lock is free, for somebody else, promptly.
inline asio::awaitable<void> check_free(client other, std::string name) {
  auto s = co_await session::open(other);
  conclave::mutex m{s, name};
  auto lock = co_await m.try_lock_for(promptly);
  REQUIRE(lock.has_value());
  CHECK(lock->token() > 0);
  co_await lock->unlock();
  co_await s.close();
}

// ---- whose transaction it is ------------------------------------------------------------------------------

/// Puts a key under a lease, and when it cannot, reads: that key, or the line.
inline bool takes_a_place(const txn& request, bool reads_the_line) {
  if (request.success.empty() || request.failure.empty()) return false;
  const auto* puts = std::get_if<put_request>(&request.success[0].request);
  const auto* reads = std::get_if<range_request>(&request.failure[0].request);
  return puts != nullptr && puts->lease != 0 && reads != nullptr &&
         (reads->key != puts->key) == reads_the_line;
}

/// The first of a lock: puts its key, and reads whether that is the only one unless somebody is known to be ahead.
inline bool joins(const txn& request) { return takes_a_place(request, false); }

/// A try to lock: puts its key if nobody stands in the line.
inline bool tries(const txn& request) { return takes_a_place(request, true); }

/// Deletes a lock's own key.
inline bool unlocks(const txn& request) {
  return request.success.size() == 1 &&
         std::holds_alternative<delete_range_request>(request.success[0].request);
}

/// Takes queued items, and leaves a receipt.
inline bool claims(const txn& request) {
  const auto* put =
      request.success.size() > 1 ? std::get_if<put_request>(&request.success.back().request) : nullptr;
  return put != nullptr && put->value == "claim";
}

/// Asks what became of a claim.
inline bool inquires(const txn& request) {
  const auto* put =
      request.success.size() == 1 ? std::get_if<put_request>(&request.success[0].request) : nullptr;
  return put != nullptr && put->value == "inquiry";
}

// ---- streams ----------------------------------------------------------------------------------------------

/// Undecodable as any message: what streams are fed with.
inline std::string no_message() { return std::string(16, '\xff'); }

/// Remembers the streams of a path, and what the client asked for on them.
class stream_log {
public:
  stream_log(scripted_etcd& proxy, const std::string& path) {
    script all;
    all.on_open = [state = state_](const call_ptr& on) {
      const std::lock_guard lock{state->mutex};
      state->streams.push_back(on);
    };
    all.on_message = [state = state_](const call_ptr& c, std::string bytes) {
      {
        const std::lock_guard lock{state->mutex};
        state->messages.push_back(bytes);
      }
      c->forward(std::move(bytes));
    };
    all.on_answer = [state = state_](const call_ptr& c, std::string bytes) {
      std::function<bool(const call_ptr&, const std::string&)> edit;
      {
        const std::lock_guard lock{state->mutex};
        edit = state->edit;
      }
      if (!edit || !edit(c, bytes)) c->send(std::move(bytes));
    };
    proxy.each_stream(path, std::move(all));
  }

  std::size_t opened() const {
    const std::lock_guard lock{state_->mutex};
    return state_->streams.size();
  }
  call_ptr last() const {
    const std::lock_guard lock{state_->mutex};
    if (state_->streams.empty()) throw std::logic_error{"no stream has been opened"};
    return state_->streams.back();
  }
  std::vector<std::string> messages() const {
    const std::lock_guard lock{state_->mutex};
    return state_->messages;
  }
  /// The create requests that came, in order.
  std::vector<watch_create_request> creates() const {
    std::vector<watch_create_request> out;
    for (const auto& each : messages()) {
      auto request = scripted_etcd::decoded<watch_request>(each);
      if (auto* create = std::get_if<watch_create_request>(&request.request_union)) out.push_back(*create);
    }
    return out;
  }
  /// What is to be done with etcd's answers; true: it has been done, nothing else is sent.
  void edit(std::function<bool(const call_ptr&, const std::string&)> how) {
    const std::lock_guard lock{state_->mutex};
    state_->edit = std::move(how);
  }

private:
  struct shared {
    std::mutex mutex;
    std::vector<call_ptr> streams;
    std::vector<std::string> messages;
    std::function<bool(const call_ptr&, const std::string&)> edit;
  };
  std::shared_ptr<shared> state_ = std::make_shared<shared>();
};

/// The next answer with events is treated by `how(stream, answer)` instead of being passed on.
inline void treat_next_events(stream_log& log, std::function<void(const call_ptr&, watch_response)> how) {
  auto done = std::make_shared<bool>(false);
  log.edit([done, how = std::move(how)](const call_ptr& c, const std::string& bytes) {
    auto answer = scripted_etcd::decoded<watch_response>(bytes);
    if (*done || answer.events.empty()) return false;
    *done = true;
    how(c, std::move(answer));
    return true;
  });
}

/// The same for the next acknowledgement of a watch.
inline void treat_next_created(stream_log& log, std::function<void(const call_ptr&, watch_response)> how) {
  auto done = std::make_shared<bool>(false);
  log.edit([done, how = std::move(how)](const call_ptr& c, const std::string& bytes) {
    auto answer = scripted_etcd::decoded<watch_response>(bytes);
    if (*done || !answer.created) return false;
    *done = true;
    how(c, std::move(answer));
    return true;
  });
}

/// Takes the values of the next `count` events.
inline asio::awaitable<std::vector<std::string>> values(watcher& from, std::size_t count) {
  std::vector<std::string> out;
  while (out.size() < count) {
    auto batch = co_await from.next();
    for (auto& each : batch) out.push_back(std::move(each.kv->value));
  }
  co_return out;
}

}  // namespace conclave::test
