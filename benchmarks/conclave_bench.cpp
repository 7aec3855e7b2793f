// SPDX-License-Identifier: BSL-1.0

// conclave_bench CASE [OPTION...]: does one thing many times on an etcd, checks that it was done right, and
// prints one line of JSON about it. benchmarks/README.md lists the cases and the options.

#include "measure.hpp"

#include <asio.hpp>
#include <conclave/conclave.hpp>

#include <sys/prctl.h>

#include <csignal>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>

namespace {

using bench::clock;
using bench::milliseconds;

// ---- coroutines side by side ------------------------------------------------------------------------------------

asio::awaitable<void> sleep_for(clock::duration time) {
  asio::steady_timer timer{co_await asio::this_coro::executor};
  timer.expires_after(time);
  co_await timer.async_wait(asio::use_awaitable);
}

/// A flag that coroutines of one thread wait for.
class flag {
public:
  explicit flag(const asio::any_io_executor& on) : timer_(on, asio::steady_timer::time_point::max()) {}

  void set() {
    set_ = true;
    timer_.cancel();
  }
  void clear() { set_ = false; }
  [[nodiscard]] bool is_set() const { return set_; }

  asio::awaitable<void> wait() {
    asio::error_code woken;
    while (!set_) co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, woken));
  }

private:
  asio::steady_timer timer_;
  bool set_ = false;
};

/// Coroutines of one thread. The first failure is thrown by `wait`.
class group {
public:
  explicit group(const asio::any_io_executor& on) : ended_(on) {}

  void start(asio::awaitable<void> work) {
    ++state_->running;
    asio::co_spawn(ended_.on, std::move(work), [state = state_, this](std::exception_ptr failure) {
      --state->running;
      if (state->abandoned) return;
      if (failure && !state->failure) state->failure = failure;
      if (state->failure || state->running == 0) ended_.done.set();
    });
  }

  /// Until all have ended, or one has failed.
  asio::awaitable<void> wait() {
    co_await ended_.done.wait();
    if (state_->failure) std::rethrow_exception(state_->failure);
  }

  /// Until `enough`, or one has failed. Those that still run are left alone.
  template <class Enough>
  asio::awaitable<void> wait_until(Enough enough) {
    while (!enough() && !state_->failure && state_->running != 0) co_await sleep_for(milliseconds{1});
    if (state_->failure) std::rethrow_exception(state_->failure);
  }

  ~group() { state_->abandoned = true; }

private:
  struct state {
    std::size_t running = 0;
    bool abandoned = false;
    std::exception_ptr failure;
  };
  struct ending {
    explicit ending(const asio::any_io_executor& executor) : on(executor), done(executor) {}
    asio::any_io_executor on;
    flag done;
  };
  ending ended_;
  std::shared_ptr<state> state_ = std::make_shared<state>();
};

// ---- what a case runs on ----------------------------------------------------------------------------------------

struct bed {
  const bench::options& given;
  bench::run& run;
  conclave::client client;
  asio::any_io_executor on;
  std::string value;
  std::vector<std::shared_ptr<void>> kept{};

  /// Makes something that coroutines may use which are still waiting when a case has ended.
  template <class T, class... Arguments>
  T& keep(Arguments&&... arguments) {
    auto made = std::make_shared<T>(std::forward<Arguments>(arguments)...);
    kept.push_back(made);
    return *made;
  }

  [[nodiscard]] std::size_t total() const { return given.warmup + given.count; }
};

/// Counts operations of all workers: those of the warm-up, those that are measured, and no more.
class counter {
public:
  explicit counter(bed& of) : bed_(of), enough_(of.on) {
    if (bed_.given.warmup == 0) bed_.run.start();
  }

  /// Whether another operation may begin.
  [[nodiscard]] bool begin() {
    if (enough_.is_set() || begun_ == bed_.total()) return false;
    ++begun_;
    return true;
  }
  [[nodiscard]] std::size_t begun() const { return begun_; }

  void end(clock::time_point since) {
    if (enough_.is_set()) return;
    if (ended_ >= bed_.given.warmup) bed_.run.add(since);
    if (++ended_ == bed_.given.warmup) bed_.run.start();
    if (ended_ == bed_.total() || (ended_ > bed_.given.warmup && bed_.run.over())) stop();
  }

