// SPDX-License-Identifier: BSL-1.0

// The combiner over scripted connections and an etcd in memory, on virtual time.

#include <conclave/detail/engine/write_combiner.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/scripted_transport.hpp"

namespace {

namespace asio = conclave::asio;
namespace engine = conclave::detail::engine;
namespace rpc = conclave::detail::rpc;
using conclave::create_revision;
using conclave::delete_key;
using conclave::errc;
using conclave::put;
using conclave::range;
using conclave::txn;
using conclave::txn_response;
using conclave::test::fate;
using engine::write_combiner;
using engine::write_lane;
using namespace std::chrono_literals;

/// Remembers the transactions that were sent.
class listening_transport final : public conclave::test::scripted_transport {
public:
  using scripted_transport::scripted_transport;

  /// A put as a transaction of it alone.
  std::vector<txn> heard;
  /// How many of them came as puts.
  int puts = 0;
  /// What becomes of the next answer.
  bool next_is_nonsense = false;

  void unary(const char* path, std::string request, rpc::metadata headers, std::chrono::milliseconds limit,
             std::unique_ptr<rpc::receiver<rpc::unary_result>> done) override {
    const auto name = std::string_view{path};
    puts += name.ends_with("/Put") ? 1 : 0;
    heard.push_back(name.ends_with("/Put") ? txn{}.then(decoded<conclave::put_request>(request))
                                           : decoded<txn>(request));
    if (std::exchange(next_is_nonsense, false)) {
      txn_response nonsense;
      nonsense.succeeded = true;
      rpc::receiver<rpc::unary_result>::post(std::move(done), {{}, conclave::detail::wire::encode(nonsense)});
      return;
    }
    scripted_transport::unary(path, std::move(request), std::move(headers), limit, std::move(done));
  }

private:
  template <class Message>
  static Message decoded(const std::string& bytes) {
    Message out;
    if (conclave::detail::wire::decode(bytes, out) != conclave::detail::wire::decode_error::none)
      throw std::logic_error{"no such message"};
    return out;
  }
};

/// A write that was handed in.
class pending_write {
public:
  bool done() const { return state_->done; }
  bool repeated() const { return state_->repeated; }
  const txn_response& answer() const {
    if (!state_->answer) throw std::logic_error{"there is no answer"};
    return *state_->answer;
  }
  bool answer_or_error() const { return state_->answer.has_value() || state_->error; }
  std::error_code error() const { return state_->error; }
  void cancel() { state_->signal.emit(asio::cancellation_type::terminal); }

private:
  friend class rig;
  struct state {
    bool done = false;
    std::optional<txn_response> answer;
    bool repeated = false;
    std::error_code error;
    asio::cancellation_signal signal;
  };
  std::shared_ptr<state> state_{std::make_shared<state>()};
};

class rig {
public:
  explicit rig(const std::string& prefix = {}) {
    listening = std::make_shared<listening_transport>(server);
    on = engine::runtime::make(context_.get_executor(), {listening}, clock_, engine::key_space{prefix}, {});
    combiner = std::make_shared<write_combiner>(on);
  }
  ~rig() {
    server->close();
    clock_->close();
  }

  conclave::test::model_etcd& etcd() { return server->etcd; }
  std::size_t requests() const { return listening->heard.size(); }

  pending_write start(txn what, write_lane lane = {}) {
    pending_write out;
    return spawn(run(combiner, std::move(what), std::move(lane), out.state_), out);
  }
  /// From another context, as far as it gets without ours.
  pending_write start_on(asio::io_context& other, txn what) {
    pending_write out;
    auto work = run(combiner, std::move(what), {}, out.state_);
    asio::co_spawn(other, std::move(work),
                   asio::bind_cancellation_slot(out.state_->signal.slot(), asio::detached));
    other.restart();
    other.poll();
    return out;
  }
  /// From a coroutine on the strand, as all but a client's own.
  pending_write start_here(txn what, bool repeatable = false) {
    pending_write out;
    on->spawn(run_here(combiner, std::move(what), repeatable, out.state_));
    return out;
  }
  pending_write start_repeatable(txn what) { return start_here(std::move(what), true); }
  /// Puts this key as often, each time as soon as the last one has been answered.
  pending_write start_many(const std::string& key, int times) {
    pending_write out;
    return spawn(run_many(combiner, key, times, out.state_), out);
  }
  pending_write get(txn what) {
    auto out = start(std::move(what));
    settle();
    return out;
  }

