// SPDX-License-Identifier: BSL-1.0

// A server's name may come to mean another address while a client lives.

#include <conclave/client.hpp>
#include <conclave/testing/child_process.hpp>
#include <conclave/testing/etcd_server.hpp>

#include "on_etcd.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

namespace asio = conclave::asio;
using namespace conclave::test;
using conclave::client;
using conclave::client_options;
using conclave::condition;
using conclave::testing::child_process;
using conclave::testing::temporary_folder;

constexpr const char* hosts_variable = "CONCLAVE_TEST_HOSTS";

/// In place: a bind mount stays with the file.
void write_hosts(const std::filesystem::path& file, const std::string& address) {
  std::ofstream{file, std::ios::trunc} << "127.0.0.1 localhost\n" << address << " etcd.test\n";
}

}  // namespace

// Runs in the process that the test below starts, whose hosts file is its own.
TEST_CASE("with a hosts file of its own, a client follows a name", "[.names]") {
  const char* const hosts = std::getenv(hosts_variable);
  REQUIRE(hosts != nullptr);
  etcd_server server;
  on_context([&](asio::io_context& context) -> asio::awaitable<void> {
    client_options options;
    options.endpoints("http://etcd.test:" + std::to_string(server.port())).connect_timeout(500ms);
    client c{context.get_executor(), options};
    const auto nobody = co_await error_of(c.get("k"));
    CHECK(nobody == condition::unavailable);
    write_hosts(hosts, "127.0.0.1");
    auto found = [&]() -> asio::awaitable<bool> {
      const auto code = co_await error_of(c.get("k"));
      co_return !code;
    };
    co_await eventually("the name is resolved anew", found);
  });
}

TEST_CASE("a name is resolved anew when nobody can be reached under it") {
  const temporary_folder folder{"conclave-test-"};
  const auto hosts = folder.path() / "hosts";
  write_hosts(hosts, "127.0.0.9");  // nobody listens there
  const auto output = folder.path() / "output";
  const auto in_own_world = [&](const std::string& what) {
    child_process child{
        {.command = {"unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
                     "mount --bind \"$" + std::string{hosts_variable} + "\" /etc/hosts && " + what,
                     std::filesystem::read_symlink("/proc/self/exe").string()},
         .environment = {{hosts_variable, hosts.string()}},
         .output_file = output}};
    const auto status = child.wait_for(60s);
    return status == conclave::testing::exit_status{};
  };
  if (!in_own_world("true")) {
    WARN("no namespaces here: " << conclave::testing::file_tail(output, 3));
    return;
  }
  INFO(conclave::testing::file_tail(output, 100));
  const bool passed = in_own_world("exec \"$0\" '[.names]'");
  INFO(conclave::testing::file_tail(output, 100));
  CHECK(passed);
}
