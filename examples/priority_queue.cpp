// SPDX-License-Identifier: BSL-1.0

// Ten coroutines push the numbers 0 to 9 at the same time, each with itself as its priority. They arrive in
// any order and come out sorted: the smallest priority first.

#include "example.hpp"

#include <numeric>
#include <random>

namespace {

asio::awaitable<void> push(conclave::priority_queue queue, int number, const example::timeline& time) {
  const auto revision = co_await queue.enqueue(std::to_string(number), static_cast<std::uint16_t>(number));
  time.say("pushed " + std::to_string(number) + " at revision " + std::to_string(revision));
}

asio::awaitable<void> push_and_pop() {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options_of_this_run("priority_queue")};
  conclave::priority_queue queue{client, "numbers"};
  const example::timeline time;

  std::vector<int> numbers(10);
  std::iota(numbers.begin(), numbers.end(), 0);
  std::shuffle(numbers.begin(), numbers.end(), std::mt19937{std::random_device{}()});
  example::side_by_side all{executor};
  for (const int number : numbers) all.start(push(queue, number, time));
  co_await all.wait();

  std::string order;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::string value = co_await queue.dequeue();
    order += " " + value;
  }
  time.say("popped" + order);
  co_await example::delete_everything(client);  // the queue's counters, one for each priority
}

}  // namespace

int main() { return example::run(push_and_pop); }
