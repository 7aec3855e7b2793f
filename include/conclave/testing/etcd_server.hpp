// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>
#include <conclave/testing/loopback.hpp>
#include <conclave/version.hpp>

#include <cstdint>
#include <memory>

namespace conclave::inline CONCLAVE_ABI::testing {

/// How an etcd speaks TLS with its clients. All files are PEM.
struct etcd_tls_options {
  /// The server's certificate. When etcd asks for certificates it must be good for a client as well (extended
  /// key usage serverAuth and clientAuth): etcd's HTTP gateway dials etcd itself with it.
  std::filesystem::path certificate_file{};
  std::filesystem::path key_file{};
  /// The authority whose client certificates etcd takes; empty: the system's. Naming one makes etcd 3.4 ask
  /// each client for a certificate, whatever `client_cert_auth` says.
  std::filesystem::path trusted_ca_file{};
  /// Whether a client must show a certificate; with authentication on, its common name is the user's.
  bool client_cert_auth{false};
};

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
  /// TLS for clients; none: plain HTTP/2.
  std::optional<etcd_tls_options> tls{};
  /// How long an unused token of an authenticated user is good; 0: etcd's default (300 s).
  std::chrono::seconds auth_token_ttl{0};
  /// Listens on a Unix socket as well, without TLS whatever `tls` says: see `etcd_server::unix_endpoint`. etcd
  /// then runs in its temporary folder: paths in `extra_arguments` must be absolute.
  bool unix_socket{false};
  /// Added to the command line as they are.
  std::vector<std::string> extra_arguments{};
  /// Where etcd's output goes; empty: a file in the temporary folder, which is removed with it.
  std::filesystem::path log_file{};
  /// How long a start or restart may take.
  std::chrono::milliseconds start_timeout{std::chrono::seconds{30}};
};

