// SPDX-License-Identifier: BSL-1.0

// with_etcd COMMAND [ARGUMENT...]: runs a command with ETCD_ENDPOINTS naming a private etcd, which lives in a
// temporary folder and ends with the command. The exit code is the command's.

#include <conclave/testing/etcd_server.hpp>

#include <atomic>
#include <csignal>
#include <exception>
#include <iostream>

namespace {

// Written before the handlers are installed and by nobody else while they are.
std::atomic<pid_t> command_pid{-1};

void forward(int signal) {
  if (const pid_t pid = command_pid.load(); pid > 0) ::kill(pid, signal);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: with_etcd COMMAND [ARGUMENT...]\n";
    return 2;
  }
  const conclave::testing::etcd_server server;
  conclave::testing::child_process command{{
      .command = {argv + 1, argv + argc},
      .environment = {{"ETCD_ENDPOINTS", server.endpoint()}},
      .foreground = true,
  }};
  command_pid = command.pid();
  for (const int number : {SIGTERM, SIGHUP}) std::signal(number, forward);
  std::signal(SIGINT, SIG_IGN);  // the terminal sends it to the command as well, whose decision it is
  while (!command.wait_for(std::chrono::hours{1})) {
  }
  command_pid = -1;
  const auto& status = *command.status();
  return status.signal != 0 ? 128 + status.signal : status.code;
} catch (const std::exception& error) {
  std::cerr << "with_etcd: " << error.what() << '\n';
  return 1;
}
