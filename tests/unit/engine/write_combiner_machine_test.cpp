// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/write_combiner_machine.hpp>
#include <conclave/detail/rpc/status.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/model_etcd.hpp"

namespace {

using conclave::create_revision;
using conclave::delete_key;
using conclave::delete_prefix;
using conclave::errc;
using conclave::put;
using conclave::range;
using conclave::range_interval;
using conclave::range_prefix;
using conclave::request_op;
using conclave::response_op;
using conclave::txn;
using conclave::txn_response;
using conclave::test::model_etcd;
using machine = conclave::detail::engine::write_combiner_machine;
using names = std::vector<std::string>;
using namespace std::chrono_literals;

const machine::time_point epoch{1h};

machine::member member(txn write, std::string lane = {}, bool may_share = false, std::size_t bytes = 10) {
  machine::member out;
  out.write = std::move(write);
  out.lane = std::move(lane);
  out.may_share = may_share;
  out.bytes = bytes;
  return out;
}

txn write_of(const std::string& key, const std::string& value = "v") { return txn{}.then(put(key, value)); }

/// The answer that etcd gives to a transaction whose compares all hold, with as many parts as it has.
txn_response answer_to(const txn& request, conclave::revision at = 7) {
  txn_response out;
  out.succeeded = true;
  out.header.revision = at;
  for (const auto& each : request.success) {
    auto& part = out.responses.emplace_back();
    if (const auto* nested = std::get_if<txn>(&each.request)) {
      part.response = answer_to(*nested, 0);
    } else if (const auto* writes = std::get_if<conclave::put_request>(&each.request)) {
      conclave::put_response done;
      done.prev_kv.emplace().key = writes->key;  // tells whose it is
      part.response = std::move(done);
    } else if (std::holds_alternative<conclave::delete_range_request>(each.request)) {
      part.response = conclave::delete_range_response{};
    } else {
      part.response = conclave::range_response{};
    }
  }
  return out;
}

/// A machine, and what it does.
struct combiner {
  machine on;
  machine::time_point now = epoch;
  machine::handle last = 0;
  std::deque<machine::send> sent;
  std::map<machine::handle, txn_response> answers;
  std::map<machine::handle, errc> failures;
  bool gathers = false;  ///< The test itself lets the machine go on.
  int gathering = 0;

  combiner() = default;
  explicit combiner(const machine::limits& within) : on{within} {}

  void take(machine::actions what) {
    for (auto& each : what) {
      if (auto* sends = std::get_if<machine::send>(&each)) {
        sent.push_back(std::move(*sends));
      } else if (auto* done = std::get_if<machine::answered>(&each)) {
        REQUIRE(answers.emplace(done->who, std::move(done->answer)).second);
      } else if (const auto* bad = std::get_if<machine::failed>(&each)) {
        REQUIRE(failures.emplace(bad->who, bad->code).second);
      } else if (gathers) {
        ++gathering;
      } else {
        take(on.proceed());
      }
    }
  }
  machine::handle add(machine::member what) {
    last = on.enter(machine::prepare(std::move(what)), now);
    take(on.go());
    return last;
  }
  machine::handle add(txn write) { return add(member(std::move(write))); }

  /// The only batch that has been sent and not looked at.
  machine::send next() {
    REQUIRE(sent.size() == 1);
    auto out = std::move(sent.front());
    sent.pop_front();
    return out;
  }
  void answer(const machine::send& what) { take(on.on_answer(what.batch, answer_to(what.request), now)); }
  void fail(const machine::send& what, errc code) { take(on.on_failed(what.batch, code, now)); }

  /// Sends one write that touches nothing else, so that what comes now waits.
  machine::send occupy() {
    add(write_of("~"));
    return next();
  }
  /// What of `writes` goes together as soon as it may: the keys of their first puts, per batch.
  std::vector<names> batches(std::vector<machine::member> writes) {
    auto under_way = occupy();
    for (auto& each : writes) add(std::move(each));
    std::vector<names> out;
    answer(under_way);
    while (!sent.empty()) {
      under_way = next();
      out.push_back(keys(under_way.request));
      answer(under_way);
    }
    REQUIRE(on.waiting() == 0);
    return out;
  }

  /// The first key that each member of a batch names in its operations.
  static names keys(const txn& request) {
    names out;
    for (const auto& each : request.success) {
      if (const auto* nested = std::get_if<txn>(&each.request))
        out.push_back(keys(*nested).empty() ? "" : keys(*nested).front());
      else
        std::visit(
            [&out](const auto& operation) {
              if constexpr (requires { operation.key; }) out.push_back(operation.key);
            },
            each.request);
    }
    return out;
  }
};

bool together(txn a, txn b) {
  std::vector<machine::member> both;
  both.push_back(member(std::move(a)));
  both.push_back(member(std::move(b)));
  const auto made = combiner{}.batches(std::move(both));
  return made.size() == 1;
}

}  // namespace

TEST_CASE("a write that finds nothing under way goes at once, as it is") {
  combiner c;
  const auto write = txn{}.when(create_revision("a") == 0).then(put("a", "1")).otherwise(range("a"));
  const auto who = c.add(write);
  const auto sent = c.next();
  CHECK(sent.request == write);
  const auto answer = answer_to(write, 5);
  c.take(c.on.on_answer(sent.batch, answer, c.now));
  CHECK(c.answers.at(who) == answer);

  const auto again = c.add(write_of("b"));
  CHECK(c.next().request == write_of("b"));
  CHECK(c.answers.count(again) == 0);
  CHECK(c.on.in_flight() == 1);
}

