// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>
#include <conclave/testing/loopback.hpp>
#include <conclave/testing/socket_owner.hpp>
#include <conclave/version.hpp>

#include <netinet/tcp.h>
#include <sys/eventfd.h>

#include <array>
#include <cstdint>
#include <list>

namespace conclave::inline CONCLAVE_ABI::testing {

/// The links between the members of a cluster on this machine: all that one member says to another passes
/// through a relay, and a member can be cut off from all others in both directions.
///
/// There is one relay for each member: a port of 127.0.0.1 which the others dial to reach it. Who has dialled
/// is found out from the system: the process that owns the other end of the connection. A connection from a
/// process that is no member is closed.
///
/// A thread of this object's own moves the bytes. All functions are thread-safe. Linux only.
class peer_links {
public:
  /// Opens the relays; member `i` itself listens on port `targets[i]` of 127.0.0.1. Throws std::system_error
  /// when the system has no socket or no thread left.
  explicit peer_links(const std::vector<std::uint16_t>& targets) : members_(targets.size()) {
    for (std::size_t i = 0; i < targets.size(); ++i) {
      members_[i].target = targets[i];
      open_relay(members_[i]);
    }
    wake_ = detail::checked_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
    // The program's signals are for the program's threads.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread_ = std::thread{[this] { serve(); }};
    } catch (...) {
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  peer_links(const peer_links&) = delete;
  peer_links& operator=(const peer_links&) = delete;

  /// Closes all connections and relays.
  ~peer_links() {
    {
      const std::lock_guard lock{mutex_};
      stopped_ = true;
      wake();
    }
    thread_.join();
  }

  /// The port on which the others reach the member.
  std::uint16_t port(std::size_t member) const { return members_.at(member).port; }

  /// Says which process the member is; -1: none.
  void set_process(std::size_t member, pid_t pid) {
    const std::lock_guard lock{mutex_};
    members_.at(member).pid = pid;
  }

  /// Cuts the member off: when this returns, all its connections from and to other members are closed, and new
  /// ones are closed as soon as they are made, until `heal`. Does not touch its connections with clients.
  void isolate(std::size_t member) {
    std::unique_lock lock{mutex_};
    members_.at(member).isolated = true;
    const auto change = ++changes_;
    wake();
    applied_.wait(lock, [&] { return changes_applied_ >= change; });
  }

  /// Ends the isolation: from now on new connections are let through.
  void heal(std::size_t member) {
    const std::lock_guard lock{mutex_};
    members_.at(member).isolated = false;
  }

  /// Whether the member is cut off.
  bool isolated(std::size_t member) const {
    const std::lock_guard lock{mutex_};
    return members_.at(member).isolated;
  }

  /// How many connections from one member to another are open.
  std::size_t connections(std::size_t from, std::size_t to) const {
    const std::lock_guard lock{mutex_};
    return static_cast<std::size_t>(std::count_if(
        links_.begin(), links_.end(), [&](const link& each) { return each.from == from && each.to == to; }));
  }

private:
  struct member_state {
    std::uint16_t target{0};
    std::uint16_t port{0};
    pid_t pid{-1};
    bool isolated{false};
    detail::unique_fd listener;
  };

  // One direction of a connection.
  struct flow {
    std::array<char, 16384> bytes;
    std::size_t begin{0};
    std::size_t end{0};
    bool source_ended{false};
    bool target_told{false};

    bool empty() const { return begin == end; }
  };

  struct link {
    std::size_t from;
    std::size_t to;
    detail::unique_fd dialler;
    detail::unique_fd dialled;
    bool connecting{true};  // `dialled` is not connected yet
    flow out{};             // from `dialler` to `dialled`
    flow back{};
  };

  enum class health { open, finished, broken };

  static void open_relay(member_state& member) {
    member.listener = tcp_socket();
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    if (::bind(member.listener.get(), generic, size) != 0 || ::listen(member.listener.get(), 128) != 0 ||
        ::getsockname(member.listener.get(), generic, &size) != 0) {
      throw std::system_error{errno, std::generic_category(), "cannot listen on 127.0.0.1"};
    }
    member.port = ntohs(address.sin_port);
  }

  static detail::unique_fd tcp_socket() {
    return detail::checked_fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket");
  }

  static sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
  }

  // The thread. It holds the mutex but while it waits, and nothing that it does meanwhile blocks.
  void serve() {
    std::unique_lock lock{mutex_};
    std::vector<pollfd> polled;
    while (!stopped_) {
      drop_links_of_isolated();
      changes_applied_ = changes_;
      applied_.notify_all();

      polled.clear();
      polled.push_back({.fd = wake_.get(), .events = POLLIN, .revents = 0});
      for (const auto& each : members_)
        polled.push_back({.fd = each.listener.get(), .events = POLLIN, .revents = 0});
      for (const auto& each : links_) {
        polled.push_back(interest(each.dialler, each.out, each.back, false));
        polled.push_back(interest(each.dialled, each.back, each.out, each.connecting));
      }
      lock.unlock();
      const int ready = ::poll(polled.data(), polled.size(), -1);
      lock.lock();
      if (ready <= 0) continue;

      std::uint64_t ignored = 0;
      [[maybe_unused]] const auto read = ::read(wake_.get(), &ignored, sizeof ignored);
      auto entry = polled.begin() + 1 + static_cast<std::ptrdiff_t>(members_.size());
      for (auto it = links_.begin(); it != links_.end();) {
        const auto dialler = (entry++)->revents;
        const auto dialled = (entry++)->revents;
        const auto now = (dialler | dialled) == 0 ? health::open : move(*it, dialler, dialled);
        if (now == health::broken) reset(*it);
        it = now == health::open ? std::next(it) : links_.erase(it);
      }
      for (std::size_t i = 0; i < members_.size(); ++i)
        if (polled[1 + i].revents != 0) accept(i);
    }
    for (auto& each : links_) reset(each);
    links_.clear();
  }

