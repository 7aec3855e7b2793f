// SPDX-License-Identifier: BSL-1.0

// Each recipe in a few lines. README.md shows these functions piece by piece.

#include "example.hpp"

#include <future>

namespace {

using namespace std::chrono_literals;

asio::awaitable<void> use_mutex(conclave::client client) {
  auto session = co_await conclave::session::open(client, {.ttl = 15s});

  conclave::mutex mutex{session, "accounts/42"};
  auto lock = co_await mutex.lock();  // waits in line
  auto write = conclave::txn{}.then(conclave::put("balance/42", "17"));
  auto done = co_await lock.commit_and_unlock(write);  // both in one round trip
  if (!done.committed()) std::printf("the lock was lost before the write\n");

  auto perhaps = co_await mutex.try_lock_for(500ms);  // an optional; empty when the time was not enough
  if (perhaps) co_await perhaps->unlock();

  co_await session.close();
  std::printf("mutex: done\n");
}

asio::awaitable<int> recount(conclave::unique_lock& lock) {
  co_await example::sleep_for(10ms);
  auto write = conclave::txn{}.then(conclave::put("count", "3"));
  const auto done = co_await lock.commit(write);
  co_return done.committed() ? 3 : 0;
}

asio::awaitable<void> use_with_lock(conclave::session session) {
  conclave::mutex mutex{session, "stock"};
  try {
    const int counted = co_await conclave::with_lock(mutex, recount);
    std::printf("with_lock: counted %d\n", counted);
  } catch (const conclave::error& e) {
    if (e.code() != conclave::condition::ownership_lost) throw;
    std::printf("with_lock: the lock was lost, the count was cancelled\n");
  }
}

asio::awaitable<void> use_queue(conclave::client client) {
  conclave::queue jobs{client, "jobs"};
  co_await jobs.enqueue("first");
  std::vector<std::string> more{"second", "third"};
  co_await jobs.enqueue_all(more);

  std::string job = co_await jobs.dequeue();        // waits until there is one
  auto several = co_await jobs.dequeue_up_to(10);   // one at least
  auto nothing = co_await jobs.dequeue_for(100ms);  // an optional
  std::printf("queue: %s, then %zu, then %s\n", job.c_str(), several.size(), nothing ? "one" : "none");
}

asio::awaitable<void> use_priority_queue(conclave::client client) {
  conclave::priority_queue tasks{client, "tasks"};
  co_await tasks.enqueue("tidy up", 9);
  co_await tasks.enqueue("put the fire out", 0);
  std::string task = co_await tasks.dequeue();
  std::printf("priority_queue: %s\n", task.c_str());
}

asio::awaitable<void> use_building_blocks(conclave::client client) {
  auto lease = co_await client.keep_lease(10s);
  auto mine = co_await client.compare_and_put("owner", 0, "me", {.lease = lease.id()});
  if (!mine.succeeded) co_await client.wait_deleted("owner", mine.current->create_revision);
  std::printf("building blocks: %s\n",
              mine.succeeded ? "the key is ours" : "the key was somebody's, and is free");
}

void use_callback_and_future(asio::any_io_executor io, conclave::client client) {
  conclave::queue jobs{client, "more jobs"};
  asio::co_spawn(io, jobs.dequeue(), [](std::exception_ptr failed, std::string job) {
    if (!failed) std::printf("callback: %s\n", job.c_str());
  });
  std::future<conclave::revision> enqueued = asio::co_spawn(io, jobs.enqueue("fourth"), asio::use_future);
  (void)enqueued;  // get() would wait: call it on another thread than the one that runs `io`
}

asio::awaitable<void> use_all() {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options_of_this_run("recipes")};
  co_await use_mutex(client);
  auto session = co_await conclave::session::open(client);
  co_await use_with_lock(session);
  co_await use_queue(client);
  co_await use_priority_queue(client);
  co_await use_building_blocks(client);
  use_callback_and_future(executor, client);
  co_await example::sleep_for(500ms);
  co_await example::delete_everything(client);
}

}  // namespace

int main() { return example::run(use_all); }
