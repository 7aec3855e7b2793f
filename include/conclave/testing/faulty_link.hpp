// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>
#include <conclave/testing/loopback.hpp>
#include <conclave/version.hpp>

#include <netinet/tcp.h>
#include <sys/eventfd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>

namespace conclave::inline CONCLAVE_ABI::testing {

/// Which way bytes go through a `faulty_link`.
enum class direction { to_server, to_client, both };

namespace detail {

/// Finds the heads of HTTP/2 frames in a stream of bytes that comes in pieces.
class http2_frames {
public:
  enum : unsigned { headers = 1, rst_stream = 3 };

  http2_frames() = default;
  /// The first `skip` bytes are no frames.
  explicit http2_frames(std::size_t skip) : skip_{skip} {}

  /// Calls `see(type, stream)` for each frame whose head is complete.
  template <class See>
  void feed(std::string_view bytes, See see) {
    while (!bytes.empty()) {
      if (skip_ > 0) {
        const auto size = std::min(skip_, bytes.size());
        skip_ -= size;
        bytes.remove_prefix(size);
        continue;
      }
      head_[have_++] = static_cast<unsigned char>(bytes.front());
      bytes.remove_prefix(1);
      if (have_ < head_.size()) continue;
      have_ = 0;
      skip_ = number(0) >> 8U;
      see(unsigned{head_[3]}, number(5) & 0x7fffffffU);
    }
  }

private:
  std::uint32_t number(std::size_t at) const {
    std::uint32_t result = 0;
    for (std::size_t i = 0; i < 4; ++i) result = result << 8U | head_[at + i];
    return result;
  }

  std::size_t skip_{0};
  std::array<unsigned char, 9> head_{};
  std::size_t have_{0};
};

}  // namespace detail

/// A bad network in front of one real server: a relay between a port of its own on 127.0.0.1 and the server's
/// port there, which passes bytes on unchanged until it is told to do otherwise.
///
/// ```
/// conclave::testing::etcd_server server;
/// conclave::testing::faulty_link link{server.port()};
/// conclave::client client{io_context, link.endpoint()};
/// link.stall();                // silence: connections stay open, nothing comes through
/// link.heal();                 // what was held up comes through now
/// link.swallow_next_answer();  // the next write is applied, and the client never hears of it
/// ```
///
/// It works on a thread of its own, whatever the program's other threads do. When a function that makes or
/// undoes a fault returns, it is in force: no byte passes any more as before, and connections are closed.
/// Before it obeys, the link once more passes on what has reached it, at most 16 KiB of each connection: what
/// was sent before the call still goes as before. Faults add up; `heal` undoes all.
///
/// The functions may be called from any thread. They block for as long as the thread needs to take notice. A
/// connection whose server cannot be reached is accepted and then reset. The end of one side's sending is
/// passed on in its order, a reset at once; a stalled direction passes neither. Needs no privileges. Linux
/// only.
class faulty_link {
public:
  using milliseconds = std::chrono::milliseconds;

  /// Bytes that the link itself holds in each direction of a connection, at most: it reads no further then.
  static constexpr std::size_t buffer_size = std::size_t{256} * 1024;

  /// Listens, and returns. Each connection is passed on to `target_port` of 127.0.0.1, where nobody need
  /// listen yet. At most `connection_limit` connections are open at a time; more of them wait, connected but
  /// not accepted, until one has gone. (Each takes two descriptors; programs may often have 1024 only.) Throws
  /// std::system_error if there are no descriptors, std::runtime_error if there is no free port.
  explicit faulty_link(std::uint16_t target_port, std::size_t connection_limit = 400)
      : target_{address_of(target_port)},
        connection_limit_{connection_limit},
        wake_{detail::checked_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")} {
    constexpr int attempts = 5;
    for (int attempt = 1; !bind_listener(); ++attempt) {
      if (attempt == attempts) throw std::runtime_error{"no free TCP port found on 127.0.0.1"};
    }
    listen();
    // The program's signals are for the program's threads.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread_ = std::thread{[this]() noexcept { run(); }};
    } catch (...) {
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  faulty_link(const faulty_link&) = delete;
  faulty_link& operator=(const faulty_link&) = delete;

  /// Closes everything. No other function may be under way. Bytes that are held up are lost.
  ~faulty_link() {
    on_thread([this] { stopping_ = true; });
    thread_.join();
  }

  /// "http://127.0.0.1:PORT": what a client is given instead of the server's own. The same for the whole life
  /// of the object.
  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port()); }

