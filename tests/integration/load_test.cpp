// SPDX-License-Identifier: BSL-1.0

// Thousands of coroutines that wait at a time, on one thread: what they cost in threads, streams and memory, and
// that each is served, or cancelled, in its turn.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>

#include "on_lock.hpp"

#include <malloc.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <thread>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::condition;
using conclave::delete_key;
using conclave::errc;
using conclave::put;
using conclave::revision;
using conclave::session;
using conclave::txn;

// Under a sanitizer memory is another's business.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif
#else
constexpr bool sanitized = false;
#endif

/// Without optimisation, and on a machine that others keep busy.
constexpr auto at_leisure = 60s;

std::string first_line(const std::filesystem::path& file) {
  std::ifstream in{file};
  std::string line;
  std::getline(in, line);
  return line;
}

/// What this process takes of the machine at a moment.
struct footprint {
  std::size_t bytes = 0;
  /// Threads by name. gRPC gives its own one each; all others have the program's, the library's too.
  std::map<std::string, int> threads;

  static footprint now() {
    footprint out;
    malloc_trim(0);
    std::ifstream statm{"/proc/self/statm"};
    std::size_t pages = 0;
    statm >> pages >> pages;  // all, and those in memory
    out.bytes = pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    for (const auto& each : std::filesystem::directory_iterator{"/proc/self/task"})
      ++out.threads[first_line(each.path() / "comm")];
    return out;
  }

  /// Those that nobody gave a name.
  int threads_of_the_program() const {
    const auto found = threads.find(first_line("/proc/self/comm"));
    return found == threads.end() ? 0 : found->second;
  }
};

/// Prints what `count` waiters cost, and checks that it is no thread, and at most `limit` bytes each.
void check_cost(const char* what, std::size_t count, const footprint& before, footprint after,
                std::size_t limit) {
  // A new thread of gRPC's has the program's name until it has run for a moment.
  for (int i = 0; i < 100 && after.threads_of_the_program() != before.threads_of_the_program(); ++i) {
    std::this_thread::sleep_for(10ms);
    after.threads = footprint::now().threads;
  }
  const auto bytes = (after.bytes - std::min(before.bytes, after.bytes)) / count;
  std::printf("%zu %s: %zu bytes each; threads:", count, what, bytes);
  for (const auto& [name, number] : after.threads) {
    const auto found = before.threads.find(name);
    std::printf(" %s %d (before %d)", name.c_str(), number,
                found == before.threads.end() ? 0 : found->second);
  }
  std::printf("\n");
  std::fflush(stdout);
  CHECK(after.threads_of_the_program() == before.threads_of_the_program());
  if (!sanitized) CHECK(bytes <= limit);
}

/// Coroutines that wait, each of which can be cancelled.
class crowd {
public:
  crowd(asio::io_context& context, std::size_t count) : context_(context) {
    for (std::size_t i = 0; i < count; ++i)
      all_.push_back(std::make_shared<conclave::test::detail::task_base>());
  }

  /// Starts number `i`.
  void start(std::size_t i, asio::awaitable<void> work) {
    conclave::test::detail::spawn_task(context_, std::move(work), all_[i]);
  }

  void cancel(std::size_t i) { all_[i]->cancellation.emit(asio::cancellation_type::terminal); }

  bool ended(std::size_t i) const { return all_[i]->done; }

private:
  asio::io_context& context_;
  std::vector<std::shared_ptr<conclave::test::detail::task_base>> all_;
};

/// What the coroutines of a test wrote down.
struct record {
  std::size_t waiting = 0;  ///< Have asked.
  std::size_t cancelled = 0;
  std::size_t failed = 0;
  std::size_t inside = 0;                                      ///< Hold the lock now.
  std::vector<std::pair<std::size_t, revision>> holders;       ///< Number and token, in order.
  std::vector<std::pair<std::size_t, std::string>> receivers;  ///< Number and item, in order.
  std::size_t keep_at = 0;  ///< As many have the lock when its holder keeps it,
  bool release = false;     ///< until it is told to go.
};

void note_failure(record& log, const std::exception_ptr& why) {
  try {
    std::rethrow_exception(why);
  } catch (const conclave::error& e) {
    if (e.code() == condition::cancelled) {
      ++log.cancelled;
      return;
    }
    if (++log.failed <= 3) std::fprintf(stderr, "failed: %s\n", e.what());
  }
}

