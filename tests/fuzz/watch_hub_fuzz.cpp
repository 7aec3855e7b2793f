// SPDX-License-Identifier: BSL-1.0

// The watch hub's machine between its users and a server. The input is the order in which users add and remove
// watches, the history grows, the server answers, messages arrive and streams end. An honest server cuts answers
// into fragments, repeats itself and compacts, and every watch must be told its part of the history once and in
// order. A hostile one says anything, and what must hold is what does not depend on its word.

#include <conclave/detail/engine/watch_hub_machine.hpp>

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

using machine = detail::engine::watch_hub_machine;
using handle = machine::handle;
using wire_id = std::int64_t;
using namespace std::chrono_literals;

constexpr std::size_t most_watches = 6;

/// A change, as far as its place in the history goes.
using change = std::pair<revision, std::string>;

event to_event(const change& each) {
  event out;
  out.kv.emplace();
  out.kv->mod_revision = each.first;
  out.kv->key = each.second;
  return out;
}

// ---- the server -----------------------------------------------------------------------------------------------

/// A correct server: a store with a history, and one stream of watches on it.
class watch_server {
public:
  struct sent {
    watch_response message;
    bool fault = false;  ///< No correct server says this; a client can see it.
  };

  explicit watch_server(program& input) : input_{input} {}

  [[nodiscard]] revision now() const { return now_; }
  [[nodiscard]] const std::vector<change>& history() const { return history_; }
  [[nodiscard]] bool silent() const { return to_client_.empty(); }
  /// The first revision that a watch from now is served, once it is created on this stream.
  [[nodiscard]] revision created_at(wire_id id) const { return created_at_.at(id); }

  void drop_stream() {
    to_server_.clear();
    to_client_.clear();
    watches_.clear();
    created_at_.clear();
  }

  void hear(const watch_request& request) { to_server_.push_back(request); }

  std::optional<sent> next_message() {
    if (to_client_.empty()) return std::nullopt;
    auto out = std::move(to_client_.front());
    to_client_.pop_front();
    return out;
  }

  /// One revision changes one to three keys.
  void write() {
    ++now_;
    const auto which = 1 + input_.below(7);
    for (std::size_t key = 0; key < 3; ++key)
      if ((which >> key & 1U) != 0) history_.emplace_back(now_, std::string(1, static_cast<char>('a' + key)));
  }

  void compact() { compacted_ = std::max(compacted_, now_ - static_cast<revision>(input_.below(4))); }

  /// Works on one request.
  void receive(bool plainly) {
    if (to_server_.empty()) return;
    const auto request = std::move(to_server_.front());
    to_server_.pop_front();
    if (const auto* create = std::get_if<watch_create_request>(&request.request_union)) {
      receive(*create, plainly);
    } else if (const auto* cancel = std::get_if<watch_cancel_request>(&request.request_union)) {
      if (watches_.erase(cancel->watch_id) == 0) return;
      watch_response answer = about(cancel->watch_id);
      answer.canceled = true;
      say(std::move(answer));
    }
  }

  /// Sends a watch what it lacks, or the first part of it.
  void serve(bool all) {
    if (watches_.empty()) return;
    auto& [id, each] = *some_watch();
    if (each.next <= compacted_) {
      end_compacted(id);
      return;
    }
    auto upto = now_;
    if (!all && each.next <= now_) {
      const auto lacking = static_cast<std::size_t>(now_ - each.next + 1);
      upto = each.next + static_cast<revision>(input_.below(std::min<std::size_t>(lacking, 256)));
    }
    send_events(id, matching(each.key, each.next, upto));
    each.next = std::max(each.next, upto + 1);
  }

  void serve_all() {
    while (!to_server_.empty()) receive(true);
    std::vector<wire_id> ids;
    for (const auto& [id, each] : watches_) ids.push_back(id);
    for (const auto id : ids) {
      auto& each = watches_.at(id);
      if (each.next <= compacted_) {
        end_compacted(id);
      } else {
        send_events(id, matching(each.key, each.next, now_));
        each.next = std::max(each.next, now_ + 1);
      }
    }
  }

