// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/watch_hub_machine.hpp>

#include <algorithm>
#include <chrono>
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

namespace {

using conclave::errc;
using conclave::event;
using conclave::event_type;
using conclave::revision;
using conclave::watch_cancel_request;
using conclave::watch_create_request;
using conclave::watch_request;
using conclave::watch_response;
using machine = conclave::detail::engine::watch_hub_machine;
using did = std::vector<std::string>;
using std::chrono::milliseconds;
using namespace std::chrono_literals;

const machine::time_point epoch{1h};

event change(revision at, std::string key = "k") {
  event out{event_type::put, conclave::key_value{}, std::nullopt};
  out.kv->key = std::move(key);
  out.kv->mod_revision = at;
  return out;
}

std::string text(const watch_request& request) {
  if (const auto* create = std::get_if<watch_create_request>(&request.request_union))
    return "create " + std::to_string(create->watch_id) + " from " + std::to_string(create->start_revision);
  if (const auto* cancel = std::get_if<watch_cancel_request>(&request.request_union))
    return "cancel " + std::to_string(cancel->watch_id);
  return "another request";
}

std::string text(const machine::action& each) {
  struct {
    std::string operator()(const machine::open_stream&) const { return "open"; }
    std::string operator()(const machine::close_stream&) const { return "close"; }
    std::string operator()(const machine::send& a) const { return text(a.request); }
    std::string operator()(const machine::created& a) const { return of(a.watch) + "created"; }
    std::string operator()(const machine::events& a) const {
      std::string out = of(a.watch) + "events";
      for (const auto& e : a.batch) out += " " + std::to_string(e.kv->mod_revision);
      return out;
    }
    std::string operator()(const machine::progress& a) const {
      return of(a.watch) + "progress " + std::to_string(a.upto);
    }
    std::string operator()(const machine::compacted& a) const {
      return of(a.watch) + "compacted " + std::to_string(a.oldest);
    }
    std::string operator()(const machine::failed& a) const {
      return of(a.watch) + "failed: " + conclave::make_error_code(a.code).message() + ": " + a.reason;
    }
    static std::string of(machine::handle watch) { return "#" + std::to_string(watch) + " "; }
  } const name;
  return std::visit(name, each);
}

did texts(const machine::actions& what) {
  did out;
  for (const auto& each : what) out.push_back(text(each));
  return out;
}

// What a server says.
watch_response created(std::int64_t id, revision header = 100) {
  watch_response out;
  out.header.revision = header;
  out.watch_id = id;
  out.created = true;
  return out;
}
watch_response refused(std::int64_t id, std::string reason) {
  watch_response out = created(id);
  out.canceled = true;
  out.cancel_reason = std::move(reason);
  return out;
}
watch_response canceled(std::int64_t id, std::string reason = {}) {
  watch_response out;
  out.watch_id = id;
  out.canceled = true;
  out.cancel_reason = std::move(reason);
  return out;
}
watch_response compacted(std::int64_t id, revision oldest) {
  watch_response out = canceled(id);
  out.compact_revision = oldest;
  return out;
}
watch_response changes(std::int64_t id, std::vector<revision> at, revision header = 0) {
  watch_response out;
  out.watch_id = id;
  for (const auto each : at) out.events.push_back(change(each));
  out.header.revision = header != 0 ? header : at.back();
  return out;
}
watch_response fragment(std::int64_t id, std::vector<revision> at) {
  watch_response out = changes(id, std::move(at));
  out.fragment = true;
  return out;
}
watch_response progress(std::int64_t id, revision header) {
  watch_response out;
  out.watch_id = id;
  out.header.revision = header;
  return out;
}

machine::spec from(revision start) {
  machine::spec out;
  out.key = "k";
  out.start_revision = start;
  return out;
}

struct hub {
  machine on{1};

  did add(machine::handle id, revision start) { return texts(on.add(id, from(start), epoch)); }
  did remove(machine::handle id) { return texts(on.remove(id)); }
  did open() { return texts(on.on_stream_open(epoch)); }
  did closed(milliseconds now = 0ms) { return texts(on.on_stream_closed(epoch + now)); }
  did closed(errc fatal, const std::string& reason) {
    return texts(on.on_stream_closed(epoch, fatal, reason));
  }
  did timer(milliseconds now) { return texts(on.on_timer(epoch + now)); }
  did hears(watch_response message, milliseconds now = 0ms) {
    return texts(on.on_message(std::move(message), epoch + now));
  }

