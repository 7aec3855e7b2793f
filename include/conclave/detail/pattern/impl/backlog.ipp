// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/pattern/backlog.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

CONCLAVE_DECL asio::awaitable<void> backlog::run(std::shared_ptr<backlog> self) {
  engine::backoff pause{std::chrono::milliseconds{20}, std::chrono::seconds{1}, self->runtime_->seed()};
  while (self->in_doubt_ || self->served()) {
    bool failed = false;
    try {
      if (self->in_doubt_)
        co_await find_out(self);
      else if (self->must_list()) {
        if (self->ran_empty()) self->need_watch();
        co_await list(self);
      } else if (self->must_wait()) {
        self->need_watch();
        break;  // the watch's beginning, or the next event, goes on
      } else
        co_await claim(self);
      pause.reset();
    } catch (const error& e) {
      failed = true;
      self->on_error(e);
    } catch (const std::exception&) {  // an answer of another shape
      self->fail_all(std::make_exception_ptr(error(errc::unexpected_response, "KV.Txn")));
    }
    self->hand_out();
    // Behind a client that has gone nobody would be told.
    if (failed && self->lingering_.expired()) self->in_doubt_.reset();
    if (failed && (self->in_doubt_ || !self->consumers_.empty()))
      co_await engine::sleep_for(self->runtime_, pause.next());
  }
  self->pumping_ = false;
  self->pump_on();
  self->rest();
}

CONCLAVE_DECL asio::awaitable<void> backlog::list(std::shared_ptr<backlog> self) {
  self->machine_.begin();
  const bool by_commit = self->machine_.grammar().sorted() == backlog_grammar::order::by_commit;
  const auto number = ++self->listings_begun_;
  const range_response found = co_await engine::call(
      self->runtime_, range_prefix(self->machine_.grammar().prefix(),
                                   {.limit = static_cast<std::int64_t>(self->machine_.most_items()),
                                    .order = sort_order::ascend,
                                    .target = by_commit ? sort_target::mod : sort_target::key,
                                    .keys_only = true}));
  // A page without an item that is sure to be among the first hides what is behind it: read on. (The
  // server's order within a revision is arbitrary, so that the last one's items do not count.)
  const auto last = by_commit && found.more && !found.kvs.empty() ? found.kvs.back().mod_revision : 0;
  const bool hidden = std::none_of(found.kvs.begin(), found.kvs.end(), [&](const key_value& each) {
    return self->machine_.grammar().is_item(each.key) && each.mod_revision != last;
  });
  if (found.more && hidden) {
    co_await list_beyond(self, number, found.header.revision);
    co_return;
  }
  if (self->machine_.snapshot(found.kvs, found.more, found.header.revision)) self->tell_empty(number);
}

CONCLAVE_DECL asio::awaitable<void> backlog::list_beyond(std::shared_ptr<backlog> self, std::uint64_t number,
                                                         revision at) {
  const auto& grammar = self->machine_.grammar();
  const auto end = prefix_end(grammar.prefix());
  std::vector<key_value> items;
  std::size_t foreign = 0;
  std::string from = grammar.prefix();
  bool more = true;
  while (more) {
    range_response page = co_await engine::call(
        self->runtime_, range_interval(from, end, {.limit = 5000, .revision = at, .keys_only = true}));
    more = page.more && !page.kvs.empty();
    if (more) {
      from = page.kvs.back().key;
      from += '\0';
    }
    for (auto& each : page.kvs) {
      if (grammar.is_item(each.key))
        items.push_back(std::move(each));
      else
        ++foreign;
    }
  }
  if (grammar.sorted() == backlog_grammar::order::by_commit)
    std::sort(items.begin(), items.end(),
              [](const key_value& a, const key_value& b) { return a.mod_revision < b.mod_revision; });
  if (self->machine_.snapshot(std::move(items), false, at, foreign)) self->tell_empty(number);
}

