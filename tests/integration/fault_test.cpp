// SPDX-License-Identifier: BSL-1.0

// Faults × operations: for each pair what the caller sees, within which time, and that the store's record keeps
// the rules of locks and queues (history.hpp). A pair that another test looks at names it.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>
#include <conclave/testing/etcd_cluster.hpp>
#include <conclave/testing/faulty_link.hpp>

#include "full_store.hpp"
#include "history.hpp"
#include "on_cluster.hpp"
#include "on_lock.hpp"
#include "support/certificates.hpp"
#include "support/etcd_users.hpp"

#include <array>
#include <cstdio>
#include <filesystem>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::errc;
using conclave::mutex;
using conclave::session;
using conclave::unique_lock;
using conclave::testing::etcd_cluster;
using conclave::testing::etcd_server_options;
using conclave::testing::faulty_link;
using std::chrono::milliseconds;

// ---- the table --------------------------------------------------------------------------------------------

enum class op { lock_wait, lock_hold, unlock, dequeue_wait, enqueue, session_open, keepalive };
constexpr std::array all_ops{op::lock_wait, op::lock_hold,    op::unlock,   op::dequeue_wait,
                             op::enqueue,   op::session_open, op::keepalive};

std::string name_of(op which) {
  switch (which) {
    case op::lock_wait:
      return "lock wait";
    case op::lock_hold:
      return "lock hold";
    case op::unlock:
      return "unlock";
    case op::dequeue_wait:
      return "dequeue wait";
    case op::enqueue:
      return "enqueue";
    case op::session_open:
      return "session open";
    case op::keepalive:
      return "keepalive";
  }
  return {};
}

/// What must be seen of an operation: that it goes on and succeeds, or ends with one of these errors.
struct expectation {
  bool success = false;
  std::vector<errc> errors;
  milliseconds within = 15s;
  /// Not looked at here: the test that does, or why the pair makes no sense.
  std::string left_out;
};

expectation survives(milliseconds within = 15s) { return {.success = true, .within = within}; }
expectation ends(std::vector<errc> errors, milliseconds within = 15s) {
  return {.errors = std::move(errors), .within = within};
}
expectation survives_or(std::vector<errc> errors, milliseconds within = 15s) {
  return {.success = true, .errors = std::move(errors), .within = within};
}
expectation elsewhere(const std::string& test) { return {.left_out = "see " + test}; }
expectation senseless(const std::string& why) { return {.left_out = "no case: " + why}; }

/// In the order of `all_ops`.
using expectations = std::array<expectation, all_ops.size()>;

// ---- where it happens -------------------------------------------------------------------------------------

/// Who takes part in one test case, and what is on record already.
struct scene {
  scene(asio::io_context& on, client victim, client others)
      : context(on), mine(std::move(victim)), other(others), rival(std::move(others)) {}

  asio::io_context& context;
  client mine;   ///< Whom the fault is about.
  client other;  ///< Everybody else, administrators included.
  client rival;  ///< Who waits for the lock that `mine` holds.
  std::chrono::seconds ttl{6};
  /// Whether the holder must hear of its loss before the rival has the lock. Not if only the store knows of the
  /// loss and tells it to two clients: on two connections either may be first.
  bool told_in_order = true;
  time_point struck{};
  std::vector<conclave::event> record;  ///< What was compacted away since.
  conclave::revision record_goes_on = 1;
};

// ---- the operations ---------------------------------------------------------------------------------------

class operation {
public:
  operation(scene& where, std::string name) : at(where), name_(std::move(name)) {}
  operation(const operation&) = delete;
  operation& operator=(const operation&) = delete;
  virtual ~operation() = default;

  const std::string& name() const { return name_; }
  bool done() const { return done_; }
  std::error_code code() const { return code_; }
  milliseconds after() const { return std::chrono::duration_cast<milliseconds>(ended_ - at.struck); }

  /// Before the fault: whatever it takes to be in the state that the fault is to meet.
  virtual asio::awaitable<void> begin() { co_return; }
  /// While the fault stands: begins what takes a moment only. Whether there was something to begin.
  virtual bool act() { return false; }
  /// Somebody else does what the wait is for.
  virtual asio::awaitable<void> fulfil() { co_return; }
  /// The fault is over.
  virtual void mended() {}
  /// Waits until the caller knows. `may_survive`: if it just goes on, that is an end too.
  virtual asio::awaitable<void> outcome(milliseconds limit, bool may_survive) {
    (void)may_survive;
    co_await known(limit);
  }
  /// What became of it for the others; then leaves nothing behind.
  virtual asio::awaitable<void> end() = 0;

