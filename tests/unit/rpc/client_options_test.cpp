// SPDX-License-Identifier: BSL-1.0

#include <conclave/client_options.hpp>

#include <chrono>
#include <climits>
#include <cstddef>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::client_options;
using conclave::test::contains;
using namespace std::chrono_literals;

// What a setter refuses its argument with.
template <class Set>
std::string refusal(Set set) {
  try {
    set();
    return "not refused";
  } catch (const conclave::error& e) {
    CHECK(e.code() == conclave::errc::invalid_argument);
    return e.what();
  }
}

}  // namespace

TEST_CASE("the default options are for a server on this machine") {
  const client_options options;
  CHECK(options.endpoints() == std::vector<std::string>{"http://127.0.0.1:2379"});
  CHECK(options.connect_timeout() == 3s);
  CHECK(options.request_timeout() == 5s);
  CHECK(options.key_prefix().empty());
  CHECK(options.receive_limit() == std::size_t{128} * 1024 * 1024);
}

TEST_CASE("options are set in a chain") {
  const auto options = client_options{}
                           .endpoints("http://a:1, b:2")
                           .connect_timeout(1ms)
                           .request_timeout(24h)
                           .key_prefix(std::string("a\0b/", 4))
                           .receive_limit(4096);
  CHECK(options.endpoints() == std::vector<std::string>{"http://a:1", "b:2"});
  CHECK(options.connect_timeout() == 1ms);
  CHECK(options.request_timeout() == 24h);
  CHECK(options.key_prefix() == std::string("a\0b/", 4));
  CHECK(options.receive_limit() == 4096);
  CHECK(client_options{}.endpoints(std::vector<std::string>{"[::1]"}).endpoints().size() == 1);
  CHECK(client_options{}.receive_limit(INT_MAX).receive_limit() == INT_MAX);
}

TEST_CASE("each option refuses what cannot be, by its name") {
  client_options options;
  for (const auto time :
       {0ms, -1ms, std::chrono::milliseconds{24h} + 1ms, std::chrono::milliseconds::max()}) {
    CAPTURE(time.count());
    CHECK_THAT(refusal([&] { options.connect_timeout(time); }), contains("connect_timeout: must be"));
    CHECK_THAT(refusal([&] { options.request_timeout(time); }), contains("request_timeout: must be"));
  }
  for (const auto bytes : {std::size_t{0}, std::size_t{4095}, std::size_t{INT_MAX} + 1}) {
    CAPTURE(bytes);
    CHECK_THAT(refusal([&] { options.receive_limit(bytes); }), contains("receive_limit: must be"));
  }
  CHECK_THAT(refusal([&] { options.endpoints(std::vector<std::string>{}); }),
             contains("endpoints: the list is empty"));
  CHECK_THAT(refusal([&] { options.endpoints(""); }), contains("endpoints: an entry"));
  CHECK_THAT(refusal([&] { options.endpoints("a:1,"); }), contains("endpoints: an entry"));
  CHECK_THAT(refusal([&] { options.endpoints("good:1,bad:99999"); }), contains("endpoint 'bad:99999'"));
  const std::vector<std::string> one_bad{"good:1", "ftp://bad"};
  CHECK_THAT(refusal([&] { options.endpoints(one_bad); }), contains("endpoint 'ftp://bad'"));
}

TEST_CASE("an option that is refused stays what it was") {
  client_options options;
  options.endpoints("a:1").connect_timeout(7s).request_timeout(8s).receive_limit(9000);
  CHECK_THROWS_AS(options.endpoints("b:0"), conclave::error);
  CHECK_THROWS_AS(options.connect_timeout(0s), conclave::error);
  CHECK_THROWS_AS(options.request_timeout(0s), conclave::error);
  CHECK_THROWS_AS(options.receive_limit(0), conclave::error);
  CHECK(options.endpoints() == std::vector<std::string>{"a:1"});
  CHECK(options.connect_timeout() == 7s);
  CHECK(options.request_timeout() == 8s);
  CHECK(options.receive_limit() == 9000);
}