  /// Sends again what was sent, and for a watch with a start also what was before it.
  void repeat() {
    if (watches_.empty()) return;
    const auto& [id, each] = *some_watch();
    auto from = each.next - static_cast<revision>(input_.below(5));
    if (each.from_now) from = std::max(from, created_at_.at(id));
    send_events(id, matching(each.key, std::max<revision>(from, 1), each.next - 1));
  }

  void progress() {
    if (watches_.empty()) return;
    const auto& [id, each] = *some_watch();
    if (each.next == now_ + 1) say(about(id));
    if (!input_.one_in(3)) return;
    auto whole_stream = about(-1);
    whole_stream.header.revision += 1000;  // older servers do not tie it to events
    say(std::move(whole_stream));
  }

  void end_one() {
    if (watches_.empty()) return;
    static constexpr const char* reasons[] = {"", "etcdserver: permission denied", "etcdserver: no leader"};
    const auto id = some_watch()->first;
    auto answer = about(id);
    answer.canceled = true;
    answer.cancel_reason = input_.among(reasons);
    watches_.erase(id);
    say(std::move(answer));
  }

  /// What no correct server says, and a client can see.
  void fault() {
    watch_response answer = about(watches_.empty() ? 77 : some_watch()->first);
    switch (input_.below(4)) {
      case 0:
        answer.events = {to_event({now_ + 11, "a"}),
                         to_event({now_ + 10, "a"})};  // after every watch's start
        break;
      case 1:
        answer.events.emplace_back();
        break;
      case 2:
        answer.watch_id = 1'000'000;
        answer.events = {to_event({now_ + 1, "a"})};
        break;
      default:
        answer.watch_id = 1'000'000;
        answer.created = true;
        break;
    }
    to_client_.push_back({std::move(answer), true});
  }

private:
  struct watch {
    std::string key;
    bool from_now = false;
    revision next = 0;
  };

  void receive(const watch_create_request& request, bool plainly) {
    auto answer = about(request.watch_id);
    answer.created = true;
    if (!plainly && input_.one_in(5)) {
      answer.canceled = true;
      if (input_.one_in(2)) answer.watch_id = -1;
      answer.cancel_reason = "mvcc: watcher range is empty";
      say(std::move(answer));
      return;
    }
    watch each;
    each.key = request.key;
    each.from_now = request.start_revision == 0;
    each.next = each.from_now ? now_ + 1 : request.start_revision;
    demand(watches_.emplace(request.watch_id, each).second, "an id in use is not asked for");
    created_at_[request.watch_id] = each.next;
    say(std::move(answer));
  }

  void end_compacted(wire_id id) {
    auto answer = about(id);
    answer.canceled = true;
    answer.compact_revision = compacted_;
    watches_.erase(id);
    say(std::move(answer));
  }

  [[nodiscard]] std::vector<change> matching(const std::string& key, revision from, revision upto) const {
    std::vector<change> out;
    for (const auto& each : history_)
      if (each.first >= from && each.first <= upto && (key.empty() || key == each.second))
        out.push_back(each);
    return out;
  }

  void send_events(wire_id id, const std::vector<change>& all) {
    for (auto from = all.begin(); from != all.end();) {
      auto to = all.end();
      if (input_.one_in(3)) to = from + 1 + static_cast<std::ptrdiff_t>(input_.below(4)) % (all.end() - from);
      auto answer = about(id);
      std::transform(from, to, std::back_inserter(answer.events), to_event);
      answer.fragment = to != all.end();
      say(std::move(answer));
      from = to;
    }
  }

  [[nodiscard]] watch_response about(wire_id id) const {
    watch_response out;
    out.watch_id = id;
    out.header.revision = now_;
    return out;
  }