TEST_CASE("a single write that has waited goes as it is, too") {
  combiner c;
  const auto first = c.occupy();
  c.add(write_of("a"));
  CHECK(c.sent.empty());
  c.answer(first);
  CHECK(c.next().request == write_of("a"));
}

TEST_CASE("what gathers while one is under way goes as one, and each gets its own answer") {
  combiner c;
  const auto first = c.occupy();
  const auto guarded = txn{}.when(create_revision("a") == 0).then(put("a", "1")).otherwise(range("a"));
  const auto a = c.add(guarded);
  const auto b = c.add(txn{}.then(delete_key("b")));
  const auto d = c.add(txn{}.then(put("d", "large"), range("e")));
  CHECK(c.sent.empty());
  CHECK(c.on.waiting() == 3);
  c.answer(first);

  const auto sent = c.next();
  CHECK(sent.request.compare.empty());
  CHECK(sent.request.success ==
        std::vector<request_op>{guarded, delete_key("b"), txn{}.then(put("d", "large"), range("e"))});
  // Never taken: it makes the server ask for space.
  CHECK(sent.request.failure == std::vector<request_op>{put("a", "")});

  auto answer = answer_to(sent.request, 9);
  answer.header.member_id = 3;
  answer.responses[0].txn().succeeded = false;
  c.take(c.on.on_answer(sent.batch, answer, c.now));
  for (const auto who : {a, b, d}) CHECK(c.answers.at(who).header == answer.header);
  CHECK_FALSE(c.answers.at(a).succeeded);
  CHECK(c.answers.at(a).at(0).put().prev_kv->key == "a");
  CHECK(c.answers.at(b).succeeded);
  CHECK(c.answers.at(b).responses.size() == 1);
  CHECK(c.answers.at(b).at(0).delete_range().deleted == 0);
  CHECK(c.answers.at(d).responses.size() == 2);
  CHECK(c.answers.at(d).at(0).put().prev_kv->key == "d");
  CHECK(c.on.in_flight() == 0);
}

TEST_CASE("only what is one operation without a condition goes without being nested") {
  combiner c;
  const auto first = c.occupy();
  const auto conditional = txn{}.when(create_revision("a") == 0).then(put("a", ""));
  const auto otherwise = txn{}.then(put("b", "")).otherwise(range("b"));
  const auto only_otherwise = txn{}.otherwise(put("d", ""));
  const auto nested = txn{}.then(txn{}.then(put("e", "")));
  const auto nothing = txn{};
  const std::vector<txn> as_they_are{conditional, otherwise, only_otherwise, nested, nothing};
  for (const auto& each : as_they_are) c.add(each);
  std::vector<request_op> expected(as_they_are.begin(), as_they_are.end());
  const auto put_alone = c.add(txn{}.then(put("f", "1")));
  const auto range_alone = c.add(txn{}.then(range("g")));
  const auto delete_alone = c.add(txn{}.then(delete_prefix("h")));
  expected.insert(expected.end(), {put("f", "1"), range("g"), delete_prefix("h")});
  c.answer(first);
  const auto sent = c.next();
  CHECK(sent.request.success == expected);
  CHECK(sent.request.failure.empty());  // the put that is not nested is charged
  c.answer(sent);
  CHECK(c.failures.empty());
  CHECK(c.answers.at(put_alone).at(0).put().prev_kv->key == "f");
  CHECK(c.answers.at(range_alone).at(0).range().kvs.empty());
  CHECK(c.answers.at(delete_alone).at(0).delete_range().deleted == 0);
}

TEST_CASE("those who were answered together may come back before the next batch goes") {
  combiner c;
  c.gathers = true;
  const auto first = c.occupy();
  for (const auto* key : {"a", "b", "d"}) c.add(write_of(key));
  c.answer(first);
  CHECK(c.gathering == 0);  // for one it is not worth a wait
  const auto several = c.next();
  c.add(write_of("e"));
  c.answer(several);
  CHECK(c.gathering == 1);
  CHECK(c.sent.empty());
  for (const auto* key : {"f", "g"}) c.add(write_of(key));
  CHECK(c.sent.empty());
  CHECK(c.on.waiting() == 3);
  c.take(c.on.proceed());
  const auto next = c.next();
  CHECK(combiner::keys(next.request) == names{"e", "f", "g"});

  SECTION("nobody comes back") {
    c.answer(next);
    CHECK(c.gathering == 2);
    c.take(c.on.proceed());
    CHECK(c.sent.empty());
    c.add(write_of("h"));
    CHECK(c.next().request == write_of("h"));
  }
  SECTION("what was refused goes on at once") {
    c.fail(next, errc::duplicate_key);
    CHECK(c.gathering == 1);
    CHECK(combiner::keys(c.next().request) == names{"e", "f"});
  }
  SECTION("who has waited too long meanwhile is told") {
    c.add(write_of("h"));
    c.now += 5s;
    c.answer(next);
    CHECK(c.failures.size() == 1);
  }
}

TEST_CASE("writes that come together go together, though nothing is under way") {
  combiner c;
  for (const auto* key : {"a", "b", "a"}) {
    c.last = c.on.enter(machine::prepare(member(write_of(key))), c.now);
  }
  CHECK(c.on.waiting() == 3);
  c.take(c.on.go());
  const auto both = c.next();
  CHECK(combiner::keys(both.request) == names{"a", "b"});
  c.answer(both);
  CHECK(c.next().request == write_of("a"));
}