  /// What an administrator's fault aims at.
  virtual conclave::lease_id lease() const { return 0; }
  virtual std::string key() const { return {}; }

protected:
  void run(std::function<asio::awaitable<void>()> work) {
    running_.emplace(start(at.context, [this, work = std::move(work)]() -> asio::awaitable<void> {
      std::error_code code;
      try {
        co_await work();
      } catch (const std::system_error& e) {
        code = e.code();
      }
      conclude(code);
    }));
  }
  void conclude(std::error_code code) {
    if (done_) return;
    done_ = true;
    code_ = code;
    ended_ = now();
  }
  asio::awaitable<void> known(milliseconds limit) {
    const std::string what = name_ + " ends";
    co_await eventually(
        what, [this] { return done_; }, limit);
  }
  time_point ended() const { return ended_; }
  asio::awaitable<void> finished() {
    if (running_) co_await running_->result();
  }

  scene& at;

private:
  std::string name_;
  bool done_ = false;
  std::error_code code_;
  time_point ended_{};
  std::optional<task<void>> running_;
};

/// Somebody else holds the lock.
class lock_wait final : public operation {
public:
  using operation::operation;

  asio::awaitable<void> begin() override {
    theirs_.emplace(co_await session::open(at.other, {.ttl = 30s}));
    mine_.emplace(co_await session::open(at.mine, {.ttl = at.ttl}));
    mutex first{*theirs_, "lock/wait"};
    ahead_ = co_await first.lock();
    co_await claim(ahead_, "lock/wait");
    run([this]() -> asio::awaitable<void> {
      mutex second{*mine_, "lock/wait"};
      got_ = co_await second.lock();
    });
    co_await in_line(at.other, "lock/wait", 2);
  }
  asio::awaitable<void> fulfil() override {
    CHECK_FALSE((done() && !code()));  // nobody has left yet
    (void)co_await error_of(ahead_.unlock());
  }
  asio::awaitable<void> end() override {
    if (!code()) {
      const bool agreed = co_await claim(got_, "lock/wait");
      CHECK(agreed);
      co_await got_.unlock();
    }
    (void)co_await error_of(mine_->close());
    co_await theirs_->close();
  }
  conclave::lease_id lease() const override { return mine_->lease_id(); }

private:
  std::optional<session> theirs_;
  std::optional<session> mine_;
  unique_lock ahead_;
  unique_lock got_;
};

/// A rival waits for the lock that is held.
class held_lock : public operation {
public:
  held_lock(scene& where, std::string name, std::string lock)
      : operation(where, std::move(name)), lock_(std::move(lock)) {}

  asio::awaitable<void> begin() override {
    mine_.emplace(co_await session::open(at.mine, {.ttl = at.ttl}));
    theirs_.emplace(co_await session::open(at.rival, {.ttl = 30s}));
    mutex first{*mine_, lock_};
    held_ = co_await first.lock();
    token_ = held_.token();
    key_ = held_.key();
    co_await claim(held_, lock_);
    waiting_.emplace(start(at.context, [this]() -> asio::awaitable<void> {
      mutex second{*theirs_, lock_};
      next_ = co_await second.lock();
      rival_got_it();
    }));
    co_await in_line(at.other, lock_, 2);
  }
  conclave::lease_id lease() const override { return mine_->lease_id(); }
  std::string key() const override { return key_; }

protected:
  virtual void rival_got_it() {}

  asio::awaitable<void> rival_goes() {
    co_await waiting_->result(20s);
    CHECK(next_.token() > token_);
    const bool agreed = co_await claim(next_, lock_);
    CHECK(agreed);
    co_await next_.unlock();
    (void)co_await error_of(mine_->close());
    co_await theirs_->close();
  }
  unique_lock& held() { return held_; }
  const std::string& lock() const { return lock_; }

private:
  std::string lock_;
  std::optional<session> mine_;
  std::optional<session> theirs_;
  unique_lock held_;
  unique_lock next_;
  conclave::revision token_ = 0;
  std::string key_;
  std::optional<task<void>> waiting_;
};

