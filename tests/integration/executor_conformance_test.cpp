// SPDX-License-Identifier: BSL-1.0

// Every public awaitable resumes its caller on the caller's own executor, whatever happens elsewhere: the client
// runs on another context and thread, gRPC on its own.

#include <conclave/client.hpp>
#include <conclave/mutex.hpp>
#include <conclave/priority_queue.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>
#include <conclave/testing/etcd_server.hpp>
#include <conclave/with_lock.hpp>

#include "on_etcd.hpp"

#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::delete_key;
using conclave::put;
using conclave::session;
using conclave::txn;

/// A context with a thread of its own, which works until the end.
class elsewhere {
public:
  elsewhere() : work_(asio::make_work_guard(context_)), thread_([this] { context_.run(); }) {}
  ~elsewhere() {
    work_.reset();
    thread_.join();
  }

  asio::io_context& context() noexcept { return context_; }
  [[nodiscard]] std::thread::id id() const noexcept { return thread_.get_id(); }

private:
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
};

asio::awaitable<int> seven(conclave::unique_lock&) { co_return 7; }

}  // namespace

TEST_CASE("every awaitable resumes its caller on the caller's executor") {
  etcd_server server;
  elsewhere library;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    const auto mine = std::this_thread::get_id();
    REQUIRE(mine != library.id());
    std::vector<std::string> astray;
    const auto look = [&](const char* after) {
      if (std::this_thread::get_id() != mine) astray.emplace_back(after);
    };
    {
      client c{library.context(), server.endpoint()};
      (void)co_await c.put("k", "v");
      look("put");
      (void)co_await c.range(conclave::range("k"));
      look("range");
      (void)co_await c.get("k");
      look("get");
      (void)co_await c.delete_range(delete_key("none"));
      look("delete_range");
      txn request;
      request.then(put("k", "w"));
      const auto written = co_await c.txn(request);
      look("txn");
      (void)co_await c.compact(written.header.revision - 1);
      look("compact");
      const auto granted = co_await c.lease_grant(10s);
      look("lease_grant");
      (void)co_await c.lease_time_to_live(granted.id);
      look("lease_time_to_live");
      (void)co_await c.leases();
      look("leases");
      (void)co_await c.lease_revoke(granted.id);
      look("lease_revoke");
      (void)co_await c.status();
      look("status");
      (void)co_await c.compare_and_put("k", 1, "x");
      look("compare_and_put");
      auto seen = co_await c.watch_prefix("k");
      look("watch");
      (void)co_await c.put("k", "x");
      (void)co_await seen.next();
      look("next");
      (void)co_await c.wait_deleted("none");
      look("wait_deleted, at once");
      auto deleted = start(context, [&]() -> asio::awaitable<void> {
        (void)co_await c.wait_deleted("k");
        look("wait_deleted");
      });
      (void)co_await c.delete_range(delete_key("k"));
      co_await deleted.result();

      auto kept = co_await c.keep_lease(10s);
      look("keep_lease");
      auto end = start(context, [&]() -> asio::awaitable<void> {
        (void)co_await kept.lost();
        look("kept_lease::lost");
      });
      co_await kept.revoke();
      look("revoke");
      co_await end.result();

      auto s = co_await session::open(c, {.ttl = 10s});
      look("session::open");
      auto second = co_await session::open(c, {.ttl = 10s});
      auto over = start(context, [&]() -> asio::awaitable<void> {
        (void)co_await s.lost();
        look("session::lost");
      });
      conclave::mutex a{s, "lock/a"};
      conclave::mutex b{second, "lock/a"};
      auto held = co_await a.lock();
      look("lock");
      auto waiting = start(context, [&]() -> asio::awaitable<void> {
        auto lock = co_await b.lock();
        look("lock, after a wait");
        co_await lock.unlock();
      });
      (void)co_await b.try_lock_for(20ms);
      look("try_lock_for");
      (void)co_await a.inspect();
      look("inspect");
      txn nothing;
      nothing.then(put("k", "y"));
      (void)co_await held.commit(nothing);
      look("commit");
      co_await held.unlock();
      look("unlock");
      co_await waiting.result();
      auto tried = co_await a.try_lock();
      look("try_lock");
      REQUIRE(tried);
      (void)co_await tried->commit_and_unlock(nothing);
      look("commit_and_unlock");
      const int number = co_await conclave::with_lock(a, seven);
      look("with_lock");
      CHECK(number == 7);
      auto last = co_await a.lock();
      auto loss = start(context, [&]() -> asio::awaitable<void> {
        (void)co_await last.lost();
        look("unique_lock::lost");
      });

      const conclave::queue jobs{c, "jobs"};
      auto job = start(context, [&]() -> asio::awaitable<void> {
        (void)co_await jobs.dequeue();
        look("dequeue, after a wait");
      });
      (void)co_await jobs.enqueue("1");
      look("enqueue");
      co_await job.result();
      std::vector<std::string> more{"2", "3", "4", "5"};
      (void)co_await jobs.enqueue_all(more);
      look("enqueue_all");
      (void)co_await jobs.size();
      look("size");
      (void)co_await jobs.peek();
      look("peek");
      (void)co_await jobs.dequeue();
      look("dequeue");
      (void)co_await jobs.try_dequeue();
      look("try_dequeue");
      (void)co_await jobs.dequeue_up_to(10);
      look("dequeue_up_to");
      (void)co_await jobs.dequeue_for(20ms);
      look("dequeue_for");
      const conclave::priority_queue tasks{c, "tasks"};
      (void)co_await tasks.enqueue("1", 1);
      look("priority_queue::enqueue");
      (void)co_await tasks.dequeue();
      look("priority_queue::dequeue");

      // Those that fail or are cancelled, too.
      (void)co_await error_of(c.put("", ""));
      look("an error of the server");
      auto never = start(context, [&]() -> asio::awaitable<void> {
        (void)co_await error_of(jobs.dequeue());
        look("a cancelled wait");
      });
      co_await pause_for(20ms);
      never.cancel();
      co_await never.result();

      co_await s.close();
      look("close");
      co_await over.result();
      co_await loss.result();
      co_await second.close();
    }
    CHECK(astray == std::vector<std::string>{});
  });
}
