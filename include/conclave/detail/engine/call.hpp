// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cctype>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include <conclave/detail/engine/authenticator.hpp>
#include <conclave/detail/engine/backoff.hpp>
#include <conclave/detail/engine/revision_floor.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/rpc/methods.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/detail/wire/messages.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

namespace impl {

/// For `co_await asio::this_coro::cancellation_state`.
inline void throw_if_cancelled(const asio::cancellation_state& state) {
  if (state.cancelled() != asio::cancellation_type::none) throw error(errc::cancelled);
}

/// What gRPC has to say about a server that cannot be connected to: a call to it fails at once.
CONCLAVE_DECL asio::awaitable<rpc::status> ask_why(std::shared_ptr<rpc::transport> server);

/// The words of OpenSSL and of gRPC for a certificate that does not pass.
inline bool about_certificate(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (char& c : text)
    if (c == '_') c = ' ';
  return text.find("certificate verify failed") != text.npos ||
         text.find("is not in peer certificate") != text.npos ||
         text.find("hostname verification failed") != text.npos || text.find("peer name") != text.npos;
}

/// A server that is connected; tries each in turn. Throws `unavailable` after `limit`, and `certificate_refused`
/// as soon as it is clear that none else is to be had.
CONCLAVE_DECL asio::awaitable<std::shared_ptr<rpc::transport>> connected_server(
    std::shared_ptr<runtime> on, std::chrono::milliseconds limit);

template <class Request>
constexpr bool goes_unsigned =
    std::is_same_v<Request, authenticate_request> || std::is_same_v<Request, status_request>;

/// A stale read must work without a leader, and a status must tell about its absence.
template <class Request>
bool needs_leader(const Request& request) {
  if constexpr (std::is_same_v<Request, range_request>)
    return !request.serializable;
  else
    return !std::is_same_v<Request, status_request>;
}

/// Whether the answer comes from a member that knows of all that was written before the call.
template <class Request>
bool is_up_to_date(const Request& request) {
  if constexpr (std::is_same_v<Request, range_request>)
    return !request.serializable;
  else if constexpr (std::is_same_v<Request, txn>)
    return rpc::method<txn>::kind(request) == rpc::call_kind::write;
  else
    return std::is_same_v<Request, put_request> || std::is_same_v<Request, delete_range_request>;
}

CONCLAVE_DECL asio::awaitable<token> current_token(std::shared_ptr<runtime> on, rpc::time_point deadline);

}  // namespace impl

/// Given with a write that does its work once, however often and however late its copies arrive: whoever makes
/// it has seen to that. What became of it.
struct resends {
  /// Attempts whose answer never came. Each may have been applied, or may yet be.
  int unanswered = 0;
};

