// SPDX-License-Identifier: BSL-1.0

// A recipe of one's own: a flag that one process at a time has, the leader. It is built on the three
// operations that conclave's own recipes are composed of: a lease that is kept alive, compare_and_put, and
// wait_deleted. docs/recipes.md explains it line by line.

#include "example.hpp"

namespace {

using example::milliseconds;
using namespace std::chrono_literals;

/// Who leads is the value of one key. Not fair: when the key goes, whoever is fastest gets it.
class leader_flag {
public:
  leader_flag(conclave::client client, conclave::kept_lease lease, std::string key)
      : client_(std::move(client)), lease_(std::move(lease)), key_(std::move(key)) {}

  /// Waits until the flag is ours. The result is our term: the key's create revision, which grows from leader
  /// to leader.
  asio::awaitable<conclave::revision> campaign(std::string name) {
    while (true) {
      if (!lease_.alive()) throw conclave::error(conclave::errc::session_lost);
      const auto put = co_await client_.compare_and_put(key_, 0, name, {.lease = lease_.id()});
      if (put.succeeded) co_return put.revision;
      // A put of ours whose answer got lost is recognised by its lease.
      if (put.current->lease == lease_.id()) co_return put.current->create_revision;
      co_await client_.wait_deleted(key_, put.current->create_revision);
    }
  }

  /// Gives the flag up; false if it had been lost before. It never takes the flag from a later leader.
  asio::awaitable<bool> resign(conclave::revision term) {
    auto request =
        conclave::txn{}.when(conclave::create_revision(key_) == term).then(conclave::delete_key(key_));
    const auto answer = co_await client_.txn(std::move(request));
    co_return answer.succeeded;
  }

private:
  conclave::client client_;
  conclave::kept_lease lease_;
  std::string key_;
};

asio::awaitable<void> candidate(conclave::client client, std::string name, bool resigns,
                                const example::timeline& time) {
  auto lease = co_await client.keep_lease(2s);
  leader_flag flag{client, lease, "leader"};
  const auto term = co_await flag.campaign(name);
  time.say(name + " leads, term " + std::to_string(term));
  co_await example::sleep_for(100ms);
  if (resigns) {
    time.say(name + " resigns");
    if (!co_await flag.resign(term)) time.say(name + " had lost the flag");
  } else {
    time.say(name + " ends without a word: its lease is revoked behind it");
  }
}

asio::awaitable<void> elect() {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options_of_this_run("own_recipe")};
  const example::timeline time;
  example::side_by_side all{executor};
  all.start(candidate(client, "ada", true, time));
  all.start(candidate(client, "bob", false, time));
  all.start(candidate(client, "cyd", true, time));
  co_await all.wait();
}

}  // namespace

int main() { return example::run(elect); }
