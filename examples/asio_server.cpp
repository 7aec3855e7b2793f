// SPDX-License-Identifier: BSL-1.0

// A TCP server which lends etcd's locks to clients that speak lines of text. One thread serves all
// connections: one that waits in `co_await mutex.lock()` costs a coroutine, and the others go on.
//
//   LOCK name          waits for the lock         HELD token
//   COMMIT key value   writes under the lock      COMMITTED revision, or LOST reason
//   UNLOCK             gives it back              FREED, or LOST reason
//   QUIT                                          BYE
//
// Anything that cannot be done is answered by ERROR and a reason. A connection holds one lock at a time. A
// client that hangs up gives its lock, or its place in line, back. --port 0 takes any free port; SIGINT and
// SIGTERM end the server, and with it all locks.

#include "example.hpp"

#include <optional>
#include <set>

namespace {

using asio::ip::tcp;

/// One client: its session, and the lock that it holds. Its locks are its own: when its session is lost, the
/// other connections do not notice.
class connection {
public:
  connection(tcp::socket& socket, conclave::session session)
      : socket_(socket), session_(std::move(session)) {}

  asio::awaitable<void> serve() {
    std::string received;
    asio::error_code failed;
    for (bool open = true; open;) {
      const auto size = co_await asio::async_read_until(socket_, asio::dynamic_buffer(received, 4096), '\n',
                                                        asio::redirect_error(asio::use_awaitable, failed));
      if (failed) break;
      std::string line = received.substr(0, size - 1);
      received.erase(0, size);
      if (line.ends_with('\r')) line.pop_back();
      open = line != "QUIT";
      std::string reply = open ? std::string{} : "BYE";
      if (open) reply = co_await answer(line);
      if (reply.empty()) break;  // nobody is there any more
      reply += '\n';
      co_await asio::async_write(socket_, asio::buffer(reply),
                                 asio::redirect_error(asio::use_awaitable, failed));
      if (failed) break;
    }
    if (failed && failed != asio::error::eof && failed != asio::error::operation_aborted)
      std::cerr << "a connection ended: " << failed.message() << '\n';
  }

private:
  asio::awaitable<std::string> answer(std::string line) {
    const std::string command = line.substr(0, line.find(' '));
    const std::string rest = command.size() < line.size() ? line.substr(command.size() + 1) : std::string{};
    try {
      if (command == "LOCK") co_return co_await lock(rest);
      if (command == "COMMIT") co_return co_await commit(rest);
      if (command == "UNLOCK") co_return co_await unlock();
    } catch (const conclave::error& e) {
      if (e.code() == conclave::condition::ownership_lost) {
        lock_.reset();
        co_return "LOST " + e.code().message();
      }
      co_return std::string{"ERROR "} + e.what();
    }
    co_return "ERROR say LOCK name, COMMIT key value, UNLOCK or QUIT";
  }

  asio::awaitable<std::string> lock(std::string name) {
    if (lock_) co_return "ERROR a lock is held already";
    if (name.empty()) co_return "ERROR which lock?";
    // Whichever is first ends the other. A lock that came too late is released by the end of its guard.
    using namespace asio::experimental::awaitable_operators;
    conclave::mutex mutex{session_, "locks/" + name};
    std::exception_ptr failed;
    const auto first = co_await (take(mutex, failed) || hung_up());
    if (first.index() == 1) co_return std::string{};
    if (failed) std::rethrow_exception(failed);
    co_return "HELD " + std::to_string(lock_->token());
  }

  /// Keeps its exception, because `||` waits for the first that succeeds.
  asio::awaitable<void> take(conclave::mutex& mutex, std::exception_ptr& failed) {
    try {
      auto lock = co_await mutex.lock();
      lock_ = std::move(lock);
    } catch (...) {
      failed = std::current_exception();
    }
  }

  asio::awaitable<std::string> commit(std::string words) {
    const auto space = words.find(' ');
    if (!lock_) co_return "ERROR no lock is held";
    if (space == std::string::npos) co_return "ERROR which key and value?";
    auto write =
        conclave::txn{}.then(conclave::put("data/" + words.substr(0, space), words.substr(space + 1)));
    const auto done = co_await lock_->commit(std::move(write));
    if (done.committed()) co_return "COMMITTED " + std::to_string(done.response.header.revision);
    lock_.reset();
    co_return "LOST the lock was lost, nothing was written";
  }

  asio::awaitable<std::string> unlock() {
    if (!lock_) co_return "ERROR no lock is held";
    conclave::unique_lock last = std::move(*lock_);
    lock_.reset();
    co_await last.unlock();
    co_return "FREED";
  }

  /// Ends when the client does. What it may have sent already stays in the socket.
  asio::awaitable<void> hung_up() {
    char byte = 0;
    asio::error_code failed;
    while (!failed) {
      co_await socket_.async_wait(tcp::socket::wait_read, asio::redirect_error(asio::use_awaitable, failed));
      if (failed) co_return;
      socket_.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, failed);
      if (!failed) co_await example::sleep_for(example::milliseconds{100});  // it is ahead of us: look again
    }
  }

  tcp::socket& socket_;
  conclave::session session_;
  std::optional<conclave::unique_lock> lock_;
};

/// What SIGINT and SIGTERM have to close.
struct open_sockets {
  tcp::acceptor acceptor;
  std::set<tcp::socket*> clients;
};

asio::awaitable<void> serve_client(conclave::client client, tcp::socket socket, open_sockets& open) {
  open.clients.insert(&socket);
  try {
    auto session = co_await conclave::session::open(client);
    connection talk{socket, std::move(session)};
    co_await talk.serve();
  } catch (const conclave::error& e) {
    if (e.code() != conclave::condition::cancelled) std::cerr << "a connection ended: " << e.what() << '\n';
  }
  open.clients.erase(&socket);
}

asio::awaitable<void> stop_on_signal(open_sockets& open) {
  asio::signal_set signals{co_await asio::this_coro::executor, SIGINT, SIGTERM};
  co_await signals.async_wait(asio::use_awaitable);
  open.acceptor.close();
  for (auto* client : open.clients) client->close();
}

asio::awaitable<void> serve(asio::ip::port_type port) {
  const auto executor = co_await asio::this_coro::executor;
  conclave::client client{executor, example::options("asio_server")};
  (void)co_await client.status();  // better to fail now than at the first client
  open_sockets open{tcp::acceptor{executor, tcp::endpoint{asio::ip::address_v4::loopback(), port}}, {}};
  example::side_by_side all{executor};
  all.start(stop_on_signal(open));
  std::printf("listening on 127.0.0.1:%d\n", static_cast<int>(open.acceptor.local_endpoint().port()));

  asio::error_code closed;
  while (true) {
    auto socket = co_await open.acceptor.async_accept(asio::redirect_error(asio::use_awaitable, closed));
    if (closed && open.acceptor.is_open()) throw std::system_error(closed, "accept");
    if (closed) break;
    all.start(serve_client(client, std::move(socket), open));
  }
  co_await all.wait();
  std::printf("stopped\n");
}

}  // namespace

int main(int argc, char** argv) {
  return example::run([&] {
    const double port = example::number(argc, argv, "--port", 7000);
    return serve(static_cast<asio::ip::port_type>(port));
  });
}
