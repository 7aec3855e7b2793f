// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include <conclave/error.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// A server's address: what the user wrote, and how gRPC is told.
struct endpoint {
  enum class security { unsaid, plain, tls };

  std::string text;
  std::string target;
  security wanted = security::unsaid;
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
  if (const auto zone = host.find('%'); zone != std::string_view::npos) {
    const auto name = host.substr(zone + 1);
    if (name.empty() ||
        !std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) != 0; }))
      return false;
    host = host.substr(0, zone);
  }
  // The groups to the left and to the right of "::"; a group of the last part may be an IPv4 address, which
  // is two.
  const auto groups = [](std::string_view part, bool last) {
    int count = 0;
    while (!part.empty()) {
      const auto colon = std::min(part.find(':'), part.size());
      const auto group = part.substr(0, colon);
      if (colon == part.size() && last && is_ipv4(group)) return count + 2;
      if (group.empty() || group.size() > 4) return -1;
      if (!std::all_of(group.begin(), group.end(), [](unsigned char c) { return std::isxdigit(c) != 0; }))
        return -1;
      ++count;
      if (colon == part.size()) break;
      part.remove_prefix(colon + 1);
      if (part.empty()) return -1;
    }
    return count;
  };
  const auto gap = host.find("::");
  if (gap == std::string_view::npos) return groups(host, true) == 8;
  const int left = groups(host.substr(0, gap), false);
  const int right = groups(host.substr(gap + 2), true);
  return left >= 0 && right >= 0 && left + right <= 7;
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

/// Reads one endpoint: `http://host:port`, `https://host:port` or `host:port`, where the host is a name, an IPv4
/// address or an IPv6 address in brackets and the port is 2379 unless given; or a socket in the file system,
/// `unix:///path` or, with TLS, `unixs:///path`.
inline endpoint parse_endpoint(std::string_view given) {
  const std::string_view text = impl::trimmed(given);
  // First of all, since what stands before it may be a password, and the other texts quote the endpoint.
  if (text.find('@') != std::string_view::npos)
    throw error(errc::invalid_argument, "an endpoint contains '@': users are no part of an endpoint");
  endpoint out;
  out.text = std::string{text};
  std::string_view rest = text;
  if (const auto scheme_end = rest.find("://"); scheme_end != std::string_view::npos) {
    const auto scheme = rest.substr(0, scheme_end);
    rest.remove_prefix(scheme_end + 3);
    const bool socket = scheme == "unix" || scheme == "unixs";
    if (!socket && scheme != "http" && scheme != "https")
      impl::refuse_endpoint(text,
                            "unknown scheme '" + std::string{scheme} + "', use http, https, unix or unixs");
    out.wanted = scheme.back() == 's' ? endpoint::security::tls : endpoint::security::plain;
    if (socket) {
      if (rest.empty()) impl::refuse_endpoint(text, "no path");
      out.target = "unix:" + std::string{rest};
      return out;
    }
    if (!rest.empty() && rest.back() == '/') rest.remove_suffix(1);
  }
  if (rest.empty()) impl::refuse_endpoint(text, "no host");
  if (rest.find('/') != std::string_view::npos) impl::refuse_endpoint(text, "a path has no meaning here");

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

  if (host.empty()) impl::refuse_endpoint(text, "no host");
  const std::string suffix = ":" + std::to_string(number);
  if (bracketed)
    out.target = "ipv6:[" + std::string{host} + "]" + suffix;
  else if (impl::is_ipv4(host))
    out.target = "ipv4:" + std::string{host} + suffix;
  else if (host.find_first_not_of("0123456789.") == std::string_view::npos)
    impl::refuse_endpoint(text, "not an IPv4 address");
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