class lock_hold final : public held_lock {
public:
  lock_hold(scene& where, std::string name) : held_lock(where, std::move(name), "lock/hold") {}

  asio::awaitable<void> begin() override {
    co_await held_lock::begin();
    run([this]() -> asio::awaitable<void> {
      const auto why = co_await held().lost();
      if (why) throw std::system_error{why};
    });
  }
  asio::awaitable<void> outcome(milliseconds limit, bool may_survive) override {
    const auto deadline = now() + limit;
    while (may_survive && !done() && now() < deadline) {
      const bool agreed = co_await claim(held(), lock());
      if (agreed && !done()) {
        survived_ = true;
        conclude({});
      } else {
        co_await pause_for(5ms);
      }
    }
    co_await known(limit);
  }
  asio::awaitable<void> end() override {
    if (survived_) {
      CHECK(held().held());
      co_await held().unlock();
    } else {
      CHECK_FALSE(held().held());
    }
    co_await rival_goes();
    if (!survived_ && at.told_in_order) CHECK(told_first_);
    co_await finished();
  }

private:
  void rival_got_it() override { told_first_ = done() && !held().held(); }

  bool survived_ = false;
  bool told_first_ = false;
};

class unlock final : public held_lock {
public:
  unlock(scene& where, std::string name) : held_lock(where, std::move(name), "lock/unlock") {}

  bool act() override {
    run([this] { return held().unlock(); });
    return true;
  }
  asio::awaitable<void> end() override {
    CHECK_FALSE(held().held());
    co_await rival_goes();
  }
};

class dequeue_wait final : public operation {
public:
  dequeue_wait(scene& where, std::string name)
      : operation(where, std::move(name)), jobs_(where.mine, "jobs/wait") {}

  asio::awaitable<void> begin() override {
    run([this]() -> asio::awaitable<void> { got_ = co_await jobs_.dequeue(); });
    co_await let_it_begin();
    CHECK_FALSE(done());
  }
  asio::awaitable<void> fulfil() override {
    const conclave::queue theirs{at.other, "jobs/wait"};
    co_await theirs.enqueue("the only item");
  }
  asio::awaitable<void> end() override {
    const conclave::queue theirs{at.other, "jobs/wait"};
    const auto left = co_await theirs.try_dequeue();
    if (!code()) {
      CHECK(got_ == "the only item");
      CHECK_FALSE(left);
    } else if (code() != errc::outcome_unknown) {
      CHECK(left == "the only item");
    }
  }

private:
  conclave::queue jobs_;
  std::string got_;
};

class enqueue final : public operation {
public:
  enqueue(scene& where, std::string name)
      : operation(where, std::move(name)), jobs_(where.mine, "jobs/put") {}

  bool act() override {
    run([this]() -> asio::awaitable<void> { (void)co_await jobs_.enqueue("put"); });
    return true;
  }
  asio::awaitable<void> end() override {
    const conclave::queue theirs{at.other, "jobs/put"};
    std::vector<std::string> items;
    for (bool more = true; more;) {
      auto item = co_await theirs.try_dequeue();
      more = item.has_value();
      if (item) items.push_back(*item);
    }
    if (!code())
      CHECK(items == std::vector<std::string>{"put"});
    else if (code() == errc::outcome_unknown)
      CHECK(items.size() <= 1);
    else
      CHECK(items.empty());
  }

private:
  conclave::queue jobs_;
};

/// That no lease is left of it is looked at when all is over.
class session_open final : public operation {
public:
  using operation::operation;

  bool act() override {
    run([this]() -> asio::awaitable<void> {
      opened_.emplace(co_await session::open(at.mine, {.ttl = at.ttl}));
    });
    return true;
  }
  asio::awaitable<void> end() override {
    if (opened_) {
      if (opened_->alive()) {
        const bool known_there = co_await lease_exists(at.other, opened_->lease_id());
        CHECK(known_there);
      }
      (void)co_await error_of(opened_->close());
    }
  }

private:
  std::optional<session> opened_;
};

class keepalive final : public operation {
public:
  using operation::operation;

