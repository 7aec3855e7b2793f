// SPDX-License-Identifier: BSL-1.0

// The lease keeper's machine against a server that answers, is silent or lies, on streams that open and end, while
// time passes. The input is the order in which that happens. Beside the machine stands what its holder may rely on.

#include <conclave/detail/engine/lease_keeper_machine.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "fuzz/fuzzing.hpp"

namespace conclave::test {
namespace {

using machine = detail::engine::lease_keeper_machine;
using duration = machine::duration;
using time_point = machine::time_point;
using namespace std::chrono_literals;

constexpr std::size_t most_leases = 6;

/// From nothing to the longest that etcd grants.
constexpr duration ttls[] = {10s, 1s, 2s, 5s, 60s, 3s, 30ms, 0s, 400ms, 9'000'000'000s};

class keeper_run {
public:
  keeper_run(program& input, std::uint64_t seed) : input_{input}, machine_{seed} {}

  void step() {
    switch (input_.below(16)) {
      case 0:
      case 1:
        add();
        break;
      case 2:
        remove();
        break;
      case 3:
      case 4:
        open();
        break;
      case 5:
        end();
        break;
      case 6:
      case 7:
        answer(false);
        break;
      case 8:
        answer(true);
        break;
      case 9:
        lie();
        break;
      case 10:
        confirm(input_.one_in(2));
        break;
      case 11:
        pass(input_.byte() * 20ms);  // the timer is late
        break;
      case 12:
        pass_to_wakeup();
        break;
      case 13:
        spurious_open();
        break;
      default:
        pass_to_wakeup();
        timer();
        break;
    }
    check();
  }

  /// From here on the server is healthy: whoever still had time stays alive.
  void settle() {
    const auto begin = now_;
    std::set<lease_id> safe;
    for (const auto& [id, each] : leases_)
      if (each.valid_until >= begin + 5s) safe.insert(id);
    // Each lease is renewed every 3.3 s, which takes a timer and an answer.
    for (std::size_t rounds = 0; now_ < begin + 30s && !leases_.empty(); ++rounds) {
      demand(rounds < 100 + 2 * 12 * most_leases, "a healthy server is not flooded");
      if (link_ == link::opening)
        open();
      else if (!confirms_.empty())
        confirm(true);
      else if (!asked_.empty())
        hear(asked_.front(), healthy_ttl(asked_.front()));
      else {
        pass_to_wakeup();
        timer();
      }
      check();
    }
    for (const auto id : safe) demand(leases_.contains(id), "a healthy server loses no lease");
  }

private:
  enum class link { none, opening, open };

  struct lease {
    duration ttl{};
    time_point granted;
    time_point valid_until;
    time_point due;                     // of the next keepalive
    std::optional<time_point> sent_at;  // the keepalive that this stream owes an answer to
    bool renewed = false;
    bool confirming = false;
  };

  // What the documentation promises, said once more.
  static duration margin(duration ttl) { return std::clamp<duration>(ttl / 20, 50ms, 1s); }
  static duration patience(const lease& each) { return std::clamp<duration>(each.ttl / 6, 500ms, 3s); }

  // ---- what happens to the machine

  void add() {
    if (leases_.size() >= most_leases) return;
    lease each;
    each.ttl = input_.among(ttls);
    each.granted = now_ - input_.byte() * 10ms;
    each.valid_until = each.granted + each.ttl - margin(each.ttl);
    each.due = std::max(now_, each.granted + each.ttl / 3);
    const auto id = ++last_;  // the server gives no id twice
    say("add", id);
    leases_.emplace(id, each);
    expect_nothing();
    perform(machine_.add(id, each.ttl, each.granted, now_));
  }

  void remove() {
    const auto id = some_lease();
    say("remove", id);
    leases_.erase(id);
    expect_nothing();
    perform(machine_.remove(id));
  }

  void open() {
    if (link_ != link::opening) return;
    say("the stream is open");
    link_ = link::open;
    expect_nothing();
    perform(machine_.on_stream_open(now_));
  }

  void spurious_open() {
    if (link_ == link::opening) return;
    expect_nothing();
    demand(machine_.on_stream_open(now_).empty(), "an opening that nobody asked for is nothing");
  }

  void end() {
    if (link_ == link::none) return;
    say("the stream ended");
    drop_link();
    expect_nothing();
    perform(machine_.on_stream_closed(now_));
  }

  /// The server answers a request, in the order in which they came or not, or never.
  void answer(bool oddly) {
    if (asked_.empty()) return;
    if (!oddly) {
      const auto id = asked_.front();
      const auto found = leases_.find(id);
      hear(id, found != leases_.end() ? found->second.ttl : 10s);
      return;
    }
    const auto which = asked_.begin() + static_cast<std::ptrdiff_t>(input_.below(asked_.size()));
    if (input_.one_in(4))
      asked_.erase(which);
    else
      hear(*which, input_.among(ttls));
  }

  /// An answer to nothing, or to what was answered already.
  void lie() {
    const auto id = input_.one_in(3) ? some_lease() : static_cast<lease_id>(input_.below(32)) - 2;
    hear(id, input_.one_in(4) ? -1s : input_.among(ttls));
  }

  void hear(lease_id id, duration ttl) {
    if (link_ != link::open) return;
    say("answer", id, ttl);
    const auto asked = std::find(asked_.begin(), asked_.end(), id);
    if (asked != asked_.end()) asked_.erase(asked);
    expect_nothing();
    const auto found = leases_.find(id);
    if (found != leases_.end() && found->second.sent_at && now_ < found->second.valid_until) {
      auto& each = found->second;
      const auto sent = *std::exchange(each.sent_at, std::nullopt);
      if (ttl > 0s) {
        each.ttl = ttl;
        each.renewed = true;
        each.valid_until = sent + ttl - margin(ttl);
        each.due = std::max(now_, sent + ttl / 3);
        expect_renewed_ = id;
      } else if (!each.renewed && now_ - each.granted < 1s) {
        each.confirming = true;
        expect_confirm_ = id;
      } else {
        expect_not_found_ = id;
      }
    }
    perform(machine_.on_answer(id, ttl, now_));
  }

  /// The answer to a question for the time to live, which may come when nobody needs it any more.
  void confirm(bool exists) {
    if (confirms_.empty()) return;
    const auto id = confirms_.front();
    confirms_.pop_front();
    say(exists ? "exists" : "does not exist", id);
    expect_nothing();
    const auto found = leases_.find(id);
    if (found != leases_.end() && exists) {
      found->second.confirming = false;
      found->second.due = now_ + std::min<duration>(found->second.ttl / 6, 200ms);
    } else if (found != leases_.end()) {
      expect_not_found_ = id;
    }
    perform(machine_.on_confirmed(id, exists, now_));
  }

  void pass(duration time) {
    now_ += time;
    say("time passes", 0, time);
  }

  /// An hour at most: nobody waits for the end of the longest lease.
  void pass_to_wakeup() {
    if (const auto next = machine_.next_wakeup()) now_ = std::max(now_, std::min(*next, now_ + 1h));
  }

  void timer() {
    say("timer");
    expect_nothing();
    perform(machine_.on_timer(now_));
    for (const auto& [id, each] : leases_) {
      demand(now_ < each.valid_until, "a lease whose time is over is lost when the timer comes");
      if (link_ != link::open) continue;
      demand(!each.sent_at || now_ < *each.sent_at + patience(each), "a stream that is silent is replaced");
      demand(each.sent_at || each.confirming || now_ < each.due, "a renewal that is due is sent");
    }
    const auto next = machine_.next_wakeup();
    demand(!next || *next > now_, "when the timer came there is nothing left to do");
    demand(machine_.on_timer(now_).empty(), "a second timer at the same time does nothing");
  }

  // ---- what the machine does

  void perform(const machine::actions& what) {
    demand(what.size() <= 2 * most_leases + 3, "a step has few consequences");
    for (const auto& each : what) std::visit([this](const auto& action) { perform(action); }, each);
    demand(!expect_renewed_ && !expect_confirm_ && !expect_not_found_, "an answer has its consequence");
  }

  void perform(const machine::open_stream&) {
    say("  open");
    demand(link_ == link::none, "one stream at a time");
    demand(!leases_.empty(), "a stream has a purpose");
    link_ = link::opening;
  }

  void perform(const machine::close_stream& action) {
    say("  close");
    demand(link_ != link::none || leases_.empty(), "what is closed was open");
    if (action.suspect) {
      demand(std::any_of(leases_.begin(), leases_.end(),
                         [this](const auto& each) {
                           return each.second.sent_at && now_ >= *each.second.sent_at + patience(each.second);
                         }),
             "only silence makes a stream suspect");
    } else {
      demand(leases_.empty(), "a stream that is in use is not closed");
    }
    drop_link();
  }

  void perform(const machine::send_keepalive& action) {
    say("  keepalive", action.id);
    auto& each = kept(action.id);
    demand(link_ == link::open, "a keepalive has a stream");
    demand(!each.sent_at, "a lease is asked for once at a time");
    demand(!each.confirming, "a lease that is being confirmed is not asked for");
    demand(now_ >= each.due, "no keepalive is early");
    demand(now_ < each.valid_until, "no keepalive is late");
    each.sent_at = now_;
    asked_.push_back(action.id);
  }

  void perform(const machine::renewed& action) {
    say("  renewed", action.id);
    demand(expect_renewed_ == action.id, "only an answer renews a lease");
    expect_renewed_.reset();
    demand(action.valid_until <= kept(action.id).valid_until,
           "a lease is not believed in beyond the sending of its keepalive, the TTL and the margin");
    demand(action.valid_until >= kept(action.id).valid_until, "a lease is believed in as long as it may be");
  }

  void perform(const machine::lost& action) {
    say("  lost", action.id);
    const auto& each = kept(action.id);
    if (action.why == machine::loss::expired) {
      demand(now_ >= each.valid_until, "no lease expires early");
    } else {
      demand(expect_not_found_ == action.id, "only the server says that it does not know a lease");
      expect_not_found_.reset();
    }
    leases_.erase(action.id);
  }

  void perform(const machine::confirm& action) {
    say("  confirm", action.id);
    demand(expect_confirm_ == action.id, "only a lease just granted is asked about");
    expect_confirm_.reset();
    confirms_.push_back(action.id);
  }

  // ---- what holds after every step

  void check() {
    demand(machine_.size() == leases_.size(), "as many leases are kept as there are");
    const auto next = machine_.next_wakeup();
    demand(next.has_value() == !leases_.empty(), "there is a next time as long as there is a lease");
    for (const auto& [id, each] : leases_) {
      demand(*next <= each.valid_until, "the timer comes before a lease ends");
      if (link_ != link::open || each.confirming) continue;
      demand(*next <= (each.sent_at ? *each.sent_at + patience(each) : each.due),
             "the timer comes when a lease needs it");
    }
    if (!leases_.empty() && link_ == link::none)
      demand(*next <= now_ + 1250ms, "a stream that ended is opened again soon");
  }

  lease& kept(lease_id id) {
    const auto found = leases_.find(id);
    demand(found != leases_.end(), "nothing is said of a lease that is lost or was removed");
    return found->second;
  }

  /// Never less than what was granted before: the request may have been under way for longer than that.
  duration healthy_ttl(lease_id id) const {
    const auto found = leases_.find(id);
    return found != leases_.end() ? std::max<duration>(found->second.ttl, 10s) : 10s;
  }

  lease_id some_lease() {
    if (leases_.empty()) return 0;
    return std::next(leases_.begin(), static_cast<std::ptrdiff_t>(input_.below(leases_.size())))->first;
  }

  void drop_link() {
    link_ = link::none;
    asked_.clear();
    for (auto& [id, each] : leases_) each.sent_at.reset();
  }

  void expect_nothing() {
    expect_renewed_.reset();
    expect_confirm_.reset();
    expect_not_found_.reset();
  }

  void say(const char* what, lease_id id = 0, duration time = duration::zero()) const {
    if (!telling()) return;
    const auto ms = [](duration each) {
      return std::to_string(std::chrono::floor<std::chrono::milliseconds>(each).count());
    };
    tell(ms(now_ - epoch) + " ms: " + what + (id != 0 ? " #" + std::to_string(id) : std::string{}) +
         (time != duration::zero() ? " " + ms(time) + " ms" : std::string{}));
  }

  static constexpr time_point epoch{1h};

  program& input_;
  machine machine_;
  time_point now_ = epoch;
  link link_ = link::none;
  lease_id last_ = 0;
  std::map<lease_id, lease> leases_;
  std::vector<lease_id> asked_;  // on this stream, unanswered
  std::deque<lease_id> confirms_;
  std::optional<lease_id> expect_renewed_;
  std::optional<lease_id> expect_confirm_;
  std::optional<lease_id> expect_not_found_;
};

}  // namespace
}  // namespace conclave::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace conclave::test;
  program input{bytes, size};
  keeper_run run{input, input.byte()};
  while (input.more()) run.step();
  run.settle();
  return 0;
}
