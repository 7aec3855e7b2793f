// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/rpc/endpoint.hpp>

#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::detail::rpc::parse_endpoint;
using conclave::detail::rpc::split_endpoints;
using conclave::test::contains;

struct accepted {
  const char* given;
  const char* target;
};

struct refused {
  const char* given;
  const char* cause;
};

// What an endpoint is refused with; empty if it is not.
std::string refusal(const std::string& given) {
  try {
    (void)parse_endpoint(given);
    return {};
  } catch (const conclave::error& e) {
    CHECK(e.code() == conclave::errc::invalid_argument);
    return e.what();
  }
}

}  // namespace

TEST_CASE("an endpoint becomes a target of gRPC that names the kind of its host") {
  const std::vector<accepted> table{
      {"127.0.0.1:2379", "ipv4:127.0.0.1:2379"},
      {"http://127.0.0.1:2379", "ipv4:127.0.0.1:2379"},
      {"http://127.0.0.1:2379/", "ipv4:127.0.0.1:2379"},
      {"255.255.255.255:65535", "ipv4:255.255.255.255:65535"},
      {"[::1]:2379", "ipv6:[::1]:2379"},
      {"http://[::]:1", "ipv6:[::]:1"},
      {"[2001:db8::8:800:200c:417a]:2379", "ipv6:[2001:db8::8:800:200c:417a]:2379"},
      {"[2001:DB8:0:0:8:800:200C:417A]:2379", "ipv6:[2001:DB8:0:0:8:800:200C:417A]:2379"},
      {"[::ffff:10.0.0.1]:2379", "ipv6:[::ffff:10.0.0.1]:2379"},
      {"[fe80::1%eth0]:2379", "ipv6:[fe80::1%eth0]:2379"},
      {"localhost:2379", "dns:///localhost:2379"},
      {"http://etcd-0.etcd.default.svc:2379", "dns:///etcd-0.etcd.default.svc:2379"},
      {"under_score:80", "dns:///under_score:80"},
      {"10.0.0.1a:2379", "dns:///10.0.0.1a:2379"},
  };
  for (const auto& each : table) {
    CAPTURE(each.given);
    const auto out = parse_endpoint(each.given);
    CHECK(out.target == each.target);
    CHECK(out.text == each.given);
  }
}

TEST_CASE("the scheme decides whether the connection is encrypted, and its absence leaves it open") {
  using security = conclave::detail::rpc::endpoint::security;
  CHECK(parse_endpoint("localhost:2379").wanted == security::unsaid);
  CHECK(parse_endpoint("http://localhost:2379").wanted == security::plain);
  CHECK(parse_endpoint("https://localhost:2379").wanted == security::tls);
  CHECK(parse_endpoint("https://localhost:2379").target == "dns:///localhost:2379");
  CHECK(parse_endpoint("unix:///run/etcd.sock").wanted == security::plain);
  CHECK(parse_endpoint("unix:///run/etcd.sock").target == "unix:/run/etcd.sock");
  CHECK(parse_endpoint("unixs:///run/etcd.sock").wanted == security::tls);
  CHECK(parse_endpoint("unix://etcd.sock").target == "unix:etcd.sock");
}

TEST_CASE("the port is etcd's unless given, and loses leading zeros") {
  CHECK(parse_endpoint("localhost").target == "dns:///localhost:2379");
  CHECK(parse_endpoint("http://10.0.0.1").target == "ipv4:10.0.0.1:2379");
  CHECK(parse_endpoint("[::1]").target == "ipv6:[::1]:2379");
  CHECK(parse_endpoint("10.0.0.1:00080").target == "ipv4:10.0.0.1:80");
}

TEST_CASE("whitespace around an endpoint does not matter") {
  const auto out = parse_endpoint(" \thttp://localhost:2379\n");
  CHECK(out.target == "dns:///localhost:2379");
  CHECK(out.text == "http://localhost:2379");
}

TEST_CASE("an endpoint that cannot be is refused, and the text quotes it and names the cause") {
  const std::vector<refused> table{
      {"", "no host"},
      {"http://", "no host"},
      {":2379", "no host"},
      {"http://:2379", "no host"},
      {"unix://", "no path"},
      {"unixs://", "no path"},
      {"https://", "no host"},
      {"ftp://localhost", "unknown scheme 'ftp'"},
      {"http://localhost:2379/v3", "a path has no meaning"},
      {"localhost/", "a path has no meaning"},
      {"localhost:", "the port must be 1 to 65535"},
      {"localhost:0", "the port must be 1 to 65535"},
      {"localhost:65536", "the port must be 1 to 65535"},
      {"localhost:123456", "the port must be 1 to 65535"},
      {"localhost:http", "the port must be 1 to 65535"},
      {"localhost:-1", "the port must be 1 to 65535"},
      {"localhost:2379 x", "the port must be 1 to 65535"},
      {"[::1]:", "the port must be 1 to 65535"},
      {"::1", "an IPv6 address must stand in brackets"},
      {"2001:db8::1:2379", "an IPv6 address must stand in brackets"},
      {"[::1", "no ']'"},
      {"[::1]2379", "expected ':' and a port"},
      {"[]:2379", "not an IPv6 address"},
      {"[localhost]:2379", "not an IPv6 address"},
      {"[no:such:address]:2379", "not an IPv6 address"},
      {"[:::]:2379", "not an IPv6 address"},
      {"[1::2::3]:2379", "not an IPv6 address"},
      {"[1:2:3:4:5:6:7]:2379", "not an IPv6 address"},
      {"[1:2:3:4:5:6:7:8:9]:2379", "not an IPv6 address"},
      {"[12345::]:2379", "not an IPv6 address"},
      {"[10.0.0.1]:2379", "not an IPv6 address"},
      {"[fe80::1%]:2379", "not an IPv6 address"},
      {"256.0.0.1:2379", "not an IPv4 address"},
      {"10.0.0:2379", "not an IPv4 address"},
      {"10.0.0.1.:2379", "not an IPv4 address"},
      {"two words:2379", "not a host name"},
      {"h\xc3\xb6st:2379", "not a host name"},
  };
  for (const auto& each : table) {
    CAPTURE(each.given);
    const std::string text = refusal(each.given);
    CHECK_THAT(text, contains(each.cause));
    CHECK_THAT(text, contains("endpoint '" + std::string{each.given} + "'"));
  }
}

TEST_CASE(
    "an endpoint with a user is refused without repeating the password, whatever else is wrong with it") {
  for (const std::string given :
       {"http://root:secret@localhost:2379", "root:secret@localhost", "https://root:secret@localhost:2379",
        "ftp://root:secret@localhost", "http://root:secret@localhost:2379/path"}) {
    CAPTURE(given);
    const std::string text = refusal(given);
    CHECK_THAT(text, contains("users are no part of an endpoint"));
    CHECK(text.find("secret") == std::string::npos);
  }
}

TEST_CASE("a list of endpoints is separated by commas") {
  CHECK(split_endpoints("a:1") == std::vector<std::string>{"a:1"});
  CHECK(split_endpoints("http://a:1,b:2") == std::vector<std::string>{"http://a:1", "b:2"});
  CHECK(split_endpoints(" a:1 ,\tb:2\n, c") == std::vector<std::string>{"a:1", "b:2", "c"});
}

TEST_CASE("a list of endpoints has no empty entries") {
  for (const auto* list : {"", " ", ",", "a:1,", ",a:1", "a:1,,b:2", "a:1, ,b:2"}) {
    CAPTURE(list);
    CHECK_THROWS_WITH(split_endpoints(list), contains("an entry of the list is empty"));
  }
}