  void say(watch_response answer) { to_client_.push_back({std::move(answer), false}); }

  std::map<wire_id, watch>::iterator some_watch() {
    return std::next(watches_.begin(), static_cast<std::ptrdiff_t>(input_.below(watches_.size())));
  }

  program& input_;
  std::vector<change> history_;
  revision now_ = 1;
  revision compacted_ = 0;
  std::map<wire_id, watch> watches_;
  std::map<wire_id, revision> created_at_;
  std::deque<watch_request> to_server_;
  std::deque<sent> to_client_;
};

// ---- the run --------------------------------------------------------------------------------------------------

class hub_run {
public:
  hub_run(program& input, bool hostile, std::uint64_t seed)
      : input_{input}, hostile_{hostile}, machine_{seed}, server_{input} {}

  void step() {
    switch (input_.below(20)) {
      case 0:
      case 1:
        add();
        break;
      case 2:
        remove();
        break;
      case 3:
        open();
        break;
      case 4:
        timer();
        break;
      case 5:
        end();
        break;
      case 6:
      case 7:
        server_.write();
        break;
      case 8:
      case 9:
        server_.receive(false);
        break;
      case 10:
      case 11:
        server_.serve(input_.one_in(2));
        break;
      case 12:
        server_.repeat();
        break;
      case 13:
        server_.progress();
        break;
      case 14:
        server_.compact();
        break;
      case 15:
        if (input_.one_in(3)) server_.end_one();
        if (input_.one_in(3)) server_.fault();
        break;
      case 16:
        if (hostile_) hear(anything(), true);
        break;
      default:
        deliver();
        break;
    }
    check();
  }

  /// Without more faults every watch is served, and told everything.
  void settle() {
    for (std::size_t round = 0; !settled(); ++round) {
      demand(round < 4000, "with a healthy server all is told in the end");
      if (link_ == link::none)
        timer();
      else if (link_ == link::opening)
        open();
      else if (server_.silent())
        server_.serve_all();
      else
        deliver();
      check();
    }
  }

private:
  enum class link { none, opening, open };
  enum class ending { compacted, failed };

  /// What a user knows of a watch.
  struct watch {
    machine::spec what;
    revision next = 0;  // the first revision that may be told; zero: what the server says
    wire_id id = 0;     // its create on this stream
    bool created = false;

    [[nodiscard]] bool from_now() const { return what.start_revision == 0; }
  };

  // ---- what happens to the machine

  void add() {
    if (watches_.size() >= most_watches) return;
    static constexpr const char* keys[] = {"", "a", "b", "c"};
    const handle id = ++last_;
    watch each;
    each.what.key = input_.among(keys);
    each.what.range_end = std::to_string(id);  // how the server's side is recognised here
    if (!input_.one_in(3))
      each.what.start_revision =
          std::max<revision>(1, server_.now() + 2 - static_cast<revision>(input_.below(6)));
    each.what.progress_notify = id % 2 == 0;
    each.next = each.what.start_revision;
    say("add", id, each.next);
    watches_.emplace(id, each);
    perform(machine_.add(id, each.what, now_));
  }

  void remove() {
    const auto id = some_watch();
    say("remove", id);
    watches_.erase(id);
    perform(machine_.remove(id));
  }

  void open() {
    if (link_ != link::opening) {
      demand(machine_.on_stream_open(now_).empty(), "an opening that nobody asked for is nothing");
      return;
    }
    say("the stream is open");
    link_ = link::open;
    perform(machine_.on_stream_open(now_));
  }

  void end() {
    if (link_ == link::none) return;
    drop_link();
    if (input_.one_in(6)) {
      say("the stream ended for good");
      for (const auto& [id, each] : watches_) endings_[id] = ending::failed;
      perform(machine_.on_stream_closed(now_, errc::permission_denied, "no"));
      demand(watches_.empty(), "a stream that ended for good ends its watches");
    } else {
      say("the stream ended");
      perform(machine_.on_stream_closed(now_));
    }
  }

