// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the tests with a full store share.

#include "on_etcd.hpp"

namespace conclave::test {

/// What an administrator does about a full store: drops the past up to `last`, and disarms the alarm.
inline asio::awaitable<void> make_room(client on, const etcd_server& server, revision last) {
  using testing::http_request;
  const auto status = co_await on.status();
  co_await on.compact(last, true);
  REQUIRE(http_request(server.port(), "/v3/maintenance/defragment", "{}").status == 200);
  const auto disarm = R"({"action":"DEACTIVATE","alarm":"NOSPACE","memberID":")" +
                      std::to_string(status.header.member_id) + R"("})";
  REQUIRE(http_request(server.port(), "/v3/maintenance/alarm", disarm).status == 200);
}

}  // namespace conclave::test