/// Takes the lock, is alone inside, and gives it back.
asio::awaitable<void> lock_once(session of, std::string name, std::size_t number, record& log) {
  std::exception_ptr why;
  try {
    conclave::mutex mutex{std::move(of), std::move(name)};
    ++log.waiting;
    auto lock = co_await mutex.lock();
    if (log.keep_at != 0) CHECK(log.inside == 0);
    ++log.inside;
    log.holders.emplace_back(number, lock.token());
    if (log.holders.size() == log.keep_at) {
      bool* const release = &log.release;
      co_await eventually(
          "the holder may go", [release] { return *release; }, at_leisure);
    }
    --log.inside;
    co_await lock.unlock();
  } catch (...) {
    why = std::current_exception();
  }
  if (why) note_failure(log, why);
}

asio::awaitable<void> dequeue_once(conclave::queue from, std::size_t number, record& log) {
  std::exception_ptr why;
  try {
    ++log.waiting;
    std::string item = co_await from.dequeue();
    log.receivers.emplace_back(number, std::move(item));
  } catch (...) {
    why = std::current_exception();
  }
  if (why) note_failure(log, why);
}

/// Connections, streams, the library's thread and what gRPC starts once are there before anything is measured.
asio::awaitable<void> warm_up(client on, session with, session other) {
  conclave::mutex first{with, "lock/warm"};
  conclave::mutex second{other, "lock/warm"};
  auto held = co_await first.lock();
  auto asked = second.try_lock_for(20ms);
  auto nothing = co_await std::move(asked);
  CHECK_FALSE(nothing.has_value());
  co_await held.unlock();
  conclave::queue jobs{on, "warm"};
  co_await jobs.enqueue("");
  co_await jobs.dequeue();
}

double reads_answered(const etcd_server& server) {
  return server.metric(
      "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\","
      "grpc_type=\"unary\"}");
}

/// Waits until there are so many watches, and so many reads have been answered. It looks seldom: a look keeps the
/// thread from its work.
asio::awaitable<void> watched_and_read(const etcd_server& server, double watches, double reads) {
  const auto deadline = now() + at_leisure;
  while (server.metric(watchers_metric) < watches || reads_answered(server) < reads) {
    if (now() > deadline) throw std::runtime_error{"not all are watched and read"};
    co_await pause_for(500ms);
  }
}

/// Takes events until `count` have been seen in all, or the watch ends: they are numbered, and none may be missing,
/// or come twice. Gives the error that ended it.
asio::awaitable<std::error_code> take_until(conclave::watcher& from, std::size_t& seen, std::size_t count) {
  std::error_code why;
  try {
    while (seen < count) {
      const auto batch = co_await from.next();
      for (const auto& each : batch) {
        REQUIRE(each.kv->key == "w/" + std::to_string(seen));
        ++seen;
      }
    }
  } catch (const conclave::error& e) {
    why = e.code();
  }
  co_return why;
}

void check_tokens_grow(const record& log) {
  revision last = 0;
  for (const auto& [number, token] : log.holders) {
    CHECK(token > last);
    last = token;
  }
}

}  // namespace

TEST_CASE("load: ten thousand coroutines wait for one lock") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr std::size_t count = 10'000;
        constexpr std::size_t served = 300;  // each is two round trips
        auto c = connect(context, server);
        auto with = co_await session::open(c);
        auto other = co_await session::open(c);
        co_await warm_up(c, with, other);
        conclave::mutex mutex{other, "lock/one"};
        auto held = co_await mutex.lock();

        record log;
        log.keep_at = served;
        crowd waiters{context, count};
        const auto before = footprint::now();
        for (std::size_t i = 0; i < count; ++i) waiters.start(i, lock_once(with, "lock/one", i, log));
        co_await eventually("all have asked", [&] { return log.waiting == count; });
        co_await in_line(c, "lock/one", 2);
        check_cost("coroutines wait for one lock", count, before, footprint::now(), 5000);
        CHECK(server.metric(watch_streams_metric) == 1);
        CHECK(log.holders.empty());

        co_await held.unlock();
        co_await eventually(
            "a part is served", [&] { return log.holders.size() == served; }, at_leisure);
        for (std::size_t i = 0; i < served; ++i) CHECK(log.holders[i].first == i);
        check_tokens_grow(log);
        // From the middle, so that neither end of the line is convenient.
        for (std::size_t i = 0; i < count; ++i) {
          const auto each = (i + count / 2) % count;
          if (each >= served) waiters.cancel(each);
        }
        co_await eventually(
            "the rest is cancelled", [&] { return log.cancelled == count - served; }, promptly);
        log.release = true;
        co_await eventually("the last has gone", [&] { return waiters.ended(served - 1); });
        CHECK(log.holders.size() == served);
        CHECK(log.failed == 0);
        co_await with.close();
        co_await other.close();
      },
      240s);
}

