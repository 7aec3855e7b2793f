// SPDX-License-Identifier: BSL-1.0

// What each way of taking conclave has to compile, link and run: all of the headers, and a lock on a real etcd.

#include <conclave/conclave.hpp>

#if defined(CONCLAVE_USE_BOOST_ASIO)
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#else
#include <asio/io_context.hpp>
#include <asio/use_future.hpp>
#endif

#include <iostream>

namespace net = conclave::asio;

namespace {

net::awaitable<void> lock_once(conclave::client client) {
  auto session = co_await conclave::session::open(client);
  conclave::mutex mutex{session, "packaging"};
  auto lock = co_await mutex.lock();
  std::cout << "locked\n";
  co_await lock.unlock();
  co_await session.close();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  net::io_context io;
  auto done = net::co_spawn(io, lock_once({io, argv[1]}), net::use_future);
  io.run();
  done.get();
}