namespace detail {

/// An etcd found its port taken.
struct address_in_use : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The etcd program: `binary`, else what CONCLAVE_ETCD names, else `etcd`. Throws when there is none.
inline std::string etcd_program(std::string binary) {
  if (binary.empty()) {
    const char* const variable = std::getenv("CONCLAVE_ETCD");
    binary = variable != nullptr && *variable != '\0' ? variable : "etcd";
  }
  if (find_program(binary).empty()) {
    throw std::system_error{
        ENOENT, std::generic_category(),
        "cannot find the etcd program '" + binary + "' (install etcd, or name its path in CONCLAVE_ETCD)"};
  }
  return binary;
}

/// A child with that command line which does not listen to the ETCD_ variables.
inline child_options etcd_child(std::vector<std::string> command, std::filesystem::path log_file) {
  child_options child{
      .command = std::move(command),
      // etcd refuses to start when a variable and an option say the same thing.
      .drop_environment_prefixes = {"ETCD_"},
      .output_file = std::move(log_file),
  };
  if (const char* const unsupported = std::getenv("ETCD_UNSUPPORTED_ARCH")) {
    child.environment["ETCD_UNSUPPORTED_ARCH"] = unsupported;
  }
  return child;
}

/// Whether an etcd has a leader and answers; `port` serves /health. A full store is no reason to call a
/// server not started, hence the exclusion.
inline bool etcd_healthy(std::uint16_t port, std::chrono::milliseconds limit) {
  try {
    const auto answer = http_request(port, "/health?exclude=NOSPACE", {}, limit);
    return answer.status == 200 && answer.body.find("true") != std::string::npos;
  } catch (const std::system_error&) {
    return false;
  }
}

/// See `etcd_server::metric`; `text` is that of /metrics.
inline double etcd_metric(const std::string& text, std::string_view name) {
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

/// The size of a log, to read later what came after; 0 if there is none.
inline std::uintmax_t log_size(const std::filesystem::path& file) {
  std::error_code none;
  const auto size = std::filesystem::file_size(file, none);
  return none ? 0 : size;
}

/// What was added to a log since it had that size.
inline std::string log_since(const std::filesystem::path& file, std::uintmax_t size) {
  std::ifstream stream{file, std::ios::binary};
  stream.seekg(static_cast<std::streamoff>(size));
  return std::string{std::istreambuf_iterator<char>{stream}, {}};
}

/// Whether the log of an etcd that ended says, after `size`, that its port was taken.
inline bool says_address_in_use(const std::filesystem::path& log_file, std::uintmax_t size) {
  return log_since(log_file, size).find("address already in use") != std::string::npos;
}

}  // namespace detail

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
    options_.binary = detail::etcd_program(std::move(options_.binary));
    if (options_.log_file.empty()) options_.log_file = folder_.path() / "etcd.log";
    constexpr int attempts = 5;
    for (int attempt = 1;; ++attempt) {
      ports_ = std::make_unique<ports>();
      if (options_.tls) ports_->metrics.emplace();
      try {
        launch();
        return;
      } catch (const detail::address_in_use&) {
        if (attempt == attempts) throw;  // a stranger took the port between our look and etcd's bind: others
      }
    }
  }

  etcd_server(etcd_server&&) noexcept = default;
  etcd_server& operator=(etcd_server&&) = delete;

  /// Kills etcd and removes its folder.
  ~etcd_server() = default;

  /// "http://127.0.0.1:PORT", with TLS "https://...", the same for the whole life of the object.
  std::string endpoint() const {
    return (options_.tls ? "https://127.0.0.1:" : "http://127.0.0.1:") + std::to_string(port());
  }

  /// "unix:///.../etcd.sock", the Unix socket in the temporary folder. Throws std::logic_error without
  /// `etcd_server_options::unix_socket`.
  std::string unix_endpoint() const {
    if (!options_.unix_socket) throw std::logic_error{"etcd_server_options::unix_socket is not set"};
    return "unix://" + unix_socket();
  }

  /// The port for clients.
  std::uint16_t port() const { return ports_->client.number(); }

  /// The port that serves /health and /metrics in plain HTTP: with TLS one of its own, else that for clients.
  std::uint16_t metrics_port() const { return ports_->metrics ? ports_->metrics->number() : port(); }

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
      } catch (const detail::address_in_use&) {
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
  double metric(std::string_view name) const { return detail::etcd_metric(metrics(), name); }

  /// The whole text of /metrics.
  std::string metrics() const {
    return http_request(metrics_port(), "/metrics", {}, std::chrono::seconds{5}).body;
  }

  /// The last lines of etcd's log.
  std::string log_tail(std::size_t lines = 40) const { return file_tail(options_.log_file, lines); }

private:
  struct ports {
    reserved_port client;
    reserved_port peer;
    std::optional<reserved_port> metrics;  // with TLS only
  };

  std::string data_folder() const { return absolute(folder_.path() / "data"); }
  std::string unix_socket() const { return absolute(folder_.path() / "etcd.sock"); }

  void launch() {
    const std::string peer = "http://127.0.0.1:" + std::to_string(ports_->peer.number());
    child_options child = detail::etcd_child({options_.binary,
                                              "--name",
                                              "conclave",
                                              "--data-dir",
                                              data_folder(),
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
                                             options_.log_file);
    if (options_.quota_backend_bytes != 0) {
      child.command.insert(child.command.end(),
                           {"--quota-backend-bytes", std::to_string(options_.quota_backend_bytes)});
    }
    if (options_.tls) add_tls(child, *options_.tls);
    if (options_.auth_token_ttl.count() != 0) {
      child.command.insert(child.command.end(),
                           {"--auth-token-ttl", std::to_string(options_.auth_token_ttl.count())});
    }
    if (options_.unix_socket) add_unix_socket(child);
    child.command.insert(child.command.end(), options_.extra_arguments.begin(),
                         options_.extra_arguments.end());

    const auto log_start = detail::log_size(options_.log_file);
    process_ = child_process{child};
    const auto deadline = std::chrono::steady_clock::now() + options_.start_timeout;
    while (!detail::etcd_healthy(metrics_port(), std::chrono::seconds{1})) {
      if (!process_.running()) {
        if (detail::says_address_in_use(options_.log_file, log_start)) {
          throw detail::address_in_use{failure("found its port taken")};
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

  static std::string absolute(const std::filesystem::path& file) {
    return std::filesystem::absolute(file).string();
  }

  void add_tls(child_options& child, const etcd_tls_options& tls) const {
    child.command.insert(
        child.command.end(),
        {"--cert-file", absolute(tls.certificate_file), "--key-file", absolute(tls.key_file),
         // Whoever asks for the health or the metrics needs no certificate.
         "--listen-metrics-urls", "http://127.0.0.1:" + std::to_string(ports_->metrics->number())});
    if (!tls.trusted_ca_file.empty()) {
      child.command.insert(child.command.end(), {"--trusted-ca-file", absolute(tls.trusted_ca_file)});
    }
    if (tls.client_cert_auth) child.command.emplace_back("--client-cert-auth");
  }

  // etcd 3.4 takes no path in the URL of a Unix socket, but NAME:PORT, and then makes a socket of just that
  // name in the folder in which it runs. A link gives it a decent name. The socket of a killed etcd would
  // pass for a taken address.
  void add_unix_socket(child_options& child) const {
    const std::string name = "etcd.sock:0";
    std::filesystem::remove(folder_.path() / name);
    std::error_code there_already;
    std::filesystem::create_symlink(name, unix_socket(), there_already);
    child.working_folder = folder_.path();
    const auto urls = std::find(child.command.begin(), child.command.end(), "--listen-client-urls") + 1;
    *urls += ",unix://" + name;
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