  void timer() {
    const auto next = machine_.next_wakeup();
    if (next) now_ = std::max(now_, *next);
    say("timer");
    // While a stream stands the timer is for an acknowledgement that does not come.
    const bool overdue = link_ == link::open && next;
    const bool could = std::exchange(may_close_, may_close_ || overdue);
    perform(machine_.on_timer(now_));
    may_close_ = could;
    if (overdue) demand(link_ == link::none, "a server that acknowledges nothing is left");
    const auto again = machine_.next_wakeup();
    demand(!again || *again > now_, "when the timer came there is nothing left to do now");
    demand(link_ != link::none || watches_.empty() || overdue,
           "a stream that is needed is opened when the timer comes");
  }

  void deliver() {
    if (link_ != link::open) return;
    if (auto next = server_.next_message()) hear(std::move(next->message), next->fault);
  }

  /// `fault`: the machine may replace the stream.
  void hear(watch_response message, bool fault) {
    if (link_ != link::open) {
      demand(machine_.on_message(std::move(message), now_).empty(), "without a stream there are no messages");
      return;
    }
    say("message", 0, message.watch_id);
    may_close_ = fault || hostile_;
    if (message.created)
      foresee_created(message);
    else if (const auto found = acknowledged_.find(message.watch_id); found != acknowledged_.end())
      foresee_end(message, found->second);
    perform(machine_.on_message(std::move(message), now_));
    demand(!must_close_, "a stream whose creates are not answered in order is replaced");
    demand(endings_.empty() && !expect_created_, "an answer has its consequence");
    may_close_ = false;
  }

  void foresee_created(const watch_response& message) {
    if (outstanding_.empty() || (message.watch_id != -1 && message.watch_id != outstanding_.front().first)) {
      must_close_ = true;
      return;
    }
    const auto [id, owner] = outstanding_.front();
    outstanding_.pop_front();
    const auto found = watches_.find(owner);
    const bool wanted = found != watches_.end() && found->second.id == id;
    if (message.canceled) {
      if (wanted) endings_[owner] = message.compact_revision != 0 ? ending::compacted : ending::failed;
      return;
    }
    acknowledged_[id] = owner;
    if (!wanted) return;
    expect_created_ = owner;
    if (found->second.from_now()) found->second.next = hostile_ ? 0 : server_.created_at(id);
  }

  void foresee_end(const watch_response& message, handle owner) {
    if (message.compact_revision == 0 && !message.canceled) return;
    const auto found = watches_.find(owner);
    demand(found != watches_.end(), "a watch that was removed was cancelled");
    acknowledged_.erase(message.watch_id);
    if (message.compact_revision == 0) {
      endings_[owner] = ending::failed;
    } else if (!found->second.from_now()) {
      endings_[owner] = ending::compacted;
    } else {
      found->second.id = 0;  // it begins anew
      found->second.created = false;
    }
  }

  watch_response anything() {
    static constexpr revision revisions[] = {1, 2, 3, 5, 8, 0, -1, 100, INT64_MAX - 1, INT64_MIN};
    watch_response out;
    switch (input_.below(4)) {
      case 0:
        out.watch_id = static_cast<wire_id>(input_.below(8)) - 1;
        break;
      case 1:
        out.watch_id = outstanding_.empty() ? 0 : outstanding_.front().first;
        break;
      default:
        out.watch_id = acknowledged_.empty() ? 1 : acknowledged_.begin()->first;
        break;
    }
    out.header.revision = input_.among(revisions);
    out.created = input_.one_in(4);
    out.canceled = input_.one_in(6);
    if (input_.one_in(8)) out.compact_revision = input_.among(revisions);
    if (input_.one_in(3)) out.cancel_reason = "compacted";
    out.fragment = input_.one_in(4);
    for (auto left = input_.below(4); left != 0; --left) {
      out.events.push_back(to_event({input_.among(revisions), "a"}));
      if (input_.one_in(16)) out.events.back().kv.reset();
    }
    return out;
  }

