// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/lease_keeper_machine.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::lease_id;
using machine = conclave::detail::engine::lease_keeper_machine;
using std::chrono::milliseconds;
using namespace std::chrono_literals;
using did = std::vector<std::string>;

const machine::time_point epoch{1h};

machine::time_point at(milliseconds when) { return epoch + when; }

std::string text(const machine::action& each) {
  struct {
    std::string operator()(const machine::open_stream&) const { return "open"; }
    std::string operator()(const machine::close_stream& a) const {
      return a.suspect ? "close suspect" : "close";
    }
    std::string operator()(const machine::send_keepalive& a) const {
      return "keepalive " + std::to_string(a.id);
    }
    std::string operator()(const machine::renewed& a) const {
      const auto until = std::chrono::duration_cast<milliseconds>(a.valid_until - epoch);
      return "renewed " + std::to_string(a.id) + " until " + std::to_string(until.count());
    }
    std::string operator()(const machine::lost& a) const {
      return "lost " + std::to_string(a.id) + (a.why == machine::loss::expired ? " expired" : " not found");
    }
    std::string operator()(const machine::confirm& a) const { return "confirm " + std::to_string(a.id); }
  } const name;
  return std::visit(name, each);
}

// A machine that is told times in milliseconds since its beginning, and what it does as text.
struct keeper {
  machine on{1};

  static did texts(const machine::actions& what) {
    did out;
    for (const auto& each : what) out.push_back(text(each));
    return out;
  }

  did add(lease_id id, milliseconds ttl, milliseconds granted, milliseconds now) {
    return texts(on.add(id, ttl, at(granted), at(now)));
  }
  did remove(lease_id id) { return texts(on.remove(id)); }
  did open(milliseconds now) { return texts(on.on_stream_open(at(now))); }
  did closed(milliseconds now) { return texts(on.on_stream_closed(at(now))); }
  did answer(lease_id id, milliseconds ttl, milliseconds now) {
    return texts(on.on_answer(id, ttl, at(now)));
  }
  did confirmed(lease_id id, bool exists, milliseconds now) {
    return texts(on.on_confirmed(id, exists, at(now)));
  }
  did timer(milliseconds now) { return texts(on.on_timer(at(now))); }

  // In milliseconds, rounded down; -1 for never.
  long long wakeup() const {
    const auto when = on.next_wakeup();
    return when ? std::chrono::floor<milliseconds>(*when - epoch).count() : -1;
  }
};

// One lease, 7, of 9 s, granted at 0 and told of at 100, on a stream that is open since 200: it is renewed each
// 3 s and counts as valid for 8550 ms (9 s less a twentieth).
struct keeper_with_lease : keeper {
  keeper_with_lease() {
    REQUIRE(add(7, 9s, 0ms, 100ms) == did{"open"});
    REQUIRE(open(200ms).empty());
  }
};

}  // namespace

