// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/engine/write_combiner.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

CONCLAVE_DECL asio::awaitable<txn_response> write_combiner::apply(txn write, write_lane lane) {
  auto what = candidate_of(std::move(write), std::move(lane), false);
  return wait_for(std::move(what), [](applied&& got) { return std::move(got.answer); });
}

CONCLAVE_DECL asio::awaitable<write_combiner::applied> write_combiner::apply_repeatable(txn write,
                                                                                        write_lane lane) {
  auto what = candidate_of(std::move(write), std::move(lane), true);
  return wait_for(std::move(what), [](applied&& got) { return std::move(got); });
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

CONCLAVE_DECL asio::awaitable<void> write_combiner::carry(std::shared_ptr<write_combiner> self,
                                                          write_combiner_machine::send what) {
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
  if (failed)
    self->act(self->machine_.on_failed(what.batch, code_of(failed), now, repeated), failed, now - sent);
  else
    self->act(self->machine_.on_answer(what.batch, std::move(answer), now, repeated), nullptr, now - sent);
}

}  // namespace conclave::detail::engine