  asio::awaitable<void> begin() override {
    mine_.emplace(co_await session::open(at.mine, {.ttl = at.ttl}));
    run([this]() -> asio::awaitable<void> {
      const auto why = co_await mine_->lost();
      if (why) throw std::system_error{why};
    });
  }
  void mended() override { until_ = mine_->valid_until(); }
  asio::awaitable<void> outcome(milliseconds limit, bool may_survive) override {
    co_await eventually(
        "keepalives are answered, or the session is lost",
        [&] { return done() || (may_survive && mine_->valid_until() > until_); }, limit);
    if (done()) {
      CHECK(ended() < mine_->valid_until() + 1s);  // a timer, on a busy machine
      CHECK_FALSE(mine_->alive());
    } else {
      const bool known_there = co_await lease_exists(at.other, mine_->lease_id());
      CHECK(known_there);
      conclude({});
    }
  }
  asio::awaitable<void> end() override {
    (void)co_await error_of(mine_->close());
    co_await finished();
  }
  conclave::lease_id lease() const override { return mine_->lease_id(); }

private:
  std::optional<session> mine_;
  time_point until_{};
};

std::unique_ptr<operation> make(op which, scene& at) {
  const std::string name = name_of(which);
  switch (which) {
    case op::lock_wait:
      return std::make_unique<lock_wait>(at, name);
    case op::lock_hold:
      return std::make_unique<lock_hold>(at, name);
    case op::unlock:
      return std::make_unique<unlock>(at, name);
    case op::dequeue_wait:
      return std::make_unique<dequeue_wait>(at, name);
    case op::enqueue:
      return std::make_unique<enqueue>(at, name);
    case op::session_open:
      return std::make_unique<session_open>(at, name);
    case op::keepalive:
      return std::make_unique<keepalive>(at, name);
  }
  return nullptr;
}

// ---- a fault, and how it is looked at ---------------------------------------------------------------------

using step = std::function<asio::awaitable<void>(operation&)>;

asio::awaitable<void> nothing(operation&) { co_return; }

struct fault {
  std::string name;
  expectations expected;
  step strike;
  step mend = nothing;
  /// Whether others are served while it stands, and then do what is waited for.
  bool others_served = false;
  /// Whether it stands until those have ended who began meanwhile.
  bool stands = false;
};

std::string text_of(std::error_code code) { return code ? code.message() : "success"; }

void check(const fault& what, const operation& it, const expectation& must) {
  const auto after = static_cast<long long>(it.after().count());
  std::printf("%s × %s -> %s, after %lld ms\n", what.name.c_str(), it.name().c_str(),
              text_of(it.code()).c_str(), after);
  std::fflush(stdout);
  bool expected = !it.code() && must.success;
  for (const auto each : must.errors) expected = expected || it.code() == each;
  INFO(what.name << " × " << it.name() << " -> " << text_of(it.code()));
  CHECK(expected);
  CHECK(it.after() <= must.within);
}

asio::awaitable<void> nothing_is_left(scene& at) {
  co_await keys_below(at.other, "lock/", 0);
  auto no_lease = [&]() -> asio::awaitable<bool> {
    const auto left = co_await at.other.leases();
    for (const auto& each : left.leases) {
      const auto about = co_await at.other.lease_time_to_live(each.id);
      // Those of the claims' receipts live as long as the clients, which are still there.
      const bool of_receipts = about.granted_ttl == conclave::detail::pattern::receipt_lease::ttl.count();
      if (about.ttl >= 0 && !of_receipts) co_return false;
    }
    co_return true;
  };
  co_await eventually("no lease is left but those of receipts", no_lease, 15s);
  auto record = at.record;
  const auto rest = co_await history_from(at.other, at.record_goes_on);
  record.insert(record.end(), rest.begin(), rest.end());
  for (const auto& each : lock_violations(record)) FAIL_CHECK(each);
  for (const auto& each : item_violations(record)) FAIL_CHECK(each);
}

/// The fault meets these operations at once.
asio::awaitable<void> meets(scene& at, const fault& what, std::vector<op> which) {
  std::vector<std::unique_ptr<operation>> all;
  for (const auto each : which) all.push_back(make(each, at));
  for (auto& each : all) co_await each->begin();
  at.struck = now();
  co_await what.strike(*all.front());
  std::vector<operation*> acting;
  for (auto& each : all)
    if (each->act()) acting.push_back(each.get());
  if (what.others_served)
    for (auto& each : all) co_await each->fulfil();
  for (auto* each : acting) {
    const bool& stands = what.stands;
    co_await eventually(
        each->name(), [&] { return !stands || each->done(); }, 20s);
  }
  co_await what.mend(*all.front());
  for (auto& each : all) each->mended();
  if (!what.others_served)
    for (auto& each : all) co_await each->fulfil();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto& must = what.expected[static_cast<std::size_t>(which[i])];
    const auto spent = std::chrono::duration_cast<milliseconds>(now() - at.struck);
    co_await all[i]->outcome(std::max(milliseconds{100}, must.within - spent), must.success);
    check(what, *all[i], must);
  }
  for (auto& each : all) co_await each->end();
}

