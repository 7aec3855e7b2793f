// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/write_combiner.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

CONCLAVE_DECL asio::awaitable<txn_response> write_combiner::apply(txn write, write_lane lane) {
  auto what = candidate_of(std::move(write), std::move(lane), false);
  return wait_for(std::move(what), [](applied&& got) { return std::move(got.answer); });
}

CONCLAVE_DECL asio::awaitable<write_combiner::applied> write_combiner::apply_here(txn write,
                                                                                  write_lane lane) {
  return send_here(shared_from_this(), candidate_of(std::move(write), std::move(lane), false));
}

CONCLAVE_DECL asio::awaitable<write_combiner::applied> write_combiner::apply_repeatable(txn write,
                                                                                        write_lane lane) {
  return send_here(shared_from_this(), candidate_of(std::move(write), std::move(lane), true));
}

CONCLAVE_DECL asio::awaitable<write_combiner::applied> write_combiner::apply_at_once(txn write) {
  if (aside_ >= most_aside) return apply_repeatable(std::move(write));
  return send_aside(shared_from_this(), std::move(write));
}

CONCLAVE_DECL asio::awaitable<write_combiner::applied> write_combiner::send_aside(
    std::shared_ptr<write_combiner> self, txn write) {
  struct place {
    explicit place(int& of) : count(of) { ++count; }
    ~place() { --count; }
    place(const place&) = delete;
    place& operator=(const place&) = delete;
    int& count;
  };
  const place taken{self->aside_};
  resends again;
  applied out;
  out.answer = co_await call(self->runtime_, std::move(write), again);
  out.repeated = again.unanswered > 0;
  co_return out;
}

CONCLAVE_DECL asio::awaitable<txn_response> write_combiner::put_alone(std::shared_ptr<runtime> on,
                                                                      put_request what) {
  put_response answer = co_await call(std::move(on), std::move(what));
  txn_response out;
  out.header = answer.header;
  out.succeeded = true;
  out.responses.emplace_back().response = std::move(answer);
  co_return out;
}

CONCLAVE_DECL asio::awaitable<write_combiner::applied> write_combiner::send_here(
    std::shared_ptr<write_combiner> self, candidate what) {
  if (self->runtime_->stopped()) throw error(errc::client_closed);
  auto& machine = self->machine_;
  const bool others_wait = machine.waiting() != 0;
  const auto id = machine.enter(std::move(what), self->runtime_->now());
  report todo{machine.go(), nullptr, {}};
  if (others_wait || todo.next.empty()) {
    auto begin = [self, id, todo = std::move(todo)](runtime&, caller who) mutable {
      self->expect(id, who);
      self->act(std::move(todo));
    };
    applied got = co_await wait_at_once<applied>(self->runtime_, std::move(begin));
    co_return got;
  }
  // It goes, and alone: that saves the wait of one coroutine for another.
  report came = co_await deliver(self, std::get<write_combiner_machine::send>(std::move(todo.next.front())));
  auto own = std::move(came.next.front());
  came.next.erase(came.next.begin());
  const auto why = came.why;
  self->act(std::move(came));
  if (const auto* failed = std::get_if<write_combiner_machine::failed>(&own))
    std::rethrow_exception(reason(failed->code, why));
  auto& done = std::get<write_combiner_machine::answered>(own);
  applied out{std::move(done.answer), done.repeated};
  co_return out;
}

CONCLAVE_DECL asio::awaitable<void> write_combiner::carry(std::shared_ptr<write_combiner> self,
                                                          write_combiner_machine::send what) {
  report came = co_await deliver(self, std::move(what));
  self->act(std::move(came));
}

CONCLAVE_DECL asio::awaitable<write_combiner::report> write_combiner::deliver(
    std::shared_ptr<write_combiner> self, write_combiner_machine::send what) {
  txn_response answer;
  std::exception_ptr failed;
  resends again;
  const auto sent = self->runtime_->now();
  const auto* const only = write_combiner_machine::lone_operation(what.request);
  const bool puts = only != nullptr && std::holds_alternative<put_request>(only->request);
  try {
    if (puts && !what.repeatable)
      answer = co_await put_alone(self->runtime_,
                                  std::get<put_request>(std::move(what.request.success.front().request)));
    else if (what.repeatable)
      answer = co_await call(self->runtime_, std::move(what.request), again);
    else
      answer = co_await call(self->runtime_, std::move(what.request));
  } catch (...) {
    failed = std::current_exception();
  }
  const auto now = self->runtime_->now();
  const bool repeated = again.unanswered > 0;
  report out{{}, failed, now - sent};
  if (failed)
    out.next = self->machine_.on_failed(what.batch, code_of(failed), now, repeated);
  else
    out.next = self->machine_.on_answer(what.batch, std::move(answer), now, repeated);
  co_return out;
}

}  // namespace conclave::detail::engine
