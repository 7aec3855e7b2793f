// SPDX-License-Identifier: BSL-1.0

#include <conclave/asio.hpp>
#include <conclave/error.hpp>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::condition;
using conclave::errc;
using conclave::error;
using conclave::test::contains;

struct row {
  errc code;
  std::optional<condition> meaning;  // none: the program has to look at the code itself
};

// Every code, in the order of its value.
const std::vector<row> table{
    {errc::cancelled, condition::cancelled},
    {errc::timed_out, condition::timed_out},
    {errc::unavailable, condition::unavailable},
    {errc::outcome_unknown, condition::outcome_unknown},
    {errc::session_lost, condition::ownership_lost},
    {errc::session_closed, condition::ownership_lost},
    {errc::lock_lost, condition::ownership_lost},
    {errc::lease_not_found, condition::ownership_lost},
    {errc::lease_exists, condition::invalid_argument},
    {errc::permission_denied, condition::refused},
    {errc::unauthenticated, condition::refused},
    {errc::invalid_argument, condition::invalid_argument},
    {errc::request_too_large, condition::invalid_argument},
    {errc::too_many_operations, condition::invalid_argument},
    {errc::duplicate_key, condition::invalid_argument},
    {errc::no_space, std::nullopt},
    {errc::compacted, std::nullopt},
    {errc::future_revision, condition::invalid_argument},
    {errc::too_many_requests, condition::unavailable},
    {errc::response_too_large, std::nullopt},
    {errc::client_closed, condition::cancelled},
    {errc::malformed_response, condition::protocol},
    {errc::unexpected_response, condition::protocol},
    {errc::unimplemented, condition::protocol},
    {errc::server_error, std::nullopt},
    {errc::certificate_refused, condition::refused},
    {errc::cluster_reset, condition::ownership_lost},
};

const std::vector<condition> conditions{
    condition::cancelled,      condition::timed_out, condition::unavailable,      condition::outcome_unknown,
    condition::ownership_lost, condition::refused,   condition::invalid_argument, condition::protocol,
};

std::string unknown(const char* what, int value) {
  return "unknown conclave " + std::string{what} + std::to_string(value);
}

}  // namespace

TEST_CASE("every error code has a message of its own, and the table below tests every code") {
  std::set<std::string> messages;
  int value = 1;
  for (; conclave::error_category().message(value) != unknown("error ", value); ++value) {
    const std::string message = conclave::error_category().message(value);
    CAPTURE(value, message);
    CHECK_FALSE(message.empty());
    CHECK(messages.insert(message).second);
    REQUIRE(static_cast<std::size_t>(value) <= table.size());
    CHECK(static_cast<int>(table[static_cast<std::size_t>(value) - 1].code) == value);
  }
  CHECK(static_cast<std::size_t>(value) == table.size() + 1);
  CHECK(conclave::error_category().message(0) == unknown("error ", 0));
}

TEST_CASE("every condition has a message of its own") {
  std::set<std::string> messages;
  int value = 1;
  for (; conclave::condition_category().message(value) != unknown("condition ", value); ++value) {
    const std::string message = conclave::condition_category().message(value);
    CAPTURE(value, message);
    CHECK_FALSE(message.empty());
    CHECK(messages.insert(message).second);
  }
  CHECK(static_cast<std::size_t>(value) == conditions.size() + 1);
}

TEST_CASE("the categories have names") {
  CHECK(std::string{conclave::error_category().name()} == "conclave");
  CHECK(std::string{conclave::condition_category().name()} == "conclave.condition");
}

TEST_CASE("each code means exactly one condition, or none") {
  for (const auto& each : table) {
    const std::error_code code = each.code;
    for (const auto candidate : conditions) {
      CAPTURE(code.message(), std::error_condition{candidate}.message());
      CHECK((code == candidate) == (each.meaning == candidate));
    }
  }
}

TEST_CASE("a condition is not met by success, nor by an unrelated category's error of the same number") {
  for (const auto candidate : conditions) {
    CAPTURE(std::error_condition{candidate}.message());
    CHECK_FALSE(std::error_code{} == candidate);
    CHECK_FALSE(std::error_code(static_cast<int>(candidate), std::system_category()) == candidate);
  }
}

TEST_CASE("what Asio and the system call cancelled is cancelled") {
  CHECK(std::make_error_code(std::errc::operation_canceled) == condition::cancelled);
  CHECK(std::error_code(ECANCELED, std::system_category()) == condition::cancelled);
  const std::error_code aborted =
      conclave::asio::error::make_error_code(conclave::asio::error::operation_aborted);
  CHECK(aborted == condition::cancelled);
  CHECK_FALSE(aborted == condition::timed_out);
  CHECK_FALSE(std::make_error_code(std::errc::timed_out) == condition::cancelled);
}

TEST_CASE("an error says where it came from") {
  const error failed{errc::outcome_unknown, "KV.Put", "http://10.0.0.1:2379", 14, "Socket closed"};
  CHECK(failed.code() == errc::outcome_unknown);
  CHECK(failed.rpc() == "KV.Put");
  CHECK(failed.endpoint() == "http://10.0.0.1:2379");
  CHECK(failed.grpc_status() == 14);
  CHECK(failed.server_text() == "Socket closed");
  CHECK(std::string{failed.what()} ==
        "KV.Put at http://10.0.0.1:2379: Socket closed (gRPC status 14): " + failed.code().message());
}

TEST_CASE("an error leaves out what it does not know") {
  const error bare{errc::cancelled};
  CHECK(std::string{bare.what()} == bare.code().message());
  CHECK((bare.rpc().empty() && bare.endpoint().empty() && bare.server_text().empty() &&
         bare.grpc_status() == 0));

  const error named{errc::invalid_argument, "mutex: the name is empty"};
  CHECK_THAT(named.what(), contains("mutex: the name is empty"));
  CHECK((named.rpc().empty() && named.endpoint().empty() && named.server_text().empty() &&
         named.grpc_status() == 0));

  const error silent{errc::malformed_response, "Watch.Watch", "", 0, ""};
  CHECK(std::string{silent.what()} == "Watch.Watch: " + silent.code().message());
}

TEST_CASE("an error is a std::system_error") {
  const auto fail = [] { throw error{errc::lock_lost}; };
  try {
    fail();
    FAIL("nothing was thrown");
  } catch (const std::system_error& e) {
    CHECK(e.code() == condition::ownership_lost);
    CHECK(e.code().category() == conclave::error_category());
  }
}