/// Those pairs of the fault that are looked at here; the others are named.
std::vector<op> pairs_of(const fault& what) {
  std::vector<op> which;
  for (const auto each : all_ops) {
    const auto& left_out = what.expected[static_cast<std::size_t>(each)].left_out;
    if (left_out.empty())
      which.push_back(each);
    else
      std::printf("%s × %s: %s\n", what.name.c_str(), name_of(each).c_str(), left_out.c_str());
  }
  return which;
}

asio::awaitable<void> meets_all_at_once(scene& at, const fault& what) {
  co_await meets(at, what, pairs_of(what));
  co_await nothing_is_left(at);
}

/// For faults that aim at one operation.
asio::awaitable<void> meets_each(scene& at, const fault& what) {
  for (const auto each : pairs_of(what)) co_await meets(at, what, std::vector<op>(1, each));
  co_await nothing_is_left(at);
}

/// Everybody but that member.
std::string without(const etcd_cluster& cluster, std::size_t member) {
  return cluster.endpoint((member + 1) % cluster.size()) + "," +
         cluster.endpoint((member + 2) % cluster.size());
}

const std::string failover = "failover_test: ";
const std::string mutex_faults = "mutex_faults_test: ";
const std::string queues = "queue_test: ";
const std::string sessions = "session_test: ";
const std::string security = "security_test: ";

enum class member_fault { leader_killed, leader_paused, member_isolated };

void on_cluster(member_fault how) {
  etcd_cluster cluster;
  on_context(
      [&](asio::io_context& context) -> asio::awaitable<void> {
        const bool isolated = how == member_fault::member_isolated;
        const bool paused = how == member_fault::leader_paused;
        const auto leader = cluster.wait_for_leader();
        const auto victim = isolated ? (leader + 1) % cluster.size() : leader;
        scene at{context, connect_to(context, from(cluster, victim)),
                 connect_to(context, without(cluster, victim))};
        const std::string there =
            failover + (isolated ? "a member that is cut off from the others is left"
                        : paused ? "a member that hangs is not waited for"
                                 : "a member that dies is left, by calls and by streams");
        const fault what{
            .name = isolated ? "client's member isolated"
                    : paused ? "leader paused"
                             : "leader killed",
            .expected =
                {elsewhere(there), elsewhere(there), survives(), elsewhere(there),
                 // It goes when the unlock is answered, or not at all, or to a member that swallows it.
                 survives_or({errc::outcome_unknown, errc::timed_out, errc::unavailable}), survives(),
                 survives()},
            .strike = [&](operation&) -> asio::awaitable<void> {
              if (isolated)
                cluster.isolate(victim);
              else if (paused)
                cluster.pause(victim);
              else
                cluster.kill(victim);
              co_return;
            },
            .mend = [&](operation&) -> asio::awaitable<void> {
              (void)cluster.wait_for_leader();  // the majority's; the victim stays what it is
              co_return;
            }};
        co_await meets_all_at_once(at, what);
        if (paused) cluster.resume(victim);
      },
      60s);
}

}  // namespace

// ---- servers ----------------------------------------------------------------------------------------------

TEST_CASE("fault: a server is killed while it is asked, and restarted", "[fault]") {
  etcd_server server;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect(context, server), connect(context, server)};
    co_await at.mine.status();
    const fault what{
        .name = "server killed and restarted",
        .expected =
            {elsewhere(mutex_faults + "a wait and a hold survive a server that is killed and restarted"),
             elsewhere(mutex_faults + "a wait and a hold survive a server that is killed and restarted"),
             elsewhere(mutex_faults + "a release whose server dies is done when it is back"),
             elsewhere(queues + "a consumer waits through a server that is killed and restarted"),
             survives_or({errc::outcome_unknown}), survives(),
             elsewhere(sessions + "a session survives a server that is back within its time to live")},
        .strike = [&](operation&) -> asio::awaitable<void> {
          server.pause();  // so that the requests are on their way when it dies
          co_return;
        },
        .mend = [&](operation&) -> asio::awaitable<void> {
          co_await let_it_begin();
          server.kill();
          server.restart();
        }};
    co_await meets_all_at_once(at, what);
  });
}

