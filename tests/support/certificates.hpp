// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/child_process.hpp>

#include <ctime>

namespace conclave::test {

/// Runs a program and returns what it writes. Throws std::runtime_error, with all of that in its text, if it
/// does not end with 0 in time.
inline std::string output_of(std::vector<std::string> command,
                             std::map<std::string, std::optional<std::string>> environment = {},
                             std::chrono::milliseconds limit = std::chrono::seconds{30}) {
  const testing::temporary_folder folder{"conclave-output-"};
  const auto output = folder.path() / "output";
  testing::child_process child{
      {.command = command,
       .environment = std::move(environment),
       .drop_environment_prefixes = {"ETCDCTL_"},  // they contradict the options of the same names
       .output_file = output}};
  const auto status = child.wait_for(limit);
  std::string text = testing::file_tail(output, 1000);
  if (status == testing::exit_status{}) return text;
  std::string line;
  for (const auto& word : command) line += word + " ";
  throw std::runtime_error{line + (status ? "ended with " + to_string(*status) : "did not end in time") +
                           ":\n" + text};
}

/// A certificate and its private key, in PEM files that live as long as their authority.
struct certificate {
  std::filesystem::path file;
  std::filesystem::path key_file;

  std::string pem() const { return text_of(file); }
  std::string key_pem() const { return text_of(key_file); }

  static std::string text_of(const std::filesystem::path& file) {
    std::ifstream stream{file, std::ios::binary};
    if (!stream) throw std::runtime_error{"cannot read " + file.string()};
    return std::string{std::istreambuf_iterator<char>{stream}, {}};
  }
};

/// What a certificate is to say.
struct certificate_request {
  /// Who has it. Of a client: the name of the etcd user that it stands for, with etcd's `--client-cert-auth`.
  std::string common_name{"conclave test"};
  /// The DNS names and addresses for which it is good; none: it is good for no server.
  std::vector<std::string> names{};
  /// Its time was over yesterday.
  bool expired{false};
};

/// A throw-away certificate authority: keys and certificates made by the `openssl` program in a temporary
/// folder, which goes with this object. All keys are on an elliptic curve, and good for two days.
///
/// ```
/// certificate_authority ca;
/// const auto server = ca.server();                     // 127.0.0.1, ::1, localhost
/// const auto elsewhere = ca.server({"etcd.invalid"});  // for another name
/// const auto client = ca.client("alice");
/// certificate_authority stranger;                      // an authority that nobody trusts
/// ```
///
/// All functions throw std::runtime_error with openssl's words if it fails.
class certificate_authority {
public:
  explicit certificate_authority(const std::string& name = "conclave test CA") {
    std::ofstream{path("index.txt")};
    std::ofstream{path("serial")} << "01\n";
    std::ofstream{path("ca.cnf")} << "[req]\n"
                                     "distinguished_name = name\n"
                                     "prompt = no\n"
                                     "[name]\n"
                                     "[authority]\n"
                                     "basicConstraints = critical, CA:TRUE\n"
                                     "keyUsage = critical, keyCertSign, cRLSign\n"
                                     "subjectKeyIdentifier = hash\n";
    new_key("ca", name, {"-x509", "-extensions", "authority", "-days", "2", "-out", path("ca.crt")});
  }

  /// The authority's own certificate, for those who trust it.
  std::filesystem::path file() const { return path("ca.crt"); }
  std::string pem() const { return certificate::text_of(file()); }

  /// Any certificate. All are good for servers and for clients: etcd uses its own for both.
  certificate issue(const certificate_request& request) {
    const std::string name = "certificate-" + std::to_string(++issued_);
    new_key(name, request.common_name, {"-new", "-out", path(name + ".csr")});
    const std::string configuration = path(name + ".cnf");
    std::ofstream{configuration} << "[ca]\n"
                                    "default_ca = authority\n"
                                    "[authority]\n"
                                 << "database = " << path("index.txt") << "\n"
                                 << "serial = " << path("serial") << "\n"
                                 << "new_certs_dir = " << folder_.path().string() << "\n"
                                 << "certificate = " << path("ca.crt") << "\n"
                                 << "private_key = " << path("ca.key") << "\n"
                                 << "default_md = sha256\n"
                                    "unique_subject = no\n"
                                    "policy = anything\n"
                                    "[anything]\n"
                                    "commonName = supplied\n"
                                    "[certificate]\n"
                                    "basicConstraints = critical, CA:FALSE\n"
                                    "keyUsage = critical, digitalSignature\n"
                                    "extendedKeyUsage = serverAuth, clientAuth\n"
                                 << alternative_names(request.names);
    const auto yesterday = std::chrono::system_clock::now() - day;
    output_of({"openssl", "ca", "-batch", "-notext", "-config", configuration, "-extensions", "certificate",
               "-startdate", asn1_time(yesterday - day), "-enddate",
               asn1_time(request.expired ? yesterday : yesterday + 3 * day), "-in", path(name + ".csr"),
               "-out", path(name + ".crt")});
    return {.file = path(name + ".crt"), .key_file = path(name + ".key")};
  }

  /// A server's certificate.
  certificate server(std::vector<std::string> names = {"127.0.0.1", "::1", "localhost"}) {
    return issue({.common_name = "conclave test server", .names = std::move(names)});
  }

  /// A server's certificate that is right but for its time.
  certificate expired_server() {
    return issue(
        {.common_name = "conclave test server", .names = {"127.0.0.1", "::1", "localhost"}, .expired = true});
  }

  /// A client's certificate.
  certificate client(std::string common_name = "conclave test client") {
    return issue({.common_name = std::move(common_name)});
  }

private:
  static constexpr std::chrono::hours day{24};

  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }

  // NAME.key, and what the last arguments say.
  void new_key(const std::string& name, const std::string& common_name, std::vector<std::string> arguments) {
    std::vector<std::string> command{"openssl",
                                     "req",
                                     "-batch",
                                     "-config",
                                     path("ca.cnf"),
                                     "-newkey",
                                     "ec",
                                     "-pkeyopt",
                                     "ec_paramgen_curve:prime256v1",
                                     "-nodes",
                                     "-keyout",
                                     path(name + ".key"),
                                     "-subj",
                                     "/CN=" + common_name};
    command.insert(command.end(), arguments.begin(), arguments.end());
    output_of(std::move(command));
  }

  static std::string alternative_names(const std::vector<std::string>& names) {
    std::string list;
    for (const auto& name : names) {
      const bool address =
          name.find(':') != std::string::npos || name.find_first_not_of("0123456789.") == std::string::npos;
      list += (list.empty() ? "subjectAltName = " : ", ") + (address ? "IP:" + name : "DNS:" + name);
    }
    return list.empty() ? list : list + "\n";
  }

  static std::string asn1_time(std::chrono::system_clock::time_point time) {
    const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
    std::tm fields{};
    ::gmtime_r(&seconds, &fields);
    char text[32];
    return std::string{text, std::strftime(text, sizeof text, "%Y%m%d%H%M%SZ", &fields)};
  }

  testing::temporary_folder folder_{"conclave-certificates-"};
  int issued_{0};
};

}  // namespace conclave::test
