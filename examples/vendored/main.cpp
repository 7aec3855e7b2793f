// SPDX-License-Identifier: BSL-1.0

// conclave as one header in your own tree: copy this folder, and single_include/conclave/conclave.hpp to where the
// link in conclave/ points. `make`, then `./program 127.0.0.1:2379`.

#include <conclave/conclave.hpp>

#include <asio/io_context.hpp>
#include <asio/use_future.hpp>

#include <iostream>

namespace {

asio::awaitable<void> count(conclave::client client) {
  auto session = co_await conclave::session::open(client);
  conclave::mutex mutex{session, "vendored"};
  auto lock = co_await mutex.lock();
  std::cout << "locked\n";
  co_await lock.unlock();
  co_await session.close();
}

}  // namespace

int main(int argc, char** argv) {
  asio::io_context io;
  auto done = asio::co_spawn(io, count({io, argc > 1 ? argv[1] : "127.0.0.1:2379"}), asio::use_future);
  io.run();
  done.get();  // throws what went wrong
}