TEST_CASE("a batch that puts nothing is charged nothing") {
  combiner c;
  const auto first = c.occupy();
  c.add(txn{}.then(delete_key("a")));
  c.add(txn{}.then(delete_key("b")));
  c.answer(first);
  CHECK(c.next().request.failure.empty());
}

TEST_CASE("members that touch what another one writes do not share a batch") {
  const auto reads = [](auto what) { return txn{}.then(std::move(what)); };
  const auto compares = [](auto key) { return txn{}.when(create_revision(key) == 0).then(put("z", "")); };
  const std::string end(1, '\0');

  CHECK(together(write_of("a"), write_of("b")));
  CHECK_FALSE(together(write_of("a"), write_of("a")));
  CHECK_FALSE(together(write_of("a"), txn{}.then(delete_key("a"))));
  CHECK_FALSE(together(txn{}.then(delete_key("a")), write_of("a")));
  CHECK_FALSE(together(txn{}.then(delete_prefix("a")), write_of("ab")));
  CHECK_FALSE(together(write_of("ab"), txn{}.then(delete_prefix("a"))));
  CHECK(together(txn{}.then(delete_prefix("a")), write_of("b")));
  CHECK_FALSE(together(txn{}.then(delete_prefix("a")), txn{}.then(delete_prefix("ab"))));
  CHECK_FALSE(together(write_of("q"), txn{}.then(conclave::delete_interval("b", end))));
  CHECK(together(write_of("a"), txn{}.then(conclave::delete_interval("b", end))));
  CHECK_FALSE(together(write_of(std::string("\0", 1)), txn{}.then(delete_prefix(""))));
  // A client with a prefix may have an empty key.
  CHECK_FALSE(together(write_of(""), txn{}.then(delete_prefix(""))));

  // A read or a compare of what is written, in either order.
  CHECK_FALSE(together(write_of("a"), reads(range("a"))));
  CHECK_FALSE(together(reads(range("a")), write_of("a")));
  CHECK_FALSE(together(write_of("ab"), reads(range_prefix("a"))));
  CHECK_FALSE(together(reads(range_prefix("a")), write_of("ab")));
  CHECK(together(reads(range_interval("a", "c")), write_of("c")));
  CHECK_FALSE(together(reads(range_interval("a", "c")), write_of("b")));
  CHECK_FALSE(together(write_of("a"), compares("a")));
  CHECK_FALSE(together(compares("a"), write_of("a")));
  CHECK_FALSE(together(write_of("ab"), txn{}.when(create_revision("a").prefix() == 0).then(put("z", ""))));

  // Only reads and compares: nobody minds.
  CHECK(together(reads(range("a")), reads(range_prefix(""))));
  CHECK(together(txn{}.when(create_revision("x") == 0).then(put("a", "")),
                 txn{}.when(create_revision("x") == 0).then(put("b", ""))));

  // In any branch, at any depth.
  CHECK_FALSE(together(txn{}.otherwise(put("a", "")), write_of("a")));
  CHECK_FALSE(together(txn{}.then(txn{}.otherwise(put("a", ""))), write_of("a")));
  CHECK_FALSE(together(write_of("a"), txn{}.then(txn{}.when(create_revision("a") == 0), put("b", ""))));
}

TEST_CASE("members that are in conflict keep their order, others overtake") {
  std::vector<machine::member> writes;
  for (const auto* key : {"a", "a", "b", "a", "c"}) writes.push_back(member(write_of(key)));
  CHECK(combiner{}.batches(std::move(writes)) == std::vector<names>{{"a", "b", "c"}, {"a"}, {"a"}});

  // The last one does not touch what goes, but what waits.
  std::vector<machine::member> chain;
  chain.push_back(member(write_of("a")));
  chain.push_back(member(txn{}.then(put("b", ""), delete_key("a"))));
  chain.push_back(member(txn{}.then(put("c", ""), delete_key("b"))));
  CHECK(combiner{}.batches(std::move(chain)) == std::vector<names>{{"a"}, {"b", "a"}, {"c", "b"}});
}

TEST_CASE("the writes of a lane share no batch, unless all say that they may") {
  const auto lane = [](std::vector<std::pair<const char*, bool>> of) {
    std::vector<machine::member> out;
    for (const auto& [key, may_share] : of) out.push_back(member(write_of(key), "lane", may_share));
    out.push_back(member(write_of("x"), "other"));
    out.push_back(member(write_of("y")));
    out.push_back(member(write_of("z")));
    return combiner{}.batches(std::move(out));
  };
  CHECK(lane({{"a", false}, {"b", false}}) == std::vector<names>{{"a", "x", "y", "z"}, {"b"}});
  CHECK(lane({{"a", true}, {"b", false}}) == std::vector<names>{{"a", "x", "y", "z"}, {"b"}});
  CHECK(lane({{"a", false}, {"b", true}}) == std::vector<names>{{"a", "x", "y", "z"}, {"b"}});
  CHECK(lane({{"a", true}, {"b", true}}) == std::vector<names>{{"a", "b", "x", "y", "z"}});
  // In their order, also those that might go with the first.
  CHECK(lane({{"a", true}, {"b", false}, {"c", true}, {"d", true}}) ==
        std::vector<names>{{"a", "x", "y", "z"}, {"b"}, {"c", "d"}});
}