  /// Sends a first write, whose answer stays out, so that what comes now gathers.
  pending_write hold(txn what = txn{}.then(put("first", "v"))) {
    server->freeze();
    auto out = start(std::move(what));
    settle();
    return out;
  }
  /// The first one is answered, and what has gathered goes.
  void release() {
    settle();
    server->thaw();
    settle();
  }

  /// The same, and the server is silent again at once.
  void release_one() {
    settle();
    server->thaw();
    server->freeze();
    settle();
  }

  void settle() {
    context_.restart();
    for (int step = 0; context_.poll_one() != 0; ++step)
      if (step == 1'000'000) throw std::logic_error{"it does not come to rest"};
  }
  void advance(std::chrono::milliseconds time) {
    const auto until = clock_->now() + time;
    settle();
    while (clock_->next() && *clock_->next() <= until) {
      clock_->move_to(*clock_->next());
      settle();
    }
    clock_->move_to(until);
    settle();
  }

  /// Keeps the executor busy: a handler that takes a millisecond, then all others that are ready, and so on.
  /// Returns how many of them it takes until the next request has been sent.
  int turns_until_next_request() {
    const auto before = requests();
    const auto begin = clock_->now();
    context_.restart();
    turn(std::make_shared<bool>(true), before);
    settle();
    return static_cast<int>((clock_->now() - begin) / 1ms);
  }

private:
  void turn(const std::shared_ptr<bool>& first, std::size_t before) {
    asio::post(context_, [this, first, before] {
      if (std::exchange(*first, false)) server->thaw();
      if (requests() > before) return;
      clock_->move_to(clock_->now() + 1ms);
      turn(first, before);
    });
  }

  std::shared_ptr<conclave::test::manual_clock> clock_{std::make_shared<conclave::test::manual_clock>(1)};

public:
  std::shared_ptr<conclave::test::scripted_server> server{
      std::make_shared<conclave::test::scripted_server>(clock_)};
  std::shared_ptr<listening_transport> listening;
  std::shared_ptr<engine::runtime> on;
  std::shared_ptr<write_combiner> combiner;

private:
  pending_write spawn(asio::awaitable<void> work, const pending_write& out) {
    asio::co_spawn(
        context_, std::move(work),
        asio::bind_cancellation_slot(out.state_->signal.slot(),
                                     [state = out.state_](std::exception_ptr) { state->done = true; }));
    return out;
  }

  static asio::awaitable<void> run_here(std::shared_ptr<write_combiner> to, txn what, bool repeatable,
                                        std::shared_ptr<pending_write::state> into) {
    write_combiner::applied done;
    try {
      if (repeatable)
        done = co_await to->apply_repeatable(std::move(what));
      else
        done = co_await to->apply_here(std::move(what));
      into->answer.emplace(std::move(done.answer));
      into->repeated = done.repeated;
    } catch (const std::system_error& e) {
      into->error = e.code();
    }
    into->done = true;
  }

  static asio::awaitable<void> run_many(std::shared_ptr<write_combiner> to, std::string key, int times,
                                        std::shared_ptr<pending_write::state> into) {
    for (int i = 0; i < times && !into->error; ++i)
      co_await run(to, txn{}.then(put(key, std::to_string(i))), {}, into);
  }

  static asio::awaitable<void> run(std::shared_ptr<write_combiner> to, txn what, write_lane lane,
                                   std::shared_ptr<pending_write::state> into) {
    try {
      txn_response answer = co_await to->apply(std::move(what), std::move(lane));
      into->answer.emplace(std::move(answer));
    } catch (const std::system_error& e) {
      into->error = e.code();
    }
  }

  asio::io_context context_{1};  // goes first
};

txn write_of(const std::string& key, const std::string& value = "v") { return txn{}.then(put(key, value)); }

txn create(const std::string& key) {
  return txn{}.when(create_revision(key) == 0).then(put(key, "mine")).otherwise(range(key));
}

}  // namespace

TEST_CASE("a write alone leaves at once and as it is") {
  rig r;
  const auto done = r.get(create("a"));
  CHECK(done.answer().succeeded);
  CHECK(r.listening->heard == std::vector<txn>{create("a")});
  CHECK(r.etcd().keys().at("a").value == "mine");
  CHECK(r.combiner->in_flight() == 0);
}