  void drop_links_of_isolated() {
    for (auto it = links_.begin(); it != links_.end();) {
      const bool cut = members_[it->from].isolated || members_[it->to].isolated;
      if (cut) reset(*it);
      it = cut ? links_.erase(it) : std::next(it);
    }
  }

  static pollfd interest(const detail::unique_fd& socket, const flow& from_it, const flow& to_it,
                         bool connecting) {
    int events = 0;
    if (connecting) {
      events = POLLOUT;
    } else {
      if (!from_it.source_ended && from_it.empty()) events |= POLLIN;
      if (!to_it.empty()) events |= POLLOUT;
    }
    return {.fd = socket.get(), .events = static_cast<short>(events), .revents = 0};
  }

  static health move(link& link, short dialler, short dialled) {
    if (link.connecting && dialled != 0) {
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(link.dialled.get(), SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return health::broken;
      link.connecting = false;
    }
    if (!link.connecting) {
      if (!move(link.dialler.get(), link.dialled.get(), link.out)) return health::broken;
      if (!move(link.dialled.get(), link.dialler.get(), link.back)) return health::broken;
      if (link.out.target_told && link.back.target_told) return health::finished;
    }
    // An end that is dead is reported for ever, whether we are interested or not.
    return ((dialler | dialled) & (POLLERR | POLLHUP)) != 0 ? health::broken : health::open;
  }

  // Moves what can be moved at once, but not for ever; false: an end is dead.
  static bool move(int source, int target, flow& flow) {
    for (int round = 0; round < 16; ++round) {
      if (flow.empty() && !flow.source_ended) {
        const auto got = ::recv(source, flow.bytes.data(), flow.bytes.size(), 0);
        if (got < 0) return errno == EAGAIN || errno == EINTR;
        flow.begin = 0;
        flow.end = static_cast<std::size_t>(got);
        flow.source_ended = got == 0;
      }
      if (!flow.empty()) {
        const auto sent = ::send(target, flow.bytes.data() + flow.begin, flow.end - flow.begin, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN || errno == EINTR;
        flow.begin += static_cast<std::size_t>(sent);
      } else if (flow.source_ended) {
        if (!flow.target_told) ::shutdown(target, SHUT_WR);
        flow.target_told = true;
        return true;
      }
    }
    return true;
  }

  void accept(std::size_t to) {
    detail::unique_fd dialler;
    try {
      sockaddr_in address{};
      socklen_t size = sizeof address;
      dialler =
          detail::unique_fd{::accept4(members_[to].listener.get(), reinterpret_cast<sockaddr*>(&address),
                                      &size, SOCK_CLOEXEC | SOCK_NONBLOCK)};
      if (dialler.get() < 0) {
        // Without descriptors the connection stays in the queue, and poll would return for it at once.
        if (errno == EMFILE || errno == ENFILE) ::poll(nullptr, 0, 10);
        return;
      }
      // A member that is cut off is dialled again and again: for that nobody needs to know who it was.
      if (!members_[to].isolated) {
        const auto from = owner(detail::socket_inode(ntohs(address.sin_port), members_[to].port));
        if (from && !members_[*from].isolated) {
          connect(*from, to, dialler);
          return;
        }
      }
    } catch (const std::exception&) {
      // No memory, no descriptors: this connection is refused, and its owner will try again.
    }
    if (dialler.get() >= 0) reset(dialler);
  }

  // The member whose process has that socket open.
  std::optional<std::size_t> owner(std::uint64_t inode) const {
    for (std::size_t i = 0; i < members_.size(); ++i)
      if (detail::owns_socket(members_[i].pid, inode)) return i;
    return std::nullopt;
  }

  void connect(std::size_t from, std::size_t to, detail::unique_fd& dialler) {
    auto dialled = tcp_socket();
    for (const int socket : {dialler.get(), dialled.get()}) {
      const int yes = 1;
      ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    }
    const sockaddr_in address = loopback(members_[to].target);
    if (::connect(dialled.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
        errno != EINPROGRESS) {
      reset(dialler);
      return;
    }
    links_.push_back({.from = from, .to = to});
    links_.back().dialler = std::move(dialler);
    links_.back().dialled = std::move(dialled);
  }

  // Closes it so that the other side notices at once, and nothing waits in the system to be sent.
  static void reset(detail::unique_fd& socket) {
    const linger at_once{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    socket.reset();
  }
  static void reset(link& link) {
    reset(link.dialler);
    reset(link.dialled);
  }

  mutable std::mutex mutex_;
  std::condition_variable applied_;
  std::vector<member_state> members_;
  std::list<link> links_;
  std::uint64_t changes_{0};
  std::uint64_t changes_applied_{0};
  bool stopped_{false};
  detail::unique_fd wake_;
  std::thread thread_;
};

}  // namespace conclave::testing
