// SPDX-License-Identifier: BSL-1.0

// The write combiner's machine before a small etcd that applies what it sends, refuses it, is silent or lies, while
// writes come and are given up. The input is the writes and the order in which that happens. Beside the machine stand
// its promises, and a second store to which each member is sent alone.

#include <conclave/detail/engine/write_combiner_machine.hpp>
#include <conclave/detail/rpc/status.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "fuzz/fuzzing.hpp"
#include "support/model_etcd.hpp"

namespace conclave::test {
namespace {

using machine = detail::engine::write_combiner_machine;
using handle = machine::handle;
using time_point = machine::time_point;
using result = std::variant<txn_response, errc>;
using namespace std::chrono_literals;

/// What may be one member's fault.
constexpr errc of_one[] = {errc::invalid_argument, errc::request_too_large, errc::too_many_operations,
                           errc::duplicate_key,    errc::lease_not_found,   errc::permission_denied,
                           errc::compacted,        errc::future_revision};
/// What is never one member's alone. What of it leaves open whether the write was applied is marked.
struct failure {
  errc code;
  bool open;
};
constexpr failure of_all[] = {{errc::unavailable, false},       {errc::outcome_unknown, true},
                              {errc::timed_out, false},         {errc::too_many_requests, false},
                              {errc::unauthenticated, false},   {errc::client_closed, true},
                              {errc::malformed_response, true}, {errc::cluster_reset, true},
                              {errc::server_error, true},       {errc::response_too_large, true}};

machine::limits limits_of(program& input) {
  static constexpr std::size_t members[] = {127, 1, 2, 3, 5, 9, 0};
  static constexpr std::size_t operations[] = {128, 2, 4, 6, 9};
  static constexpr std::size_t bytes[] = {std::size_t{1024} * 1024, 52, 200, 1000, 0};
  static constexpr std::size_t in_flight[] = {1, 2, 3, 0};
  machine::limits out;
  out.most_members = input.among(members);
  out.most_operations = input.among(operations);
  out.most_bytes = input.among(bytes);
  out.most_in_flight = input.among(in_flight);
  out.patience = 5s;
  return out;
}

/// What a transaction does, or writes, in a stretch of keys; no end: for all that follow.
struct touch {
  std::string begin;
  std::optional<std::string> end;
  bool writes = false;

  [[nodiscard]] bool meets(const touch& other) const {
    return (!other.end || begin < *other.end) && (!end || other.begin < *end);
  }
};

void touches_of(const txn& request, std::vector<touch>& out) {
  const auto add = [&out](const std::string& key, const std::string& range_end, bool writes) {
    touch each{key, range_end, writes};
    if (range_end.empty()) each.end = key + '\0';
    if (range_end == std::string(1, '\0')) each.end.reset();
    out.push_back(std::move(each));
  };
  for (const auto& each : request.compare) add(each.key, each.range_end, false);
  for (const auto* branch : {&request.success, &request.failure})
    for (const auto& each : *branch) {
      if (const auto* nested = std::get_if<txn>(&each.request)) touches_of(*nested, out);
      if (const auto* reads = std::get_if<range_request>(&each.request))
        add(reads->key, reads->range_end, false);
      if (const auto* puts = std::get_if<put_request>(&each.request)) add(puts->key, {}, true);
      if (const auto* deletes = std::get_if<delete_range_request>(&each.request))
        add(deletes->key, deletes->range_end, true);
    }
}

/// The keys for whose puts the server asks for space: those that are not nested.
std::vector<std::string> charged_keys(const txn& request) {
  std::vector<std::string> out;
  for (const auto* branch : {&request.success, &request.failure})
    for (const auto& each : *branch)
      if (const auto* puts = std::get_if<put_request>(&each.request)) out.push_back(puts->key);
  return out;
}

/// Two stores that saw the same writes, in another number of revisions, give answers that differ in these.
void forget_revisions(txn_response& answer) {
  const auto forget = [](std::vector<key_value>& all) {
    for (auto& each : all) each.create_revision = each.mod_revision = 0;
  };
  answer.header = {};
  for (auto& each : answer.responses) {
    if (auto* nested = std::get_if<txn_response>(&each.response)) forget_revisions(*nested);
    if (auto* put = std::get_if<put_response>(&each.response)) put->header = {};
    if (auto* read = std::get_if<range_response>(&each.response)) {
      read->header = {};
      forget(read->kvs);
    }
    if (auto* gone = std::get_if<delete_range_response>(&each.response)) {
      gone->header = {};
      forget(gone->prev_kvs);
    }
  }
}

result ask(model_etcd& of, const txn& request) {
  auto answer = of.apply(request);
  if (const auto* refused = std::get_if<model_etcd::refusal>(&answer))
    return detail::rpc::classify({refused->code, refused->text}, detail::rpc::call_kind::write);
  return std::get<txn_response>(std::move(answer));
}

class combiner_run {
public:
  explicit combiner_run(program& input) : input_{input}, limits_{limits_of(input)}, machine_{limits_} {
    for (auto* each : {&together_, &alone_}) {
      each->most_operations = limits_.most_operations;
      lease_grant_request grant;
      grant.id = 1;  // 2 is nobody's
      (void)each->apply(grant, epoch);
    }
  }