  /// The port that the link listens on.
  std::uint16_t port() const { return port_->number(); }

  /// The server seems to have ended: all connections are closed, on both sides, bytes on their way are lost,
  /// and new connections are refused until `heal`. Nobody else can get the port meanwhile.
  void cut() {
    on_thread([this] {
      // From now on the system itself refuses; the port stays bound. A second time would shut down the
      // connections to be accepted after `heal`: they inherit it.
      if (std::exchange(listening_, false)) ::shutdown(listener_.get(), SHUT_RDWR);
      for (const auto& each : connections_) close(*each);
      forget_closed();
    });
  }

  /// Resets (RST) all connections, on both sides; bytes on their way are lost. New ones are accepted. A single
  /// event: there is nothing to heal.
  void reset() {
    on_thread([this] {
      if (listening_) accept_waiting();
      for (const auto& each : connections_) abort(*each);
      forget_closed();
    });
  }

  /// Silence: nothing passes in that direction, neither bytes nor the end of a connection, until `heal`. Open
  /// connections stay open, new ones are accepted and as silent. The link stops reading, so that a sender
  /// is held up once the buffers on its way are full. Nothing is lost: `heal` lets it come through.
  void stall(direction where = direction::both) {
    on_thread([this, where] { for_each_way(where, [](settings& way) { way.stalled = true; }); });
  }

  /// Whatever is read from now on in that direction is passed on not earlier than `time` later, in its order.
  /// A `time` of zero ends the delay for what comes from then on. As the link holds at most `buffer_size`, a
  /// long delay limits the throughput too. Throws std::invalid_argument if `time` is negative.
  void delay(direction where, milliseconds time) {
    if (time < milliseconds::zero()) throw std::invalid_argument{"faulty_link: a delay below zero"};
    on_thread([this, where, time] { for_each_way(where, [time](settings& way) { way.delay = time; }); });
  }

  /// A narrow line: each connection passes on at most `bytes` per `interval` in each direction. Throws
  /// std::invalid_argument unless both are above zero.
  void trickle(std::size_t bytes, milliseconds interval) {
    if (bytes == 0 || interval <= milliseconds::zero())
      throw std::invalid_argument{"faulty_link: a trickle needs bytes and an interval above zero"};
    on_thread([this, bytes, interval] {
      trickle_ = rate{bytes, interval};
      for (const auto& each : connections_)
        for (auto& flow : each->flows) flow.window = {};
    });
  }

  /// An answer gets lost after the server has done what it was asked: lets the next request through and drops
  /// its connection when the server begins to answer. Once; arm it again for another. In detail:
  ///
  /// * HTTP/2 (gRPC), not encrypted: the request is the first stream that a client opens, on any connection,
  ///   by a HEADERS frame which the link passes on after this call. That can also be one that a client opens
  ///   behind itself, for a watch or a lease: let it be open before. All else goes on both ways as before:
  ///   settings, pings, window updates, other streams with their messages. When HEADERS come from the server
  ///   on the request's stream, the connection is reset on both sides, and what the link had read from the
  ///   server and not yet passed on is discarded with them. At most an unfinished frame head gets through.
  ///   etcd sends these HEADERS together with the answer itself, when the request has been applied or has
  ///   failed. A stream that is reset by the client or refused by the server (RST_STREAM) was not it: the link
  ///   waits for the next request.
  /// * Any other protocol (HTTP/1, TLS): the request is the first bytes that any client sends which the link
  ///   passes on after this call, and the answer is the first bytes that it reads from the server on that
  ///   connection after that. Use it on connections that are at rest.
  ///
  /// If the request's connection ends before the answer, the next request takes its place. The fault ends all
  /// that shares the connection; watches and keepalives notice. Whoever must be sure that it took place asks
  /// `wait_swallowed`.
  void swallow_next_answer() {
    on_thread([this] {
      armed_ = true;
      asked_ = nullptr;
      const std::lock_guard lock{swallow_mutex_};
      swallow_ = swallow::pending;
    });
  }

