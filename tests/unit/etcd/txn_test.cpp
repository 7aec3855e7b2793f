// SPDX-License-Identifier: BSL-1.0

#include <conclave/etcd/txn.hpp>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"

namespace conclave::test {
namespace {

// Vectors of operations grow by moving them.
static_assert(std::is_nothrow_move_constructible_v<request_op>);
static_assert(std::is_nothrow_move_constructible_v<response_op>);

TEST_CASE("a transaction reads like what it does", "[etcd]") {
  const std::string key = "locks/one";
  const lease_id id = 42;

  const txn built = conclave::txn{}
                        .when(create_revision(key) == 0)
                        .then(put(key, "value", {.lease = id}))
                        .otherwise(range(key));

  REQUIRE(built.compare.size() == 1);
  CHECK(built.compare[0].key == key);
  REQUIRE(built.success.size() == 1);
  CHECK(std::get<put_request>(built.success[0].request).lease == id);
  REQUIRE(built.failure.size() == 1);
  CHECK(std::get<range_request>(built.failure[0].request).key == key);
}

TEST_CASE("one call takes several conditions or operations, and calls append", "[etcd]") {
  txn built;
  built.when(key_exists("a"), version("b") == 1).then(put("a", "1"), delete_key("b"));
  built.when(key_missing("c")).then(range_prefix("d"), txn{}.then(put("e", "2")));
  built.otherwise(range("a")).otherwise(range("b"));

  CHECK(built.compare.size() == 3);
  REQUIRE(built.success.size() == 4);
  CHECK(std::holds_alternative<put_request>(built.success[0].request));
  CHECK(std::holds_alternative<delete_range_request>(built.success[1].request));
  CHECK(std::holds_alternative<range_request>(built.success[2].request));
  CHECK(std::get<txn>(built.success[3].request).success.size() == 1);
  CHECK(built.failure.size() == 2);
}

TEST_CASE("parts of a transaction may be built before it", "[etcd]") {
  const compare condition = key_exists("a");
  const put_request write = put("a", "1");
  const request_op operation{range("a")};
  const txn nested = txn{}.then(write);

  const txn built = txn{}.when(condition, condition).then(write, operation, nested);
  CHECK(built.compare.size() == 2);
  REQUIRE(built.success.size() == 3);
  CHECK(std::get<put_request>(built.success[0].request) == write);
  CHECK(built.success[1] == operation);
  CHECK(std::get<txn>(built.success[2].request) == nested);
}

TEST_CASE("a transaction may contain itself as it was", "[etcd]") {
  txn built = txn{}.then(put("a", "1"));
  const txn before = built;
  built.then(built);
  REQUIRE(built.success.size() == 2);
  CHECK(std::get<txn>(built.success[1].request) == before);
}

TEST_CASE("transactions compare by all that they hold", "[etcd]") {
  const auto make = [] { return txn{}.when(key_exists("a")).then(put("b", "c")).otherwise(range("d")); };
  CHECK(make() == make());
  CHECK_FALSE(make() == make().when(key_exists("a")));
  CHECK_FALSE(make() == make().then(range("a")));
  CHECK_FALSE(make() == make().otherwise(range("a")));
}

TEST_CASE("answers are read by position and by kind", "[etcd]") {
  txn_response answer;
  answer.responses.resize(4);
  answer.responses[0].response.emplace<range_response>().count = 3;
  answer.responses[1].response.emplace<put_response>().prev_kv.emplace().key = "k";
  answer.responses[2].response.emplace<delete_range_response>().deleted = 2;
  answer.responses[3].response.emplace<txn_response>().succeeded = true;

  const txn_response& seen = answer;
  CHECK(seen.at(0).range().count == 3);
  CHECK(seen.at(1).put().prev_kv->key == "k");
  CHECK(seen.at(2).delete_range().deleted == 2);
  CHECK(seen.at(3).txn().succeeded);

  std::vector<key_value> taken;
  answer.at(0).range().kvs.resize(5);
  taken = std::move(answer.at(0).range().kvs);
  CHECK(taken.size() == 5);
}

TEST_CASE("an answer of another kind or beyond the last one is an error that says so", "[etcd]") {
  txn_response answer;
  answer.responses.push_back({put_response{}});
  answer.responses.emplace_back();

  REQUIRE_THROWS_AS(answer.at(0).range(), std::logic_error);
  REQUIRE_THROWS_WITH(answer.at(0).range(), contains("answers a put, not a range"));
  REQUIRE_THROWS_WITH(answer.at(0).delete_range(), contains("answers a put, not a delete_range"));
  REQUIRE_THROWS_WITH(answer.at(1).txn(), contains("answers nothing known, not a txn"));
  REQUIRE_THROWS_WITH(std::as_const(answer).at(1).put(), contains("answers nothing known, not a put"));
  REQUIRE_THROWS_AS(answer.at(2), std::out_of_range);
  REQUIRE_THROWS_WITH(answer.at(2), contains("no answer 2, there are 2"));
}

}  // namespace
}  // namespace conclave::test