  void step() {
    switch (input_.below(12)) {
      case 0:
      case 1:
      case 2:
      case 3:
        add();
        break;
      case 4:
        drop();
        break;
      case 5:
      case 6:
      case 7:
        if (!flights_.empty()) serve(some_flight(), input_.one_in(2));
        break;
      case 8:
      case 9:
        if (!flights_.empty()) {
          const auto which = some_flight();
          serve(which, input_.one_in(4));
          tell_result(which);
        }
        break;
      case 10:
        if (gathering_)
          proceed();
        else
          now_ += input_.byte() * 40ms;
        break;
      default:
        lie();
        break;
    }
    check();
  }

  /// From here on the server does what it is asked: everybody has an answer soon.
  void settle() {
    together_.full = alone_.full = false;
    if (gathering_) proceed();
    for (std::size_t rounds = 0; !flights_.empty(); ++rounds) {
      demand(rounds < 10 * members_.size() + 10, "a machine with a working server comes to an end");
      serve(flights_.begin(), false);
      tell_result(flights_.begin());
      if (gathering_) proceed();
      check();
    }
    demand(machine_.waiting() == 0, "nobody waits for ever");
    for (const auto& [id, each] : members_)
      demand(each.at == place::done || each.at == place::dropped, "everybody who waits has an answer");
  }

private:
  enum class place { waiting, sent, done, dropped };

  struct member {
    machine::member what;
    std::vector<touch> touches;
    time_point since;
    place at = place::waiting;
    std::optional<errc> guilty;  // of what the server refuses in it
    std::size_t most = 0;        // members of a batch that it may be in
    std::size_t times = 0;       // it was sent
    std::optional<result> due;
  };
  struct flight {
    machine::send what;
    std::vector<handle> who;
    std::optional<result> answer;
    bool halved = false;  // nothing was applied, and its members go again
  };
  using flights = std::map<machine::batch_id, flight>;

  // ---- what happens to the machine

  void add() {
    const handle id = ++last_;
    member each;
    each.what.write = input_.one_in(2) ? transaction(0) : txn{}.then(put(key(), value()));
    // Tells the members apart: a lone put's value, or a compare with a key that is never written, but by who
    // deletes all.
    const auto name = std::to_string(id);
    if (id % 2 == 0 && lone_put(each.what.write) != nullptr)
      std::get<put_request>(each.what.write.success.front().request).value += "#" + name;
    else
      each.what.write.when(version("~" + name) == 0);
    if (input_.one_in(3)) each.what.lane = input_.one_in(2) ? "one" : "two";
    each.what.may_share = input_.one_in(2);
    static constexpr std::size_t sizes[] = {10, 1, 100, 500, 2000};
    each.what.bytes = input_.among(sizes);
    if (input_.one_in(12)) each.guilty = input_.among(of_one);
    each.since = now_;
    each.most = std::max<std::size_t>(limits_.most_members, 1);
    touches_of(each.what.write, each.touches);
    say("add", id);
    auto what = each.what;
    members_.emplace(id, std::move(each));
    demand(machine_.enter(machine::prepare(std::move(what)), now_) == id, "handles ascend from 1");
    perform(machine_.go());
    check_started();
  }

  void drop() {
    if (members_.empty()) return;
    const auto id = 1 + input_.below(std::min<std::size_t>(members_.size(), 256));
    auto& each = members_.at(id);
    say("drop", id);
    if (each.at != place::done) each.at = place::dropped;
    machine_.drop(id);
  }