  /// Set when all has been done, or the limit has passed.
  flag& enough() { return enough_; }

private:
  void stop() {
    bed_.run.stop();
    enough_.set();
  }

  bed& bed_;
  flag enough_;
  std::size_t begun_ = 0;
  std::size_t ended_ = 0;
};

asio::awaitable<std::vector<conclave::session>> open_sessions(bed& b, std::size_t many) {
  std::vector<conclave::session> out;
  struct opener {
    static asio::awaitable<void> one(conclave::client client, std::vector<conclave::session>& into) {
      conclave::session_options slow{.ttl = std::chrono::seconds{60}};
      auto opened = co_await conclave::session::open(std::move(client), slow);
      into.push_back(std::move(opened));
    }
  };
  while (out.size() < many) {
    group some{b.on};
    const auto now = std::min<std::size_t>(many - out.size(), 64);
    for (std::size_t i = 0; i < now; ++i) some.start(opener::one(b.client, out));
    co_await some.wait();
  }
  co_return out;
}

asio::awaitable<void> close_sessions(bed& b, std::vector<conclave::session> sessions) {
  struct closer {
    static asio::awaitable<void> one(conclave::session session) { co_await session.close(); }
  };
  group all{b.on};
  for (auto& each : sessions) all.start(closer::one(each));
  if (!sessions.empty()) co_await all.wait();
}

void require(bool that, const char* otherwise) {
  if (!that) throw std::runtime_error(otherwise);
}

// ---- puts -------------------------------------------------------------------------------------------------------

constexpr std::size_t different_keys = 4096;
std::string key_number(std::size_t i) { return "key/" + std::to_string(i % different_keys); }

asio::awaitable<void> putter(bed& b, counter& all, bool combined) {
  while (all.begin()) {
    auto key = key_number(all.begun());
    const auto since = clock::now();
    if (combined) {
      auto write = conclave::txn{}.then(conclave::put(std::move(key), b.value));
      const auto answer = co_await b.client.combined_txn(std::move(write));
      require(answer.succeeded, "a put did not succeed");
    } else {
      co_await b.client.put(std::move(key), b.value);
    }
    all.end(since);
  }
}

asio::awaitable<void> put_at_depth(bed& b, std::size_t depth) {
  counter all{b};
  group workers{b.on};
  for (std::size_t i = 0; i < depth; ++i) workers.start(putter(b, all, b.given.combined));
  co_await workers.wait();
  const auto found = co_await b.client.range(conclave::range_prefix("key/", {.count_only = true}));
  require(static_cast<std::size_t>(found.count) == std::min(all.begun(), different_keys),
          "not every key is there that was put");
}

asio::awaitable<void> put(bed& b) { return put_at_depth(b, 1); }
asio::awaitable<void> put_pipelined(bed& b) { return put_at_depth(b, b.given.depth); }

// ---- locks ------------------------------------------------------------------------------------------------------

asio::awaitable<void> locker(conclave::session session, std::string name, counter& all,
                             bench::exclusion& inside) {
  conclave::mutex mutex{session, std::move(name)};
  while (all.begin()) {
    const auto since = clock::now();
    auto lock = co_await mutex.lock();
    inside.enter();
    // Somebody else's turn, if it should be allowed to come.
    co_await asio::post(asio::use_awaitable);
    inside.leave();
    all.end(since);
    co_await lock.unlock();
  }
}

/// The time from the call of lock to the end of unlock, as nobody is in the way.
asio::awaitable<void> lone_locker(conclave::session session, std::string name, counter& all) {
  conclave::mutex mutex{session, std::move(name)};
  conclave::revision last = 0;
  while (all.begin()) {
    const auto since = clock::now();
    auto lock = co_await mutex.lock();
    require(lock.token() > last, "a token did not grow");
    last = lock.token();
    co_await lock.unlock();
    all.end(since);
  }
}

asio::awaitable<void> lock_uncontended(bed& b) {
  auto sessions = co_await open_sessions(b, 1);
  counter all{b};
  co_await lone_locker(sessions.front(), "lock", all);
  co_await close_sessions(b, std::move(sessions));
}