TEST_CASE("fault: the leader is killed", "[fault]") { on_cluster(member_fault::leader_killed); }
TEST_CASE("fault: the leader is paused", "[fault]") { on_cluster(member_fault::leader_paused); }
TEST_CASE("fault: the client's member is isolated", "[fault]") { on_cluster(member_fault::member_isolated); }

// ---- links ------------------------------------------------------------------------------------------------

TEST_CASE("fault: the link is cut", "[fault]") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect_to(context, link.endpoint()), connect(context, server)};
    const fault what{
        .name = "link cut",
        .expected = {survives(), survives(), survives(), survives(),
                     survives_or({errc::outcome_unknown, errc::unavailable}), survives(), survives()},
        .strike = [&](operation&) -> asio::awaitable<void> {
          link.cut();
          co_return;
        },
        .mend = [&](operation&) -> asio::awaitable<void> {
          co_await pause_for(1s);
          link.heal();
        },
        .others_served = true};
    co_await meets_all_at_once(at, what);
  });
}

TEST_CASE("fault: the link is stalled for less than the time to live", "[fault]") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect_to(context, link.endpoint()), connect(context, server)};
    at.ttl = 8s;
    const std::string there =
        failover + "a link that is silent for less than the lease's time costs nothing but time";
    const fault what{.name = "link stalled for less than the TTL",
                     .expected = {elsewhere(there), elsewhere(there), survives(), elsewhere(there),
                                  survives(), survives(), survives()},
                     .strike = [&](operation&) -> asio::awaitable<void> {
                       link.stall();
                       co_return;
                     },
                     .mend = [&](operation&) -> asio::awaitable<void> {
                       co_await pause_for(2s);
                       link.heal();
                     }};
    co_await meets_all_at_once(at, what);
  });
}

TEST_CASE("fault: the link is stalled for more than the time to live", "[fault]") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options impatient;
    impatient.request_timeout(3s);  // longer than the lease
    scene at{context, connect_to(context, link.endpoint(), impatient), connect(context, server)};
    at.ttl = 2s;
    const fault what{
        .name = "link stalled for more than the TTL",
        .expected = {ends({errc::session_lost}, 4s),
                     elsewhere(failover + "a link that is silent for longer than the lease's time ends the "
                                          "hold before the server does"),
                     ends({errc::session_lost, errc::outcome_unknown}), survives(20s),
                     survives_or({errc::outcome_unknown, errc::timed_out}),
                     ends({errc::outcome_unknown, errc::timed_out, errc::unavailable, errc::session_lost}),
                     ends({errc::session_lost}, 4s)},
        .strike = [&](operation&) -> asio::awaitable<void> {
          link.stall();
          co_return;
        },
        .mend = [&](operation&) -> asio::awaitable<void> {
          link.heal();
          co_return;
        },
        .stands = true};
    co_await meets_all_at_once(at, what);
  });
}

TEST_CASE("fault: an answer is lost with its connection", "[fault]") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect_to(context, link.endpoint()), connect(context, server)};
    co_await at.mine.status();
    const std::string there =
        failover +
        "an answer that is lost on the way leaves no lock, no lease and no doubt where there need be none";
    fault what{.name = "another call's answer lost, and the connection with it",
               .expected = {survives(), survives(), elsewhere(there), elsewhere("the next fault"),
                            elsewhere("the next fault"), elsewhere(there), survives()},
               .strike = [&](operation&) -> asio::awaitable<void> {
                 bool swallowed = false;
                 // A stream that is just being opened may be taken for the request.
                 for (int i = 0; i < 10 && !swallowed; ++i) {
                   link.swallow_next_answer();
                   (void)co_await error_of(at.mine.put("lost", ""));
                   swallowed = link.wait_swallowed(0ms);
                 }
                 CHECK(swallowed);
               },
               .others_served = true};
    co_await meets_each(at, what);

    const expectation before = elsewhere("the fault before");
    what = fault{.name = "answer lost",
                 .expected = {before, before, elsewhere(there), survives(), survives(), elsewhere(there),
                              senseless("a stream has no such answer")},
                 .strike = [&](operation&) -> asio::awaitable<void> {
                   link.swallow_next_answer();
                   co_return;
                 },
                 .mend = [&](operation& of) -> asio::awaitable<void> {
                   auto ended = [&] { return of.done(); };
                   co_await eventually("it ends", ended);
                   CHECK(link.wait_swallowed(5s));
                 },
                 .others_served = true};
    co_await meets_each(at, what);
  });
}

