// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include <conclave/error.hpp>

namespace conclave::detail::rpc {

/// A server's address: what the user wrote, and how gRPC is told.
struct endpoint {
  std::string text;
  std::string target;
};

namespace impl {

[[noreturn]] inline void refuse_endpoint(std::string_view text, std::string_view why) {
  throw error(errc::invalid_argument, "endpoint '" + std::string{text} + "': " + std::string{why});
}

inline bool is_ipv4(std::string_view host) noexcept {
  int parts = 0;
  while (!host.empty()) {
    const auto dot = std::min(host.find('.'), host.size());
    const auto part = host.substr(0, dot);
    if (part.empty() || part.size() > 3) return false;
    int value = 0;
    for (const char c : part) {
      if (c < '0' || c > '9') return false;
      value = value * 10 + (c - '0');
    }
    if (value > 255) return false;
    ++parts;
    if (dot == host.size()) break;
    host.remove_prefix(dot + 1);
    if (host.empty()) return false;
  }
  return parts == 4;
}

inline bool is_ipv6(std::string_view host) noexcept {
  return std::count(host.begin(), host.end(), ':') >= 2 && std::all_of(host.begin(), host.end(), [](unsigned char c) {
           return std::isxdigit(c) != 0 || c == ':' || c == '.' || c == '%' || std::isalnum(c) != 0;
         });
}

inline bool is_name(std::string_view host) noexcept {
  return !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_';
  });
}

inline std::string_view trimmed(std::string_view text) noexcept {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return text;
}

}  // namespace impl

/// Reads one endpoint: `http://host:port` or `host:port`, where the host is a name, an IPv4 address or an IPv6
/// address in brackets; the port is 2379 unless given.
inline endpoint parse_endpoint(std::string_view given) {
  const std::string_view text = impl::trimmed(given);
  std::string_view rest = text;
  if (const auto scheme_end = rest.find("://"); scheme_end != std::string_view::npos) {
    const auto scheme = rest.substr(0, scheme_end);
    if (scheme == "https" || scheme == "unixs") impl::refuse_endpoint(text, "TLS is not supported by this version");
    if (scheme != "http") impl::refuse_endpoint(text, "unknown scheme '" + std::string{scheme} + "', use http");
    rest.remove_prefix(scheme_end + 3);
    if (!rest.empty() && rest.back() == '/') rest.remove_suffix(1);
  }
  if (rest.empty()) impl::refuse_endpoint(text, "no host");
  if (rest.find('/') != std::string_view::npos) impl::refuse_endpoint(text, "a path has no meaning here");
  if (rest.find('@') != std::string_view::npos)
    throw error(errc::invalid_argument, "an endpoint contains '@': users are no part of an endpoint");

  std::string_view host = rest;
  std::string_view port = "2379";
  const bool bracketed = rest.front() == '[';
  if (bracketed) {
    const auto close = rest.find(']');
    if (close == std::string_view::npos) impl::refuse_endpoint(text, "no ']' after the IPv6 address");
    host = rest.substr(1, close - 1);
    const auto after = rest.substr(close + 1);
    if (!after.empty()) {
      if (after.front() != ':') impl::refuse_endpoint(text, "expected ':' and a port after ']'");
      port = after.substr(1);
    }
    if (!impl::is_ipv6(host)) impl::refuse_endpoint(text, "not an IPv6 address");
  } else if (const auto colon = rest.find(':'); colon != std::string_view::npos) {
    if (rest.find(':', colon + 1) != std::string_view::npos)
      impl::refuse_endpoint(text, "an IPv6 address must stand in brackets");
    host = rest.substr(0, colon);
    port = rest.substr(colon + 1);
  }
  int number = 0;
  const bool digits = !port.empty() && port.size() <= 5 &&
                      std::all_of(port.begin(), port.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (digits)
    for (const char c : port) number = number * 10 + (c - '0');
  if (!digits || number == 0 || number > 65535) impl::refuse_endpoint(text, "the port must be 1 to 65535");

  endpoint out;
  out.text = std::string{text};
  const std::string suffix = ":" + std::to_string(number);
  if (bracketed)
    out.target = "ipv6:[" + std::string{host} + "]" + suffix;
  else if (impl::is_ipv4(host))
    out.target = "ipv4:" + std::string{host} + suffix;
  else if (impl::is_name(host))
    out.target = "dns:///" + std::string{host} + suffix;
  else
    impl::refuse_endpoint(text, "not a host name");
  return out;
}

/// Reads a list as `etcdctl` takes it: endpoints separated by commas.
inline std::vector<std::string> split_endpoints(std::string_view list) {
  std::vector<std::string> out;
  while (true) {
    const auto comma = std::min(list.find(','), list.size());
    const auto each = impl::trimmed(list.substr(0, comma));
    if (each.empty()) throw error(errc::invalid_argument, "endpoints: an entry of the list is empty");
    out.emplace_back(each);
    if (comma == list.size()) return out;
    list.remove_prefix(comma + 1);
  }
}

}  // namespace conclave::detail::rpc