asio::awaitable<void> contend(bed& b, std::size_t sessions_wanted) {
  auto sessions = co_await open_sessions(b, sessions_wanted);
  counter all{b};
  bench::exclusion inside;
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.contenders; ++i)
    workers.start(locker(sessions[i % sessions.size()], "lock", all, inside));
  co_await workers.wait();
  co_await close_sessions(b, std::move(sessions));
}

asio::awaitable<void> lock_contended(bed& b) { return contend(b, b.given.contenders); }
asio::awaitable<void> lock_shared_session(bed& b) { return contend(b, 1); }

asio::awaitable<void> lock_many(bed& b) {
  auto sessions = co_await open_sessions(b, 1);
  counter all{b};
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.depth; ++i)
    workers.start(lone_locker(sessions.front(), "lock/" + std::to_string(i), all));
  co_await workers.wait();
  co_await close_sessions(b, std::move(sessions));
}

struct waiting_room {
  std::vector<std::unique_ptr<bench::exclusion>> inside;
  std::size_t entered = 0;
};

asio::awaitable<void> stand(bed& b, conclave::session session, std::size_t which, waiting_room& room) {
  conclave::mutex mutex{std::move(session), "lock/" + std::to_string(which)};
  ++room.entered;
  auto lock = co_await mutex.lock();
  b.run.add(b.run.begun_at());
  room.inside[which]->enter();
  co_await asio::post(asio::use_awaitable);
  room.inside[which]->leave();
  co_await lock.unlock();
}

/// The keys that stand in line for the locks, the holders' included.
asio::awaitable<std::size_t> in_line(bed& b) {
  const auto found = co_await b.client.range(conclave::range_prefix("lock/", {.count_only = true}));
  co_return static_cast<std::size_t>(found.count);
}

asio::awaitable<void> hold_one(conclave::session session, std::size_t which,
                               std::vector<conclave::unique_lock>& into) {
  conclave::mutex mutex{std::move(session), "lock/" + std::to_string(which)};
  auto lock = co_await mutex.lock();
  into.push_back(std::move(lock));
}

asio::awaitable<void> free_one(conclave::unique_lock& lock) { return lock.unlock(); }

asio::awaitable<void> waiters(bed& b) {
  const auto locks = std::max<std::size_t>(1, b.given.locks);
  auto holders = co_await open_sessions(b, 1);
  auto sessions = co_await open_sessions(b, std::max<std::size_t>(1, b.given.sessions));
  std::vector<conclave::unique_lock> held;
  for (std::size_t i = 0; i < locks;) {
    group some{b.on};
    for (const auto end = std::min(locks, i + 256); i < end; ++i)
      some.start(hold_one(holders.front(), i, held));
    co_await some.wait();
  }
  waiting_room room;
  for (std::size_t i = 0; i < locks; ++i) room.inside.push_back(std::make_unique<bench::exclusion>());

  const auto before = bench::rss_kib();
  const auto threads_before = bench::threads();
  const auto since = clock::now();
  group all{b.on};
  for (std::size_t i = 0; i < b.given.count; ++i)
    all.start(stand(b, sessions[i % sessions.size()], i % locks, room));
  // Each session stands in the cluster's line of a lock once.
  const auto keys = locks + std::min(b.given.count, std::max(locks, sessions.size()));
  while (room.entered < b.given.count || co_await in_line(b) < keys) co_await sleep_for(milliseconds{20});
  const auto standing = clock::now() - since;
  const auto after = bench::rss_kib();
  const auto threads_after = bench::threads();

  b.run.start();
  group freeing{b.on};
  for (auto& each : held) freeing.start(free_one(each));
  co_await freeing.wait();
  co_await all.wait();
  b.run.stop();
  b.run.note("bytes_each", static_cast<double>(after - std::min(after, before)) * 1024.0 /
                               static_cast<double>(b.given.count));
  b.run.note("extra_threads", static_cast<double>(threads_after) - static_cast<double>(threads_before));
  b.run.note("waiting_rss_kib", static_cast<double>(after));
  b.run.note("enter_seconds", std::chrono::duration<double>(standing).count());
  for (auto& each : sessions) holders.push_back(std::move(each));
  co_await close_sessions(b, std::move(holders));
}

struct baton {
  clock::time_point released;
  bool first = true;
};

