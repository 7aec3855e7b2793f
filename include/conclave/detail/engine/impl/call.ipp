// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/call.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine::impl {

CONCLAVE_DECL asio::awaitable<rpc::status> ask_why(std::shared_ptr<rpc::transport> server) {
  const std::string nothing;
  rpc::transport* const asked = server.get();
  auto start = [asked, &nothing](std::unique_ptr<rpc::receiver<rpc::unary_result>> receiver) {
    asked->unary(rpc::method<status_request>::path, nothing, {}, std::chrono::milliseconds{200},
                 std::move(receiver));
  };
  rpc::unary_result result = co_await rpc::suspend<rpc::unary_result>(std::move(start));
  co_return std::move(result.state);
}

CONCLAVE_DECL asio::awaitable<std::shared_ptr<rpc::transport>> connected_server(
    std::shared_ptr<runtime> on, std::chrono::milliseconds limit) {
  using std::chrono::milliseconds;
  auto server = on->servers().pick(on->now());
  if (server->ready()) co_return server;
  const auto deadline = on->now() + limit;
  bool asked_why = false;
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - on->now());
    if (left.count() <= 0) break;
    // A failing one gets time for its next attempt, another that becomes ready is seen after the slice.
    const auto slice = std::min(left, server->failing() ? milliseconds{100} : milliseconds{250});
    rpc::transport* const asked = server.get();
    auto start = [asked, slice](std::unique_ptr<rpc::receiver<bool>> receiver) {
      asked->connect(slice, std::move(receiver));
    };
    const bool ready = co_await rpc::suspend<bool>(std::move(start));
    if (ready) co_return server;
    throw_if_cancelled(co_await asio::this_coro::cancellation_state);
    if (!asked_why && on->servers().all_failing()) {
      asked_why = true;
      rpc::status why = co_await ask_why(server);
      throw_if_cancelled(co_await asio::this_coro::cancellation_state);
      if (!why.ok() && about_certificate(why.message))
        throw error(errc::certificate_refused, "connecting", server->endpoint(), static_cast<int>(why.code),
                    why.message);
    }
    on->servers().pass(*server);
    server = on->servers().pick(on->now());
    if (server->ready()) co_return server;
  }
  std::string reason;
  if (server->failing()) {
    const rpc::status why = co_await ask_why(server);
    throw_if_cancelled(co_await asio::this_coro::cancellation_state);
    if (!why.ok()) reason = ": " + why.message;
  }
  throw error(errc::unavailable, "could not connect to " + server->endpoint() + " within " +
                                     std::to_string(limit.count()) + " ms" + reason);
}

CONCLAVE_DECL asio::awaitable<void> authenticate(std::shared_ptr<runtime> on) {
  std::exception_ptr failed;
  bool for_good = false;
  rpc::secret text;
  try {
    authenticate_request request;
    request.name = on->user()->name();
    request.password = on->user()->password().reveal();
    authenticate_response answer = co_await call(on, std::move(request));
    text = rpc::secret{std::move(answer.token)};
  } catch (const error& e) {
    // Users that nobody has to be: the servers even refuse a token that is left over.
    const bool unwanted = e.server_text().find("authentication is not enabled") != std::string::npos;
    if (!unwanted) failed = std::current_exception();
    for_good = e.code() == errc::unauthenticated;
  } catch (...) {  // out of memory
    failed = std::current_exception();
  }
  if (failed)
    on->user()->failed(failed, for_good, on->now());
  else
    on->user()->got(std::move(text), on->now());
}

CONCLAVE_DECL asio::awaitable<token> current_token(std::shared_ptr<runtime> on, rpc::time_point deadline) {
  if (auto have = on->user()->current()) co_return *std::move(have);
  runtime* const where = on.get();
  auto start = [where, deadline](const std::shared_ptr<waiter<token>>& waiting) {
    const auto id = where->at(deadline, [waiting] {
      waiting->fail(std::make_exception_ptr(error(errc::timed_out, rpc::method<authenticate_request>::name)));
    });
    waiting->on_end([where, id] { where->cancel(id); });
    if (where->user()->wait(waiting, where->now())) where->spawn(authenticate(where->shared_from_this()));
  };
  co_return co_await wait<token>(std::move(on), std::move(start));
}

}  // namespace conclave::detail::engine::impl