  /// The server does something about a batch, which `tell_result` tells.
  void serve(flights::iterator which, bool badly) {
    auto& each = which->second;
    if (each.answer) return;
    const bool several = each.who.size() > 1;
    const bool charged = is_charged(each);
    say(badly ? "serve badly" : "serve", which->first);
    if (badly) {
      switch (input_.below(5)) {
        case 0:
          refuse(each, input_.among(of_one));
          return;
        case 1: {
          const auto& how = input_.among(of_all);
          if (how.open && input_.one_in(2)) apply(each);
          fail(each, several && how.code == errc::response_too_large ? errc::outcome_unknown : how.code);
          each.answer = how.code;
          return;
        }
        case 2:  // the store has just become full, or is so no more
          if (charged && !together_.full && !guilt(each)) {
            if (input_.one_in(2)) apply(each);
            fail_for_space(each);
            together_.full = alone_.full = true;
          } else {
            together_.full = alone_.full = !together_.full;
          }
          return;
        case 3:
          if (several && !together_.full && !guilt(each)) {
            auto answer = apply(each);
            if (const auto* code = std::get_if<errc>(&answer)) {
              refuse(each, *code);
              return;
            }
            spoil(std::get<txn_response>(answer));
            fail(each, errc::unexpected_response);
            each.answer = std::move(answer);
            return;
          }
          break;
        default:
          break;
      }
    }
    if (const auto code = guilt(each)) {
      refuse(each, *code);
      return;
    }
    if (together_.full && charged) {
      fail_for_space(each);
      return;
    }
    auto answer = apply(each);
    if (const auto* code = std::get_if<errc>(&answer)) {
      refuse(each, *code);
      return;
    }
    each.answer = std::move(answer);
  }

  void tell_result(flights::iterator which) {
    if (!which->second.answer) return;
    say("answer", which->first);
    auto flight = std::move(which->second);
    flights_.erase(which);
    const bool charged = is_charged(flight);
    told_ = &flight;
    if (auto* code = std::get_if<errc>(&*flight.answer)) {
      if (*code == errc::no_space) known_full_ = true;
      const auto half = (flight.who.size() + 1) / 2;
      for (const auto id : flight.who) {
        auto& each = members_.at(id);
        if (!flight.halved || each.at != place::sent) continue;
        each.at = place::waiting;
        each.most = half;
      }
      perform(machine_.on_failed(flight.what.batch, *code, now_));
    } else {
      if (charged) known_full_ = false;
      perform(machine_.on_answer(flight.what.batch, std::get<txn_response>(*flight.answer), now_));
    }
    told_ = nullptr;
    for (const auto id : flight.who)
      demand(members_.at(id).at != place::sent || under_way(id), "an answer reaches each member");
    for (const auto& [id, each] : members_)
      demand(each.at != place::waiting || now_ - each.since < limits_.patience, "nobody waits for too long");
    check_started();
  }

  void proceed() {
    say("proceed", 0);
    gathering_ = false;
    perform(machine_.proceed());
    check_started();
  }

  /// The result of a batch that is not under way.
  void lie() {
    const machine::batch_id batch = input_.byte();
    if (flights_.contains(batch)) return;
    demand(machine_.on_answer(batch, {}, now_).empty(), "an answer to nothing is nothing");
    demand(machine_.on_failed(batch, input_.among(of_one), now_).empty(), "a failure of nothing is nothing");
  }

  // ---- the server

  /// Sends each member alone to the other store, if the batch is applied; tells what the server answers to it.
  result apply(flight& each) {
    auto out = ask(together_, each.what.request);
    if (const auto* code = std::get_if<errc>(&out)) {
      bool own = false;
      for (const auto id : each.who) {
        auto single = alone_;
        const auto said = ask(single, members_.at(id).what.write);
        own = own || (std::holds_alternative<errc>(said) && std::get<errc>(said) == *code);
      }
      demand(own, "a batch is refused for what one of its members alone is refused for");
      return out;
    }
    for (const auto id : each.who) members_.at(id).due = ask(alone_, members_.at(id).what.write);
    demand(same(together_.keys(), alone_.keys()), "a batch writes what its members write");
    return out;
  }

  void refuse(flight& each, errc code) {
    each.halved = each.who.size() > 1;
    each.answer = code;
    if (!each.halved) fail(each, code);
  }

  void fail(flight& each, errc code) {
    for (const auto id : each.who) members_.at(id).due = code;
  }