TEST_CASE("members and what the largest of them takes are at most what one transaction may have") {
  const auto sizes = [](std::size_t members, std::size_t heavy) {
    std::vector<machine::member> writes;
    for (std::size_t i = 0; i + 1 < members; ++i) writes.push_back(member(write_of("k" + std::to_string(i))));
    txn last;
    for (std::size_t i = 0; i < heavy; ++i) last.otherwise(put("l" + std::to_string(i), ""));
    writes.push_back(member(std::move(last)));
    std::vector<std::size_t> out;
    for (const auto& each : combiner{}.batches(std::move(writes))) out.push_back(each.size());
    return out;
  };
  CHECK(sizes(127, 1) == std::vector<std::size_t>{127});
  CHECK(sizes(128, 1) == std::vector<std::size_t>{127, 0});  // an `otherwise` alone has no key to show
  CHECK(sizes(126, 2) == std::vector<std::size_t>{126});
  CHECK(sizes(127, 2) == std::vector<std::size_t>{126, 0});
  CHECK(sizes(64, 64) == std::vector<std::size_t>{64});
  CHECK(sizes(64, 65) == std::vector<std::size_t>{63, 0});
  CHECK(sizes(3, 126) == std::vector<std::size_t>{2, 0});

  SECTION("compares and deeper levels count, too") {
    machine::limits few;
    few.most_operations = 6;
    const auto fits = [&](txn deep) {
      std::vector<machine::member> writes;
      writes.push_back(member(write_of("a")));
      writes.push_back(member(std::move(deep)));
      return combiner{few}.batches(std::move(writes)).size() == 1;
    };
    const auto nest = [](int compares, int operations) {
      txn inner;
      for (int i = 0; i < operations; ++i) inner.then(put("k" + std::to_string(i), ""));
      txn out;
      for (int i = 0; i < compares; ++i) out.when(create_revision("q") == 0);
      out.otherwise(std::move(inner));
      return out;
    };
    CHECK(fits(nest(1, 3)));
    CHECK_FALSE(fits(nest(1, 4)));
    CHECK(fits(nest(2, 2)));
    CHECK_FALSE(fits(nest(2, 3)));
  }
}

TEST_CASE("a batch has its bound in bytes, and what is larger goes alone") {
  machine::limits small;
  small.most_bytes = 1000;
  const auto sized = [](const char* key, std::size_t bytes) {
    return member(write_of(key), {}, false, bytes);
  };
  std::vector<machine::member> writes;
  for (const auto& [key, bytes] : std::vector<std::pair<const char*, std::size_t>>{
           {"a", 400}, {"b", 5000}, {"c", 400}, {"d", 400}, {"e", 100}, {"f", 400}})
    writes.push_back(sized(key, bytes));
  CHECK(combiner{small}.batches(std::move(writes)) == std::vector<names>{{"a", "c", "e"}, {"b"}, {"d", "f"}});
}

TEST_CASE("combining can be switched off") {
  machine::limits off;
  off.most_members = 1;
  std::vector<machine::member> writes;
  for (const auto* key : {"a", "b", "c"}) writes.push_back(member(write_of(key)));
  CHECK(combiner{off}.batches(std::move(writes)) == std::vector<names>{{"a"}, {"b"}, {"c"}});
}

TEST_CASE("a write that nobody waits for any more is not sent, or its result is dropped") {
  combiner c;
  const auto first = c.occupy();
  const auto a = c.add(write_of("a"));
  const auto b = c.add(write_of("b"));
  const auto d = c.add(write_of("d"));
  c.on.drop(b);
  CHECK(c.on.waiting() == 2);
  c.answer(first);
  const auto sent = c.next();
  CHECK(combiner::keys(sent.request) == names{"a", "d"});

  c.on.drop(a);
  SECTION("answered") {
    c.answer(sent);
    CHECK(c.answers.count(a) == 0);
    CHECK(c.answers.at(d).at(0).put().prev_kv->key == "d");
  }
  SECTION("refused: it is not sent again") {
    c.fail(sent, errc::lease_not_found);
    CHECK(c.next().request == write_of("d"));
    CHECK(c.on.waiting() == 0);
    CHECK(c.failures.empty());
  }
  CHECK(c.answers.count(b) == 0);
  CHECK(c.failures.count(b) == 0);
}

TEST_CASE("dropping one lets those go that waited behind it") {
  combiner c;
  const auto first = c.occupy();
  c.add(write_of("a"));
  const auto second = c.add(write_of("a"));
  c.add(txn{}.then(put("c", ""), delete_key("a")));
  c.on.drop(second);
  c.answer(first);
  const auto a = c.next();
  CHECK(a.request == write_of("a"));
  c.answer(a);
  CHECK(combiner::keys(c.next().request) == names{"c", "a"});
}

TEST_CASE("a refused batch is halved until its culprit gets the error, and all others an answer") {
  const auto code = GENERATE(errc::invalid_argument, errc::request_too_large, errc::too_many_operations,
                             errc::duplicate_key, errc::lease_not_found, errc::permission_denied,
                             errc::compacted, errc::future_revision);
  combiner c;
  const auto first = c.occupy();
  std::vector<machine::handle> all;
  for (int i = 0; i < 100; ++i) all.push_back(c.add(write_of("k" + std::to_string(i))));
  c.answer(first);
  const std::string bad = "k37";
  int sends = 0;
  while (!c.sent.empty()) {
    const auto sent = c.next();
    ++sends;
    const auto keys = combiner::keys(sent.request);
    if (std::find(keys.begin(), keys.end(), bad) != keys.end())
      c.fail(sent, code);
    else
      c.answer(sent);
  }
  CHECK(sends <= 15);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto key = "k" + std::to_string(i);
    if (key == bad)
      CHECK(c.failures.at(all[i]) == code);
    else
      CHECK(c.answers.at(all[i]).at(0).put().prev_kv->key == key);
  }
  CHECK(c.on.waiting() == 0);
  CHECK(c.on.in_flight() == 0);
}

