// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/key_space.hpp>

#include <string>
#include <variant>
#include <vector>

#include "support/catch.hpp"

namespace {

using conclave::key_value;
using conclave::detail::engine::key_space;

const std::string nul(1, '\0');

key_value kv(std::string key) {
  key_value out;
  out.key = std::move(key);
  return out;
}

struct row {
  const char* what;
  std::string key;
  std::string end;
  std::string sent_key;
  std::string sent_end;
};

}  // namespace

TEST_CASE("every key that is sent gets the prefix, and both ends of a range") {
  const key_space keys{"pfx/"};
  const std::vector<row> table{
      {"one key", "a", "", "pfx/a", ""},
      {"an interval", "a", "abc", "pfx/a", "pfx/abc"},
      {"a prefix", "a/", "a0", "pfx/a/", "pfx/a0"},
      {"from a key to the end of all", "a", nul, "pfx/a", "pfx0"},
      {"all keys", nul, nul, "pfx/", "pfx0"},
      {"from the lowest key to a key", nul, "b", "pfx/", "pfx/b"},
      {"the key NUL alone is a key like another", nul, "", "pfx/" + nul, ""},
      {"a key with NUL in it", "a" + nul + "b", "", "pfx/a" + nul + "b", ""},
  };
  for (const auto& each : table) {
    CAPTURE(each.what);
    conclave::range_request reads;
    reads.key = each.key;
    reads.range_end = each.end;
    keys.enter(reads);
    CHECK(reads.key == each.sent_key);
    CHECK(reads.range_end == each.sent_end);

    conclave::delete_range_request deletes;
    deletes.key = each.key;
    deletes.range_end = each.end;
    keys.enter(deletes);
    CHECK(deletes.key == each.sent_key);
    CHECK(deletes.range_end == each.sent_end);
  }
}

TEST_CASE("the end of all keys is the end of the prefix, also when that has no successor") {
  const key_space keys{"\xff\xff"};
  conclave::range_request all = conclave::range_prefix("");
  keys.enter(all);
  CHECK(all.key == "\xff\xff");
  CHECK(all.range_end == nul);
}

TEST_CASE("without a prefix nothing is changed") {
  const key_space keys;
  conclave::range_request all = conclave::range_prefix("");
  keys.enter(all);
  CHECK(all == conclave::range_prefix(""));
  conclave::txn request = conclave::txn{}.when(conclave::version("a") == 0).then(conclave::put("a", "v"));
  const conclave::txn same = request;
  keys.enter(request);
  CHECK(request == same);
}

TEST_CASE("a transaction gets the prefix in its conditions and in all branches, nested ones included") {
  const key_space keys{"p/"};
  using conclave::txn;
  txn inner =
      txn{}.when(conclave::value("d") == "x").then(conclave::put("e", "v")).otherwise(conclave::range("f"));
  txn request = txn{}
                    .when(conclave::create_revision("a") == 0, conclave::version("b/").prefix() == 0)
                    .then(conclave::put("c", "v", {.lease = 7}), inner)
                    .otherwise(conclave::delete_prefix("g/"), conclave::range_prefix(""));
  keys.enter(request);

  txn inner_sent = txn{}
                       .when(conclave::value("p/d") == "x")
                       .then(conclave::put("p/e", "v"))
                       .otherwise(conclave::range("p/f"));
  const txn sent = txn{}
                       .when(conclave::create_revision("p/a") == 0, conclave::version("p/b/").prefix() == 0)
                       .then(conclave::put("p/c", "v", {.lease = 7}), inner_sent)
                       .otherwise(conclave::delete_prefix("p/g/"), conclave::range_prefix("p/"));
  CHECK(request == sent);
}

TEST_CASE("every key that is received loses the prefix") {
  const key_space keys{"p/"};

  conclave::range_response range;
  range.kvs = {kv("p/a"), kv("p/"), kv("p/p/b")};
  keys.leave(range);
  CHECK(range.kvs[0].key == "a");
  CHECK(range.kvs[1].key.empty());
  CHECK(range.kvs[2].key == "p/b");

  conclave::put_response put;
  keys.leave(put);
  CHECK_FALSE(put.prev_kv.has_value());
  put.prev_kv = kv("p/a");
  keys.leave(put);
  CHECK(put.prev_kv->key == "a");

  conclave::delete_range_response deleted;
  deleted.prev_kvs = {kv("p/a")};
  keys.leave(deleted);
  CHECK(deleted.prev_kvs[0].key == "a");

  conclave::event event;
  event.kv = kv("p/a");
  event.prev_kv = kv("p/a");
  keys.leave(event);
  CHECK(event.kv->key == "a");
  CHECK(event.prev_kv->key == "a");
}

TEST_CASE("the answers of a transaction lose the prefix, nested ones included") {
  const key_space keys{"p/"};
  conclave::range_response range;
  range.kvs = {kv("p/a")};
  conclave::put_response put;
  put.prev_kv = kv("p/b");
  conclave::delete_range_response deleted;
  deleted.prev_kvs = {kv("p/c")};
  conclave::txn_response nested;
  nested.responses.resize(1);
  nested.responses[0].response = range;
  conclave::txn_response answer;
  answer.responses.resize(5);
  answer.responses[0].response = range;
  answer.responses[1].response = put;
  answer.responses[2].response = deleted;
  answer.responses[3].response = nested;  // and the last one is not known
  keys.leave(answer);
  CHECK(answer.at(0).range().kvs[0].key == "a");
  CHECK(answer.at(1).put().prev_kv->key == "b");
  CHECK(answer.at(2).delete_range().prev_kvs[0].key == "c");
  CHECK(answer.at(3).txn().at(0).range().kvs[0].key == "a");
}

TEST_CASE("a lease shows the keys of this part of the store only") {
  conclave::lease_time_to_live_response answer;
  answer.keys = {"p/a", "q/b", "p", "p/"};
  key_space{"p/"}.leave(answer);
  CHECK(answer.keys == std::vector<std::string>{"a", ""});

  answer.keys = {"p/a", "q/b"};
  key_space{}.leave(answer);
  CHECK(answer.keys == std::vector<std::string>{"p/a", "q/b"});
}