asio::awaitable<void> pass_on(conclave::session session, counter& all, baton& shared,
                              bench::exclusion& inside) {
  conclave::mutex mutex{std::move(session), "lock"};
  while (!all.enough().is_set()) {
    auto lock = co_await mutex.lock();
    inside.enter();
    if (!shared.first) all.end(shared.released);
    shared.first = false;
    while (!all.enough().is_set()) {
      const auto line = co_await mutex.inspect();
      if (line.places.size() == 2) break;
    }
    inside.leave();
    shared.released = clock::now();
    co_await lock.unlock();
  }
}

asio::awaitable<void> handoff(bed& b) {
  auto sessions = co_await open_sessions(b, 2);
  counter all{b};
  bench::exclusion inside;
  baton shared;
  group two{b.on};
  for (const auto& each : sessions) two.start(pass_on(each, all, shared, inside));
  co_await two.wait();
  co_await close_sessions(b, std::move(sessions));
}

// ---- queues -----------------------------------------------------------------------------------------------------

/// An item says its number and when it was made.
std::string make_item(std::size_t number, std::size_t size) {
  auto out = std::to_string(number) + ' ' + std::to_string(clock::now().time_since_epoch().count()) + ' ';
  if (out.size() < size) out.resize(size, 'x');
  return out;
}

struct item {
  std::size_t number = 0;
  clock::time_point made;

  explicit item(const std::string& text) {
    char* end = nullptr;
    number = std::strtoull(text.c_str(), &end, 10);
    made = clock::time_point{clock::duration{std::strtoll(end, nullptr, 10)}};
  }
};

asio::awaitable<void> producer(bed& b, conclave::queue queue, std::size_t& next, counter* all) {
  while (next < b.total() && (all == nullptr || all->begin())) {
    auto text = make_item(next++, b.given.value_size);
    const auto since = clock::now();
    co_await queue.enqueue(std::move(text));
    if (all != nullptr) all->end(since);
  }
}

asio::awaitable<void> enqueue(bed& b) {
  conclave::queue queue{b.client, "queue"};
  counter all{b};
  std::size_t next = 0;
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.producers; ++i) workers.start(producer(b, queue, next, &all));
  co_await workers.wait();
  require(co_await queue.size() == next, "not every item is in the queue");
}

/// Takes until everything has been taken; times are those from the call, or from the making of the item.
template <class Queue>
asio::awaitable<void> consumer(Queue queue, counter& all, bench::each_once& items, bool from_making,
                               std::size_t* last) {
  while (!all.enough().is_set()) {
    const auto since = clock::now();
    const std::string text = co_await queue.dequeue();
    const item got{text};
    items.take(got.number);
    if (last != nullptr) {
      require(*last <= got.number, "an item came before its turn");
      *last = got.number;
    }
    all.end(from_making ? got.made : since);
  }
}

/// The same from a full queue, so many at a time; the time of each is that of the call.
asio::awaitable<void> consumer_of_batches(conclave::queue queue, std::size_t most, counter& all,
                                          bench::each_once& items) {
  while (!all.enough().is_set()) {
    const auto since = clock::now();
    const std::vector<std::string> some = co_await queue.dequeue_up_to(most);
    for (const auto& text : some) {
      items.take(item{text}.number);
      all.end(since);
    }
  }
}

void require_all(bed& b, const bench::each_once& items) {
  require(items.all() || b.given.limit != 0, "an item was lost");
}

asio::awaitable<void> drain(bed& b) {
  conclave::queue queue{b.client, "queue"};
  for (std::size_t next = 0; next < b.total();) {
    std::vector<std::string> some;
    while (next < b.total() && some.size() < 100) some.push_back(make_item(next++, b.given.value_size));
    co_await queue.enqueue_all(std::move(some));
  }
  auto& items = b.keep<bench::each_once>(b.total());
  auto& all = b.keep<counter>(b);
  auto& last = b.keep<std::size_t>(0U);
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.consumers; ++i)
    workers.start(b.given.batch > 1
                      ? consumer_of_batches(queue, b.given.batch, all, items)
                      : consumer(queue, all, items, false, b.given.consumers == 1 ? &last : nullptr));
  const auto enough = [&all] { return all.enough().is_set(); };
  co_await workers.wait_until(enough);
  require_all(b, items);
}