  /// Waits until the answer that `swallow_next_answer` was last called for has been swallowed, and for as long
  /// as `timeout`. Returns whether it has been; false at once if `heal` came first or nothing was armed.
  bool wait_swallowed(milliseconds timeout) const {
    std::unique_lock lock{swallow_mutex_};
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    swallow_changed_.wait_until(lock, deadline, [this] { return swallow_ != swallow::pending; });
    return swallow_ == swallow::happened;
  }

  /// Undoes every fault: listens again, lets everything that was held up, delayed or slowed down pass at once,
  /// and disarms `swallow_next_answer`. Throws std::system_error if the system does not let it listen again.
  void heal() {
    on_thread([this] {
      ways_ = {};
      trickle_.reset();
      for (const auto& each : connections_)
        for (auto& flow : each->flows)
          for (auto& part : flow.waiting) part.due = {};
      armed_ = false;
      asked_ = nullptr;
      {
        const std::lock_guard lock{swallow_mutex_};
        if (swallow_ == swallow::pending) swallow_ = swallow::none;  // that it happened stays true
      }
      swallow_changed_.notify_all();
      if (!listening_) listen();
    });
  }

  // Counters, to prove that a fault took place, that a connection was used, or that nobody connects again and
  // again without a pause. They are exact: what a client or the server has received is counted.

  /// Connections accepted since the beginning. Those refused after `cut` are not among them; to count a
  /// client's attempts, stop the server instead.
  std::uint64_t connections_accepted() const { return ask(accepted_); }

  /// Connections that are open now. In a stalled direction the link does not notice that one has ended.
  std::size_t connections_open() const {
    std::size_t result = 0;
    on_thread([this, &result] { result = connections_.size(); });
    return result;
  }

  /// Bytes passed on to the server since the beginning.
  std::uint64_t bytes_to_server() const { return ask(passed_[to_server]); }

  /// Bytes passed on to clients since the beginning.
  std::uint64_t bytes_to_client() const { return ask(passed_[to_client]); }

private:
  using clock = std::chrono::steady_clock;
  using time_point = clock::time_point;
  using unique_fd = detail::unique_fd;

  enum : std::size_t { to_server, to_client, ways };

  struct settings {
    bool stalled{false};
    milliseconds delay{0};
  };

  struct rate {
    std::size_t bytes;
    milliseconds interval;
  };

  /// Bytes as they were read; none: the sender's end.
  struct chunk {
    time_point due;
    std::string bytes;
  };

  /// One direction of a connection.
  struct flow_state {
    std::deque<chunk> waiting;
    std::size_t sent_of_first{0};
    std::size_t buffered{0};
    bool ended{false};      // the sender has ended
    bool passed_on{false};  // and the receiver was told
    time_point window{};    // until when `allowance` holds
    std::size_t allowance{0};
    detail::http2_frames frames;
  };

  enum class protocol { unknown, http2, other };
  static constexpr std::string_view preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

  struct connection {
    unique_fd client;
    unique_fd server;
    bool connecting{true};
    std::array<flow_state, ways> flows{
        {{.frames = detail::http2_frames{preface.size()}}, {.frames = detail::http2_frames{}}}};
    protocol speaks{protocol::unknown};
    std::size_t preface_seen{0};

    bool closed() const { return client.get() < 0; }
    int source(std::size_t way) const { return way == to_server ? client.get() : server.get(); }
    int sink(std::size_t way) const { return way == to_server ? server.get() : client.get(); }
  };

  enum class swallow { none, pending, happened };