namespace impl {

/// `again`: null for a write that must not be sent twice.
template <class Request>
asio::awaitable<rpc::response_of<Request>> send(std::shared_ptr<runtime> on, Request request,
                                                resends* again) {
  using std::chrono::milliseconds;
  using method = rpc::method<Request>;
  if (on->stopped()) throw error(errc::client_closed);
  const auto kind = method::kind(request);
  const bool up_to_date = impl::is_up_to_date(request);
  const bool needs_leader = impl::needs_leader(request);
  on->keys().enter(request);
  const std::string bytes = wire::encode(request);
  const auto deadline = on->now() + on->options().request_timeout;
  const auto left = [&] {
    return std::max(milliseconds{1}, std::chrono::ceil<milliseconds>(deadline - on->now()));
  };
  std::optional<backoff> pause;
  int refused = 0;
  int stale = 0;
  // A silent server must leave time for another. The only one gets half, once: it may be a follower that has
  // sent the request on to a leader which hangs or is dead, and the next attempt goes to a new leader.
  const bool elsewhere = on->servers().size() > 1;
  const bool repeatable = kind == rpc::call_kind::read ? elsewhere : again != nullptr;
  bool leaves_time = repeatable;
  while (true) {
    const auto connect_limit = std::min(on->options().connect_timeout, left());
    std::shared_ptr<rpc::transport> server = on->servers().pick(on->now());
    if (!server->ready()) server = co_await impl::connected_server(on, connect_limit);
    rpc::metadata headers;
    if (needs_leader) headers.emplace_back("hasleader", "true");
    token by;
    if constexpr (!impl::goes_unsigned<Request>) {
      if (on->user() != nullptr) {
        by = co_await impl::current_token(on, deadline);
        if (!by.text.empty()) headers.emplace_back("token", by.text.reveal());
      }
    }
    const auto sent = on->floor().now();
    const auto limit = leaves_time ? std::max(left() / 2, std::min(left(), milliseconds{500})) : left();
    rpc::transport* const asked = server.get();
    auto start = [asked, limit, &bytes,
                  &headers](std::unique_ptr<rpc::receiver<rpc::unary_result>> receiver) {
      asked->unary(method::path, bytes, std::move(headers), limit, std::move(receiver));
    };
    rpc::unary_result result = co_await rpc::suspend<rpc::unary_result>(std::move(start));
    if (result.state.ok()) {
      if (on->user() != nullptr) on->user()->answered();
      rpc::response_of<Request> response;
      const auto failed = wire::decode(result.body, response);
      if (failed != wire::decode_error::none)
        throw error(errc::malformed_response, method::name, server->endpoint(), 0, wire::to_string(failed));
      const auto verdict = on->floor().judge(response.header, sent, up_to_date);
      if (verdict == revision_floor::verdict::good) {
        on->keys().leave(response);
        co_return response;
      }
      // A read may be stale by a server's bug; a write was certainly applied to the store of this revision.
      if (verdict == revision_floor::verdict::below && kind == rpc::call_kind::read && ++stale < 3 &&
          on->now() + milliseconds{50} < deadline) {
        on->suspect(*server);
        co_await sleep_for(on, milliseconds{50});
        continue;
      }
      on->reset_cluster(response.header, sent);
      throw error(
          errc::cluster_reset, method::name, server->endpoint(), 0,
          "revision " + std::to_string(response.header.revision) + " after " + std::to_string(sent.floor));
    }
    impl::throw_if_cancelled(co_await asio::this_coro::cancellation_state);
    auto code = rpc::classify(result.state, kind);
    // A server that is going away cancels; nobody here did.
    if (code == errc::cancelled)
      code = kind == rpc::call_kind::write ? errc::outcome_unknown : errc::unavailable;
    if (on->user() != nullptr) {
      if (result.state.code == rpc::status_code::deadline_exceeded)
        on->user()->silent(by.generation);
      else
        on->user()->answered();
      // Refused before anything was done. Once for its age, once more for a member that has yet to hear of it.
      if (code == errc::unauthenticated && !impl::goes_unsigned<Request> && ++refused < 3) {
        on->user()->refuse(by.generation);
        continue;
      }
    }
    if (code == errc::outcome_unknown && again != nullptr) ++again->unanswered;
    const bool silent = code == errc::timed_out || code == errc::outcome_unknown;
    if (code == errc::unavailable || silent) on->leave(*server);
    if (repeatable && result.state.code == rpc::status_code::deadline_exceeded) {
      leaves_time = elsewhere;
      if (on->now() + milliseconds{100} < deadline) continue;
    }
    const bool broke = result.state.code == rpc::status_code::unavailable ||
                       result.state.code == rpc::status_code::cancelled;
    if (code == errc::unavailable || (again != nullptr && broke)) {
      if (!pause) pause.emplace(milliseconds{20}, milliseconds{500}, on->seed());
      const auto next = on->now() + pause->next();
      if (next < deadline) {
        co_await sleep_until(on, next);
        continue;
      }
    }
    throw error(code, method::name, server->endpoint(), static_cast<int>(result.state.code),
                result.state.message);
  }
}

/// The same; what an attempt without an answer leaves in doubt is not denied by the failure of a later one.
template <class Request>
asio::awaitable<rpc::response_of<Request>> send_again(std::shared_ptr<runtime> on, Request request,
                                                      resends* again) {
  try {
    rpc::response_of<Request> answer = co_await send(std::move(on), std::move(request), again);
    co_return answer;
  } catch (const error& e) {
    const auto code = static_cast<errc>(e.code().value());
    const bool refused = code == errc::unauthenticated || code == errc::certificate_refused;
    if (again->unanswered == 0 || !(refused || rpc::worth_retrying(code))) throw;
    const std::string_view text = e.rpc().empty() ? std::string_view{e.what()} : e.server_text();
    throw error(errc::outcome_unknown, rpc::method<Request>::name, e.endpoint(), e.grpc_status(), text);
  }
}

}  // namespace impl

/// One call to the store, from any executor. Calls that certainly had no effect are repeated while there is
/// time, and a read is repeated elsewhere when a server is silent. Throws `error`.
template <class Request>
asio::awaitable<rpc::response_of<Request>> call(std::shared_ptr<runtime> on, Request request) {
  return impl::send(std::move(on), std::move(request), nullptr);
}

/// The same for a write that may be sent again: when a server is silent for half of the time that is left, and
/// when a connection breaks, it goes to another, or to the only one once more. `again` must outlive the call.
template <class Request>
asio::awaitable<rpc::response_of<Request>> call(std::shared_ptr<runtime> on, Request request,
                                                resends& again) {
  return impl::send_again(std::move(on), std::move(request), &again);
}

namespace impl {

/// Asks for a token, for all that wait for one. On the strand.
CONCLAVE_DECL asio::awaitable<void> authenticate(std::shared_ptr<runtime> on);

/// The token to make a call with that has time until `deadline`; throws `timed_out` then: the servers' answer may
/// take longer, and nothing has been sent.
CONCLAVE_DECL asio::awaitable<token> current_token(std::shared_ptr<runtime> on, rpc::time_point deadline);

}  // namespace impl

}  // namespace conclave::detail::engine

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/engine/impl/call.ipp>
#endif