TEST_CASE("members of a refused batch go on before those that conflict with them") {
  combiner c;
  const auto first = c.occupy();
  c.add(write_of("a"));
  c.add(write_of("b"));
  c.answer(first);
  const auto refused = c.next();
  c.add(txn{}.then(put("c", ""), delete_key("b")));
  c.fail(refused, errc::lease_not_found);
  names order;
  while (!c.sent.empty()) {
    const auto sent = c.next();
    for (const auto& each : combiner::keys(sent.request)) order.push_back(each);
    c.answer(sent);
  }
  CHECK(order == names{"a", "b", "c", "b"});
}

TEST_CASE("those who had been overtaken by a refused batch keep their place before it") {
  combiner c;
  const auto first = c.occupy();
  c.add(write_of("a"));
  const auto overtaken = c.add(write_of("a"));
  c.add(write_of("b"));
  c.answer(first);
  const auto refused = c.next();
  REQUIRE(combiner::keys(refused.request) == names{"a", "b"});
  c.fail(refused, errc::lease_not_found);
  c.answer(c.next());
  c.answer(c.next());
  CHECK(c.answers.count(overtaken) == 1);
  CHECK(combiner::keys(c.next().request) == names{"b"});
}

TEST_CASE("what is not one member's fault is every member's result, and nothing is sent again") {
  const auto code =
      GENERATE(errc::outcome_unknown, errc::unavailable, errc::cancelled, errc::unauthenticated,
               errc::too_many_requests, errc::client_closed, errc::malformed_response, errc::server_error);
  combiner c;
  const auto first = c.occupy();
  const auto a = c.add(write_of("a"));
  const auto b = c.add(txn{}.then(delete_key("b")));
  c.answer(first);
  c.fail(c.next(), code);
  CHECK(c.failures.at(a) == code);
  CHECK(c.failures.at(b) == code);
  CHECK(c.sent.empty());
}

TEST_CASE("a lone write fails with its own error") {
  const auto code = GENERATE(errc::lease_not_found, errc::no_space, errc::response_too_large,
                             errc::outcome_unknown, errc::duplicate_key);
  combiner c;
  const auto who = c.add(txn{}.then(delete_key("a")));
  c.fail(c.next(), code);
  CHECK(c.failures.at(who) == code);
  CHECK(c.sent.empty());
}

TEST_CASE("an answer to several that is too large is nobody's own error: it was applied") {
  combiner c;
  const auto first = c.occupy();
  const auto a = c.add(write_of("a"));
  const auto b = c.add(write_of("b"));
  c.answer(first);
  c.fail(c.next(), errc::response_too_large);
  CHECK(c.failures.at(a) == errc::outcome_unknown);
  CHECK(c.failures.at(b) == errc::outcome_unknown);
}

TEST_CASE("a full store: nothing is repeated, and what puts nothing keeps away from what does") {
  combiner c;
  const auto first = c.occupy();
  const auto a = c.add(write_of("a"));
  const auto b = c.add(txn{}.then(delete_key("b")));
  c.answer(first);
  const auto refused = c.next();
  c.add(write_of("d"));
  c.add(txn{}.then(delete_key("e")));
  c.add(write_of("f"));
  c.add(txn{}.then(delete_key("g")));
  c.fail(refused, errc::no_space);
  CHECK(c.failures.at(a) == errc::no_space);
  CHECK(c.failures.at(b) == errc::outcome_unknown);

  const auto charged = c.next();
  CHECK(combiner::keys(charged.request) == names{"d", "f"});
  c.fail(charged, errc::no_space);
  const auto free = c.next();
  CHECK(combiner::keys(free.request) == names{"e", "g"});
  c.add(write_of("h"));
  c.add(txn{}.then(delete_key("i")));
  c.answer(free);
  const auto again = c.next();
  CHECK(again.request == write_of("h"));
  c.add(write_of("j"));
  c.answer(again);  // there is space again
  CHECK(combiner::keys(c.next().request) == names{"i", "j"});
}

TEST_CASE("an answer of another shape is every member's unexpected_response") {
  combiner c;
  const auto first = c.occupy();
  const auto a = c.add(txn{}.when(create_revision("a") == 0).then(put("a", "")));
  const auto b = c.add(write_of("b"));
  c.add(txn{}.then(range("d")));
  c.add(txn{}.then(delete_key("e")));
  c.answer(first);
  const auto sent = c.next();
  auto answer = answer_to(sent.request);
  const auto put_it = [&](std::size_t where, auto what) {
    answer.responses[where].response = std::move(what);
  };
  SECTION("one part is missing") { answer.responses.pop_back(); }
  SECTION("one too many") { answer.responses.push_back(answer.responses.front()); }
  SECTION("a put's for a transaction's") { put_it(0, conclave::put_response{}); }
  SECTION("a transaction's for a put's") { put_it(1, txn_response{}); }
  SECTION("a read's for a put's") { put_it(1, conclave::range_response{}); }
  SECTION("a put's for a read's") { put_it(2, conclave::put_response{}); }
  SECTION("a put's for a deletion's") { put_it(3, conclave::put_response{}); }
  SECTION("nothing for a transaction's") { put_it(0, std::monostate{}); }
  SECTION("nothing for a deletion's") { put_it(3, std::monostate{}); }
  SECTION("the branch that is never taken") { answer.succeeded = false; }
  c.take(c.on.on_answer(sent.batch, std::move(answer), c.now));
  CHECK(c.failures.at(a) == errc::unexpected_response);
  CHECK(c.failures.at(b) == errc::unexpected_response);
  CHECK(c.answers.count(a) == 0);
  CHECK(c.on.in_flight() == 0);
}