asio::awaitable<void> steady_queue(bed& b) {
  conclave::queue queue{b.client, "queue"};
  auto& items = b.keep<bench::each_once>(b.total());
  auto& all = b.keep<counter>(b);
  auto& next = b.keep<std::size_t>(0U);
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.consumers; ++i)
    workers.start(consumer(queue, all, items, true, nullptr));
  for (std::size_t i = 0; i < b.given.producers; ++i) workers.start(producer(b, queue, next, nullptr));
  const auto enough = [&all] { return all.enough().is_set(); };
  co_await workers.wait_until(enough);
  require_all(b, items);
}

constexpr std::size_t priorities = 10;

/// Items are numbered in the order in which they should come.
asio::awaitable<void> prioritise(bed& b, conclave::priority_queue queue, std::size_t priority) {
  const auto share = (b.total() + priorities - 1) / priorities;
  const auto end = std::min(b.total(), (priority + 1) * share);
  for (auto number = std::min(b.total(), priority * share); number < end; ++number)
    co_await queue.enqueue(make_item(number, b.given.value_size), static_cast<std::uint16_t>(priority));
}

asio::awaitable<void> priority_drain(bed& b) {
  conclave::priority_queue queue{b.client, "queue"};
  {
    group filling{b.on};
    for (std::size_t i = 0; i < priorities; ++i) filling.start(prioritise(b, queue, i));
    co_await filling.wait();
  }
  auto& items = b.keep<bench::each_once>(b.total());
  auto& all = b.keep<counter>(b);
  auto& last = b.keep<std::size_t>(0U);
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.consumers; ++i)
    workers.start(consumer(queue, all, items, false, b.given.consumers == 1 ? &last : nullptr));
  const auto enough = [&all] { return all.enough().is_set(); };
  co_await workers.wait_until(enough);
  require_all(b, items);
}

asio::awaitable<void> idle_consumer(conclave::queue queue, counter& all, bench::each_once& items,
                                    flag& delivered) {
  while (!all.enough().is_set()) {
    const std::string text = co_await queue.dequeue();
    const item got{text};
    items.take(got.number);
    all.end(got.made);
    delivered.set();
  }
}

asio::awaitable<void> dequeue_latency(bed& b) {
  conclave::queue queue{b.client, "queue"};
  auto& items = b.keep<bench::each_once>(b.total());
  auto& all = b.keep<counter>(b);
  auto& delivered = b.keep<flag>(b.on);
  group one{b.on};
  one.start(idle_consumer(queue, all, items, delivered));
  for (std::size_t next = 0; next < b.total() && !all.enough().is_set();) {
    // As long as it takes etcd's slow watches to catch up: Go's consumer is to be idle as well.
    co_await sleep_for(milliseconds{110});
    delivered.clear();
    co_await queue.enqueue(make_item(next++, b.given.value_size));
    co_await delivered.wait();
  }
  require_all(b, items);
}

// ---- several processes ------------------------------------------------------------------------------------------

/// Memory that all processes of a run share. Their clocks are one.
class common {
public:
  explicit common(std::size_t operations) : bytes_(sizeof(head) + operations * sizeof(operation)) {
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::system_error{errno, std::generic_category(), "mmap"};
    new (memory_) head;
    for (std::size_t i = 0; i < operations; ++i) new (&at(i)) operation;
  }
  common(const common&) = delete;
  common& operator=(const common&) = delete;
  ~common() { ::munmap(memory_, bytes_); }

  struct head {
    std::atomic<std::size_t> ready{0};
    std::atomic<bool> go{false};
    std::atomic<bool> stop{false};
    std::atomic<int> inside{0};
    std::atomic<std::size_t> begun{0};
    std::atomic<std::size_t> ended{0};
    std::atomic<std::int64_t> cpu_us{0};
    std::atomic<std::size_t> rss_kib{0};
    std::atomic<std::size_t> threads{0};
  };
  struct operation {
    std::atomic<bool> seen{false};
    std::atomic<clock::rep> since{0};
    std::atomic<clock::rep> until{0};
  };

  head& of_all() { return *static_cast<head*>(memory_); }
  operation& at(std::size_t i) {
    return *(reinterpret_cast<operation*>(static_cast<char*>(memory_) + sizeof(head)) + i);
  }