  // In milliseconds, rounded down; -1 for never.
  long long wakeup() const {
    const auto when = on.next_wakeup();
    return when ? std::chrono::floor<milliseconds>(*when - epoch).count() : -1;
  }

  // The stream ends and is opened again: what is sent on the new one.
  did reconnect() {
    REQUIRE(closed().empty());
    REQUIRE(timer(2s) == did{"open"});
    return open();
  }
};

// Watch #1 resumes, from revision 10, on an open stream.
struct hub_with_watch : hub {
  hub_with_watch() {
    REQUIRE(add(1, 10) == did{"open"});
    REQUIRE(open() == did{"create 1 from 10"});
    REQUIRE(hears(created(1)) == did{"#1 created"});
  }
};

}  // namespace

// ---- creating -------------------------------------------------------------------------------------------

TEST_CASE("a create request carries what was asked for, a chosen id, and asks for fragments") {
  machine on{1};
  machine::spec what;
  what.key = "a";
  what.range_end = "b";
  what.start_revision = 17;
  what.prev_kv = true;
  what.progress_notify = true;
  what.filters = {conclave::watch_filter::no_put};
  (void)on.add(1, what, epoch);
  const auto sent = on.on_stream_open(epoch);
  REQUIRE(sent.size() == 1);
  watch_create_request expected;
  expected.key = "a";
  expected.range_end = "b";
  expected.start_revision = 17;
  expected.prev_kv = true;
  expected.progress_notify = true;
  expected.filters = {conclave::watch_filter::no_put};
  expected.watch_id = 1;
  expected.fragment = true;
  CHECK(std::get<machine::send>(sent.front()).request == watch_request{expected});
}

TEST_CASE("all watches share one stream, and their creates do not wait for each other") {
  hub h;
  CHECK(h.add(1, 10) == did{"open"});
  CHECK(h.add(2, 20).empty());
  CHECK(h.add(3, 0).empty());
  CHECK(h.open() == did{"create 1 from 10", "create 2 from 20", "create 3 from 0"});
  CHECK(h.add(4, 40) == did{"create 4 from 40"});
  CHECK(h.hears(created(1)) == did{"#1 created"});
  CHECK(h.hears(created(2)) == did{"#2 created"});
  CHECK(h.hears(created(3)) == did{"#3 created"});
  CHECK(h.hears(created(4)) == did{"#4 created"});
}

TEST_CASE("a server that acknowledges nothing is left, one that gets on slowly is not") {
  hub h;
  h.add(1, 10);
  h.add(2, 20);
  CHECK(h.open() == did{"create 1 from 10", "create 2 from 20"});
  CHECK(h.wakeup() == 5000);
  SECTION("nothing comes") {
    CHECK(h.timer(4999ms).empty());
    CHECK(h.timer(5000ms) == did{"close"});
    CHECK(h.wakeup() > 5000);
    CHECK(h.wakeup() < 6500);
  }
  SECTION("something comes, and then the rest") {
    CHECK(h.hears(created(1), 4s) == did{"#1 created"});
    CHECK(h.wakeup() == 9000);
    CHECK(h.timer(5000ms).empty());
    CHECK(h.hears(created(2), 8s) == did{"#2 created"});
    CHECK(h.wakeup() == -1);
  }
}

TEST_CASE("ids are never used again on a stream, and begin anew on the next one") {
  hub_with_watch h;
  CHECK(h.remove(1) == did{"cancel 1"});
  CHECK(h.add(2, 10) == did{"create 2 from 10"});
  CHECK(h.hears(created(2)) == did{"#2 created"});
  CHECK(h.hears(canceled(2, "why not")) == did{"#2 failed: the server reported an error: why not"});
  CHECK(h.add(3, 10) == did{"create 3 from 10"});
  CHECK(h.reconnect() == did{"create 1 from 10"});
}

