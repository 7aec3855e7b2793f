// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <climits>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <conclave/detail/rpc/endpoint.hpp>
#include <conclave/detail/rpc/secret.hpp>
#include <conclave/error.hpp>
#include <conclave/tls_options.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

/// What a client needs to know. Setters may be chained:
///
///     client_options{}.endpoints("http://10.0.0.1:2379,http://10.0.0.2:2379").key_prefix("billing/")
///
/// Each setter checks its argument and throws `error` (`invalid_argument`), naming the option.
class client_options {
public:
  client_options() = default;

  /// The servers of one cluster, as `etcdctl --endpoints` takes them: separated by commas, each
  /// `http://host:port`, `https://host:port` or `host:port`, where the host is a name, an IPv4 address, or an IPv6
  /// address in brackets; or a socket, `unix:///path` or, with TLS, `unixs:///path`. Without a scheme, TLS is used
  /// if `tls` is given. The list may be mixed. One server is asked at a time; when it cannot be reached, is
  /// silent, or says that it has no leader, calls and streams turn to another. A name is resolved anew whenever
  /// none of its addresses can be reached. Default: http://127.0.0.1:2379.
  client_options& endpoints(std::string_view list) { return endpoints(detail::rpc::split_endpoints(list)); }

  /// The same, one endpoint an entry.
  client_options& endpoints(std::vector<std::string> list) {
    if (list.empty()) throw error(errc::invalid_argument, "endpoints: the list is empty");
    for (const auto& each : list) (void)detail::rpc::parse_endpoint(each);
    endpoints_ = std::move(list);
    return *this;
  }
  [[nodiscard]] const std::vector<std::string>& endpoints() const noexcept { return endpoints_; }

  /// How encrypted connections are made; needed for `https` endpoints unless the servers' certificates come
  /// from an authority that gRPC knows.
  client_options& tls(tls_options how) {
    tls_ = std::move(how);
    return *this;
  }
  [[nodiscard]] const std::optional<tls_options>& tls() const noexcept { return tls_; }

  /// In whose name calls are made. The password is traded for a token before the first call, and again whenever
  /// the token has expired or is refused; nobody needs to know how long tokens last. Over a plain connection
  /// both can be read on the way. The password appears in no text that the library makes. Default: nobody.
  client_options& user(std::string name, std::string password) {
    if (name.empty()) throw error(errc::invalid_argument, "user: the name is empty");
    user_ = std::move(name);
    password_ = detail::rpc::secret{std::move(password)};
    return *this;
  }
  [[nodiscard]] const std::string& user() const noexcept { return user_; }

  /// How long a call waits for a connection before it fails with `unavailable`. Default: 3 s.
  client_options& connect_timeout(std::chrono::milliseconds limit) {
    connect_timeout_ = positive("connect_timeout", limit);
    return *this;
  }
  [[nodiscard]] std::chrono::milliseconds connect_timeout() const noexcept { return connect_timeout_; }

  /// How long one call may take in all, its connection and a user's token included. Default: 5 s, as long as a
  /// server itself works on a request. What may be sent twice (a read if there are several servers, and of the
  /// recipes what opens and ends a session, joins a line and releases a lock) is sent again after half of that time
  /// without an answer, elsewhere if there is an elsewhere; any other write is sent once. A write of a recipe's own,
  /// which may be sent together with others, has this time from when it is sent, and waits as long at most for those
  /// before it: twice as long in all.
  client_options& request_timeout(std::chrono::milliseconds limit) {
    request_timeout_ = positive("request_timeout", limit);
    return *this;
  }
  [[nodiscard]] std::chrono::milliseconds request_timeout() const noexcept { return request_timeout_; }

  /// Put before every key that is sent and taken off every key that is received: programs with different
  /// prefixes do not see each other. Equal to a namespace of etcd's Go client. Default: none.
  client_options& key_prefix(std::string prefix) {
    key_prefix_ = std::move(prefix);
    return *this;
  }
  [[nodiscard]] const std::string& key_prefix() const noexcept { return key_prefix_; }

  /// The longest answer that is accepted, in bytes. Default: 128 MiB. Queues take less at a time when
  /// this is lower; below 2 MiB a single large value may not fit.
  client_options& receive_limit(std::size_t bytes) {
    if (bytes < 4096 || bytes > static_cast<std::size_t>(INT_MAX))
      throw error(errc::invalid_argument, "receive_limit: must be 4096 to 2147483647 bytes");
    receive_limit_ = bytes;
    return *this;
  }
  [[nodiscard]] std::size_t receive_limit() const noexcept { return receive_limit_; }

private:
  friend class client;

  static std::chrono::milliseconds positive(const char* name, std::chrono::milliseconds limit) {
    if (limit <= std::chrono::milliseconds::zero() || limit > std::chrono::hours{24})
      throw error(errc::invalid_argument, std::string{name} + ": must be above zero and at most a day");
    return limit;
  }

  std::vector<std::string> endpoints_{"http://127.0.0.1:2379"};
  std::chrono::milliseconds connect_timeout_{3000};
  std::chrono::milliseconds request_timeout_{5000};
  std::string key_prefix_;
  std::optional<tls_options> tls_;
  std::string user_;
  detail::rpc::secret password_;
  std::size_t receive_limit_ = std::size_t{128} * 1024 * 1024;
};

}  // namespace conclave
