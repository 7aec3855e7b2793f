// SPDX-License-Identifier: BSL-1.0

// Workers that wait for jobs in `co_await queue.dequeue()`, and how to stop them so that nothing is lost.
//
//   async_worker put 50        enqueues 50 jobs
//   async_worker               works until SIGINT or SIGTERM; --workers 4, --job-ms 50
//   async_worker left          says how many jobs wait
//
// A queue delivers at most once: a job is out of the store as soon as a worker has it. On a signal a worker
// therefore finishes the job in its hand; only the wait for the next one is cancelled.

#include "example.hpp"

#include <list>
#include <optional>

namespace {

using example::milliseconds;

struct shutdown {
  bool requested = false;
  std::list<asio::cancellation_signal> waits;  // one for each worker's dequeue
};

asio::awaitable<void> stop_on_signal(shutdown& stop) {
  asio::signal_set signals{co_await asio::this_coro::executor, SIGINT, SIGTERM};
  co_await signals.async_wait(asio::use_awaitable);
  std::printf("stopping: jobs in hand are finished\n");
  stop.requested = true;
  for (auto& each : stop.waits) each.emit(asio::cancellation_type::all);
}

/// The next job, or nothing when the wait is cancelled. A job that arrives at that very moment is not lost:
/// it goes to the client's next consumer or back into the store.
asio::awaitable<std::optional<std::string>> next_job(conclave::queue jobs,
                                                     asio::cancellation_signal& cancel) {
  const auto executor = co_await asio::this_coro::executor;
  std::optional<std::string> job;
  try {
    // A coroutine of its own gives this one operation a cancellation of its own.
    job = co_await asio::co_spawn(executor, jobs.dequeue(),
                                  asio::bind_cancellation_slot(cancel.slot(), asio::use_awaitable));
  } catch (const std::system_error& e) {
    if (e.code() != conclave::condition::cancelled) throw;
  }
  co_return job;
}

asio::awaitable<void> work(conclave::queue jobs, int number, milliseconds time, shutdown& stop) {
  auto& cancel = stop.waits.emplace_back();
  while (!stop.requested) {
    const auto job = co_await next_job(jobs, cancel);
    if (!job) continue;
    std::printf("worker %d: begins %s\n", number, job->c_str());
    co_await example::sleep_for(time);
    std::printf("worker %d: done %s\n", number, job->c_str());
  }
}

asio::awaitable<void> work_until_stopped(int workers, milliseconds time) {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options("async_worker")};
  conclave::queue jobs{client, "jobs"};
  (void)co_await jobs.size();  // better to fail now than in a worker

  shutdown stop;
  example::side_by_side all{executor};
  all.start(stop_on_signal(stop));
  for (int number = 1; number <= workers; ++number) all.start(work(jobs, number, time, stop));
  std::printf("%d workers wait for jobs\n", workers);
  co_await all.wait();
  // The end of `client` puts back what had been claimed for a worker that left; the io_context runs until
  // then.
}

asio::awaitable<void> put(int count) {
  conclave::client client{co_await asio::this_coro::executor, example::options("async_worker")};
  std::vector<std::string> values;
  for (int i = 1; i <= count; ++i) values.push_back("job-" + std::to_string(i));
  co_await conclave::queue{client, "jobs"}.enqueue_all(std::move(values));
  std::printf("%d jobs enqueued\n", count);
}

asio::awaitable<void> left() {
  conclave::client client{co_await asio::this_coro::executor, example::options("async_worker")};
  const std::size_t count = co_await conclave::queue{client, "jobs"}.size();
  std::printf("%zu jobs wait\n", count);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view first = argc > 1 ? argv[1] : "";
  return example::run([&] {
    if (first == "put") return put(static_cast<int>(example::number(argc, argv, "put", 0)));
    if (first == "left") return left();
    const double workers = example::number(argc, argv, "--workers", 4);
    const double time = example::number(argc, argv, "--job-ms", 50);
    return work_until_stopped(static_cast<int>(workers), milliseconds{static_cast<int>(time)});
  });
}
