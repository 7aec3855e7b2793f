// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/loopback.hpp>
#include <conclave/version.hpp>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>

namespace conclave::inline CONCLAVE_ABI::testing::detail {

// Whose a TCP socket of this machine is: what a member of a cluster is recognised by.

/// The inode of the IPv4 TCP socket that has 127.0.0.1 and `local` on its side and 127.0.0.1 and `remote` on the
/// other (`remote` 0: the socket that listens), as the kernel tells it when asked for just that; 0: there is no
/// such socket; nothing: the kernel does not answer such questions.
inline std::optional<std::uint64_t> asked_socket_inode(std::uint16_t local, std::uint16_t remote) {
  const unique_fd kernel{::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)};
  if (kernel.get() < 0) return std::nullopt;
  struct {
    nlmsghdr header;
    inet_diag_req_v2 body;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.body.sdiag_family = AF_INET;
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.idiag_states = ~0U;
  request.body.id.idiag_sport = htons(local);
  request.body.id.idiag_dport = htons(remote);
  request.body.id.idiag_src[0] = htonl(INADDR_LOOPBACK);
  request.body.id.idiag_dst[0] = remote != 0 ? htonl(INADDR_LOOPBACK) : 0;
  request.body.id.idiag_cookie[0] = INET_DIAG_NOCOOKIE;
  request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  if (::send(kernel.get(), &request, sizeof request, 0) != static_cast<ssize_t>(sizeof request)) {
    return std::nullopt;
  }
  alignas(nlmsghdr) char answer[4096];
  const auto got = ::recv(kernel.get(), answer, sizeof answer, MSG_DONTWAIT);
  nlmsghdr header{};
  if (got < static_cast<ssize_t>(sizeof header)) return std::nullopt;
  std::memcpy(&header, answer, sizeof header);
  if (header.nlmsg_type == NLMSG_ERROR) {
    nlmsgerr error{};
    if (got < static_cast<ssize_t>(NLMSG_HDRLEN + sizeof error)) return std::nullopt;
    std::memcpy(&error, answer + NLMSG_HDRLEN, sizeof error);
    return error.error == -ENOENT ? std::optional<std::uint64_t>{0} : std::nullopt;
  }
  inet_diag_msg found{};
  if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY || got < static_cast<ssize_t>(NLMSG_HDRLEN + sizeof found)) {
    return std::nullopt;
  }
  std::memcpy(&found, answer + NLMSG_HDRLEN, sizeof found);
  // In want of a connection the kernel takes a socket that listens.
  return found.id.idiag_sport == htons(local) && found.id.idiag_dport == htons(remote) ? found.idiag_inode
                                                                                       : std::uint64_t{0};
}

/// The same from the table of all sockets; 0 if it does not show one. It takes a hundred times as long, and as
/// the table is not read in one piece, a socket can be missed.
inline std::uint64_t listed_socket_inode(std::uint16_t local, std::uint16_t remote) {
  std::ifstream table{"/proc/net/tcp"};
  std::string line;
  std::getline(table, line);  // the titles
  while (std::getline(table, line)) {
    unsigned local_address = 0;
    unsigned local_port = 0;
    unsigned remote_port = 0;
    unsigned long long inode = 0;
    const int read = std::sscanf(line.c_str(), "%*d: %8X:%4X %*8X:%4X %*2X %*s %*s %*s %*s %*s %llu",
                                 &local_address, &local_port, &remote_port, &inode);
    if (read == 4 && local_address == htonl(INADDR_LOOPBACK) && local_port == local &&
        remote_port == remote && inode != 0) {
      return inode;
    }
  }
  return 0;
}

/// One of the two: the fast one where the kernel has it.
inline std::uint64_t socket_inode(std::uint16_t local, std::uint16_t remote) {
  const auto asked = asked_socket_inode(local, remote);
  return asked ? *asked : listed_socket_inode(local, remote);
}

/// Whether the process, which is the same user's, has that socket open. No process has socket 0.
inline bool owns_socket(pid_t pid, std::uint64_t inode) {
  if (pid <= 0 || inode == 0) return false;
  const std::string wanted = "socket:[" + std::to_string(inode) + "]";
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  std::error_code error;
  for (std::filesystem::directory_iterator it{folder, error}, end; !error && it != end; it.increment(error)) {
    std::error_code closed_meanwhile;
    if (std::filesystem::read_symlink(it->path(), closed_meanwhile) == wanted) return true;
  }
  return false;
}

}  // namespace conclave::testing::detail