  // ---- what the machine does

  void perform(const machine::actions& what) {
    demand(what.size() <= most_watches + 2, "a step has few consequences");
    for (const auto& each : what) std::visit([this](const auto& action) { perform(action); }, each);
  }

  void perform(const machine::open_stream&) {
    say("  open");
    demand(link_ == link::none, "one stream at a time");
    demand(!watches_.empty(), "a stream has a purpose");
    link_ = link::opening;
  }

  void perform(const machine::close_stream&) {
    say("  close");
    demand(link_ != link::none, "what is closed was open");
    demand(may_close_, "the stream of a correct server is kept");
    drop_link();
  }

  void perform(const machine::send& action) {
    demand(link_ == link::open, "what is sent has a stream");
    if (const auto* create = std::get_if<watch_create_request>(&action.request.request_union))
      sent(*create);
    else if (const auto* cancel = std::get_if<watch_cancel_request>(&action.request.request_union))
      sent(*cancel);
    else
      demand(false, "nothing else is sent");
    server_.hear(action.request);
  }

  void sent(const watch_create_request& request) {
    const handle owner = std::stoull(request.range_end);
    say("  create", owner, request.watch_id);
    auto& each = known(owner);
    demand(each.id == 0, "a watch is created once on a stream");
    demand(request.watch_id > 0 && used_.insert(request.watch_id).second, "no id is used twice on a stream");
    demand(request.start_revision == (each.from_now() ? 0 : each.next),
           "a watch resumes after what was told last, or from now");
    demand(request.key == each.what.key && request.progress_notify == each.what.progress_notify,
           "a watch is created as it was asked for");
    demand(request.fragment, "answers may be cut");
    each.id = request.watch_id;
    outstanding_.emplace_back(request.watch_id, owner);
  }

  void sent(const watch_cancel_request& request) {
    say("  cancel", 0, request.watch_id);
    const auto found = acknowledged_.find(request.watch_id);
    demand(found != acknowledged_.end(), "what is cancelled was acknowledged, and is cancelled once");
    const auto owner = watches_.find(found->second);
    demand(owner == watches_.end() || owner->second.id != request.watch_id, "no watch in use is cancelled");
    acknowledged_.erase(found);
  }

  void perform(const machine::created& action) {
    say("  created", action.watch);
    demand(expect_created_ == action.watch, "a create is acknowledged once");
    expect_created_.reset();
    known(action.watch).created = true;
  }

  void perform(const machine::events& action) {
    say("  events", action.watch, static_cast<std::int64_t>(action.batch.size()));
    auto& each = known(action.watch);
    demand(each.created, "events come after the acknowledgement");
    demand(!action.batch.empty(), "there are events in a batch");
    auto last = each.next;
    for (const auto& told : action.batch) {
      demand(told.kv.has_value(), "an event has a key");
      demand(told.kv->mod_revision >= last, "events come in order, once, from the start of the watch");
      last = told.kv->mod_revision;
    }
    if (!hostile_) {
      const auto all = missing(each, last);
      demand(std::equal(all.begin(), all.end(), action.batch.begin(), action.batch.end(),
                        [](const change& expected, const event& told) {
                          return expected.first == told.kv->mod_revision && expected.second == told.kv->key;
                        }),
             "all that happened is told, each revision whole, and nothing else");
    }
    each.next = last + 1;
  }

  void perform(const machine::progress& action) {
    say("  progress", action.watch, action.upto);
    auto& each = known(action.watch);
    demand(each.created, "progress comes after the acknowledgement");
    if (!hostile_) demand(missing(each, action.upto).empty(), "progress is not ahead of events");
    if (each.from_now()) return;
    demand(action.upto >= each.next, "progress goes on");
    each.next = action.upto + 1;
  }