TEST_CASE("a put alone goes as a put") {
  rig r;
  (void)r.etcd().apply(put("a", "old"));
  const auto done = r.get(txn{}.then(put("a", "new", {.prev_kv = true})));
  CHECK(r.listening->puts == 1);
  CHECK(r.etcd().keys().at("a").value == "new");
  CHECK(done.answer().succeeded);
  CHECK(done.answer().header.revision == r.etcd().current());
  REQUIRE(done.answer().responses.size() == 1);
  CHECK(done.answer().at(0).put().prev_kv.value().value == "old");
  SECTION("its error is its own") {
    const auto bad = r.get(txn{}.then(put("a", "", {.lease = 99})));
    CHECK(bad.error() == errc::lease_not_found);
  }
  SECTION("it is not sent twice") {
    r.server->next("KV.Put", fate::answer_lost);
    const auto lost = r.start(write_of("b"));
    r.advance(10s);
    CHECK(lost.error() == errc::outcome_unknown);
    CHECK(r.requests() == 2);
  }
  SECTION("unless it may be") {
    r.server->next("KV.Txn", fate::answer_lost);
    const auto again = r.start_repeatable(write_of("b"));
    r.advance(10s);
    CHECK(again.answer().succeeded);
    CHECK(again.repeated());
  }
  SECTION("others are no puts") {
    (void)r.get(create("b"));
    (void)r.get(txn{}.then(delete_key("b")));
    (void)r.get(txn{}.then(put("b", "")).otherwise(range("b")));
    (void)r.get(txn{}.then(put("b", ""), range("b")));
    CHECK(r.requests() == 5);
    CHECK(r.listening->puts == 1);
  }
}

TEST_CASE("writes that gather are one request, and each gets its own answer") {
  rig r;
  (void)r.etcd().apply(put("taken", "theirs"));
  const auto before = r.etcd().current();
  const auto first = r.hold();
  std::vector<pending_write> rest;
  for (int i = 0; i < 62; ++i) rest.push_back(r.start(create("k" + std::to_string(i))));
  const auto loser = r.start(create("taken"));
  r.release();
  CHECK(r.requests() == 2);
  CHECK(r.etcd().current() == before + 2);
  CHECK(first.answer().header.revision == before + 1);
  for (const auto& each : rest) {
    CHECK(each.answer().succeeded);
    CHECK(each.answer().header.revision == before + 2);
  }
  CHECK_FALSE(loser.answer().succeeded);
  CHECK(loser.answer().at(0).range().kvs.at(0).value == "theirs");
  CHECK(r.etcd().keys().size() == 64);
}

TEST_CASE("who writes again as soon as it has been answered goes with the others") {
  rig r;
  constexpr int writers = 16;
  constexpr int rounds = 10;
  const auto first = r.hold();
  std::vector<pending_write> each;
  for (int i = 0; i < writers; ++i) each.push_back(r.start_many("k" + std::to_string(i), rounds));
  for (int answers = 0; answers < 1 + rounds; ++answers) {
    r.advance(1ms);
    r.release_one();
  }
  for (const auto& one : each) CHECK(one.done());
  CHECK(r.requests() == 1 + rounds);
  CHECK(r.etcd().keys().at("k0").value == std::to_string(rounds - 1));
}

TEST_CASE(
    "waiting for those who have just been answered takes a few turns, and no longer than the batch did") {
  const auto [took, most_turns] =
      GENERATE(table<std::chrono::milliseconds, int>({{0ms, 1}, {2ms, 3}, {1s, 4}}));
  rig r;
  const auto first = r.hold();
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  r.release_one();
  REQUIRE(first.done());
  REQUIRE(r.requests() == 2);  // the batch of a and b is under way
  const auto c = r.start(write_of("c"));
  r.advance(took);
  const int turns = r.turns_until_next_request() - 1;  // the first is that of the answer
  INFO(took.count() << " ms: " << turns);
  CHECK(r.requests() == 3);
  CHECK(c.answer().succeeded);
  CHECK(turns == most_turns);
}