  /// False when there was enough already.
  bool end(std::size_t most, clock::time_point since) {
    const auto i = of_all().ended.fetch_add(1);
    if (i >= most) return false;
    at(i).since = since.time_since_epoch().count();
    at(i).until = clock::now().time_since_epoch().count();
    return i + 1 < most;
  }

private:
  std::size_t bytes_;
  void* memory_ = nullptr;
};

asio::awaitable<void> wait_for_go(common& shared) {
  ++shared.of_all().ready;
  while (!shared.of_all().go) co_await sleep_for(milliseconds{1});
}

asio::awaitable<void> lock_process(bed& b, common& shared) {
  auto sessions = co_await open_sessions(b, 1);
  conclave::mutex mutex{sessions.front(), "lock"};
  {
    auto lock = co_await mutex.lock();
    co_await lock.unlock();
  }
  co_await wait_for_go(shared);
  auto& all = shared.of_all();
  while (!all.stop) {
    const auto since = clock::now();
    auto lock = co_await mutex.lock();
    require(all.inside.fetch_add(1) == 0, "two processes held one lock");
    co_await asio::post(asio::use_awaitable);
    --all.inside;
    if (!shared.end(b.given.count, since)) all.stop = true;
    co_await lock.unlock();
  }
  co_await close_sessions(b, std::move(sessions));
}

asio::awaitable<void> process_producer(bed& b, conclave::queue queue, common& shared) {
  while (!shared.of_all().stop) {
    const auto number = shared.of_all().begun.fetch_add(1);
    if (number >= b.given.count) break;
    co_await queue.enqueue(make_item(number, b.given.value_size));
  }
}

asio::awaitable<void> process_consumer(bed& b, conclave::queue queue, common& shared) {
  while (!shared.of_all().stop) {
    const std::string text = co_await queue.dequeue();
    const item got{text};
    require(got.number < b.given.count && !shared.at(got.number).seen.exchange(true), "an item came twice");
    if (!shared.end(b.given.count, got.made)) shared.of_all().stop = true;
  }
}

asio::awaitable<void> queue_process(bed& b, common& shared) {
  conclave::queue queue{b.client, "queue"};
  co_await wait_for_go(shared);
  group workers{b.on};
  for (std::size_t i = 0; i < b.given.consumers; ++i) workers.start(process_consumer(b, queue, shared));
  for (std::size_t i = 0; i < b.given.producers; ++i) workers.start(process_producer(b, queue, shared));
  // Another process's consumers may have taken the last.
  const auto enough = [&shared] { return shared.of_all().stop.load(); };
  co_await workers.wait_until(enough);
}

// ---- the program ------------------------------------------------------------------------------------------------

struct bench_case {
  const char* name;
  asio::awaitable<void> (*work)(bed&);
  asio::awaitable<void> (*process)(bed&, common&) = nullptr;
};

const bench_case cases[] = {
    {"put", put},
    {"put-pipelined", put_pipelined},
    {"lock-uncontended", lock_uncontended},
    {"lock-contended", lock_contended, lock_process},
    {"lock-shared-session", lock_shared_session},
    {"lock-many", lock_many},
    {"waiters", waiters},
    {"handoff", handoff},
    {"enqueue", enqueue},
    {"drain", drain},
    {"queue", steady_queue, queue_process},
    {"priority-drain", priority_drain},
    {"dequeue-latency", dequeue_latency},
};

conclave::client_options client_options(const bench::options& given, const std::string& prefix) {
  conclave::client_options out;
  out.endpoints(given.endpoints).key_prefix(prefix).request_timeout(std::chrono::seconds{30});
  return out;
}

/// Runs `work` on a thread and a client of its own, to its end.
template <class Work>
void run_to_end(const bench::options& given, bench::run& run, const std::string& prefix, bool clean,
                Work work) {
  asio::io_context context{1};
  std::exception_ptr failure;
  conclave::client client{context.get_executor(), client_options(given, prefix)};
  bed b{given, run, std::move(client), context.get_executor(), given.value()};
  struct whole {
    static asio::awaitable<void> of(bed& on, bool clean, Work& work) {
      co_await work(on);
      if (clean) co_await on.client.delete_range(conclave::delete_prefix(""));
    }
  };
  asio::co_spawn(context, whole::of(b, clean, work), [&](std::exception_ptr thrown) {
    failure = thrown;
    context.stop();
  });
  context.run();
  if (failure) std::rethrow_exception(failure);
}