  void perform(const machine::compacted& action) { ended(action.watch, ending::compacted); }
  void perform(const machine::failed& action) { ended(action.watch, ending::failed); }

  void ended(handle id, ending how) {
    say(how == ending::failed ? "  failed" : "  compacted", id);
    (void)known(id);
    const auto found = endings_.find(id);
    demand(found != endings_.end() && found->second == how,
           "a watch ends when the server says so, and as it says");
    endings_.erase(found);
    watches_.erase(id);
  }

  // ---- what holds after every step

  void check() {
    demand(machine_.size() == watches_.size(), "as many watches are kept as there are");
    const auto next = machine_.next_wakeup();
    if (next && link_ == link::open) demand(!outstanding_.empty(), "a timer has its reason");
    if (next && link_ == link::open)
      demand(*next <= now_ + machine::patience, "an acknowledgement is not waited for without end");
    if (next && link_ != link::open)
      demand(*next <= now_ + 1250ms, "a stream that ended is opened again soon");
    if (link_ == link::none) demand(next || watches_.empty(), "a watch has a stream, or waits for one");
    std::map<wire_id, handle> serving;
    for (const auto& [id, each] : watches_) {
      demand((each.id != 0) == (link_ == link::open), "every watch is created on every stream");
      if (each.created) serving.emplace(each.id, id);
    }
    demand(serving == acknowledged_, "the server is left with no watch that nobody wants");
  }

  [[nodiscard]] bool settled() const {
    if (watches_.empty()) return true;
    return link_ == link::open && server_.silent() &&
           std::all_of(watches_.begin(), watches_.end(), [this](const auto& each) {
             return each.second.created && (hostile_ || missing(each.second, server_.now()).empty());
           });
  }

  [[nodiscard]] std::vector<change> missing(const watch& each, revision upto) const {
    std::vector<change> out;
    for (const auto& happened : server_.history()) {
      if (happened.first < each.next || happened.first > upto) continue;
      if (each.what.key.empty() || each.what.key == happened.second) out.push_back(happened);
    }
    return out;
  }

  watch& known(handle id) {
    const auto found = watches_.find(id);
    demand(found != watches_.end(), "nothing is said of a watch that ended or was removed");
    return found->second;
  }

  handle some_watch() {
    if (watches_.empty()) return 0;
    return std::next(watches_.begin(), static_cast<std::ptrdiff_t>(input_.below(watches_.size())))->first;
  }

  void drop_link() {
    link_ = link::none;
    server_.drop_stream();
    outstanding_.clear();
    acknowledged_.clear();
    used_.clear();
    must_close_ = false;
    for (auto& [id, each] : watches_) {
      each.id = 0;
      each.created = false;
      if (each.from_now()) each.next = 0;
    }
  }

  static void say(const char* what, handle of = 0, std::int64_t number = 0) {
    if (!telling()) return;
    tell(std::string{what} + (of != 0 ? " #" + std::to_string(of) : "") +
         (number != 0 ? " " + std::to_string(number) : ""));
  }

  program& input_;
  bool hostile_;
  machine machine_;
  watch_server server_;
  machine::time_point now_{1h};
  link link_ = link::none;
  handle last_ = 0;
  std::map<handle, watch> watches_;
  std::set<wire_id> used_;                              // on this stream
  std::deque<std::pair<wire_id, handle>> outstanding_;  // creates without an answer
  std::map<wire_id, handle> acknowledged_;              // created, and neither ended nor cancelled
  std::optional<handle> expect_created_;
  std::map<handle, ending> endings_;
  bool may_close_ = false;
  bool must_close_ = false;
};

}  // namespace
}  // namespace conclave::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace conclave::test;
  program input{bytes, size};
  const bool hostile = input.one_in(4);
  hub_run run{input, hostile, input.byte()};
  while (input.more()) run.step();
  run.settle();
  return 0;
}