// ---- administrators ---------------------------------------------------------------------------------------

TEST_CASE("fault: the lease is revoked, or the key deleted, and a rival waits", "[fault]") {
  etcd_server server;
  const bool one_client = GENERATE(true, false);
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect(context, server), connect(context, server)};
    if (one_client) at.rival = at.mine;
    at.told_in_order = one_client;
    const std::string wait =
        mutex_faults + "a wait ends at once when the session or the place in line is lost";
    const std::string rivals =
        one_client ? " (the rival has the same client)" : " (the rival has another client)";
    const fault revoked{
        .name = "lease revoked" + rivals,
        .expected = {elsewhere(wait), ends({errc::session_lost, errc::lock_lost}, 5s),
                     ends({errc::session_lost, errc::lock_lost}, 5s), senseless("a consumer has no lease"),
                     senseless("items have no lease"), senseless("there is none yet"),
                     elsewhere(sessions + "a session whose lease an administrator revokes is lost")},
        .strike = [&](operation& of) -> asio::awaitable<void> {
          co_await at.other.lease_revoke(of.lease());
        }};
    co_await meets_each(at, revoked);
    const fault deleted{
        .name = "own key deleted" + rivals,
        .expected = {elsewhere(wait), ends({errc::lock_lost}, 5s), ends({errc::lock_lost}, 5s),
                     senseless("a consumer has no key"), senseless("then it was taken"),
                     senseless("there is none yet"), senseless("a lease has no key of its own")},
        .strike = [&](operation& of) -> asio::awaitable<void> {
          const std::string key = of.key();
          co_await at.other.delete_range(conclave::delete_key(key));
        }};
    co_await meets_each(at, deleted);
  });
}

TEST_CASE("fault: everything so far is compacted while the client is cut off", "[fault]") {
  etcd_server server;
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect_to(context, link.endpoint()), connect(context, server)};
    const std::string locks = mutex_faults + "compaction does not disturb waits and holds";
    const fault what{
        .name = "compaction",
        .expected = {elsewhere(locks), elsewhere(locks), survives(),
                     elsewhere(queues + "a consumer waits through compactions, also while it is cut off"),
                     survives_or({errc::outcome_unknown, errc::unavailable}), survives(), survives()},
        .strike = [&](operation&) -> asio::awaitable<void> {
          link.cut();
          at.record = co_await history_from(at.other, 1);
          const auto last = at.record.back().kv->mod_revision;
          co_await at.other.compact(last, true);
          at.record_goes_on = last + 1;
        },
        .mend = [&](operation&) -> asio::awaitable<void> {
          link.heal();
          co_return;
        }};
    co_await meets_all_at_once(at, what);
  });
}

TEST_CASE("fault: the store is full", "[fault]") {
  etcd_server server{{.quota_backend_bytes = 4 * 1024 * 1024}};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect(context, server), connect(context, server)};
    at.ttl = 12s;
    conclave::revision filled = 0;
    const std::string there = queues + "a full etcd says so, and no item is lost";
    const fault what{
        .name = "NOSPACE alarm",
        // etcd 3.4 refuses transactions that only delete, too.
        .expected = {survives(40s), survives(40s), survives_or({errc::no_space}, 40s), survives(40s),
                     elsewhere(there), ends({errc::no_space}, 40s), survives(40s)},
        .strike = [&](operation&) -> asio::awaitable<void> {
          at.record = co_await history_from(at.other, 1);
          const std::string ballast(200 * 1024, 'x');
          std::error_code full;
          for (int i = 0; i < 100 && !full; ++i) full = co_await error_of(at.other.put("ballast", ballast));
          CHECK(full == errc::no_space);
          const auto status = co_await at.other.status();
          filled = status.header.revision;
          at.record_goes_on = filled + 1;
        },
        .mend = [&](operation&) -> asio::awaitable<void> { co_await make_room(at.other, server, filled); },
        .others_served = false,
        .stands = true};
    co_await meets_all_at_once(at, what);
  });
}