TEST_CASE("load: ten thousand coroutines wait for as many locks") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr std::size_t count = 10'000;
        constexpr std::size_t at_once = 100;
        auto c = connect(context, server);
        auto holding = connect(context, server);
        auto with = co_await session::open(c);
        auto other = co_await session::open(holding);
        co_await warm_up(c, with, other);
        auto name = [](std::size_t i) { return "lock/" + std::to_string(i); };
        auto key = [&](std::size_t i) { return key_of(name(i), other); };
        // Another program holds them all: the keys of its session stand first in each line.
        for (std::size_t i = 0; i < count;) {
          txn some;
          for (std::size_t end = i + at_once; i < end; ++i)
            some.then(put(key(i), "", {.lease = other.lease_id()}));
          co_await holding.txn(some);
        }

        record log;
        crowd waiters{context, count};
        constexpr auto all = static_cast<double>(count);
        const auto reads_before = reads_answered(server);
        const auto before = footprint::now();
        for (std::size_t i = 0; i < count; ++i) waiters.start(i, lock_once(with, name(i), i, log));
        co_await keys_below(c, "lock/", 2 * count, at_leisure);
        // Each line is read when its watch stands.
        co_await watched_and_read(server, all, reads_before + all);
        check_cost("coroutines wait for as many locks", count, before, footprint::now(), 16'000);
        CHECK(server.metric(watch_streams_metric) == 2);  // one for each client
        CHECK(log.holders.empty());

        // The holder lets them go, the last first.
        for (std::size_t left = count; left > 0;) {
          txn some;
          for (const std::size_t end = left - at_once; left > end; --left)
            some.then(delete_key(key(left - 1)));
          co_await holding.txn(some);
        }
        co_await keys_below(c, "lock/", 0, at_leisure);
        co_await eventually(
            "all have ended",
            [&] {
              for (std::size_t i = 0; i < count; ++i)
                if (!waiters.ended(i)) return false;
              return true;
            },
            at_leisure);
        std::set<std::size_t> numbers;
        for (const auto& [number, token] : log.holders) numbers.insert(number);
        CHECK(log.holders.size() == count);
        CHECK(numbers.size() == count);
        CHECK(log.failed == 0);
        co_await with.close();
        co_await other.close();
      },
      240s);
}

TEST_CASE("load: ten thousand dequeues wait") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr std::size_t count = 10'000;
        auto c = connect(context, server);
        {
          auto with = co_await session::open(c);
          auto other = co_await session::open(c);
          co_await warm_up(c, with, other);
        }
        conclave::queue jobs{c, "jobs"};

        record log;
        crowd waiters{context, count};
        const auto reads_before = reads_answered(server);
        const auto before = footprint::now();
        for (std::size_t i = 0; i < count; ++i) waiters.start(i, dequeue_once(jobs, i, log));
        co_await eventually("all have asked", [&] { return log.waiting == count; });
        co_await watched_and_read(server, 1, reads_before + 1);
        check_cost("dequeues wait", count, before, footprint::now(), 5000);
        CHECK(server.metric(watch_streams_metric) == 1);

        for (std::size_t i = 0; i < count; i += 2) waiters.cancel(i);
        co_await eventually(
            "every other one is cancelled", [&] { return log.cancelled == count / 2; }, promptly);
        std::vector<std::string> items;
        for (std::size_t i = 1; i < count; i += 2) items.push_back(std::to_string(i));
        co_await jobs.enqueue_all(items);
        co_await eventually(
            "the others are served", [&] { return log.receivers.size() == count / 2; }, at_leisure);
        // In the order in which they came, each the item of its turn.
        for (std::size_t i = 0; i < log.receivers.size(); ++i) {
          CHECK(log.receivers[i].first == 2 * i + 1);
          CHECK(log.receivers[i].second == items[i]);
        }
        const auto left = co_await jobs.size();
        CHECK(left == 0);
        CHECK(log.failed == 0);
      },
      240s);
}

