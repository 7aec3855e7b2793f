// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>
#include <conclave/testing/loopback.hpp>

#include <cstdint>
#include <memory>

namespace conclave::testing {

/// How a private etcd is started. The defaults suit tests: it elects itself in about a tenth of a second and
/// takes lease times from one second up.
struct etcd_server_options {
  /// The etcd program; empty: the environment variable CONCLAVE_ETCD, else `etcd` on PATH.
  std::string binary{};
  std::chrono::milliseconds heartbeat_interval{10};
  /// At least five heartbeats. The shortest lease that etcd grants is one and a half of it, at least 1 s.
  std::chrono::milliseconds election_timeout{100};
  /// The size at which the store refuses writes; 0: etcd's default.
  std::uint64_t quota_backend_bytes{0};
  /// Added to the command line as they are.
  std::vector<std::string> extra_arguments{};
  /// Where etcd's output goes; empty: a file in the temporary folder, which is removed with it.
  std::filesystem::path log_file{};
  /// How long a start or restart may take.
  std::chrono::milliseconds start_timeout{std::chrono::seconds{30}};
};

/// A real, private, one-member etcd: a child process on free ports of 127.0.0.1 with its data in a temporary
/// folder. It needs no privileges and touches nothing of an etcd that the machine may run.
///
/// ```
/// conclave::testing::etcd_server server;          // returns when etcd answers
/// conclave::client client{io_context, server.endpoint()};
/// server.pause();                                 // a frozen server: connections stay open, nothing answers
/// server.resume();
/// server.kill();                                  // power cut
/// server.restart();                               // same data, same ports
/// ```
///
/// The functions block, briefly. The destructor kills the process and removes the folder; should this program
/// itself be killed, the kernel kills etcd (the folder then stays). Distinct objects may be used from
/// distinct threads; one object by one thread at a time. Linux only.
class etcd_server {
public:
  using milliseconds = std::chrono::milliseconds;

  /// Starts etcd and returns when it has a leader and answers. Throws std::runtime_error, with the end of
  /// etcd's log in its text, when that does not happen in time; std::system_error when there is no etcd.
  explicit etcd_server(etcd_server_options options = {})
      : options_{std::move(options)}, folder_{"conclave-etcd-"} {
    if (options_.binary.empty()) {
      const char* const variable = std::getenv("CONCLAVE_ETCD");
      options_.binary = variable != nullptr && *variable != '\0' ? variable : "etcd";
    }
    if (find_program(options_.binary).empty()) {
      throw std::system_error{ENOENT, std::generic_category(),
                              "cannot find the etcd program '" + options_.binary +
                                  "' (install etcd, or name its path in CONCLAVE_ETCD)"};
    }
    if (options_.log_file.empty()) options_.log_file = folder_.path() / "etcd.log";
    constexpr int attempts = 5;
    for (int attempt = 1;; ++attempt) {
      ports_ = std::make_unique<ports>();
      try {
        launch();
        return;
      } catch (const address_in_use&) {
        if (attempt == attempts) throw;  // a stranger took the port between our look and etcd's bind: others
      }
    }
  }

  etcd_server(etcd_server&&) noexcept = default;
  etcd_server& operator=(etcd_server&&) = delete;

  /// Kills etcd and removes its folder.
  ~etcd_server() = default;

  /// "http://127.0.0.1:PORT", the same for the whole life of the object.
  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port()); }

  /// The port for clients.
  std::uint16_t port() const { return ports_->client.number(); }

  /// etcd's process id, or -1 while it is stopped.
  pid_t pid() const { return process_.pid(); }

  /// The temporary folder: etcd's data are in `data` below it.
  const std::filesystem::path& folder() const { return folder_.path(); }

  /// Whether the process exists, paused or not.
  bool running() { return process_.running(); }

  /// Ends etcd the polite way (SIGTERM; SIGKILL when `grace` is over). Nothing happens if it is stopped.
  void stop(milliseconds grace = std::chrono::seconds{10}) { process_.stop(grace); }

  /// Ends etcd at once (SIGKILL), as a power cut would, but for what the system had not yet written to disk.
  void kill() { process_.kill(); }

  /// Freezes etcd (SIGSTOP): connections stay open and are accepted, nothing is answered. Returns when every
  /// thread of it has stopped.
  void pause() { process_.pause(); }

  /// Ends a pause.
  void resume() { process_.resume(); }

  /// Starts etcd again with the same data on the same ports, and returns when it answers. Kills it first if
  /// it runs. Throws as the constructor does.
  void restart() {
    kill();
    const auto deadline = std::chrono::steady_clock::now() + options_.start_timeout;
    for (;;) {
      try {
        launch();
        return;
      } catch (const address_in_use&) {
        if (std::chrono::steady_clock::now() >= deadline) throw;
        ::poll(nullptr, 0, 20);
      }
    }
  }

  /// The same with nothing stored: a new cluster, as after a lost disk.
  void restart_with_empty_data() {
    kill();
    std::filesystem::remove_all(data_folder());
    restart();
  }

  /// A value from etcd's /metrics, such as "etcd_server_proposals_applied_total": the sum over all label sets
  /// of that name, or the one series that is written exactly so, labels included. Throws std::runtime_error
  /// if there is none, so that a misspelt name does not pass for a zero.
  double metric(std::string_view name) const {
    const std::string text = metrics();
    double sum = 0;
    bool found = false;
    for (std::size_t begin = 0; begin < text.size();) {
      const auto end = std::min(text.find('\n', begin), text.size());
      const auto line = std::string_view{text}.substr(begin, end - begin);
      begin = end + 1;
      if (!line.starts_with(name)) continue;
      const auto rest = line.substr(name.size());
      if (rest.empty() || (rest.front() != ' ' && (rest.front() != '{' || name.find('{') != name.npos)))
        continue;
      sum += std::strtod(std::string{line.substr(line.rfind(' ') + 1)}.c_str(), nullptr);
      found = true;
    }
    if (!found) throw std::runtime_error{"etcd has no metric '" + std::string{name} + "'"};
    return sum;
  }

  /// The whole text of /metrics.
  std::string metrics() const { return http_request(port(), "/metrics", {}, std::chrono::seconds{5}).body; }

  /// The last lines of etcd's log.
  std::string log_tail(std::size_t lines = 40) const { return file_tail(options_.log_file, lines); }

