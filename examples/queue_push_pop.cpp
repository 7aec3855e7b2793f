// SPDX-License-Identifier: BSL-1.0

// A consumer waits on an empty queue; then a producer comes and pushes ten items, three times, two seconds
// apart (--round-gap-ms changes that). The consumer sleeps in `co_await queue.dequeue()` meanwhile: it does
// not poll, and each item reaches it as soon as etcd has stored it.

#include "example.hpp"

namespace {

constexpr int rounds = 3;
constexpr int items_a_round = 10;

std::string name(int item) {
  return std::to_string(1 + item / items_a_round) + "." + std::to_string(1 + item % items_a_round);
}

asio::awaitable<void> consume(conclave::queue queue, const example::timeline& time) {
  time.say("consumer: waits on an empty queue");
  for (int i = 0; i < rounds * items_a_round; ++i) {
    const std::string item = co_await queue.dequeue();
    time.say("consumer: popped " + item);
    if (item != name(i)) throw std::runtime_error("expected " + name(i));
  }
}

asio::awaitable<void> produce(conclave::queue queue, example::milliseconds gap,
                              const example::timeline& time) {
  for (int i = 0; i < rounds * items_a_round; ++i) {
    if (i % items_a_round == 0) {
      co_await example::sleep_for(gap);
      time.say("producer: round " + std::to_string(1 + i / items_a_round));
    }
    co_await queue.enqueue(name(i));
  }
}

asio::awaitable<void> push_and_pop(example::milliseconds gap) {
  const auto executor = co_await asio::this_coro::executor;
  const auto options = example::options_of_this_run("queue_push_pop");
  // Two clients, as if they were two processes: they meet in etcd only.
  conclave::client here{executor, options};
  conclave::client there{executor, options};

  const example::timeline time;
  example::side_by_side both{executor};
  both.start(consume(conclave::queue{here, "jobs"}, time));
  both.start(produce(conclave::queue{there, "jobs"}, gap, time));
  co_await both.wait();

  const std::size_t left = co_await conclave::queue{here, "jobs"}.size();
  std::printf("\n%d items pushed, %d popped, in their order; %zu left.\n", rounds * items_a_round,
              rounds * items_a_round, left);
}

}  // namespace

int main(int argc, char** argv) {
  return example::run([&] {
    const double gap = example::number(argc, argv, "--round-gap-ms", 2000);
    return push_and_pop(example::milliseconds{static_cast<int>(gap)});
  });
}
