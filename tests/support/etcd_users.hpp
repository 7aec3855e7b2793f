// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "support/certificates.hpp"

#include <string>
#include <utility>
#include <vector>

namespace conclave::test {

/// How `etcdctl` reaches an etcd.
struct etcdctl_options {
  std::string endpoints{};
  /// The authority that the server's certificate is from; empty: no TLS, or the system's.
  std::filesystem::path ca_file{};
  /// The certificate that is shown to the server.
  std::optional<certificate> shown{};
  /// Whom it says to be: a user and a password; an empty name: nobody.
  std::string user{};
  std::string password{};
};

namespace detail {

// The program is the one that CONCLAVE_ETCDCTL names, else `etcdctl` on PATH.
inline std::vector<std::string> etcdctl_command(const etcdctl_options& options,
                                                const std::vector<std::string>& arguments) {
  const char* const variable = std::getenv("CONCLAVE_ETCDCTL");
  std::vector<std::string> command{variable != nullptr && *variable != '\0' ? variable : "etcdctl",
                                   "--endpoints", options.endpoints, "--command-timeout=2s"};
  if (!options.ca_file.empty()) command.insert(command.end(), {"--cacert", options.ca_file.string()});
  if (options.shown) {
    command.insert(command.end(),
                   {"--cert", options.shown->file.string(), "--key", options.shown->key_file.string()});
  }
  if (!options.user.empty()) {
    command.insert(command.end(), {"--user", options.user, "--password", options.password});
  }
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

}  // namespace detail

/// Runs `etcdctl` and returns what it writes. Throws std::runtime_error with its words if it fails; it gives
/// up when etcd does not answer for a few seconds.
inline std::string etcdctl(const etcdctl_options& options, const std::vector<std::string>& arguments) {
  return output_of(detail::etcdctl_command(options, arguments), {{"ETCDCTL_API", "3"}});
}

/// The users and roles of an etcd, with `etcdctl`, as an operator sets them up.
///
/// ```
/// etcd_users users{{.endpoints = server.endpoint()}};
/// users.add_role("reader");
/// users.allow_prefix("reader", "app/", "read");
/// users.add_user("alice", "secret");
/// users.grant_role("alice", "reader");
/// users.enable();                       // from here on nobody gets in without a password
/// ```
///
/// Works before and after `enable`. All functions throw std::runtime_error with etcdctl's words if it fails.
class etcd_users {
public:
  /// Of the options' user and password nothing is used.
  explicit etcd_users(etcdctl_options options, std::string root_password = "root password")
      : options_{std::move(options)}, root_password_{std::move(root_password)} {
    options_.user.clear();
  }

  const std::string& root_password() const { return root_password_; }

  /// Makes the user root with the role root, and turns authentication on.
  void enable() {
    if (!root_exists_) {
      add_user("root", root_password_);
      grant_role("root", "root");  // that role is there from the beginning
      root_exists_ = true;
    }
    run({"auth", "enable"});
    options_.user = "root";
    options_.password = root_password_;
  }

  /// Turns authentication off; users and roles stay.
  void disable() {
    run({"auth", "disable"});
    options_.user.clear();
  }

  void add_user(const std::string& name, const std::string& password) {
    run({"user", "add", name, "--new-user-password", password});
  }
  /// A user that only a certificate with this common name is.
  void add_user_without_password(const std::string& name) { run({"user", "add", name, "--no-password"}); }
  void delete_user(const std::string& name) { run({"user", "delete", name}); }

  /// Tokens that the user has are void from then on.
  void change_password(const std::string& name, const std::string& password) {
    // etcdctl takes it from its standard input alone, and a child of ours has none.
    std::vector<std::string> command{"sh", "-c", R"(printf '%s\n' "$NEW_PASSWORD" | "$@")", "sh"};
    const auto real = detail::etcdctl_command(options_, {"user", "passwd", name, "--interactive=false"});
    command.insert(command.end(), real.begin(), real.end());
    output_of(std::move(command), {{"ETCDCTL_API", "3"}, {"NEW_PASSWORD", password}});
  }

  void add_role(const std::string& role) { run({"role", "add", role}); }
  void delete_role(const std::string& role) { run({"role", "delete", role}); }
  void grant_role(const std::string& user, const std::string& role) {
    run({"user", "grant-role", user, role});
  }
  void revoke_role(const std::string& user, const std::string& role) {
    run({"user", "revoke-role", user, role});
  }

  /// `type` is "read", "write" or "readwrite".
  void allow_prefix(const std::string& role, const std::string& prefix,
                    const std::string& type = "readwrite") {
    run({"role", "grant-permission", "--prefix", role, type, prefix});
  }
  /// All keys from `first` on that are less than `end`.
  void allow_range(const std::string& role, const std::string& first, const std::string& end,
                   const std::string& type = "readwrite") {
    run({"role", "grant-permission", role, type, first, end});
  }
  /// Takes back what `allow_prefix` gave for the same prefix.
  void revoke_prefix(const std::string& role, const std::string& prefix) {
    run({"role", "revoke-permission", "--prefix", role, prefix});
  }
  /// Takes back what `allow_range` gave for the same range.
  void revoke_range(const std::string& role, const std::string& first, const std::string& end) {
    run({"role", "revoke-permission", role, first, end});
  }

private:
  void run(const std::vector<std::string>& arguments) { etcdctl(options_, arguments); }

  etcdctl_options options_;
  std::string root_password_;
  bool root_exists_{false};
};

}  // namespace conclave::test