TEST_CASE("a batch may be sent twice if all its members may") {
  for (const bool all : {true, false}) {
    combiner c;
    const auto first = c.occupy();
    CHECK_FALSE(first.repeatable);
    auto a = member(write_of("a"));
    auto b = member(write_of("b"));
    a.repeatable = true;
    b.repeatable = all;
    c.add(a);
    c.add(b);
    c.answer(first);
    CHECK(c.next().repeatable == all);
  }
}

TEST_CASE("a member of a batch that was sent twice and then refused may have been applied") {
  combiner c;
  const auto first = c.occupy();
  const auto a = c.add(write_of("a"));
  const auto b = c.add(write_of("b"));
  c.answer(first);
  const auto both = c.next();
  c.take(c.on.on_failed(both.batch, errc::lease_not_found, c.now, true));
  auto half = c.next();
  const auto code = GENERATE(errc::unavailable, errc::too_many_requests, errc::outcome_unknown);
  c.fail(half, code);
  CHECK(c.failures.at(a) == errc::outcome_unknown);
  half = c.next();
  SECTION("refused") {
    c.fail(half, errc::lease_not_found);
    CHECK(c.failures.at(b) == errc::lease_not_found);
  }
  SECTION("answered") {
    const auto done = c.on.on_answer(half.batch, answer_to(half.request), c.now);
    REQUIRE(done.size() == 1);
    CHECK(std::get<machine::answered>(done.front()).repeated);
  }
}

TEST_CASE("answers to no batch are ignored") {
  combiner c;
  const auto sent = c.occupy();
  c.take(c.on.on_answer(sent.batch + 1, {}, c.now));
  c.take(c.on.on_failed(sent.batch + 1, errc::unavailable, c.now));
  CHECK(c.on.in_flight() == 1);
  c.answer(sent);
  c.answer(sent);
  c.on.drop(1);
  CHECK(c.answers.size() == 1);
}

TEST_CASE("who has waited too long to be sent is told, and is not sent") {
  machine::limits within;
  within.patience = 5s;
  combiner c{within};
  const auto first = c.occupy();
  const auto a = c.add(write_of("a"));
  c.now += 1s;
  const auto b = c.add(write_of("b"));
  c.now += 4s;
  c.fail(first, errc::outcome_unknown);
  CHECK(c.failures.at(a) == errc::timed_out);
  CHECK(c.failures.count(b) == 0);
  CHECK(c.next().request == write_of("b"));
}

TEST_CASE("several batches may be under way, of members that may overtake each other") {
  machine::limits two;
  two.most_in_flight = 2;
  combiner c{two};
  c.add(write_of("a"));
  const auto one = c.next();
  c.add(write_of("a"));
  CHECK(c.sent.empty());  // it must not overtake the first
  c.add(member(write_of("b"), "lane"));
  const auto other = c.next();
  CHECK(other.request == write_of("b"));
  c.add(member(write_of("c"), "lane"));
  c.add(write_of("d"));
  CHECK(c.on.in_flight() == 2);
  c.answer(other);
  const auto more = c.next();
  CHECK(combiner::keys(more.request) == names{"c", "d"});
  c.answer(one);
  CHECK(c.next().request == write_of("a"));
}

TEST_CASE("neither a large member nor one in conflict starves") {
  machine::limits within;
  within.most_bytes = 1000;
  combiner c{within};
  auto under_way = c.occupy();
  const auto large = c.add(member(write_of("large"), {}, false, 990));
  const auto wide = c.add(txn{}.then(delete_prefix("")));
  int rounds = 0;
  while (c.answers.count(large) == 0 || c.answers.count(wide) == 0) {
    REQUIRE(++rounds < 10);
    for (int i = 0; i < 50; ++i) c.add(write_of("k" + std::to_string(i)));
    c.answer(under_way);
    under_way = c.next();
  }
  CHECK(rounds <= 4);
}

// ---- random histories -------------------------------------------------------------------------------------

namespace {

/// Writes at random, over few keys.
class writer_at_random {
public:
  explicit writer_at_random(std::uint64_t seed) : random_{seed} {}

  int below(int limit) { return std::uniform_int_distribution<int>{0, limit - 1}(random_); }
  bool chance(int of_ten) { return below(10) < of_ten; }

  txn transaction(int depth = 0) {
    txn out;
    const int compares = below(3);
    for (int i = 0; i < compares; ++i) out.when(compare());
    const int operations = below(3) + (depth == 0 ? 1 : 0);
    for (int i = 0; i < operations; ++i) {
      if (chance(8))
        out.then(operation(depth));
      else
        out.otherwise(operation(depth));
    }
    if (chance(3)) out.otherwise(range(key()));
    return out;
  }

  /// One operation without a condition, which tells by itself whose it is (`who_asks`).
  txn lone(std::uint64_t who) {
    const auto key = this->key();
    const auto name = std::to_string(who);
    switch (below(4)) {
      case 0:
        return txn{}.then(range(key, {.limit = static_cast<std::int64_t>(1000 + who)}));
      case 1:  // no key lies between that one and the end
        return txn{}.then(conclave::delete_interval(key, key + "#" + name));
      default:
        return txn{}.then(put(key, "#" + name, {.lease = chance(1) ? 1 + below(2) : 0}));
    }
  }

private:
  std::string key() { return std::string(1, static_cast<char>('a' + below(10))); }
  std::string value() { return std::to_string(below(4)); }