TEST_CASE("keys are the client's own, in requests and answers") {
  rig r{"mine/"};
  (void)r.etcd().apply(put("mine/b", "old"));
  (void)r.etcd().apply(put("b", "not ours"));
  const auto first = r.hold();
  const auto a = r.start(create("a"));
  const auto b = r.start(create("b"));
  r.release();
  CHECK(r.requests() == 2);
  CHECK(a.answer().succeeded);
  REQUIRE_FALSE(b.answer().succeeded);
  CHECK(b.answer().at(0).range().kvs.at(0).key == "b");
  CHECK(b.answer().at(0).range().kvs.at(0).value == "old");
  CHECK(r.etcd().line("mine/").size() == 3);
  // What the batch is charged for is a key of ours as well.
  CHECK(r.listening->heard.back().failure == std::vector<conclave::request_op>{put("mine/a", "")});
}

TEST_CASE("who is on the strand carries a write that goes alone, and what gathers meanwhile goes behind it") {
  rig r;
  r.server->freeze();
  const auto own = r.start_here(create("own"));
  r.settle();
  CHECK(r.combiner->in_flight() == 1);
  const auto a = r.start(create("a"));
  const auto b = r.start_here(create("b"));
  const auto again = r.start_here(create("own"));
  r.settle();
  CHECK(r.combiner->waiting() == 3);
  CHECK_FALSE(own.done());
  r.release();
  CHECK(own.answer().succeeded);
  CHECK(a.answer().succeeded);
  CHECK(b.answer().header.revision == a.answer().header.revision);
  CHECK_FALSE(again.answer().succeeded);
  CHECK(r.requests() == 2);
  CHECK(r.combiner->in_flight() == 0);
  CHECK(r.combiner->waiting() == 0);

  SECTION("it fails by its own error, and the others go on") {
    r.server->freeze();
    const auto bad = r.start_here(txn{}.then(put("bad", "", {.lease = 99})));
    r.settle();
    const auto c = r.start(create("c"));
    const auto d = r.start_here(create("d"));
    r.release();
    CHECK(bad.error() == errc::lease_not_found);
    CHECK(c.answer().succeeded);
    CHECK(d.answer().succeeded);
  }
  SECTION("it is not sent twice, unless it may be") {
    const bool may = GENERATE(false, true);
    const auto before = r.requests();
    r.server->next("KV.Txn", fate::answer_lost);
    const auto lost = r.start_here(create("lost"), may);
    r.advance(10s);
    CHECK(r.requests() == before + (may ? 2 : 1));
    CHECK(lost.done());
    CHECK(lost.repeated() == may);
    CHECK((may || lost.error() == errc::outcome_unknown));
    CHECK(r.get(write_of("after")).answer().succeeded);
  }
  SECTION("it is finished after the last handle has gone") {
    const std::weak_ptr<write_combiner> weak = r.combiner;
    r.server->freeze();
    const auto under_way = r.start_here(create("x"));
    const auto waits = r.start_here(create("y"));
    r.settle();
    r.combiner.reset();
    CHECK_FALSE(weak.expired());
    r.release();
    CHECK(under_way.answer().succeeded);
    CHECK(waits.answer().succeeded);
    CHECK(weak.expired());
  }
}

TEST_CASE("who is on the strand does not take another's write for its own") {
  rig r;
  write_combiner::limits side_by_side;
  side_by_side.most_members = 1;
  side_by_side.most_in_flight = 8;
  r.combiner = std::make_shared<write_combiner>(r.on, side_by_side);
  r.server->freeze();
  const auto first = r.start(write_of("a"));
  auto behind_first = r.start(txn{}.then(put("a", "v"), put("b", "v")));
  const auto behind_that = r.start(write_of("b", "theirs"));
  r.settle();
  CHECK(r.combiner->waiting() == 2);
  behind_first.cancel();  // so that the next could go, when something makes the combiner look
  r.settle();
  const auto own = r.start_here(txn{}.then(put("own", "v"), range("own")));
  r.settle();
  CHECK(r.combiner->in_flight() == 3);
  r.release();
  CHECK(first.answer().succeeded);
  CHECK(behind_that.answer().responses.size() == 1);
  REQUIRE(own.answer().responses.size() == 2);
  CHECK(own.answer().at(1).range().kvs.at(0).key == "own");
  CHECK(r.etcd().keys().at("b").value == "theirs");
}