TEST_CASE("a create that is refused fails its watch alone, matched by its place in the order") {
  hub h;
  for (machine::handle id = 1; id <= 4; ++id) h.add(id, 10);
  h.open();
  CHECK(h.hears(created(1)) == did{"#1 created"});
  // A refusal carries the id -1, or on some servers the one that was asked for.
  CHECK(h.hears(refused(-1, "mvcc: watcher range is empty")) ==
        did{"#2 failed: invalid argument: mvcc: watcher range is empty"});
  CHECK(h.hears(refused(3, "etcdserver: permission denied")) ==
        did{"#3 failed: permission denied: etcdserver: permission denied"});
  CHECK(h.hears(created(4)) == did{"#4 created"});
  CHECK(h.on.size() == 2);
  CHECK(h.hears(changes(1, {11})) == did{"#1 events 11"});
}

TEST_CASE("why a watch was refused is told by its text") {
  struct row {
    const char* reason;
    errc code;
  };
  for (const auto& each : {row{"rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                               errc::permission_denied},
                           row{"etcdserver: invalid auth token", errc::unauthenticated},
                           row{"rpc error: code = Unauthenticated", errc::unauthenticated},
                           row{"etcdserver: mvcc: required revision has been compacted", errc::compacted},
                           row{"mvcc: duplicate watch ID provided on the WatchStream", errc::server_error}}) {
    CAPTURE(each.reason);
    hub h;
    h.add(1, 10);
    h.open();
    CHECK(h.hears(refused(-1, each.reason)) ==
          did{"#1 failed: " + conclave::make_error_code(each.code).message() + ": " + each.reason});
  }
}

TEST_CASE("an acknowledgement that is not the next one expected is a fault of the stream") {
  hub h;
  h.add(1, 10);
  h.add(2, 20);
  h.open();
  SECTION("another's id") { CHECK(h.hears(created(2)) == did{"close"}); }
  SECTION("one too many") {
    h.hears(created(1));
    h.hears(created(2));
    CHECK(h.hears(created(3)) == did{"close"});
  }
  CHECK(h.timer(2s) == did{"open"});
  CHECK(h.open() == did{"create 1 from 10", "create 2 from 20"});
}

TEST_CASE("a watch that starts below what was compacted is created first and then ended") {
  hub_with_watch h;
  CHECK(h.hears(compacted(1, 50)) == did{"#1 compacted 50"});
  CHECK(h.on.size() == 0);
}

// ---- events ---------------------------------------------------------------------------------------------

TEST_CASE("events are delivered as they come, all of a revision together") {
  hub_with_watch h;
  CHECK(h.hears(changes(1, {10})) == did{"#1 events 10"});
  CHECK(h.hears(changes(1, {11, 11, 12})) == did{"#1 events 11 11 12"});
}

TEST_CASE("events from before the start of a watch are dropped") {
  hub_with_watch h;
  CHECK(h.hears(changes(1, {8, 9})).empty());
  CHECK(h.hears(changes(1, {9, 10})) == did{"#1 events 10"});
}

TEST_CASE("events that come twice are dropped") {
  hub_with_watch h;
  CHECK(h.hears(changes(1, {10, 12})) == did{"#1 events 10 12"});
  CHECK(h.hears(changes(1, {10, 12})).empty());
  CHECK(h.hears(changes(1, {12, 13})) == did{"#1 events 13"});
  CHECK(h.hears(changes(1, {11})).empty());
}

TEST_CASE("events out of order are a fault of the stream: it is replaced and the watch resumed") {
  hub_with_watch h;
  CHECK(h.hears(changes(1, {10})) == did{"#1 events 10"});
  CHECK(h.hears(changes(1, {13, 12})) == did{"close"});
  CHECK(h.hears(changes(1, {13})).empty());  // the old stream is not listened to any more
  CHECK(h.timer(2s) == did{"open"});
  CHECK(h.open() == did{"create 1 from 11"});
}

TEST_CASE("an event without a key is a fault of the stream") {
  hub_with_watch h;
  auto message = changes(1, {10, 11});
  message.events.back().kv.reset();
  CHECK(h.hears(message) == did{"close"});
  CHECK(h.wakeup() >= 0);
}

TEST_CASE("the revision in the header of events is not trusted: events that follow may be older") {
  hub_with_watch h;
  CHECK(h.hears(changes(1, {10}, 1000)) == did{"#1 events 10"});
  CHECK(h.hears(changes(1, {11}, 1000)) == did{"#1 events 11"});
  CHECK(h.reconnect() == did{"create 1 from 12"});
}

TEST_CASE("messages for ids that are not ours are counted and dropped") {
  hub_with_watch h;
  CHECK(h.on.strays() == 0);
  CHECK(h.hears(changes(99, {10})).empty());
  CHECK(h.hears(canceled(98)).empty());
  CHECK(h.on.strays() == 2);
  CHECK(h.hears(changes(1, {10})) == did{"#1 events 10"});
}

TEST_CASE("nothing is delivered before the acknowledgement") {
  hub h;
  h.add(1, 10);
  h.open();
  CHECK(h.hears(changes(1, {10})).empty());
  CHECK(h.on.strays() == 1);
}

TEST_CASE("watches on one stream are told their own events only") {
  hub h;
  h.add(1, 10);
  h.add(2, 10);
  h.open();
  h.hears(created(1));
  h.hears(created(2));
  CHECK(h.hears(changes(2, {15})) == did{"#2 events 15"});
  CHECK(h.hears(changes(1, {11})) == did{"#1 events 11"});
  CHECK(h.reconnect() == did{"create 1 from 12", "create 2 from 16"});
}

// ---- fragments ------------------------------------------------------------------------------------------

TEST_CASE("fragments are merged and delivered as one") {
  hub_with_watch h;
  CHECK(h.hears(fragment(1, {10, 11})).empty());
  CHECK(h.hears(fragment(1, {11})).empty());
  CHECK(h.hears(changes(1, {11, 12})) == did{"#1 events 10 11 11 11 12"});
  CHECK(h.hears(changes(1, {13})) == did{"#1 events 13"});
}

TEST_CASE("what was assembled of a fragmented answer is discarded when the stream ends") {
  hub_with_watch h;
  CHECK(h.hears(fragment(1, {10, 11})).empty());
  CHECK(h.reconnect() == did{"create 1 from 10"});
  CHECK(h.hears(created(1)) == did{"#1 created"});
  CHECK(h.hears(changes(1, {10, 11, 12})) == did{"#1 events 10 11 12"});
}

// ---- progress -------------------------------------------------------------------------------------------

TEST_CASE("progress moves the point to resume from") {
  hub_with_watch h;
  CHECK(h.hears(progress(1, 50)) == did{"#1 progress 50"});
  CHECK(h.reconnect() == did{"create 1 from 51"});
}

TEST_CASE("progress never moves it back, nor is it reported then") {
  hub_with_watch h;
  h.hears(changes(1, {60}));
  CHECK(h.hears(progress(1, 59)).empty());
  CHECK(h.hears(progress(1, 60)).empty());
  CHECK(h.reconnect() == did{"create 1 from 61"});
}

TEST_CASE("progress below the start of a watch of the future is ignored") {
  hub_with_watch h;
  CHECK(h.hears(progress(1, 9)).empty());
  CHECK(h.reconnect() == did{"create 1 from 10"});
}

TEST_CASE("progress for the whole stream moves nothing: older servers do not order it with events") {
  hub_with_watch h;
  CHECK(h.hears(progress(-1, 500)).empty());
  CHECK(h.on.strays() == 0);
  CHECK(h.hears(changes(1, {10})) == did{"#1 events 10"});
  CHECK(h.reconnect() == did{"create 1 from 11"});
}

TEST_CASE("the revision in an acknowledgement is not a progress") {
  hub h;
  h.add(1, 10);
  h.open();
  CHECK(h.hears(created(1, 500)) == did{"#1 created"});
  CHECK(h.hears(changes(1, {10})) == did{"#1 events 10"});
}

// ---- the end of a watch ---------------------------------------------------------------------------------

TEST_CASE("a watch that fell behind the history ends as compacted") {
  hub_with_watch h;
  h.hears(changes(1, {10}));
  CHECK(h.hears(compacted(1, 30)) == did{"#1 compacted 30"});
  CHECK(h.hears(changes(1, {31})).empty());
  CHECK(h.on.size() == 0);
}

TEST_CASE("a create that is refused for a compacted revision ends the watch as compacted") {
  hub h;
  h.add(1, 10);
  h.open();
  auto message = refused(-1, "etcdserver: mvcc: required revision has been compacted");
  message.compact_revision = 30;
  CHECK(h.hears(message) == did{"#1 compacted 30"});
}

TEST_CASE("a watch that the server cancels fails with the reason") {
  hub_with_watch h;
  CHECK(h.hears(canceled(1, "etcdserver: permission denied")) ==
        did{"#1 failed: permission denied: etcdserver: permission denied"});
  CHECK(h.on.size() == 0);
  h.closed();
  CHECK(h.timer(2s).empty());
}

TEST_CASE("nothing is reported about a watch that was removed") {
  hub_with_watch h;
  CHECK(h.remove(1) == did{"cancel 1"});
  CHECK(h.hears(changes(1, {10})).empty());
  CHECK(h.hears(progress(1, 50)).empty());
  CHECK(h.hears(canceled(1)).empty());
  CHECK(h.remove(1).empty());
  CHECK(h.on.size() == 0);
}

TEST_CASE("a watch removed while its create is outstanding is cancelled once the create is acknowledged") {
  hub h;
  h.add(1, 10);
  h.add(2, 20);
  h.open();
  CHECK(h.remove(1).empty());
  SECTION("acknowledged") {
    CHECK(h.hears(created(1)) == did{"cancel 1"});
    CHECK(h.hears(changes(1, {10})).empty());
  }
  SECTION("refused") { CHECK(h.hears(refused(-1, "whatever")).empty()); }
  CHECK(h.hears(created(2)) == did{"#2 created"});
}

TEST_CASE("a watch removed while there is no stream leaves no trace") {
  hub h;
  h.add(1, 10);
  h.add(2, 20);
  CHECK(h.remove(1).empty());
  CHECK(h.open() == did{"create 1 from 20"});
  CHECK(h.hears(created(1)) == did{"#2 created"});
}

// ---- the end of the stream ------------------------------------------------------------------------------

TEST_CASE("after a lost stream each watch resumes after what was delivered last") {
  hub_with_watch h;
  h.add(2, 20);
  h.hears(created(2));
  h.hears(changes(1, {10, 14}));
  CHECK(h.reconnect() == did{"create 1 from 15", "create 2 from 20"});
  CHECK(h.hears(created(1)) == did{"#1 created"});
  CHECK(h.hears(changes(1, {14, 15})) == did{"#1 events 15"});
}

TEST_CASE("a create that was outstanding when the stream ended is sent again") {
  hub h;
  h.add(1, 10);
  h.open();
  CHECK(h.reconnect() == did{"create 1 from 10"});
  CHECK(h.hears(created(1)) == did{"#1 created"});
}

TEST_CASE("a watch from now starts anew after a gap and says so, upon which its owner reads again") {
  hub h;
  h.add(1, 0);
  CHECK(h.open() == did{"create 1 from 0"});
  CHECK(h.hears(created(1)) == did{"#1 created"});
  CHECK(h.hears(changes(1, {10})) == did{"#1 events 10"});
  CHECK(h.reconnect() == did{"create 1 from 0"});
  CHECK(h.hears(created(1)) == did{"#1 created"});
  CHECK(h.hears(changes(1, {20})) == did{"#1 events 20"});
}

TEST_CASE("a watch from now that fell behind the history starts anew, too") {
  hub h;
  h.add(1, 0);
  h.open();
  h.hears(created(1));
  CHECK(h.hears(compacted(1, 30)) == did{"create 2 from 0"});
  CHECK(h.hears(changes(1, {31})).empty());
  CHECK(h.hears(created(2)) == did{"#1 created"});
  CHECK(h.hears(changes(2, {31})) == did{"#1 events 31"});
}

TEST_CASE("what comes after the end of a stream is not listened to") {
  hub_with_watch h;
  h.closed();
  CHECK(h.hears(changes(1, {10})).empty());
  CHECK(h.hears(created(2)).empty());
  CHECK(h.open().empty());  // nor an opening that nobody asked for
}

TEST_CASE(
    "a stream is opened again after a pause that grows to a second, and is short again after a success") {
  hub_with_watch h;
  auto now = 0ms;
  for (const auto base : {20, 40, 80, 160, 320, 640, 1000, 1000}) {
    CAPTURE(base);
    h.closed(now);
    const auto pause = h.wakeup() - now.count();
    CHECK(pause >= base * 3 / 4 - 1);
    CHECK(pause <= base * 5 / 4);
    CHECK(h.timer(now + milliseconds{pause - 1}).empty());
    now += 2s;
    REQUIRE(h.timer(now) == did{"open"});
  }
  h.open();
  h.hears(created(1));
  h.closed(now);
  CHECK(h.wakeup() - now.count() <= 25);
}

TEST_CASE("a stream that ends when nobody watches is not opened again until somebody does") {
  hub_with_watch h;
  h.remove(1);
  h.closed();
  CHECK(h.timer(2s).empty());
  CHECK(h.wakeup() == -1);
  CHECK(h.add(2, 10) == did{"open"});
}

TEST_CASE("a stream that ends for a reason that stays fails all watches, and the next one tries anew") {
  hub_with_watch h;
  h.add(2, 0);
  CHECK(h.closed(errc::permission_denied, "no") ==
        did{"#1 failed: permission denied: no", "#2 failed: permission denied: no"});
  CHECK(h.wakeup() == -1);
  CHECK(h.on.size() == 0);
  CHECK(h.add(3, 10) == did{"open"});
}

// ---- random histories -----------------------------------------------------------------------------------

namespace {

// A machine, a server with a history, and a network between them. Three keys are written at random; each watch
// is of one key or of all. Checks at every step that each watch is told just what happened.
class random_run {
public:
  explicit random_run(std::uint64_t seed) : random_{seed}, machine_{seed} {}

  void step() {
    switch (pick(16)) {
      case 0:
        add();
        break;
      case 1:
        remove();
        break;
      case 2:
      case 3:
      case 4:
        write();
        break;
      case 5:
        fault();
        break;
      case 6:
        compact();
        break;
      case 7:
        idle_progress();
        break;
      case 8:
        reconnect();
        break;
      default:
        deliver();
        break;
    }
    REQUIRE(machine_.size() == watches_.size());
  }

  // Without more faults every watch is told everything in the end.
  void settle() {
    while (stream_ != stream::open || !to_client_.empty()) {
      reconnect();
      deliver();
    }
    for (const auto& [id, each] : watches_) {
      CAPTURE(id);
      REQUIRE(each.is_created);
      REQUIRE(missing(each).empty());
    }
  }

  int batches = 0, ended_by_compaction = 0, violations = 0, gaps_from_now = 0, resumed = 0, late_cancels = 0;

private:
  enum class stream { none, opening, open };
  struct client_watch {
    std::string key;  // empty: all
    bool from_now = false;
    revision told = 0;  // everything up to it has been told, or need not be
    bool is_created = false;
    int creations = 0;
  };
  struct server_watch {
    std::string key;
    revision next = 0;
  };

  std::uint64_t pick(std::uint64_t below) { return random_() % below; }

  std::vector<revision> matching(const std::string& key, revision after) const {
    std::vector<revision> out;
    for (const auto& [at, keys] : history_)
      if (at > after)
        for (const auto& each : keys)
          if (key.empty() || key == each) out.push_back(at);
    return out;
  }
  std::vector<revision> missing(const client_watch& each) const { return matching(each.key, each.told); }

  void add() {
    if (watches_.size() >= 8) return;
    client_watch each;
    if (pick(3) != 0) each.key = std::string(1, static_cast<char>('a' + pick(3)));
    each.from_now = pick(3) == 0;
    machine::spec what;
    what.key = each.key;
    if (!each.from_now) {
      what.start_revision = std::max<revision>(1, now_ + 2 - static_cast<revision>(pick(6)));
      each.told = what.start_revision - 1;
    }
    watches_[++last_] = each;
    perform(machine_.add(last_, what, epoch));
  }

  void remove() {
    if (watches_.empty() || pick(2) != 0) return;
    const auto which = std::next(watches_.begin(), static_cast<long>(pick(watches_.size())));
    const auto id = which->first;
    watches_.erase(which);
    perform(machine_.remove(id));
  }

  // One revision writes one to three keys.
  void write() {
    std::set<std::string> keys;
    for (auto i = pick(3) + 1; i != 0; --i) keys.insert(std::string(1, static_cast<char>('a' + pick(3))));
    history_[++now_] = std::vector<std::string>(keys.begin(), keys.end());
    for (auto& [id, each] : server_) send_events(id, each, false);
  }

  void send_events(std::int64_t id, server_watch& each, bool again) {
    if (each.next <= compacted_) {
      to_client_.push_back(compacted(id, compacted_ + 1));
      server_erase_.push_back(id);
      return;
    }
    const auto from = again ? std::max<revision>(compacted_, each.next - 4) : each.next - 1;
    std::vector<event> events;
    for (const auto& [at, keys] : history_)
      if (at > from)
        for (const auto& key : keys)
          if (each.key.empty() || each.key == key) events.push_back(change(at, key));
    each.next = now_ + 1;
    // Cut into fragments here and there.
    while (!events.empty()) {
      const auto size = pick(3) == 0 ? 1 + pick(events.size()) : events.size();
      watch_response message;
      message.watch_id = id;
      message.header.revision = now_;
      message.events.assign(events.begin(), events.begin() + static_cast<long>(size));
      events.erase(events.begin(), events.begin() + static_cast<long>(size));
      message.fragment = !events.empty();
      to_client_.push_back(std::move(message));
    }
  }

  void compact() {
    if (pick(4) == 0 && now_ > 3) compacted_ = std::max(compacted_, now_ - 3);
  }

  void idle_progress() {
    if (server_.empty()) return;
    const auto which = std::next(server_.begin(), static_cast<long>(pick(server_.size())));
    if (which->second.next == now_ + 1) to_client_.push_back(progress(which->first, now_));
    if (pick(3) == 0) to_client_.push_back(progress(-1, now_ + 1000));
  }

  void fault() {
    if (stream_ != stream::open) return;
    switch (pick(4)) {
      case 0:  // the stream ends
        drop_stream();
        perform(machine_.on_stream_closed(epoch));
        break;
      case 1:  // old events again, whole
        if (!server_.empty()) {
          const auto which = std::next(server_.begin(), static_cast<long>(pick(server_.size())));
          if (which->second.next > compacted_) send_events(which->first, which->second, true);
        }
        break;
      case 2:
        to_client_.push_back(changes(last_wire_id_ + 1000, {now_ + 1}));
        break;  // an id of nobody
      default:  // out of order
        if (!server_.empty()) {
          const auto which = std::next(server_.begin(), static_cast<long>(pick(server_.size())));
          to_client_.push_back(changes(which->first, {now_ + 2, now_ + 1}));
        }
        break;
    }
  }

  void reconnect() {
    if (stream_ == stream::none && machine_.next_wakeup()) perform(machine_.on_timer(epoch + 1h));
    if (stream_ == stream::none && watches_.empty()) add();  // so that there is a stream
    if (stream_ == stream::opening) {
      stream_ = stream::open;
      perform(machine_.on_stream_open(epoch));
    }
  }

  void deliver() {
    if (stream_ != stream::open || to_client_.empty()) return;
    const watch_response message = std::move(to_client_.front());
    to_client_.pop_front();
    perform(machine_.on_message(message, epoch));
  }

  void drop_stream() {
    stream_ = stream::none;
    to_client_.clear();
    server_.clear();
    used_ids_.clear();
    for (auto& [id, each] : watches_) each.is_created = false;
  }

  void perform(const machine::actions& what) {
    for (const auto& each : what) std::visit([this](const auto& action) { perform(action); }, each);
    for (const auto id : std::exchange(server_erase_, {})) server_.erase(id);
  }
  void perform(const machine::open_stream&) {
    REQUIRE(stream_ == stream::none);
    stream_ = stream::opening;
  }
  void perform(const machine::close_stream&) {
    ++violations;
    drop_stream();
  }
  void perform(const machine::send& action) {
    REQUIRE(stream_ == stream::open);
    if (const auto* create = std::get_if<watch_create_request>(&action.request.request_union)) {
      REQUIRE(used_ids_.insert(create->watch_id).second);
      last_wire_id_ = create->watch_id;
      if (create->start_revision != 0) ++resumed;
      to_client_.push_back(created(create->watch_id, now_));
      server_watch each{create->key, create->start_revision != 0 ? create->start_revision : now_ + 1};
      auto& added = server_[create->watch_id] = each;
      if (added.next <= now_) send_events(create->watch_id, added, false);
    } else if (const auto* cancel = std::get_if<watch_cancel_request>(&action.request.request_union)) {
      ++late_cancels;
      REQUIRE(used_ids_.contains(cancel->watch_id));
      if (server_.erase(cancel->watch_id) != 0) to_client_.push_back(canceled(cancel->watch_id));
    }
  }
  void perform(const machine::created& action) {
    auto& each = watches_.at(action.watch);
    REQUIRE_FALSE(each.is_created);
    each.is_created = true;
    if (!each.from_now) return;
    if (++each.creations > 1) ++gaps_from_now;
    each.told = now_;  // its owner reads the state now
  }
  void perform(const machine::events& action) {
    ++batches;
    REQUIRE(watches_.contains(action.watch));  // not after its removal or end
    auto& each = watches_.at(action.watch);
    REQUIRE(each.is_created);
    REQUIRE_FALSE(action.batch.empty());
    // A watch from now may be told what its owner has read already; a resuming one is told each change once.
    std::vector<revision> told;
    for (const auto& e : action.batch) {
      if (!each.from_now) REQUIRE(e.kv->mod_revision > each.told);
      if (e.kv->mod_revision > each.told) told.push_back(e.kv->mod_revision);
    }
    auto expected = missing(each);
    REQUIRE(told.size() <= expected.size());
    const auto rest = expected.begin() + static_cast<long>(told.size());
    if (!told.empty() && rest != expected.end()) REQUIRE(*rest > told.back());  // revisions are whole
    expected.erase(rest, expected.end());
    REQUIRE(told == expected);  // no gap
    if (!told.empty()) each.told = told.back();
  }
  void perform(const machine::progress& action) {
    const auto& each = watches_.at(action.watch);
    const auto unknown = missing(each);
    REQUIRE((unknown.empty() || unknown.front() > action.upto));  // it is not ahead of events
  }
  void perform(const machine::compacted& action) {
    ++ended_by_compaction;
    const auto& each = watches_.at(action.watch);
    REQUIRE_FALSE(each.from_now);
    REQUIRE(each.told < action.oldest);
    watches_.erase(action.watch);
  }
  void perform(const machine::failed&) { FAIL("nothing here fails a watch"); }

  std::mt19937_64 random_;
  machine machine_;
  std::map<machine::handle, client_watch> watches_;
  machine::handle last_{0};
  stream stream_{stream::none};
  std::map<std::int64_t, server_watch> server_;
  std::vector<std::int64_t> server_erase_;
  std::set<std::int64_t> used_ids_;
  std::int64_t last_wire_id_{0};
  std::deque<watch_response> to_client_;
  std::map<revision, std::vector<std::string>> history_;
  revision now_{1};
  revision compacted_{0};
};

}  // namespace

TEST_CASE("in random histories each watch is told every change once, in order, whatever the network does") {
  int batches = 0, compactions = 0, violations = 0, gaps = 0, resumed = 0, cancels = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    random_run run{seed};
    for (int step = 0; step < 1000; ++step) {
      CAPTURE(step);
      run.step();
    }
    run.settle();
    batches += run.batches;
    compactions += run.ended_by_compaction;
    violations += run.violations;
    gaps += run.gaps_from_now;
    resumed += run.resumed;
    cancels += run.late_cancels;
  }
  // All of it happened.
  CHECK(batches > 1000);
  CHECK(compactions > 20);
  CHECK(violations > 100);
  CHECK(gaps > 100);
  CHECK(resumed > 500);
  CHECK(cancels > 100);
}
