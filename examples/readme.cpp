// SPDX-License-Identifier: BSL-1.0

#include <asio.hpp>
#include <conclave/conclave.hpp>
#include <iostream>

asio::awaitable<void> settle(conclave::client client) {
  auto session = co_await conclave::session::open(client);
  conclave::mutex mutex{session, "accounts/42"};
  auto lock = co_await mutex.lock();  // in order of arrival; the thread serves others meanwhile
  std::cout << "the lock is ours, token " << lock.token() << '\n';
  auto done = co_await lock.commit(conclave::txn{}.then(conclave::put("balance/42", "17")));
  std::cout << (done.committed() ? "committed\n" : "lock lost, nothing written\n");
  co_await lock.unlock();
}

int main(int argc, char** argv) {
  asio::io_context io;
  auto done = asio::co_spawn(io, settle({io, argc > 1 ? argv[1] : "127.0.0.1:2379"}), asio::use_future);
  io.run();
  done.get();  // throws what went wrong
}
