// SPDX-License-Identifier: BSL-1.0

// A lock with an expiry, and a holder that takes longer than that: the same story on Redis and on conclave.
//
//   0 s  A takes the lock, which expires after 3 s. Its task takes 7 s.
//   5 s  B takes the lock. Its task takes 5 s.
//   6 s  C asks for the lock.
//   7 s  A is done and frees the lock. Whose?
//
// On Redis (SET NX PX and DEL) it is B's, and C comes in while B works. On conclave A's session is kept alive
// while A works, and what A frees is A's. The last part stops A altogether, past its lease: the lock moves on
// to B, and A, when it wakes up, can neither write nor free anything.
//
// --scale 0.2 makes it all five times as fast. Needs redis-server; it runs as a private child process.

#include "example.hpp"
#include "redis_connection.hpp"
#include "support/redis_server.hpp"

#include <cmath>

namespace {

using example::milliseconds;
using namespace std::chrono_literals;

double scale = 1;

milliseconds scaled(milliseconds time) {
  return milliseconds{std::llround(static_cast<double>(time.count()) * scale)};
}

/// The shortest lease that etcd grants is a second or two, and it counts in seconds.
std::chrono::seconds expiry() { return std::max(1s, std::chrono::round<std::chrono::seconds>(scaled(3s))); }

struct story {
  example::timeline time;
  int inside = 0;
  int most_inside = 0;

  void enter(const std::string& who, const std::string& what) {
    most_inside = std::max(most_inside, ++inside);
    time.say(who + ": has the lock" + what +
             (inside > 1 ? "  <== " + std::to_string(inside) + " AT ONCE" : ""));
  }
  void leave(const std::string& who) {
    --inside;
    time.say(who + ": is done");
  }
};

asio::awaitable<void> redis_worker(std::string who, milliseconds begin, milliseconds task, std::uint16_t port,
                                   story& told) {
  example::redis_connection redis{co_await asio::this_coro::executor};
  co_await redis.connect(port);
  co_await example::sleep_for(scaled(begin));
  told.time.say(who + ": asks for the lock");
  const std::string time_to_live = std::to_string(scaled(3s).count());
  while (true) {
    std::vector<std::string> take{"SET", "lock", who, "NX", "PX", time_to_live};
    const std::string reply = co_await redis.command(std::move(take));
    if (reply == "OK") break;
    co_await example::sleep_for(10ms);
  }
  told.enter(who, "");
  co_await example::sleep_for(scaled(task));
  told.leave(who);
  std::vector<std::string> look{"GET", "lock"};
  const std::string owner = co_await redis.command(std::move(look));
  std::vector<std::string> free{"DEL", "lock"};
  const std::string freed = co_await redis.command(std::move(free));
  told.time.say(who + ": DEL lock freed " + (freed == "1" ? "the lock of " + owner : "nothing"));
}

asio::awaitable<void> conclave_worker(std::string who, milliseconds begin, milliseconds task,
                                      conclave::client client, story& told) {
  auto session = co_await conclave::session::open(client, {.ttl = expiry()});
  conclave::mutex mutex{session, "lock"};
  co_await example::sleep_for(scaled(begin));
  told.time.say(who + ": asks for the lock");
  auto lock = co_await mutex.lock();
  told.enter(who, ", token " + std::to_string(lock.token()));
  co_await example::sleep_for(scaled(task));
  told.leave(who);
  co_await lock.unlock();
  told.time.say(who + ": unlock freed its own");
}

// ---- the holder that is stopped: a process of its own -----------------------------------------------------

asio::awaitable<void> stopped_holder(example::timeline time, std::string prefix) {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options(prefix)};
  auto session = co_await conclave::session::open(client, {.ttl = expiry()});
  conclave::mutex mutex{session, "lock"};
  auto lock = co_await mutex.lock();
  time.say("A: has the lock, token " + std::to_string(lock.token()));
  auto write = conclave::txn{}.then(conclave::put("written-by", "A"));
  auto first = co_await lock.commit(write);
  time.say(first.committed() ? "A: commit: committed" : "A: commit: lock_lost");