  /// A batch of which part may have been let in, alone.
  void fail_for_space(flight& each) {
    for (const auto id : each.who) {
      auto& one = members_.at(id);
      one.due = charged_keys(one.what.write).empty() ? errc::outcome_unknown : errc::no_space;
    }
    each.answer = errc::no_space;
  }

  std::optional<errc> guilt(const flight& each) const {
    for (const auto id : each.who)
      if (const auto code = members_.at(id).guilty) return code;
    return std::nullopt;
  }

  bool is_charged(const flight& each) const {
    return std::any_of(each.who.begin(), each.who.end(),
                       [this](handle id) { return !charged_keys(members_.at(id).what.write).empty(); });
  }

  /// Makes an answer to several one that makes no sense.
  void spoil(txn_response& answer) {
    switch (input_.below(4)) {
      case 0:
        answer.succeeded = false;
        break;
      case 1:
        answer.responses.pop_back();
        break;
      case 2:
        answer.responses.emplace_back(answer.responses.front());
        break;
      default: {
        auto& part = answer.responses[input_.below(answer.responses.size())].response;
        if (std::holds_alternative<put_response>(part))
          part = range_response{};
        else
          part = put_response{};
        break;
      }
    }
  }

  static bool same(const std::map<std::string, key_value>& left,
                   const std::map<std::string, key_value>& right) {
    return std::equal(left.begin(), left.end(), right.begin(), right.end(), [](const auto& a, const auto& b) {
      return a.first == b.first && a.second.value == b.second.value && a.second.version == b.second.version &&
             a.second.lease == b.second.lease;
    });
  }

  // ---- what the machine does

  void perform(machine::actions what) {
    for (auto& each : what) std::visit([this](auto& action) { perform(action); }, each);
  }

  void perform(machine::send& action) {
    flight next;
    const auto& request = action.request;
    if (!request.compare.empty() || lone_put(request) != nullptr) {
      next.who.push_back(id_of(request));
      demand(request == members_.at(next.who.front()).what.write, "a write that goes alone goes as it is");
    } else {
      for (const auto& each : request.success) {
        if (const auto* nested = std::get_if<txn>(&each.request)) {
          next.who.push_back(id_of(*nested));
          demand(*nested == members_.at(next.who.back()).what.write, "a member goes as it is");
          demand(lone_put(*nested) == nullptr, "what needs no nesting is not nested");
        } else {
          const auto* puts = std::get_if<put_request>(&each.request);
          demand(puts != nullptr, "a batch has members only");
          next.who.push_back(id_of(*puts));
          demand(txn{}.then(*puts) == members_.at(next.who.back()).what.write,
                 "a lone operation goes as it is");
        }
      }
      demand(next.who.size() > 1, "a batch has several members");
    }
    say("send", action.batch, next.who);
    demand(!gathering_, "nothing is sent before those who were answered had their turn");
    demand(flights_.size() < std::max<std::size_t>(limits_.most_in_flight, 1),
           "no more is under way than may be");
    if (next.who.size() > 1) check_batch(request, next.who);
    for (std::size_t i = 0; i < next.who.size(); ++i) {
      auto& each = members_.at(next.who[i]);
      demand(each.at == place::waiting, "only what waits is sent");
      demand(++each.times <= 9, "a batch is halved until its members go alone");
      demand(next.who.size() <= each.most, "a batch that was refused is halved");
      for (const auto& [other_id, other] : members_) {
        const bool matters = other.at == place::waiting || under_way(other_id);
        if (!matters || other_id == next.who[i] || !in_conflict(each, other)) continue;
        const auto with = std::find(next.who.begin(), next.who.end(), other_id);
        if (with != next.who.end()) {
          demand(shares_lane(each, other) && !touch_same(each, other), "members in conflict share no batch");
          demand((other_id < next.who[i]) == (with < next.who.begin() + static_cast<std::ptrdiff_t>(i)),
                 "the members of a lane keep their order in a batch");
        } else {
          demand(other.at != place::waiting || other_id > next.who[i],
                 "nobody overtakes whom he is in conflict with");
          demand(!under_way(other_id), "members in conflict are not under way together");
        }
      }
    }
    for (const auto id : next.who) members_.at(id).at = place::sent;
    next.what = std::move(action);
    const auto batch = next.what.batch;
    demand(flights_.emplace(batch, std::move(next)).second, "each batch has an id of its own");
  }