TEST_CASE("one bad write costs the others nothing but time") {
  rig r;
  const auto first = r.hold();
  std::vector<pending_write> good;
  for (int i = 0; i < 10; ++i) good.push_back(r.start(write_of("k" + std::to_string(i))));
  const auto bad = r.start(txn{}.then(put("bad", "", {.lease = 99})));
  const auto twice = r.start(txn{}.then(put("twice", ""), put("twice", "")));
  for (int i = 10; i < 20; ++i) good.push_back(r.start(write_of("k" + std::to_string(i))));
  r.release();
  for (const auto& each : good) CHECK(each.answer().succeeded);
  CHECK(bad.error() == errc::lease_not_found);
  CHECK(twice.error() == errc::duplicate_key);
  CHECK(r.etcd().keys().size() == 21);
  CHECK(r.requests() < 23);  // fewer than one by one
}

TEST_CASE("writes in conflict go one after the other, and see each other") {
  rig r;
  const auto first = r.hold();
  const auto one = r.start(create("a"));
  const auto two = r.start(create("a"));
  const auto other = r.start(create("b"));
  r.release();
  CHECK(r.requests() == 3);
  CHECK(one.answer().succeeded);
  CHECK_FALSE(two.answer().succeeded);
  CHECK(two.answer().at(0).range().kvs.at(0).create_revision == one.answer().header.revision);
  CHECK(other.answer().header.revision == one.answer().header.revision);
}

TEST_CASE("writes of one lane have revisions of their own, in their order") {
  rig r;
  const auto first = r.hold();
  std::vector<pending_write> lane;
  for (int i = 0; i < 5; ++i) lane.push_back(r.start(write_of("q" + std::to_string(i)), write_lane{"q"}));
  const auto other = r.start(write_of("x"));
  std::vector<pending_write> sharing;
  for (int i = 0; i < 5; ++i)
    sharing.push_back(r.start(write_of("s" + std::to_string(i)), write_lane{"s", true}));
  r.release();
  CHECK(r.requests() == 6);
  for (std::size_t i = 1; i < lane.size(); ++i)
    CHECK(lane[i - 1].answer().header.revision < lane[i].answer().header.revision);
  CHECK(other.answer().header.revision == lane[0].answer().header.revision);
  for (const auto& each : sharing) CHECK(each.answer().header.revision == lane[0].answer().header.revision);
}

