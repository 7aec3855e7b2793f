// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <conclave/detail/rpc/tls.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// How connections to `https` (and `unixs`) endpoints are made. Setters may be chained:
///
///     tls_options{}.ca_file("/etc/etcd/ca.pem").certificate_files("me.pem", "me.key")
///
/// Files are read when they are named; to use a renewed certificate, make a new client. Each setter throws
/// `error` (`invalid_argument`), naming the option and the file, never what is in it.
class tls_options {
public:
  tls_options() = default;

  /// Whom to trust: one or more certificates of authorities, as PEM text. Default: those that gRPC was
  /// installed with, or that the environment variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
  tls_options& ca(std::string pem) {
    require("ca", pem, "CERTIFICATE-----");
    credentials_.ca = std::move(pem);
    return *this;
  }
  /// The same from a file.
  tls_options& ca_file(const std::filesystem::path& file) {
    std::string pem = read("ca_file", file);
    require("ca_file", pem, "CERTIFICATE-----");
    credentials_.ca = std::move(pem);
    return *this;
  }

  /// Who we are, for servers that ask (mutual TLS): a certificate, with those of intermediate authorities after
  /// it, and its private key, as PEM text.
  tls_options& certificate(std::string chain, std::string key) {
    set_certificate("certificate", std::move(chain), std::move(key));
    return *this;
  }
  /// The same from files.
  tls_options& certificate_files(const std::filesystem::path& chain, const std::filesystem::path& key) {
    std::string chain_pem = read("certificate_files", chain);
    set_certificate("certificate_files", std::move(chain_pem), read("certificate_files", key));
    return *this;
  }

  /// The name that the server's certificate must carry. Default: the host as the endpoint names it.
  tls_options& server_name(std::string name) {
    if (name.empty()) throw error(errc::invalid_argument, "server_name: it is empty");
    credentials_.server_name = std::move(name);
    return *this;
  }

private:
  friend class client;

  static std::string read(const char* option, const std::filesystem::path& file) {
    std::error_code none;
    if (std::filesystem::is_directory(file, none))
      throw error(errc::invalid_argument, std::string{option} + ": " + file.string() + " is a directory");
    errno = 0;
    std::ifstream stream{file, std::ios::binary};
    std::string text{std::istreambuf_iterator<char>{stream}, {}};
    if (!stream.is_open() || stream.bad() || (text.empty() && errno != 0))
      throw error(errc::invalid_argument,
                  std::string{option} + ": cannot read " + file.string() + ": " + std::strerror(errno));
    return text;
  }

  static void require(const char* option, std::string_view pem, std::string_view what) {
    if (pem.find("-----BEGIN ") == pem.npos || pem.find(what) == pem.npos)
      throw error(errc::invalid_argument, std::string{option} + ": no PEM text with a " +
                                              (what.front() == 'C' ? "certificate" : "private key"));
  }

  void set_certificate(const char* option, std::string chain, std::string key) {
    detail::rpc::secret kept{std::move(key)};
    require(option, chain, "CERTIFICATE-----");
    require(option, kept.reveal(), "PRIVATE KEY-----");
    credentials_.certificate = std::move(chain);
    credentials_.key = std::move(kept);
  }

  detail::rpc::tls_credentials credentials_;
};

}  // namespace conclave