TEST_CASE("fault: another request of the client is too large", "[fault]") {
  etcd_server server;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    scene at{context, connect(context, server), connect(context, server)};
    const fault what{
        .name = "too-large request",
        .expected = {survives(), survives(), survives(), survives(),
                     elsewhere(queues + "a value that is too large is refused, and the queue goes on"),
                     survives(), survives()},
        .strike = [&](operation&) -> asio::awaitable<void> {
          for (const std::size_t kib : {1600U, 3072U}) {
            const auto code = co_await error_of(at.mine.put("large", std::string(kib * 1024, 'x')));
            CHECK(code == errc::request_too_large);
          }
        },
        .others_served = true};
    co_await meets_all_at_once(at, what);
  });
}

// ---- credentials ------------------------------------------------------------------------------------------

TEST_CASE("fault: the token has expired", "[fault]") {
  etcd_server_options options;
  options.auth_token_ttl = 1s;
  etcd_server server{options};
  etcd_users users{{.endpoints = server.endpoint()}};
  users.add_role("app");
  for (const char* prefix : {"lock/", "jobs/", "claim/"}) users.allow_prefix("app", prefix, "readwrite");
  users.add_user("alice", "alice's password");
  users.grant_role("alice", "app");
  users.enable();
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options alice;
    alice.endpoints(server.endpoint()).user("alice", "alice's password");
    client_options root;
    root.endpoints(server.endpoint()).user("root", "root password");
    scene at{context, client{context.get_executor(), alice}, client{context.get_executor(), root}};
    at.ttl = 30s;  // nothing uses the token until the fault is there
    double before = 0;
    const std::string there = security + "a token that expires is replaced, for calls and for streams";
    const fault what{.name = "token expired",
                     .expected = {survives(), elsewhere(there), survives(), survives(), survives(),
                                  survives(), elsewhere(there)},
                     .strike = [&](operation&) -> asio::awaitable<void> {
                       co_await pause_for(3s);  // etcd looks each second which are too old
                       before = calls_started(server, "Auth", "Authenticate");
                     }};
    co_await meets_all_at_once(at, what);
    CHECK(calls_started(server, "Auth", "Authenticate") >= before + 2);  // both users
  });
}

TEST_CASE("fault: the server's certificate is refused when the client connects again", "[fault]") {
  certificate_authority ca;
  certificate_authority stranger{"somebody else"};
  const auto good = ca.server();
  const auto bad = stranger.server();
  const conclave::testing::temporary_folder folder{"conclave-shown-"};
  const auto show = [&](const certificate& which) {
    namespace files = std::filesystem;
    files::copy_file(which.file, folder.path() / "server.crt", files::copy_options::overwrite_existing);
    files::copy_file(which.key_file, folder.path() / "server.key", files::copy_options::overwrite_existing);
  };
  show(good);
  conclave::testing::etcd_tls_options shown;
  shown.certificate_file = folder.path() / "server.crt";
  shown.key_file = folder.path() / "server.key";
  etcd_server_options with_tls;
  with_tls.tls = shown;
  etcd_server server{with_tls};
  faulty_link link{server.port()};
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options mine;
    mine.endpoints("https://127.0.0.1:" + std::to_string(link.port()))
        .tls(conclave::tls_options{}.ca(ca.pem()));
    client_options others;
    others.endpoints(server.endpoint()).tls(conclave::tls_options{}.ca(ca.pem() + stranger.pem()));
    scene at{context, client{context.get_executor(), mine}, client{context.get_executor(), others}};
    at.ttl = 12s;
    const fault what{
        .name = "certificate refused",
        .expected = {survives(25s), survives(25s),
                     ends({errc::certificate_refused, errc::unavailable, errc::outcome_unknown}, 25s),
                     survives(25s), ends({errc::certificate_refused}, 25s),
                     ends({errc::certificate_refused}, 25s), survives(25s)},
        .strike = [&](operation&) -> asio::awaitable<void> {
          show(bad);  // etcd reads it for each connection
          link.reset();
          const auto code = co_await error_of(at.mine.get("k"));
          CHECK(code);
        },
        .mend = [&](operation&) -> asio::awaitable<void> {
          show(good);
          co_return;
        },
        .stands = true};
    co_await meets_all_at_once(at, what);
  });
}