TEST_CASE("load: a thousand sessions stand in one line") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr std::size_t count = 1000;
        auto c = connect(context, server);
        auto with = co_await session::open(c);
        auto other = co_await session::open(c);
        co_await warm_up(c, with, other);
        conclave::mutex mutex{other, "lock/one"};
        auto held = co_await mutex.lock();
        const auto before = footprint::now();

        std::vector<task<session>> opening;
        for (std::size_t i = 0; i < count; ++i)
          opening.push_back(start(context, [&] { return session::open(c); }));
        std::vector<session> sessions;
        for (auto& each : opening) sessions.push_back(co_await each.result(at_leisure));
        opening.clear();
        record log;
        log.keep_at = count;
        crowd waiters{context, count};
        for (std::size_t i = 0; i < count; ++i) waiters.start(i, lock_once(sessions[i], "lock/one", i, log));
        co_await keys_below(c, "lock/one/", count + 1, at_leisure);
        check_cost("sessions stand in one line", count, before, footprint::now(), 24'000);
        // Two more sessions are there, and a server works through a stream one by one: 32 share one. On a busy
        // machine streams may be replaced whose answers were late.
        const auto streams = [&] { return calls_open(server, "Lease", "LeaseKeepAlive"); };
        co_await eventually("32 sessions share a stream", [&] { return streams() <= count / 32 + 2; });
        CHECK(streams() > 0);
        CHECK(server.metric(watch_streams_metric) == 1);
        CHECK(server.metric(watchers_metric) <= 3);  // those of the warming-up may have ended

        co_await held.unlock();
        co_await eventually(
            "all had the lock", [&] { return log.holders.size() == count; }, at_leisure);
        check_tokens_grow(log);
        std::set<std::size_t> numbers;
        for (const auto& [number, token] : log.holders) numbers.insert(number);
        CHECK(numbers.size() == count);
        for (const auto& each : sessions) CHECK(each.alive());
        log.release = true;
        co_await keys_below(c, "lock/", 0);
        CHECK(log.failed == 0);

        std::vector<task<void>> closing;
        for (auto& each : sessions) closing.push_back(start(context, [&each] { return each.close(); }));
        for (auto& each : closing) co_await each.result(at_leisure);
        co_await with.close();
        co_await other.close();
      },
      240s);
}

TEST_CASE("load: a slow consumer of large events takes its buffer's memory and loses nothing silently") {
  on_etcd(
      [](asio::io_context& context, etcd_server& server) -> asio::awaitable<void> {
        constexpr std::size_t count = 20'000;
        constexpr std::size_t at_once = 100;
        constexpr std::size_t megabyte = 1024 * 1024;
        const std::string value(4096, 'x');  // 80 MB in all
        auto c = connect(context, server);
        auto small = co_await c.watch_prefix("w/", {.max_buffered_bytes = megabyte});
        auto usual = co_await c.watch_prefix("w/");
        auto few = co_await c.watch_prefix("w/", {.max_buffered_events = 100});
        auto late = co_await c.watch_prefix("w/", {.max_buffered_bytes = megabyte});
        auto write = [&](std::size_t begin) -> asio::awaitable<revision> {
          txn some;
          for (std::size_t i = begin; i < begin + at_once; ++i)
            some.then(put("w/" + std::to_string(i), value));
          const auto answer = co_await c.txn(some);
          co_return answer.header.revision;
        };
        (void)co_await write(0);
        const auto before = footprint::now();
        revision last = 0;
        for (std::size_t i = at_once; i < count; i += at_once) last = co_await write(i);
        co_await eventually("no watch wants more", [&] { return server.metric(watchers_metric) == 0; });
        const auto after = footprint::now();
        const auto grown = (after.bytes - std::min(before.bytes, after.bytes)) / megabyte;
        std::printf("slow consumers of %zu MB, who may buffer 19 MB: %zu MB more\n",
                    count * value.size() / megabyte, grown);
        if (!sanitized) CHECK(grown < 50);

        for (auto* each : {&small, &usual, &few}) {
          std::size_t seen = 0;
          const auto ended = co_await take_until(*each, seen, count);
          CHECK_FALSE(ended);
          CHECK(seen == count);
        }
        co_await c.compact(last, true);
        std::size_t seen = 0;
        const auto ended = co_await take_until(late, seen, count);
        CHECK(ended == errc::compacted);
        CHECK(seen >= at_once);
        CHECK(seen < count);
      },
      240s);
}