/// Another process, which ends with this one.
pid_t fork_off(const std::function<void()>& work) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) throw std::system_error{errno, std::generic_category(), "fork"};
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) std::_Exit(1);
  try {
    work();
    std::_Exit(0);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "conclave_bench: %s\n", e.what());
    std::_Exit(1);
  }
}

asio::awaitable<void> make_noise(bed& b) {
  auto next = clock::now();
  const auto pause = std::chrono::nanoseconds{1'000'000'000 / b.given.noise};
  for (std::size_t i = 0;; ++i) {
    next += pause;
    co_await b.client.put("noise/" + std::to_string(i % 100), b.value);
    if (const auto left = next - clock::now(); left.count() > 0) co_await sleep_for(left);
  }
}

void run_processes(const bench::options& given, bench::run& run, const bench_case& one) {
  const auto prefix = bench::fresh_prefix();
  common shared{given.count};
  std::vector<pid_t> children;
  for (std::size_t i = 0; i < given.processes; ++i)
    children.push_back(fork_off([&] {
      run_to_end(given, run, prefix, false,
                 [&](bed& b) -> asio::awaitable<void> { return one.process(b, shared); });
      shared.of_all().cpu_us += static_cast<std::int64_t>(bench::cpu_seconds() * 1e6);
      shared.of_all().rss_kib += bench::rss_kib();
      shared.of_all().threads += bench::threads();
    }));
  auto& all = shared.of_all();
  const auto any_failed = [&] {
    int status = 0;
    for (const pid_t each : children)
      if (::waitpid(each, &status, WNOHANG) == each && status != 0)
        throw std::runtime_error("a process failed");
  };
  while (all.ready < given.processes) {
    any_failed();
    ::usleep(1000);
  }
  run.start();
  all.go = true;
  while (!all.stop) {
    any_failed();
    if (run.over()) all.stop = true;
    ::usleep(1000);
  }
  run.stop();
  // Consumers without an item wait for ever.
  const auto patience = clock::now() + std::chrono::seconds{10};
  for (const pid_t each : children) {
    int status = 0;
    while (::waitpid(each, &status, WNOHANG) == 0) {
      if (clock::now() > patience) ::kill(each, SIGKILL);
      ::usleep(1000);
    }
    require(status == 0 || WIFSIGNALED(status), "a process failed");
  }
  const auto ended = std::min<std::size_t>(all.ended, given.count);
  require(ended == given.count || given.limit != 0, "not everything was done");
  run.take_over(static_cast<double>(all.cpu_us) * 1e-6, all.rss_kib, all.threads);
  for (std::size_t i = 0; i < ended; ++i)
    run.add_late(clock::time_point{clock::duration{shared.at(i).since}},
                 clock::time_point{clock::duration{shared.at(i).until}});
}

int run_case(const bench::options& given) {
  for (const auto& each : cases) {
    if (each.name != given.bench) continue;
    pid_t noise = 0;
    if (given.noise != 0)
      noise = fork_off([&] {
        bench::run none{given};
        run_to_end(given, none, bench::fresh_prefix(), false, make_noise);
      });
    bench::run run{given};
    if (given.processes == 0) {
      run_to_end(given, run, bench::fresh_prefix(), true, each.work);
    } else {
      if (each.process == nullptr) throw std::invalid_argument(given.bench + " has no --processes");
      run_processes(given, run, each);
    }
    if (noise != 0) {
      ::kill(noise, SIGKILL);
      ::waitpid(noise, nullptr, 0);
    }
    run.print("conclave");
    return 0;
  }
  std::cerr << "usage: conclave_bench CASE [OPTION...]; the cases:";
  for (const auto& each : cases) std::cerr << ' ' << each.name;
  std::cerr << '\n';
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_case(bench::parse(argc, argv));
  } catch (const std::exception& e) {
    std::cerr << "conclave_bench: " << e.what() << '\n';
    return 1;
  }
}