  void perform(machine::answered& action) {
    say("answered", action.who);
    auto& each = finish(action.who);
    demand(told_ != nullptr && std::holds_alternative<txn_response>(*told_->answer),
           "an answer comes from the server");
    demand(action.answer.header == std::get<txn_response>(*told_->answer).header,
           "an answer has the batch's header");
    demand(each.due && std::holds_alternative<txn_response>(*each.due),
           "who alone would be refused has no answer");
    auto due = std::get<txn_response>(*each.due);
    forget_revisions(due);
    forget_revisions(action.answer);
    demand(action.answer == due, "a member hears what alone it would have heard");
  }

  void perform(machine::gather&) {
    say("gather", 0);
    demand(told_ != nullptr && told_->who.size() > 1, "only those of several are waited for");
    demand(!std::exchange(gathering_, true), "they are waited for once");
  }

  void perform(machine::failed& action) {
    say("failed", action.who);
    const bool sent = members_.contains(action.who) && members_.at(action.who).at == place::sent;
    auto& each = finish(action.who);
    if (!sent) {
      demand(action.code == errc::timed_out && now_ - each.since >= limits_.patience,
             "a write that is not sent fails for its time only");
      return;
    }
    demand(each.due && std::holds_alternative<errc>(*each.due), "who alone would have an answer has one");
    demand(action.code == std::get<errc>(*each.due), "a member fails as it would alone");
  }

  member& finish(handle id) {
    const auto found = members_.find(id);
    demand(found != members_.end(), "an answer has somebody who waits for it");
    auto& each = found->second;
    demand(each.at == place::waiting || each.at == place::sent, "who has an answer or is gone hears nothing");
    demand(each.at == place::waiting || (told_ != nullptr && is_in(*told_, id)),
           "an answer is to its own batch");
    each.at = place::done;
    return each;
  }

  void check_batch(const txn& request, const std::vector<handle>& who) {
    std::size_t bytes = 0;
    bool all = true;
    std::vector<std::string> charged;
    for (const auto id : who) {
      const auto& each = members_.at(id);
      bytes += each.what.bytes;
      const auto keys = charged_keys(each.what.write);
      all = all && !keys.empty();
      charged.insert(charged.end(), keys.begin(), keys.end());
    }
    demand(bytes <= limits_.most_bytes, "a batch of several has its bound in bytes");
    demand(!known_full_ || all || charged.empty(), "what puts keeps apart while the store is full");
    const bool flat = std::any_of(request.success.begin(), request.success.end(), [](const request_op& each) {
      return std::holds_alternative<put_request>(each.request);
    });
    demand(request.failure.size() == (charged.empty() || flat ? 0 : 1),
           "a batch that puts is charged for a put");
    if (request.failure.empty()) return;
    const auto* named = std::get_if<put_request>(&request.failure.front().request);
    demand(named != nullptr && named->value.empty() && named->lease == 0 &&
               std::find(charged.begin(), charged.end(), named->key) != charged.end(),
           "what is charged is one of the batch's puts");
  }

  // ---- what holds after every step

  void check() {
    demand(machine_.in_flight() == flights_.size(), "what is under way is what was sent");
    const auto waits = [](const auto& each) { return each.second.at == place::waiting; };
    demand(machine_.waiting() ==
               static_cast<std::size_t>(std::count_if(members_.begin(), members_.end(), waits)),
           "as many wait as have not been sent");
  }

  /// After a write came, or an answer: everything that may go is on its way, up to what may be under way.
  void check_started() const {
    if (gathering_) return;
    if (flights_.size() >= std::max<std::size_t>(limits_.most_in_flight, 1)) return;
    for (const auto& [id, each] : members_) {
      if (each.at != place::waiting) continue;
      const auto in_its_way = [&, me = id, &mine = each](const auto& other) {
        const bool before = other.second.at == place::waiting && other.first < me;
        return (before || under_way(other.first)) && in_conflict(mine, other.second);
      };
      demand(std::any_of(members_.begin(), members_.end(), in_its_way), "what may go goes");
    }
  }

  bool under_way(handle id) const {
    return std::any_of(flights_.begin(), flights_.end(),
                       [id](const auto& each) { return is_in(each.second, id); });
  }
  static bool is_in(const flight& which, handle id) {
    return std::find(which.who.begin(), which.who.end(), id) != which.who.end();
  }

