// SPDX-License-Identifier: BSL-1.0

// Ten coroutines with ten sessions want one lock and work 300 ms under it. All of them run on one thread,
// which none of them blocks; the lock goes from one to the next in the order in which they asked for it.

#include "example.hpp"

namespace {

using example::milliseconds;
using namespace std::chrono_literals;

constexpr int workers = 10;

struct turn {
  int who = 0;
  conclave::revision token = 0;
  milliseconds asked{};
  milliseconds held_from{};
  milliseconds held_until{};
};

struct record {
  example::timeline time;
  std::vector<turn> turns;
  int inside = 0;
  int most_inside = 0;
};

asio::awaitable<void> work(conclave::client client, int who, record& seen) {
  auto session = co_await conclave::session::open(client);
  conclave::mutex mutex{session, "contended"};

  turn mine;
  mine.who = who;
  mine.asked = seen.time.now();
  auto lock = co_await mutex.lock();

  mine.held_from = seen.time.now();
  mine.token = lock.token();
  seen.most_inside = std::max(seen.most_inside, ++seen.inside);
  seen.time.say("session " + std::to_string(who) + " holds the lock, token " + std::to_string(mine.token));
  co_await example::sleep_for(300ms);
  --seen.inside;
  mine.held_until = seen.time.now();
  seen.turns.push_back(mine);

  co_await lock.unlock();
  co_await session.close();
}

// A row for each session: dots while it waits, hashes while it holds.
void print_chart(const std::vector<turn>& turns) {
  constexpr milliseconds::rep columns = 60;
  const auto end = std::max<milliseconds::rep>(1, turns.back().held_until.count());
  const auto column = [end](milliseconds at) { return static_cast<std::size_t>(at.count() * columns / end); };
  std::printf("\nsession  token  %-60s  waited     held (ms)\n", "waiting ... and holding ###");
  for (const auto& each : turns) {
    std::string bar(columns, ' ');
    std::fill(bar.begin() + static_cast<std::ptrdiff_t>(column(each.asked)), bar.end(), '.');
    std::fill(bar.begin() + static_cast<std::ptrdiff_t>(column(each.held_from)), bar.end(), '#');
    std::fill(bar.begin() + static_cast<std::ptrdiff_t>(column(each.held_until)), bar.end(), ' ');
    std::printf("%7d %6lld  %s  %6lld  %5lld-%lld\n", each.who, static_cast<long long>(each.token),
                bar.c_str(), static_cast<long long>((each.held_from - each.asked).count()),
                static_cast<long long>(each.held_from.count()),
                static_cast<long long>(each.held_until.count()));
  }
}

asio::awaitable<void> contend() {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options("lock_contention")};
  record seen;
  example::side_by_side all{executor};
  for (int who = 1; who <= workers; ++who) all.start(work(client, who, seen));
  co_await all.wait();

  print_chart(seen.turns);
  if (seen.most_inside != 1 || seen.turns.size() != workers)
    throw std::runtime_error("two sessions held the lock at the same time");
  std::printf("\n%d sessions held the lock in turn, never two at once.\n", workers);
}

}  // namespace

int main() { return example::run(contend); }