  conclave::compare compare() {
    switch (below(5)) {
      case 0:
        return create_revision(key()) == 0;
      case 1:
        return create_revision(key()) > 0;
      case 2:
        return conclave::version(key()) < 1 + below(3);
      case 3:
        return create_revision(key()).until("z") == 0;
      default:
        return conclave::value(key()) == value();
    }
  }

  request_op operation(int depth) {
    const auto from = key();
    switch (below(depth < 2 ? 10 : 9)) {
      case 0:
        return range(from);
      case 1:
        return range_interval(from, std::string(1, static_cast<char>(from[0] + 1 + below(3))));
      case 2:
        return delete_key(from);
      case 3:
        return conclave::delete_interval(from, std::string(1, static_cast<char>(from[0] + 1 + below(2))));
      case 4:
        return put(from, value(), {.lease = chance(1) ? 1 + below(2) : 0});
      case 9:
        return transaction(depth + 1);
      default:
        return put(from, value());
    }
  }

  std::mt19937_64 random_;
};

/// The member whose operation this is: each transaction's last compare, which always holds, names it.
machine::handle who_asks(const request_op& part) {
  const auto number = [](const std::string& text) {
    return static_cast<machine::handle>(std::stoull(text.substr(text.find_first_of("#~") + 1)));
  };
  if (const auto* reads = std::get_if<conclave::range_request>(&part.request))
    return static_cast<machine::handle>(reads->limit - 1000);
  if (const auto* deletes = std::get_if<conclave::delete_range_request>(&part.request))
    return number(deletes->range_end);
  if (const auto* puts = std::get_if<conclave::put_request>(&part.request)) return number(puts->value);
  return number(std::get<txn>(part.request).compare.back().key);
}

/// What an answer says, but for revisions.
std::string text(const txn_response& answer) {
  std::string out = answer.succeeded ? "yes(" : "no(";
  for (const auto& each : answer.responses) {
    if (const auto* read = std::get_if<conclave::range_response>(&each.response)) {
      for (const auto& kv : read->kvs)
        out +=
            kv.key + "=" + kv.value + "/" + std::to_string(kv.version) + "/" + std::to_string(kv.lease) + " ";
      out += "#" + std::to_string(read->count);
    } else if (const auto* gone = std::get_if<conclave::delete_range_response>(&each.response)) {
      out += "-" + std::to_string(gone->deleted);
    } else if (const auto* nested = std::get_if<txn_response>(&each.response)) {
      out += text(*nested);
    } else {
      out += "put";
    }
    out += ";";
  }
  return out + ")";
}

std::string text(const std::map<std::string, conclave::key_value>& store) {
  std::string out;
  for (const auto& [key, kv] : store)
    out += key + "=" + kv.value + "/" + std::to_string(kv.version) + "/" + std::to_string(kv.lease) + " ";
  return out;
}

/// What the caller hears.
using result = std::variant<txn_response, errc>;

result ask(model_etcd& of, const txn& request) {
  auto answer = of.apply(request);
  if (const auto* refused = std::get_if<model_etcd::refusal>(&answer))
    return conclave::detail::rpc::classify({refused->code, refused->text},
                                           conclave::detail::rpc::call_kind::write);
  return std::get<txn_response>(std::move(answer));
}

std::string text(const result& what) {
  if (const auto* code = std::get_if<errc>(&what)) return make_error_code(*code).message();
  return text(std::get<txn_response>(what));
}

/// Whether what a transaction that only reads was told is what was there at `at`.
bool was_so(model_etcd& of, const txn& request, const txn_response& told, conclave::revision at) {
  const auto& branch = told.succeeded ? request.success : request.failure;
  for (std::size_t i = 0; i < branch.size(); ++i) {
    if (const auto* nested = std::get_if<txn>(&branch[i].request)) {
      if (!was_so(of, *nested, told.at(i).txn(), at)) return false;
    } else {
      auto read = std::get<conclave::range_request>(branch[i].request);
      read.revision = at;
      if (std::get<conclave::range_response>(of.apply(read)).kvs != told.at(i).range().kvs) return false;
    }
  }
  return true;
}

bool writes(const txn& request) {
  for (const auto* branch : {&request.success, &request.failure})
    for (const auto& each : *branch) {
      if (const auto* nested = std::get_if<txn>(&each.request)) {
        if (writes(*nested)) return true;
      } else if (!std::holds_alternative<conclave::range_request>(each.request)) {
        return true;
      }
    }
  return false;
}

struct history {
  std::size_t shared = 0;  ///< members that shared a batch
  std::size_t flat = 0;    ///< of them, those that were not nested
  std::size_t refused = 0;
  std::size_t looked = 0;  ///< members that only read
};

/// Hands writes at random to a machine over one store, and, in the order in which they were applied, alone to
/// another store: answers, errors and stores must be the same.
history run(std::uint64_t seed) {
  INFO("seed " << seed);
  writer_at_random random{seed};
  machine::limits within;
  within.most_in_flight = static_cast<std::size_t>(1 + random.below(3));
  within.most_members = static_cast<std::size_t>(2 + random.below(12));
  machine on{within};
  model_etcd batched;
  model_etcd alone;
  for (auto* each : {&batched, &alone}) {
    conclave::lease_grant_request grant;
    grant.id = 1;  // 2 is nobody's
    (void)each->apply(grant, epoch);
  }

  std::map<machine::handle, machine::member> members;
  std::map<machine::handle, result> results;
  std::set<machine::handle> dropped;
  struct under_way {
    machine::send what;
    std::optional<result> answer;
    std::vector<machine::handle> who;
  };
  std::vector<under_way> flights;
  std::map<machine::handle, machine::handle> order_in_lane;
  std::map<std::string, machine::handle> last_of_lane;
  history out;
  machine::handle last = 0;
  bool gathering = false;

  const auto take = [&](machine::actions what) {
    for (auto& each : what) {
      if (auto* sends = std::get_if<machine::send>(&each)) {
        flights.push_back({std::move(*sends), std::nullopt, {}});
      } else if (auto* done = std::get_if<machine::answered>(&each)) {
        REQUIRE(results.emplace(done->who, std::move(done->answer)).second);
      } else if (const auto* bad = std::get_if<machine::failed>(&each)) {
        REQUIRE(results.emplace(bad->who, bad->code).second);
      } else {
        REQUIRE_FALSE(gathering);
        gathering = true;
      }
    }
  };
  const auto tag = [](machine::handle id) { return conclave::version("~" + std::to_string(id)) == 0; };
  std::map<machine::handle, std::string> expected;

  const auto serve = [&](under_way& flight) {
    const auto& request = flight.what.request;
    if (!request.compare.empty()) {
      flight.who.push_back(who_asks(request));
    } else {
      for (const auto& each : request.success) flight.who.push_back(who_asks(each));
    }
    const auto members_of_it = flight.who.size();
    flight.answer = ask(batched, request);
    REQUIRE(members_of_it <= within.most_members);
    if (std::holds_alternative<errc>(*flight.answer)) {
      ++out.refused;
      if (members_of_it > 1) return;  // nothing was applied
    } else if (members_of_it > 1) {
      out.shared += members_of_it;
      for (const auto& each : request.success)
        if (!std::holds_alternative<txn>(each.request)) ++out.flat;
    }
    for (std::size_t i = 0; i < members_of_it; ++i) {
      const auto id = flight.who[i];
      const auto& lane = members.at(id).lane;
      if (!lane.empty()) {
        CHECK(last_of_lane[lane] < id);
        last_of_lane[lane] = id;
        for (std::size_t j = 0; j < i; ++j) {
          const auto& other = members.at(flight.who[j]);
          if (other.lane == lane) CHECK((other.may_share && members.at(id).may_share));
        }
      }
      REQUIRE(expected.emplace(id, text(ask(alone, members.at(id).write))).second);
    }
    REQUIRE(text(batched.keys()) == text(alone.keys()));
  };

  for (int step = 0; step < 400 || !flights.empty() || gathering; ++step) {
    REQUIRE(step < 4000);
    if (gathering && random.chance(5)) {
      gathering = false;
      take(on.proceed());
      continue;
    }
    const int what = step < 400 ? random.below(10) : 9;
    if (what < 6) {
      const auto id = ++last;
      auto write = random.chance(3) ? random.lone(id) : random.transaction().when(tag(id));
      machine::member each = member(std::move(write));
      if (random.chance(2)) each.lane = random.chance(5) ? "one" : "two";
      each.may_share = random.chance(5);
      members.emplace(id, each);
      CHECK(on.enter(machine::prepare(std::move(each)), epoch) == id);
      take(on.go());
    } else if (what == 6 && last != 0) {
      const auto id = static_cast<machine::handle>(1 + random.below(static_cast<int>(last)));
      if (results.count(id) == 0) dropped.insert(id);
      on.drop(id);
    } else if (!flights.empty()) {
      auto at = flights.begin() + random.below(static_cast<int>(flights.size()));
      if (!at->answer) {
        serve(*at);
      } else {
        const auto done = std::move(*at);
        flights.erase(at);
        if (const auto* code = std::get_if<errc>(&*done.answer))
          take(on.on_failed(done.what.batch, *code, epoch));
        else
          take(on.on_answer(done.what.batch, std::get<txn_response>(*done.answer), epoch));
      }
    }
    REQUIRE(flights.size() == on.in_flight());
    REQUIRE((on.in_flight() > 0 || on.waiting() == 0 || gathering));
  }

  for (const auto& [id, each] : members) {
    if (dropped.count(id) != 0) {
      CHECK(results.count(id) == 0);
      continue;
    }
    INFO("member " << id);
    REQUIRE(results.count(id) == 1);
    CHECK(text(results.at(id)) == expected.at(id));
    // What a member saw is what was there at the revision that it is told: who watches from the next one
    // misses nothing. (A member that writes does not see itself what it writes after its reads.)
    const auto* answer = std::get_if<txn_response>(&results.at(id));
    if (answer == nullptr || writes(each.write)) continue;
    CHECK(was_so(batched, each.write, *answer, answer->header.revision));
    ++out.looked;
  }
  return out;
}

}  // namespace

TEST_CASE("batches are as good as single writes, in the order in which they are applied") {
  history all;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const auto one = run(seed);
    all.shared += one.shared;
    all.flat += one.flat;
    all.refused += one.refused;
    all.looked += one.looked;
  }
  CHECK(all.shared > 2000);  // or this tested nothing
  CHECK(all.flat > 500);
  CHECK(all.refused > 100);
  CHECK(all.looked > 100);
}