  co_await client.put("working", "A");  // tells the parent to send SIGSTOP
  co_await example::sleep_for(2s);
  auto second = co_await lock.commit(write);
  time.say(second.committed() ? "A: commit: committed" : "A: commit: lock_lost, nothing was written");
  try {
    co_await lock.unlock();
    time.say("A: unlock: released");
  } catch (const conclave::error& e) {
    time.say(std::string{"A: unlock: "} + e.code().message() + "; nothing was freed");
  }
}

asio::awaitable<void> stop_a_holder(std::string program) {
  const auto executor = co_await asio::this_coro::executor;
  const std::string prefix = "stopped-" + std::to_string(::getpid());
  conclave::client client{executor, example::options(prefix)};
  auto working = co_await client.watch("working");

  const example::timeline time;
  const auto start = std::to_string(time.start().time_since_epoch().count());
  conclave::testing::child_process holder{
      {.command = {program, "--holder", prefix, "--start", start, "--scale", std::to_string(scale)}}};
  (void)co_await working.next();  // it holds the lock, and has written under it
  holder.pause();
  time.say("A: is stopped (SIGSTOP)");

  auto session = co_await conclave::session::open(client, {.ttl = expiry()});
  conclave::mutex mutex{session, "lock"};
  time.say("B: asks for the lock");
  auto lock = co_await mutex.lock();
  time.say("B: has the lock, token " + std::to_string(lock.token()) + ": the lease of A is over");
  auto done = co_await lock.commit(conclave::txn{}.then(conclave::put("written-by", "B")));
  time.say("A: goes on (SIGCONT)");
  holder.resume();
  while (holder.running()) co_await example::sleep_for(10ms);

  const auto last = co_await client.get("written-by");
  const auto mine = co_await client.get(lock.key());
  const bool kept = lock.held() && mine && mine->create_revision == lock.token();
  if (!done.committed() || !kept || !last || last->value != "B")
    throw std::runtime_error("the holder that was stopped did harm");
  time.say("B: still has the lock, and the last write is B's");
  co_await lock.unlock();
  co_await example::delete_everything(client);
}

// -----------------------------------------------------------------------------------------------------------

asio::awaitable<void> compare(std::string program) {
  const auto executor = co_await asio::this_coro::executor;

  const conclave::test::redis_server redis;
  std::printf("Redis: SET lock NX PX %lld, and DEL\n", static_cast<long long>(scaled(3s).count()));
  story on_redis;
  example::side_by_side three{executor};
  three.start(redis_worker("A", 0s, 7s, redis.port(), on_redis));
  three.start(redis_worker("B", 5s, 5s, redis.port(), on_redis));
  three.start(redis_worker("C", 6s, 1s, redis.port(), on_redis));
  co_await three.wait();

  std::printf("\nconclave: a session of %lld s, lock and unlock\n", static_cast<long long>(expiry().count()));
  story on_conclave;
  conclave::client client{executor, example::options("redis_comparison")};
  example::side_by_side other_three{executor};
  other_three.start(conclave_worker("A", 0s, 7s, client, on_conclave));
  other_three.start(conclave_worker("B", 5s, 5s, client, on_conclave));
  other_three.start(conclave_worker("C", 6s, 1s, client, on_conclave));
  co_await other_three.wait();

  std::printf("\nconclave: a holder that is stopped past its lease\n");
  co_await stop_a_holder(std::move(program));

  std::printf("\nAt most %d at once on Redis, %d on conclave.\n", on_redis.most_inside,
              on_conclave.most_inside);
  if (on_conclave.most_inside != 1) throw std::runtime_error("two held the lock at once");
}

}  // namespace

int main(int argc, char** argv) {
  return example::run([&]() -> asio::awaitable<void> {
    scale = example::number(argc, argv, "--scale", 1);
    if (argc == 7 && std::string_view{argv[1]} == "--holder") {
      const example::timeline::clock::duration start{std::stoll(argv[4])};
      return stopped_holder(example::timeline{example::timeline::clock::time_point{start}}, argv[2]);
    }
    return compare("/proc/self/exe");
  });
}