  static bool touch_same(const member& left, const member& right) {
    return std::any_of(left.touches.begin(), left.touches.end(), [&right](const touch& a) {
      return std::any_of(right.touches.begin(), right.touches.end(),
                         [&a](const touch& b) { return (a.writes || b.writes) && a.meets(b); });
    });
  }
  static bool shares_lane(const member& left, const member& right) {
    return !left.what.lane.empty() && left.what.lane == right.what.lane && left.what.may_share &&
           right.what.may_share;
  }
  static bool in_conflict(const member& left, const member& right) {
    return (!left.what.lane.empty() && left.what.lane == right.what.lane) || touch_same(left, right);
  }

  static const put_request* lone_put(const txn& request) {
    if (!request.compare.empty() || !request.failure.empty() || request.success.size() != 1) return nullptr;
    return std::get_if<put_request>(&request.success.front().request);
  }

  static handle id_of(const put_request& request) {
    const auto mark = request.value.find('#');
    demand(mark != std::string::npos, "a lone put keeps its value");
    return std::stoull(request.value.substr(mark + 1));
  }

  static handle id_of(const txn& request) {
    if (const auto* only = lone_put(request)) return id_of(*only);
    demand(!request.compare.empty() && request.compare.back().key.starts_with('~'),
           "a member keeps its compares");
    return std::stoull(request.compare.back().key.substr(1));
  }

  flights::iterator some_flight() {
    return std::next(flights_.begin(), static_cast<std::ptrdiff_t>(input_.below(flights_.size())));
  }

  // ---- writes

  txn transaction(std::size_t depth) {
    txn out;
    for (auto i = input_.below(3); i > 0; --i) out.when(comparison());
    for (auto i = input_.below(3) + (depth == 0 ? 1 : 0); i > 0; --i) {
      if (input_.one_in(4))
        out.otherwise(operation(depth));
      else
        out.then(operation(depth));
    }
    return out;
  }

  std::string key() { return std::string(1, static_cast<char>('a' + input_.below(20))); }
  std::string value() { return std::to_string(input_.below(4)); }
  /// The end of a short range from `from` on.
  std::string end_after(const std::string& from) {
    return std::string(1, static_cast<char>(from[0] + 1 + static_cast<int>(input_.below(3))));
  }

  conclave::compare comparison() {
    switch (input_.below(5)) {
      case 0:
        return create_revision(key()) == 0;
      case 1:
        return create_revision(key()) > 0;
      case 2:
        return version(key()) < 1 + static_cast<std::int64_t>(input_.below(3));
      case 3: {
        const auto from = key();
        return create_revision(from).until(end_after(from)) == 0;
      }
      default:
        return conclave::value(key()) == value();
    }
  }

  request_op operation(std::size_t depth) {
    const auto from = key();
    switch (input_.below(12)) {
      case 0:
        return range(from);
      case 1:
        return range_interval(from, end_after(from));
      case 2:
        return delete_key(from, {.prev_kv = true});
      case 3:
        return delete_interval(from, end_after(from));
      case 4:
        return put(from, value(), {.lease = static_cast<lease_id>(1 + input_.below(2))});
      case 5:
      case 6:
        if (depth < 3) return transaction(depth + 1);
        return put(from, value());
      case 7:
        return input_.one_in(4) ? request_op{delete_prefix("")} : request_op{range_prefix("")};
      default:
        return put(from, value());
    }
  }

  void say(const char* what, std::uint64_t id, const std::vector<handle>& who = {}) const {
    if (!telling()) return;
    std::string text =
        std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now_ - epoch).count()) +
        " ms: " + what + " #" + std::to_string(id);
    for (const auto each : who) text += (each == who.front() ? ": " : ", ") + std::to_string(each);
    tell(text);
  }

  static constexpr time_point epoch{1h};

  program& input_;
  machine::limits limits_;
  machine machine_;
  model_etcd together_;
  model_etcd alone_;
  time_point now_ = epoch;
  handle last_ = 0;
  std::map<handle, member> members_;
  flights flights_;
  const flight* told_ = nullptr;  // the one whose result the machine hears now
  bool known_full_ = false;
  bool gathering_ = false;
};

}  // namespace
}  // namespace conclave::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace conclave::test;
  program input{bytes, size};
  combiner_run run{input};
  while (input.more()) run.step();
  run.settle();
  return 0;
}