CONCLAVE_DECL asio::awaitable<void> backlog::claim(std::shared_ptr<backlog> self) {
  const bool with_receipt = co_await receipt_is_ready(self);
  if (!self->served() || self->must_list() || self->must_wait()) co_return;  // by now
  const auto limit = self->runtime_->options().receive_limit;
  const auto unknown = std::max<std::size_t>(1, limit / largest_value);
  const item_list asked_for = self->machine_.first(self->consumers_.wanted(most_claims), unknown);
  errc code{};
  std::exception_ptr failed;
  try {
    const auto claimed = co_await self->writes_->apply_here(self->claim_of(asked_for, with_receipt));
    self->settle(asked_for, claimed.answer, with_receipt);
  } catch (const error& e) {
    code = static_cast<errc>(e.code().value());
    failed = std::current_exception();
  } catch (const std::exception&) {  // an answer of another shape
    code = errc::unexpected_response;
    failed = std::make_exception_ptr(error(code, "KV.Txn"));
  }
  if (failed) self->claim_failed(asked_for, with_receipt, code, failed);
}

CONCLAVE_DECL asio::awaitable<bool> backlog::receipt_is_ready(std::shared_ptr<backlog> self) {
  if (self->receipts_refused_ || self->runtime_->now() < self->no_receipts_before_) co_return false;
  const lease_id lease = co_await receipt_lease::get(self->receipts_);
  if (lease == 0) co_return false;
  self->receipt_.hang_on(lease);
  co_return true;
}

CONCLAVE_DECL asio::awaitable<void> backlog::find_out(std::shared_ptr<backlog> self) {
  using kind = claim_receipt::verdict::kind;
  const doubtful_claim doubtful = *self->in_doubt_;
  const bool may_come_late = doubtful.code == errc::outcome_unknown;
  const auto verdict = co_await claim_receipt::find_out(self->runtime_, self->receipt_, may_come_late);
  if (verdict.is == kind::not_applied && doubtful.code == errc::no_space) {
    // A full store still lets items be taken, if nothing is written for it.
    self->no_receipts_before_ = self->runtime_->now() + receipt_lease::refusal_time;
  }
  taking what;
  if (verdict.is != kind::not_applied)
    what = co_await look_behind(self, doubtful.asked_for, verdict.is == kind::applied ? verdict.at : 0);
  self->in_doubt_.reset();
  if (verdict.is != kind::not_applied) self->receipt_.settled(verdict.at);
  self->add_spare(std::move(what.got));
  self->hand_out();
  self->tell_unknown(what.unknown, doubtful.why);
}

CONCLAVE_DECL asio::awaitable<backlog::taking> backlog::look_behind(std::shared_ptr<backlog> self,
                                                                    item_list asked_for, revision applied) {
  taking out;
  bool history = applied > 1;
  for (std::size_t next = 0; next < asked_for.size();) {
    auto& each = asked_for[next];
    auto question =
        history ? range(each.key, {.revision = applied - 1}) : range(each.key, {.keys_only = true});
    try {
      const range_response found = co_await engine::call(self->runtime_, std::move(question));
      const bool there = !found.kvs.empty() && found.kvs.front().mod_revision == each.mod_revision;
      if (history && there)
        out.got.push_back({each.key, found.kvs.front().value});
      else if (!history && !there)
        ++out.unknown;
      ++next;
    } catch (const error& e) {
      if (rpc::worth_retrying(static_cast<errc>(e.code().value()))) throw;
      if (history)
        history = false;
      else
        ++next, ++out.unknown;
    }
  }
  co_return out;
}

CONCLAVE_DECL asio::awaitable<void> backlog::put_back_all(std::shared_ptr<engine::runtime> on,
                                                          backlog_grammar::order sorted,
                                                          std::vector<claimed> items) {
  for (auto& each : items) {
    engine::backoff pause{std::chrono::milliseconds{50}, std::chrono::seconds{1}, on->seed()};
    const auto give_up = on->now() + std::chrono::seconds{30};
    bool refused = false;
    while (on->now() < give_up) {
      try {
        const txn_response answer = co_await engine::call(on, put_request_for(each, sorted));
        if (answer.succeeded || refused) break;
        // A producer has given the number anew, to a later item. The place behind that is free.
        each.key += '0';
        continue;
      } catch (const error& e) {
        // After a lost answer the item may be there, or taken already: putting it twice would deliver it
        // twice.
        if (e.code() == errc::outcome_unknown) break;
        // A full store may refuse what it has just written: a key that is there now is ours.
        refused = refused || e.code() == errc::no_space;
      }
      co_await engine::sleep_for(on, pause.next());
    }
  }
}

}  // namespace conclave::detail::pattern