private:
  struct ports {
    reserved_port client;
    reserved_port peer;
  };

  struct address_in_use : std::runtime_error {
    using std::runtime_error::runtime_error;
  };

  std::filesystem::path data_folder() const { return folder_.path() / "data"; }

  void launch() {
    const std::string peer = "http://127.0.0.1:" + std::to_string(ports_->peer.number());
    child_options child{
        .command = {options_.binary,
                    "--name",
                    "conclave",
                    "--data-dir",
                    data_folder().string(),
                    "--listen-client-urls",
                    endpoint(),
                    "--advertise-client-urls",
                    endpoint(),
                    "--listen-peer-urls",
                    peer,
                    "--initial-advertise-peer-urls",
                    peer,
                    "--initial-cluster",
                    "conclave=" + peer,
                    "--heartbeat-interval",
                    std::to_string(options_.heartbeat_interval.count()),
                    "--election-timeout",
                    std::to_string(options_.election_timeout.count()),
                    "--logger",
                    "zap",
                    "--log-outputs",
                    "stderr"},
        // etcd refuses to start when a variable and an option say the same thing.
        .drop_environment_prefixes = {"ETCD_"},
        .output_file = options_.log_file,
    };
    if (const char* const unsupported = std::getenv("ETCD_UNSUPPORTED_ARCH")) {
      child.environment["ETCD_UNSUPPORTED_ARCH"] = unsupported;
    }
    if (options_.quota_backend_bytes != 0) {
      child.command.insert(child.command.end(),
                           {"--quota-backend-bytes", std::to_string(options_.quota_backend_bytes)});
    }
    child.command.insert(child.command.end(), options_.extra_arguments.begin(),
                         options_.extra_arguments.end());

    std::error_code none;
    const auto log_start = std::filesystem::exists(options_.log_file, none)
                               ? std::filesystem::file_size(options_.log_file, none)
                               : 0;
    process_ = child_process{child};
    const auto deadline = std::chrono::steady_clock::now() + options_.start_timeout;
    while (!healthy()) {
      if (!process_.running()) {
        if (log_since(log_start).find("address already in use") != std::string::npos) {
          throw address_in_use{failure("found its port taken")};
        }
        throw std::runtime_error{
            failure("ended with " + to_string(process_.status().value_or(exit_status{})))};
      }
      if (std::chrono::steady_clock::now() >= deadline) {
        process_.kill();
        throw std::runtime_error{
            failure("did not answer within " + std::to_string(options_.start_timeout.count()) + " ms")};
      }
      ::poll(nullptr, 0, 5);
    }
  }

  // A full store is no reason to call a server not started, hence the exclusion.
  bool healthy() const {
    try {
      const auto answer = http_request(port(), "/health?exclude=NOSPACE", {}, std::chrono::seconds{1});
      return answer.status == 200 && answer.body.find("true") != std::string::npos;
    } catch (const std::system_error&) {
      return false;
    }
  }

  std::string log_since(std::uintmax_t position) const {
    std::ifstream stream{options_.log_file, std::ios::binary};
    stream.seekg(static_cast<std::streamoff>(position));
    return std::string{std::istreambuf_iterator<char>{stream}, {}};
  }

  std::string failure(const std::string& what) const {
    return options_.binary + " " + what + "; the end of its log:\n" + log_tail();
  }

  etcd_server_options options_;
  temporary_folder folder_;
  std::unique_ptr<ports> ports_;
  child_process process_;  // last: it ends before its folder goes
};

}  // namespace conclave::testing