  static sockaddr_in address_of(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  static int make_socket() { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

  /// False if a stranger took the port since it was found free.
  bool bind_listener() {
    port_.emplace();
    listener_ = detail::checked_fd(make_socket(), "socket");
    const int yes = 1;
    ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    const auto address = address_of(port());
    if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return true;
    if (errno != EADDRINUSE) throw std::system_error{errno, std::generic_category(), "bind"};
    return false;
  }

  void listen() {
    if (::listen(listener_.get(), 511) != 0)
      throw std::system_error{errno, std::generic_category(), "cannot listen on " + endpoint()};
    listening_ = true;
  }

  // ---- between the threads --------------------------------------------------------------------------------

  /// What a caller waits for.
  struct request {
    std::function<void()> job;
    std::exception_ptr failed{};
    bool done{false};
  };

  /// Has the link's thread do it; returns when it is done, throws what it throws.
  void on_thread(std::function<void()> job) const {
    request mine{.job = std::move(job)};
    std::unique_lock lock{requests_mutex_};
    requests_.push_back(&mine);
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
    request_done_.wait(lock, [&mine] { return mine.done; });
    if (mine.failed) std::rethrow_exception(mine.failed);
  }

  std::uint64_t ask(const std::uint64_t& counter) const {
    std::uint64_t result = 0;
    on_thread([&] { result = counter; });
    return result;
  }

  std::vector<request*> take_requests() {
    const std::lock_guard lock{requests_mutex_};
    return std::exchange(requests_, {});
  }

  void serve(const std::vector<request*>& requests) {
    for (auto* const each : requests) {
      try {
        each->job();
      } catch (...) {
        each->failed = std::current_exception();
      }
      const std::lock_guard lock{requests_mutex_};
      each->done = true;  // its caller may go now, and takes it along
      request_done_.notify_all();
    }
  }

  template <class Change>
  void for_each_way(direction where, Change change) {
    if (where != direction::to_client) change(ways_[to_server]);
    if (where != direction::to_server) change(ways_[to_client]);
  }

  // ---- the thread -----------------------------------------------------------------------------------------

  void run() {
    while (!stopping_) {
      const auto requests = take_requests();
      wait(requests.empty());
      std::uint64_t ignored = 0;
      if (polled_[0].revents != 0) {
        [[maybe_unused]] const auto drained = ::read(wake_.get(), &ignored, sizeof ignored);
      }
      const auto count = connections_.size();  // those accepted below have not been waited for
      for (std::size_t i = 0; i < count; ++i)
        attend(*connections_[i], polled_[2 + 2 * i], polled_[3 + 2 * i]);
      forget_closed();
      if ((polled_[1].revents & POLLIN) != 0) accept_waiting();
      serve(requests);  // last: what came before the call is treated as before it
    }
  }

  /// Waits until something can be done, or is due; without `patience` only looks.
  void wait(bool patience) {
    const auto now = clock::now();
    auto next = time_point::max();
    polled_.clear();
    polled_.push_back({.fd = wake_.get(), .events = POLLIN, .revents = 0});
    bool accepts = listening_ && connections_.size() < connection_limit_;
    if (accepts && now < accept_again_) {
      next = accept_again_;
      accepts = false;
    }
    polled_.push_back({.fd = accepts ? listener_.get() : -1, .events = POLLIN, .revents = 0});
    for (const auto& each : connections_) {
      pollfd client{.fd = each->client.get(), .events = 0, .revents = 0};
      pollfd server{.fd = each->server.get(), .events = 0, .revents = 0};
      if (each->connecting) server.events |= POLLOUT;
      for (std::size_t way = 0; way < ways; ++way) {
        auto& source = way == to_server ? client : server;
        auto& sink = way == to_server ? server : client;
        if (may_read(*each, way)) source.events |= POLLIN;
        const auto when = may_write_at(*each, way);
        if (when <= now) {
          sink.events |= POLLOUT;
        } else {
          next = std::min(next, when);
        }
      }
      // poll tells hang-ups even to those who ask for nothing, and would not wait then.
      if (client.events == 0) client.fd = -1;
      if (server.events == 0) server.fd = -1;
      polled_.push_back(client);
      polled_.push_back(server);
    }
    int limit = patience ? -1 : 0;
    if (patience && next != time_point::max()) {
      const auto left = std::chrono::ceil<milliseconds>(next - now).count();
      limit = static_cast<int>(std::clamp<milliseconds::rep>(left, 0, 60'000));
    }
    if (::poll(polled_.data(), polled_.size(), limit) < 0) {
      for (auto& each : polled_) each.revents = 0;
    }
  }

  bool may_read(const connection& on, std::size_t way) const {
    const auto& flow = on.flows[way];
    return !ways_[way].stalled && !flow.ended && flow.buffered < buffer_size &&
           (way == to_server || !on.connecting);
  }

  time_point may_write_at(const connection& on, std::size_t way) const {
    const auto& flow = on.flows[way];
    if (flow.waiting.empty() || ways_[way].stalled || on.connecting) return time_point::max();
    const auto& first = flow.waiting.front();
    return trickle_ && flow.allowance == 0 ? std::max(first.due, flow.window) : first.due;
  }

  void attend(connection& on, const pollfd& client, const pollfd& server) {
    constexpr short broken = POLLERR | POLLHUP;
    const auto ready = [](const pollfd& entry, short event) {
      return (entry.events & event) != 0 && (entry.revents & (event | broken)) != 0;
    };
    if (on.connecting) {
      if (ready(server, POLLOUT)) finish_connecting(on);
    } else if (ready(server, POLLOUT)) {
      write(on, to_server);
    }
    if (!on.closed() && ready(client, POLLOUT)) write(on, to_client);
    if (!on.closed() && ready(client, POLLIN)) read(on, to_server);
    if (!on.closed() && ready(server, POLLIN)) read(on, to_client);
  }

  void accept_waiting() {
    while (connections_.size() < connection_limit_) {
      unique_fd client{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
      if (client.get() < 0) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        // Out of descriptors: the connection keeps waiting, and poll would say so all the time.
        if (errno != EAGAIN) accept_again_ = clock::now() + milliseconds{20};
        return;
      }
      ++accepted_;
      auto made = std::make_unique<connection>();
      made->client = std::move(client);
      made->server = unique_fd{make_socket()};
      const int yes = 1;
      ::setsockopt(made->client.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      ::setsockopt(made->server.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      const auto* const target = reinterpret_cast<const sockaddr*>(&target_);
      if (::connect(made->server.get(), target, sizeof target_) != 0 && errno != EINPROGRESS) {
        abort(*made);
        continue;
      }
      connections_.push_back(std::move(made));
    }
  }

  void finish_connecting(connection& on) {
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(on.server.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
      abort(on);
      return;
    }
    on.connecting = false;
    write(on, to_server);
  }

  void read(connection& on, std::size_t way) {
    auto& flow = on.flows[way];
    std::array<char, 16384> buffer;
    const auto room = std::min(buffer.size(), buffer_size - flow.buffered);
    const ssize_t got = ::recv(on.source(way), buffer.data(), room, 0);
    if (got < 0) {
      if (errno != EAGAIN && errno != EINTR) abort(on);
      return;
    }
    std::string bytes{buffer.data(), static_cast<std::size_t>(got)};
    if (way == to_client && answers_request(on, bytes)) {
      armed_ = false;
      // Whoever has noticed the reset is told that it happened, and whoever is told finds the connection gone.
      const std::lock_guard lock{swallow_mutex_};
      abort(on);
      swallow_ = swallow::happened;
      swallow_changed_.notify_all();
      return;
    }
    if (bytes.empty()) flow.ended = true;
    flow.buffered += bytes.size();
    const auto earliest = flow.waiting.empty() ? time_point{} : flow.waiting.back().due;
    flow.waiting.push_back({std::max(earliest, clock::now() + ways_[way].delay), std::move(bytes)});
    write(on, way);
  }

  /// Passes on what is due and what the receiver takes.
  void write(connection& on, std::size_t way) {
    auto& flow = on.flows[way];
    while (!on.closed()) {
      const auto now = clock::now();
      if (may_write_at(on, way) > now) return;
      const auto left = std::string_view{flow.waiting.front().bytes}.substr(flow.sent_of_first);
      if (left.empty()) {
        pass_end_on(on, way);
        return;
      }
      auto size = left.size();
      if (trickle_) {
        if (now >= flow.window) {
          flow.window = now + trickle_->interval;
          flow.allowance = trickle_->bytes;
        }
        size = std::min(size, flow.allowance);
      }
      const ssize_t sent = ::send(on.sink(way), left.data(), size, MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) abort(on);
        return;
      }
      const auto done = static_cast<std::size_t>(sent);
      passed_[way] += done;
      if (way == to_server) see_request(on, left.substr(0, done));
      if (trickle_) flow.allowance -= done;
      flow.buffered -= done;
      flow.sent_of_first += done;
      if (done == left.size()) {
        flow.waiting.pop_front();
        flow.sent_of_first = 0;
      }
    }
  }

  void pass_end_on(connection& on, std::size_t way) {
    auto& flow = on.flows[way];
    flow.waiting.pop_front();
    flow.passed_on = true;
    ::shutdown(on.sink(way), SHUT_WR);
    if (on.flows[to_server].passed_on && on.flows[to_client].passed_on) close(on);
  }

  // ---- swallowing an answer -------------------------------------------------------------------------------

  /// `bytes` went to the server.
  void see_request(connection& on, std::string_view bytes) {
    const auto offered = bytes;
    for (; on.speaks == protocol::unknown && !bytes.empty(); bytes.remove_prefix(1)) {
      if (bytes.front() != preface[on.preface_seen]) {
        on.speaks = protocol::other;
      } else if (++on.preface_seen == preface.size()) {
        on.speaks = protocol::http2;
      }
    }
    if (on.speaks == protocol::other) {
      if (armed_ && asked_ == nullptr) asked_ = &on;
      return;
    }
    on.flows[to_server].frames.feed(offered, [this, &on](unsigned type, std::uint32_t stream) {
      if (type == detail::http2_frames::headers && armed_ && asked_ == nullptr) {
        asked_ = &on;
        asked_stream_ = stream;
      } else if (type == detail::http2_frames::rst_stream && asked_ == &on && asked_stream_ == stream) {
        asked_ = nullptr;
      }
    });
  }

  /// Whether `bytes`, which came from the server, are or contain the beginning of the answer to be swallowed.
  bool answers_request(connection& on, std::string_view bytes) {
    bool answers = asked_ == &on && on.speaks == protocol::other && !bytes.empty();
    on.flows[to_client].frames.feed(bytes, [&](unsigned type, std::uint32_t stream) {
      if (asked_ != &on || on.speaks != protocol::http2 || asked_stream_ != stream) return;
      if (type == detail::http2_frames::headers) {
        answers = true;
      } else if (type == detail::http2_frames::rst_stream && !answers) {
        asked_ = nullptr;
      }
    });
    return answers;
  }

  // ---- the ends of connections ----------------------------------------------------------------------------

  void close(connection& on) {
    // A child that was forked and has not yet begun its program holds copies: `close` alone would wait for it.
    if (!on.closed()) {
      ::shutdown(on.client.get(), SHUT_RDWR);
      ::shutdown(on.server.get(), SHUT_RDWR);
    }
    on.client.reset();
    on.server.reset();
    if (asked_ == &on) asked_ = nullptr;
  }

  void abort(connection& on) {
    const linger at_once{.l_onoff = 1, .l_linger = 0};
    for (auto* const each : {&on.client, &on.server}) {
      ::setsockopt(each->get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
      each->reset();
    }
    if (asked_ == &on) asked_ = nullptr;
  }

  void forget_closed() {
    std::erase_if(connections_, [](const auto& each) { return each->closed(); });
  }

  sockaddr_in target_;
  std::size_t connection_limit_;
  unique_fd wake_;
  std::optional<reserved_port> port_;
  unique_fd listener_;

  mutable std::mutex requests_mutex_;
  mutable std::condition_variable request_done_;
  mutable std::vector<request*> requests_;

  mutable std::mutex swallow_mutex_;
  mutable std::condition_variable swallow_changed_;
  swallow swallow_{swallow::none};

  // The thread's own.
  bool stopping_{false};
  std::uint64_t accepted_{0};
  std::array<std::uint64_t, ways> passed_{};
  bool listening_{false};
  time_point accept_again_{};
  std::array<settings, ways> ways_{};
  std::optional<rate> trickle_;
  std::vector<std::unique_ptr<connection>> connections_;
  std::vector<pollfd> polled_;
  bool armed_{false};
  const connection* asked_{nullptr};  // whose answer is to be swallowed
  std::uint32_t asked_stream_{0};

  std::thread thread_;  // last: it uses all the others
};

}  // namespace conclave::testing