TEST_CASE("a batch stays below what a server takes, by its bytes as sent") {
  rig r{std::string(50, 'p')};
  const auto first = r.hold();
  std::vector<pending_write> many;
  for (int i = 0; i < 100; ++i)
    many.push_back(r.start(write_of("k" + std::to_string(i), std::string(30'000, 'x'))));
  const auto large = r.start(write_of("large", std::string(1'400'000, 'x')));
  r.release();
  for (const auto& each : many) CHECK(each.answer().succeeded);
  CHECK(large.answer().succeeded);
  CHECK(r.requests() == 5);  // 1, 34, 34, 32, and the large one
  CHECK(r.listening->heard.back().success.size() == 1);
  for (const auto& each : r.listening->heard)
    CHECK((each.success.size() == 1 || conclave::detail::wire::encode(each).size() < 1024 * 1024));
}

TEST_CASE("a batch whose answer is lost is everybody's unknown outcome, and is not repeated") {
  rig r;
  const auto first = r.hold();
  r.server->next("KV.Txn", fate::answer_lost);
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  r.release();
  r.advance(10s);
  CHECK(first.answer().succeeded);
  CHECK(a.error() == errc::outcome_unknown);
  CHECK(b.error() == errc::outcome_unknown);
  CHECK(r.requests() == 2);
  CHECK(r.get(write_of("c")).answer().succeeded);
}

TEST_CASE("a batch whose answer is lost goes again if all its members may, and they are told so") {
  rig r;
  const auto first = r.hold();
  r.server->next("KV.Txn", fate::answer_lost);
  const bool all = GENERATE(true, false);
  const auto a = r.start_repeatable(write_of("a"));
  const auto b = all ? r.start_repeatable(write_of("b")) : r.start(write_of("b"));
  r.release();
  r.advance(10s);
  CHECK(r.requests() == (all ? 3 : 2));
  if (all) {
    CHECK(a.answer().succeeded);
    CHECK(a.repeated());
    CHECK(b.repeated());
  } else {
    CHECK(a.error() == errc::outcome_unknown);
    CHECK(b.error() == errc::outcome_unknown);
  }
  const auto next = r.start_repeatable(write_of("c"));
  r.settle();
  CHECK(next.answer().succeeded);
  CHECK_FALSE(next.repeated());
}

TEST_CASE("a batch that a server refuses for now is sent again, as any call") {
  rig r;
  const auto first = r.hold();
  r.server->next("KV.Txn", fate::refused);
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  r.release();
  r.advance(1s);
  CHECK(a.answer().header.revision == b.answer().header.revision);
  CHECK(r.requests() == 3);
}

TEST_CASE("no server: everybody is told so") {
  rig r;
  r.server->stop();
  const auto first = r.start(write_of("first"));
  const auto a = r.start(write_of("a"));
  r.advance(1s);
  const auto b = r.start(write_of("b"));
  r.advance(20s);
  CHECK(first.error() == errc::unavailable);
  CHECK(a.error() == errc::unavailable);
  CHECK(b.error() == errc::unavailable);
  r.server->start();
  CHECK(r.get(write_of("c")).answer().succeeded);
  CHECK(r.etcd().keys().size() == 1);
}

TEST_CASE("a write that has waited for a silent server as long as a request may take is not sent") {
  rig r;
  r.server->next("KV.Put", fate::never_arrives);
  const auto first = r.start(write_of("first"));
  r.settle();
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  r.advance(1s);
  const auto late = r.start(write_of("late"));
  r.advance(4s);
  CHECK(first.error() == errc::outcome_unknown);
  CHECK(a.error() == errc::timed_out);
  CHECK(b.error() == errc::timed_out);
  CHECK(late.answer().succeeded);
  CHECK(r.etcd().keys().size() == 1);
}

TEST_CASE("a full store refuses batches as it refuses puts, and lets deletions in") {
  rig r;
  (void)r.etcd().apply(put("old", ""));
  (void)r.etcd().apply(put("older", ""));
  r.etcd().full = true;
  auto first = r.hold(txn{}.then(delete_key("nothing")));
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  const auto gone = r.start(txn{}.then(delete_key("old")));
  r.release();
  CHECK(first.answer().succeeded);
  CHECK(a.error() == errc::no_space);
  CHECK(b.error() == errc::no_space);
  CHECK(gone.error() == errc::outcome_unknown);

  first = r.hold(txn{}.then(delete_key("nothing")));
  const auto c = r.start(write_of("c"));
  const auto again = r.start(txn{}.then(delete_key("old")));
  const auto other = r.start(txn{}.then(delete_key("older")));
  r.release();
  CHECK(c.error() == errc::no_space);
  CHECK(again.answer().at(0).delete_range().deleted == 1);
  CHECK(other.answer().at(0).delete_range().deleted == 1);
  CHECK(r.etcd().keys().empty());

  r.etcd().full = false;
  CHECK(r.get(write_of("a")).answer().succeeded);
}

TEST_CASE("an answer without parts is everybody's unexpected_response") {
  rig r;
  const auto first = r.hold();
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  r.listening->next_is_nonsense = true;
  r.release();
  CHECK(first.answer().succeeded);
  CHECK(a.error() == errc::unexpected_response);
  CHECK(b.error() == errc::unexpected_response);
  CHECK(r.get(write_of("c")).answer().succeeded);
}

TEST_CASE("who is cancelled before its write is sent leaves nothing") {
  rig r;
  auto first = r.hold();
  auto a = r.start(write_of("a"));
  auto b = r.start(write_of("b"));
  auto c = r.start(write_of("c"));
  r.settle();
  CHECK(r.combiner->waiting() == 3);
  b.cancel();
  r.settle();
  CHECK(b.error() == errc::cancelled);
  CHECK(r.combiner->waiting() == 2);

  SECTION("others go on") {
    r.release();
    CHECK(a.answer().succeeded);
    CHECK(c.answer().succeeded);
    CHECK(r.etcd().keys().count("b") == 0);
    CHECK(r.etcd().keys().size() == 3);
  }
  SECTION("after it was sent, the write goes on, and its result is nobody's") {
    first.cancel();
    r.settle();
    CHECK(first.error() == errc::cancelled);
    CHECK(r.combiner->in_flight() == 1);
    r.release();
    CHECK(r.etcd().keys().count("first") == 1);
    CHECK(a.answer().succeeded);
  }
  SECTION("in a batch under way, too") {
    r.server->next("KV.Txn", fate::answer_late);
    r.release();
    REQUIRE(r.requests() == 2);
    a.cancel();
    r.settle();
    CHECK(a.error() == errc::cancelled);
    CHECK_FALSE(c.done());
    r.server->answer_late_ones();
    r.settle();
    CHECK(c.answer().at(0).put().prev_kv == std::nullopt);
    CHECK(r.etcd().keys().count("a") == 1);
  }
}

TEST_CASE("writes that come from elsewhere while the executor is busy go together, in their order") {
  rig r;
  asio::io_context elsewhere;
  const auto a = r.start_on(elsewhere, write_of("a"));
  const auto b = r.start_on(elsewhere, write_of("b"));
  const auto c = r.start_on(elsewhere, txn{}.then(put("c", "v"), delete_key("b")));
  r.settle();
  REQUIRE(r.requests() == 2);
  CHECK(r.listening->heard[0] == txn{}.then(put("a", "v"), put("b", "v")));
  CHECK(r.etcd().keys().count("b") == 0);
  elsewhere.restart();
  elsewhere.poll();
  for (const auto& each : {a, b, c}) CHECK(each.answer().succeeded);
}

TEST_CASE(
    "a write from elsewhere that is cancelled before the strand has heard of it ends at once, and is not "
    "sent") {
  rig r;
  asio::io_context elsewhere;
  r.server->freeze();
  auto a = r.start_on(elsewhere, write_of("a"));
  const auto b = r.start_on(elsewhere, write_of("b"));
  a.cancel();
  elsewhere.restart();
  elsewhere.poll();  // newer Asios bring the cancellation to the coroutine's executor first
  r.settle();
  elsewhere.restart();
  elsewhere.poll();
  CHECK(a.error() == errc::cancelled);
  CHECK_FALSE(b.answer_or_error());
  r.release();
  elsewhere.restart();
  elsewhere.poll();
  CHECK(b.answer().succeeded);
  CHECK(r.requests() == 1);
  CHECK(r.etcd().keys().count("a") == 0);
}

TEST_CASE("a write from elsewhere is not sent if its context goes away first") {
  rig r;
  std::optional<asio::io_context> elsewhere{std::in_place};
  const auto a = r.start_on(*elsewhere, write_of("a"));
  elsewhere.reset();
  r.settle();
  CHECK_FALSE(a.answer_or_error());
  CHECK(r.requests() == 0);
  CHECK(r.get(write_of("b")).answer().succeeded);
}

TEST_CASE("writes from elsewhere go with their context when the client's has gone before it heard of them") {
  std::optional<rig> r{std::in_place};
  std::optional<asio::io_context> elsewhere{std::in_place};
  const auto a = r->start_on(*elsewhere, write_of("a"));
  const std::weak_ptr<write_combiner> weak = r->combiner;
  r.reset();
  elsewhere->restart();
  elsewhere->poll();
  CHECK_FALSE(a.answer_or_error());
  elsewhere.reset();
  CHECK_FALSE(a.answer_or_error());
  CHECK(weak.expired());
}

TEST_CASE("nothing keeps the combiner once everything is answered") {
  rig r;
  const auto first = r.hold();
  const auto a = r.start(write_of("a"));
  r.release();
  CHECK(a.answer().succeeded);
  const std::weak_ptr<write_combiner> weak = std::exchange(r.combiner, nullptr);
  r.settle();
  CHECK(weak.expired());
}

TEST_CASE("writes under way and waiting are finished after the last handle has gone") {
  rig r;
  const auto first = r.hold();
  const auto a = r.start(write_of("a"));
  const auto b = r.start(write_of("b"));
  r.settle();
  const std::weak_ptr<write_combiner> weak = std::exchange(r.combiner, nullptr);
  r.release();
  CHECK(first.answer().succeeded);
  CHECK(a.answer().succeeded);
  CHECK(b.answer().succeeded);
  CHECK(weak.expired());
}

TEST_CASE("a context that goes away takes its waiting writes with it") {
  std::weak_ptr<write_combiner> weak;
  std::weak_ptr<engine::runtime> on;
  std::optional<pending_write> under_way;
  std::optional<pending_write> waiting;
  {
    rig r;
    r.server->freeze();
    const bool here = GENERATE(false, true);
    under_way = here ? r.start_here(write_of("a")) : r.start(write_of("a"));
    waiting = here ? r.start_here(write_of("b")) : r.start(write_of("b"));
    r.settle();
    weak = r.combiner;
    on = r.on;
  }
  CHECK_FALSE(under_way->answer_or_error());
  CHECK_FALSE(waiting->answer_or_error());
  CHECK(weak.expired());
  CHECK(on.expired());
}