TEST_CASE("the margin is a twentieth of the TTL, from 50 ms to 1 s") {
  CHECK(machine::margin(500ms) == 50ms);
  CHECK(machine::margin(2s) == 100ms);
  CHECK(machine::margin(10s) == 500ms);
  CHECK(machine::margin(60s) == 1s);
  CHECK(machine::validity(at(1s), 10s) == at(10'500ms));
}

TEST_CASE("a granted lease counts from when its grant was sent, not from when it was answered") {
  keeper k;
  CHECK(k.add(7, 9s, 0ms, 4000ms) == did{"open"});
  CHECK(k.wakeup() == 8550);
  CHECK(k.timer(8549ms).empty());
  CHECK(k.timer(8550ms) == did{"lost 7 expired", "close"});
}

TEST_CASE("a renewed lease counts from when the answered keepalive was sent, not from when it was answered") {
  keeper_with_lease k;
  CHECK(k.timer(3000ms) == did{"keepalive 7"});
  CHECK(k.answer(7, 9s, 4400ms) == did{"renewed 7 until 11550"});
}

TEST_CASE("the TTL in the answer counts, not the one that was granted") {
  keeper_with_lease k;
  CHECK(k.timer(3000ms) == did{"keepalive 7"});
  CHECK(k.answer(7, 30s, 3100ms) == did{"renewed 7 until 32000"});
  CHECK(k.wakeup() == 13'000);  // a third of 30 s after it was sent
}

TEST_CASE("a lease is renewed at a third of its TTL, counted from the last keepalive sent") {
  keeper_with_lease k;
  CHECK(k.wakeup() == 3000);
  CHECK(k.timer(2999ms).empty());
  CHECK(k.timer(3000ms) == did{"keepalive 7"});
  CHECK(k.timer(3001ms).empty());  // one at a time
  CHECK(k.answer(7, 9s, 3500ms) == did{"renewed 7 until 11550"});
  CHECK(k.wakeup() == 6000);
  CHECK(k.timer(5999ms).empty());
  CHECK(k.timer(6000ms) == did{"keepalive 7"});
}

TEST_CASE("a lease whose renewal is due already is renewed as soon as the stream is open") {
  keeper k;
  CHECK(k.add(7, 9s, 0ms, 3500ms) == did{"open"});
  CHECK(k.wakeup() == 8550);  // until then only the lease's own time matters
  CHECK(k.open(3600ms) == did{"keepalive 7"});
}

TEST_CASE("a lease that joins an open stream needs no other") {
  keeper_with_lease k;
  CHECK(k.add(8, 9s, 1000ms, 1100ms).empty());
  CHECK(k.timer(3000ms) == did{"keepalive 7"});
  CHECK(k.timer(4000ms) == did{"keepalive 8"});
}

TEST_CASE(
    "a stream that does not answer in time is suspect: it is replaced, and what was under way is sent "
    "again") {
  keeper_with_lease k;
  CHECK(k.timer(3000ms) == did{"keepalive 7"});
  CHECK(k.wakeup() == 4500);  // a sixth of the TTL later
  CHECK(k.timer(4499ms).empty());
  CHECK(k.timer(4500ms) == did{"close suspect", "open"});
  CHECK(k.wakeup() == 8550);
  CHECK(k.open(4600ms) == did{"keepalive 7"});

  SECTION("and the answer counts from the second sending") {
    CHECK(k.answer(7, 9s, 4700ms) == did{"renewed 7 until 13150"});
  }
  SECTION("and an unanswered second sending makes the new stream suspect too") {
    CHECK(k.timer(6099ms).empty());
    CHECK(k.timer(6100ms) == did{"close suspect", "open"});
  }
}

TEST_CASE("patience is a sixth of the TTL, from 500 ms to 3 s") {
  struct row {
    milliseconds ttl;
    milliseconds patience;
  };
  for (const auto& each : {row{2s, 500ms}, row{12s, 2s}, row{60s, 3s}}) {
    CAPTURE(each.ttl.count());
    keeper k;
    k.add(7, each.ttl, 0ms, 0ms);
    k.open(0ms);
    const auto sent = std::chrono::ceil<milliseconds>(each.ttl / 3.0);
    REQUIRE(k.timer(sent) == did{"keepalive 7"});
    CHECK(k.timer(sent + each.patience - 1ms).empty());
    CHECK(k.timer(sent + each.patience) == did{"close suspect", "open"});
  }
}

TEST_CASE("one silent lease makes the stream suspect for all, and only what was under way is sent again") {
  keeper_with_lease k;
  k.add(8, 9s, 2000ms, 2100ms);  // next at 5000
  CHECK(k.timer(3000ms) == did{"keepalive 7"});
  CHECK(k.timer(4500ms) == did{"close suspect", "open"});
  CHECK(k.open(4600ms) == did{"keepalive 7"});
  CHECK(k.timer(5000ms) == did{"keepalive 8"});
}

TEST_CASE("a lease that the server does not know is lost") {
  keeper_with_lease k;
  k.timer(3000ms);
  CHECK(k.answer(7, 0s, 3100ms) == did{"lost 7 not found", "close"});
  CHECK(k.wakeup() == -1);
  CHECK(k.on.size() == 0);
}

TEST_CASE("a lease just granted that the server does not know is asked about first") {
  keeper k;
  k.add(7, 2s, 0ms, 10ms);  // renewed after 667 ms already
  k.open(20ms);
  REQUIRE(k.timer(667ms) == did{"keepalive 7"});
  REQUIRE(k.answer(7, 0s, 700ms) == did{"confirm 7"});

  SECTION("nothing is sent while the question is under way") {
    CHECK(k.wakeup() == 1900);
    CHECK(k.timer(900ms).empty());
    CHECK(k.closed(910ms).empty());
    CHECK(k.timer(1000ms) == did{"open"});
    CHECK(k.open(1010ms).empty());
  }
  SECTION("it exists: it is renewed soon") {
    CHECK(k.confirmed(7, true, 720ms).empty());
    CHECK(k.wakeup() == 920);
    CHECK(k.timer(920ms) == did{"keepalive 7"});
    CHECK(k.answer(7, 2s, 930ms) == did{"renewed 7 until 2820"});
  }
  SECTION("it does not exist: it is lost, and its stream closed") {
    CHECK(k.confirmed(7, false, 720ms) == did{"lost 7 not found", "close"});
    CHECK(k.wakeup() == -1);
  }
  SECTION("it is lost when its time is over, whatever the answer") {
    CHECK(k.timer(1900ms) == did{"lost 7 expired", "close"});
    CHECK(k.confirmed(7, true, 1901ms).empty());
  }
  SECTION("an answer that comes after it was removed means nothing") {
    CHECK(k.remove(7) == did{"close"});
    CHECK(k.confirmed(7, false, 720ms).empty());
  }
}

TEST_CASE("a lease that was renewed once is not asked about") {
  keeper k;
  k.add(7, 1s, 0ms, 10ms);
  k.open(20ms);
  REQUIRE(k.timer(334ms) == did{"keepalive 7"});
  REQUIRE(k.answer(7, 1s, 340ms) == did{"renewed 7 until 1284"});
  REQUIRE(k.timer(668ms) == did{"keepalive 7"});
  CHECK(k.answer(7, 0s, 680ms) == did{"lost 7 not found", "close"});
}

TEST_CASE("a lease that nobody renewed for a second is not asked about") {
  keeper k;
  k.add(7, 4s, 0ms, 10ms);
  k.open(20ms);
  REQUIRE(k.timer(1334ms) == did{"keepalive 7"});
  CHECK(k.answer(7, 0s, 1335ms) == did{"lost 7 not found", "close"});
}

TEST_CASE("a lease expires at the moment its validity ends, though the stream is silent") {
  keeper_with_lease k;
  k.timer(3000ms);
  k.timer(4500ms);  // suspect; and the new stream never opens
  CHECK(k.wakeup() == 8550);
  CHECK(k.timer(8549ms).empty());
  CHECK(k.timer(8550ms) == did{"lost 7 expired", "close"});
}

TEST_CASE("a lost lease is lost for good") {
  keeper_with_lease k;
  k.timer(3000ms);

  SECTION("an answer after the loss changes nothing") {
    k.add(8, 60s, 3000ms, 3000ms);  // keeps the stream open
    CHECK(k.answer(7, 0s, 3100ms) == did{"lost 7 not found"});
    CHECK(k.answer(7, 9s, 3200ms).empty());
    CHECK(k.timer(8550ms).empty());
    CHECK(k.on.size() == 1);
  }
  SECTION(
      "an answer that comes when its time is over does not bring it back, though no timer has fired yet") {
    CHECK(k.answer(7, 9s, 8550ms) == did{"lost 7 expired", "close"});
  }
  SECTION("it is reported once") {
    CHECK(k.timer(8550ms) == did{"lost 7 expired", "close"});
    CHECK(k.timer(8551ms).empty());
    CHECK(k.closed(8552ms).empty());
  }
}

TEST_CASE("nothing is reported about a lease that was removed") {
  keeper_with_lease k;
  k.add(8, 60s, 0ms, 200ms);
  k.timer(3000ms);
  CHECK(k.remove(7).empty());  // 8 still needs the stream
  CHECK(k.answer(7, 9s, 3100ms).empty());
  CHECK(k.timer(8550ms).empty());
  CHECK(k.on.size() == 1);
  CHECK(k.remove(7).empty());
  CHECK(k.remove(8) == did{"close"});
  CHECK(k.wakeup() == -1);
}

TEST_CASE("removing the last lease while the stream is not open ends the attempts") {
  keeper k;
  k.add(7, 9s, 0ms, 100ms);

  SECTION("while it is being opened") {
    CHECK(k.remove(7) == did{"close"});
    CHECK(k.open(200ms).empty());
  }
  SECTION("while it waits to be opened again") {
    k.closed(200ms);
    CHECK(k.remove(7) == did{"close"});
    CHECK(k.timer(5000ms).empty());
  }
  CHECK(k.wakeup() == -1);
}

TEST_CASE("a lease added after the last one went opens a stream anew") {
  keeper_with_lease k;
  CHECK(k.remove(7) == did{"close"});
  CHECK(k.add(8, 9s, 1000ms, 1100ms) == did{"open"});
  CHECK(k.open(1200ms).empty());
  CHECK(k.timer(4000ms) == did{"keepalive 8"});
}

TEST_CASE("stray answers mean nothing") {
  keeper_with_lease k;
  SECTION("for a lease that is not kept") { CHECK(k.answer(99, 9s, 300ms).empty()); }
  SECTION("for a keepalive that was not sent") { CHECK(k.answer(7, 9s, 300ms).empty()); }
  SECTION("and none of them is a loss") { CHECK(k.answer(7, 0s, 300ms).empty()); }
  SECTION("a second answer to one keepalive") {
    k.timer(3000ms);
    CHECK(k.answer(7, 9s, 3100ms) == did{"renewed 7 until 11550"});
    CHECK(k.answer(7, 9s, 3200ms).empty());
  }
  SECTION("after the stream ended") {
    k.timer(3000ms);
    k.closed(3100ms);
    CHECK(k.answer(7, 9s, 3110ms).empty());
  }
  CHECK(k.on.size() == 1);
}

TEST_CASE("a stream that ends is opened again after a pause, and what was under way is sent again") {
  keeper_with_lease k;
  k.add(8, 60s, 0ms, 200ms);
  k.timer(3000ms);
  CHECK(k.closed(3100ms).empty());
  const auto reopen = k.wakeup();
  CHECK(reopen >= 3100 + 37);
  CHECK(reopen <= 3100 + 63);
  CHECK(k.timer(3120ms).empty());
  CHECK(k.timer(3165ms) == did{"open"});
  CHECK(k.open(3200ms) == did{"keepalive 7"});  // not 8, which was not under way
  CHECK(k.answer(7, 9s, 3300ms) == did{"renewed 7 until 11750"});
}

TEST_CASE("the pause grows to a second while streams fail, and an answer makes it short again") {
  keeper k;
  k.add(7, 3600s, 0ms, 0ms);
  auto now = 0ms;
  for (const auto base : {50, 100, 200, 400, 800, 1000, 1000}) {
    CAPTURE(base);
    k.open(now);  // opening alone proves nothing
    CHECK(k.closed(now).empty());
    const auto pause = k.wakeup() - now.count();
    CHECK(pause >= base * 3 / 4 - 1);
    CHECK(pause <= base * 5 / 4);
    now += 1500ms;
    REQUIRE(k.timer(now) == did{"open"});
  }
  k.open(now);
  now = 1'200'000ms;
  REQUIRE(k.timer(now) == did{"keepalive 7"});
  REQUIRE(k.answer(7, 3600s, now).size() == 1);
  k.closed(now);
  CHECK(k.wakeup() - now.count() <= 63);
}

TEST_CASE("a lease added while a stream waits to be opened again does not shorten the pause") {
  keeper_with_lease k;
  k.closed(300ms);
  CHECK(k.add(8, 9s, 300ms, 301ms).empty());
  CHECK(k.timer(370ms) == did{"open"});
}

TEST_CASE("leases on one stream live and die by themselves") {
  keeper k;
  k.add(1, 6s, 0ms, 0ms);
  k.add(2, 9s, 0ms, 0ms);
  k.add(3, 12s, 0ms, 0ms);
  k.open(0ms);
  CHECK(k.timer(2000ms) == did{"keepalive 1"});
  CHECK(k.answer(1, 0s, 2100ms) == did{"lost 1 not found"});
  CHECK(k.timer(3000ms) == did{"keepalive 2"});
  CHECK(k.answer(2, 9s, 3100ms) == did{"renewed 2 until 11550"});
  CHECK(k.timer(4000ms) == did{"keepalive 3"});
  CHECK(k.answer(3, 12s, 4100ms) == did{"renewed 3 until 15400"});
}

// ---- random histories -----------------------------------------------------------------------------------

namespace {

// A machine, a server and a network between them, for random steps. Checks at every step what must always hold.
class random_run {
public:
  explicit random_run(std::uint64_t seed) : random_{seed}, machine_{seed} {}

  void step() {
    const auto dice = pick(40);
    if (dice < 3)
      add();
    else if (dice < 4)
      remove();
    else if (dice < 5)
      server_forgets();
    else if (dice < 6)
      end_stream();
    else if (dice < 7)
      silent_ = pick(4) == 0;
    else if (dice < 8)
      stray();
    else if (dice < 19)
      answer();
    else if (dice < 22)
      answer_question();
    else if (dice < 30)
      opens();
    else
      pass();
    check();
  }

  int renewals = 0, losses = 0, replaced = 0, questions = 0, expired = 0;

private:
  struct kept {
    milliseconds ttl{};
    machine::time_point believed;      // what the machine last told
    machine::time_point server_until;  // when the server would end it
    bool on_server = true;
    machine::time_point applied;  // a member says "unknown" before (some old ones do)
  };
  struct sent {
    lease_id id = 0;
    machine::time_point when;
  };
  enum class stream { none, opening, open };

  std::uint64_t pick(std::uint64_t below) { return random_() % below; }

  void add() {
    if (leases_.size() >= 6) return;
    kept each;
    each.ttl = std::chrono::seconds{2 + pick(20)};
    const auto granted = now_;
    now_ +=
        milliseconds{pick(300)};  // the grant's way there and back; the server starts its clock in between
    each.believed = machine::validity(granted, each.ttl);
    each.server_until = granted + each.ttl;
    each.applied = granted + (pick(4) == 0 ? 900ms : 0ms);
    const lease_id id = ++last_;
    leases_[id] = each;
    perform(machine_.add(id, each.ttl, granted, now_));
  }

  void remove() {
    if (leases_.empty()) return;
    const auto which = std::next(leases_.begin(), static_cast<long>(pick(leases_.size())));
    const auto id = which->first;
    leases_.erase(which);
    gone_.insert(id);
    perform(machine_.remove(id));
  }

  void server_forgets() {
    if (leases_.empty()) return;
    std::next(leases_.begin(), static_cast<long>(pick(leases_.size())))->second.on_server = false;
  }

  void end_stream() {
    if (stream_ == stream::none) return;
    drop_stream();
    perform(machine_.on_stream_closed(now_));
  }

  void opens() {
    if (stream_ != stream::opening) return;
    stream_ = stream::open;
    perform(machine_.on_stream_open(now_));
  }

  void answer() {
    if (stream_ != stream::open || silent_ || under_way_.empty()) return;
    const sent first = under_way_.front();
    under_way_.pop_front();
    const auto found = leases_.find(first.id);
    const bool known = found != leases_.end() && found->second.on_server &&
                       first.when < found->second.server_until && now_ >= found->second.applied;
    if (known) found->second.server_until = first.when + found->second.ttl;  // the earliest it can be
    answered_ = known ? std::optional{first} : std::nullopt;
    perform(machine_.on_answer(first.id, known ? found->second.ttl : 0ms, now_));
    answered_.reset();
  }

  void answer_question() {
    if (questions_.empty()) return;
    const auto id = *questions_.begin();
    questions_.erase(questions_.begin());
    const auto found = leases_.find(id);
    perform(machine_.on_confirmed(id, found != leases_.end() && found->second.on_server, now_));
  }

  void stray() {
    const lease_id id = pick(2) == 0 ? last_ + 1000 : (gone_.empty() ? 0 : *gone_.begin());
    const auto what = machine_.on_answer(id, 5s, now_);
    REQUIRE(what.empty());
  }

  void pass() {
    const auto next = machine_.next_wakeup();
    if (next && pick(3) != 0)
      now_ = std::max(now_, *next);
    else
      now_ += milliseconds{pick(400)};
    perform(machine_.on_timer(now_));
    // A timer that has done its work waits for something later: there is no idle spinning.
    if (const auto again = machine_.next_wakeup()) REQUIRE(*again > now_);
  }

  void drop_stream() {
    stream_ = stream::none;
    under_way_.clear();
  }

  void perform(const machine::actions& what) {
    for (const auto& each : what) std::visit([this](const auto& action) { perform(action); }, each);
  }
  void perform(const machine::open_stream&) {
    REQUIRE(stream_ == stream::none);
    REQUIRE_FALSE(leases_.empty());
    stream_ = stream::opening;
  }
  void perform(const machine::close_stream& action) {
    replaced += action.suspect ? 1 : 0;
    drop_stream();
  }
  void perform(const machine::send_keepalive& action) {
    REQUIRE(stream_ == stream::open);
    REQUIRE(leases_.contains(action.id));  // never for one that was removed or lost
    REQUIRE_FALSE(questions_.contains(action.id));
    for (const auto& each : under_way_) REQUIRE(each.id != action.id);
    under_way_.push_back({action.id, now_});
  }
  void perform(const machine::renewed& action) {
    ++renewals;
    REQUIRE(answered_.has_value());
    REQUIRE(answered_->id == action.id);
    auto& each = leases_.at(action.id);
    REQUIRE(now_ < each.believed);  // nobody who gave up is told to believe again
    REQUIRE(action.valid_until <= machine::validity(answered_->when, each.ttl));
    REQUIRE(action.valid_until >= each.believed);
    each.believed = action.valid_until;
  }
  void perform(const machine::lost& action) {
    ++losses;
    expired += action.why == machine::loss::expired ? 1 : 0;
    const auto found = leases_.find(action.id);
    REQUIRE(found != leases_.end());  // once, and never after its removal
    if (action.why == machine::loss::expired)
      REQUIRE(now_ >= found->second.believed);
    else
      REQUIRE((!found->second.on_server || now_ >= found->second.server_until));
    gone_.insert(action.id);
    leases_.erase(found);
  }
  void perform(const machine::confirm& action) {
    ++questions;
    REQUIRE(leases_.contains(action.id));
    REQUIRE(questions_.insert(action.id).second);
  }

  void check() {
    REQUIRE(machine_.size() == leases_.size());
    REQUIRE(machine_.next_wakeup().has_value() == !leases_.empty());
    REQUIRE((stream_ == stream::none || !leases_.empty()));
    for (const auto& [id, each] : leases_) {
      CAPTURE(id);
      // Nobody believes in a lease that the server may have ended by itself.
      REQUIRE(each.believed < each.server_until);
      REQUIRE(*machine_.next_wakeup() <= each.believed);
    }
  }

  std::mt19937_64 random_;
  machine machine_;
  machine::time_point now_{epoch};
  std::map<lease_id, kept> leases_;
  std::set<lease_id> gone_;
  std::set<lease_id> questions_;
  std::deque<sent> under_way_;
  std::optional<sent> answered_;
  stream stream_{stream::none};
  bool silent_{false};
  lease_id last_{0};
};

}  // namespace

TEST_CASE("in random histories no lease is believed in for too long, lost twice or renewed after its end") {
  int renewals = 0, losses = 0, replaced = 0, questions = 0, expired = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    random_run run{seed};
    for (int step = 0; step < 1000; ++step) {
      CAPTURE(step);
      run.step();
    }
    renewals += run.renewals;
    losses += run.losses;
    replaced += run.replaced;
    questions += run.questions;
    expired += run.expired;
  }
  // All of it happened.
  CHECK(renewals > 500);
  CHECK(losses > 500);
  CHECK(expired > 100);
  CHECK(replaced > 100);
  CHECK(questions > 0);
}
