// SPDX-License-Identifier: BSL-1.0

// The bytes that the encoder writes, spelt out.

#include <conclave/detail/wire/messages.hpp>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "raw_bytes.hpp"
#include "support/catch.hpp"

namespace conclave::test {
namespace {

using detail::wire::decode;
using detail::wire::decode_error;
using detail::wire::encode;

TEST_CASE("encode: an empty message has no bytes", "[wire]") {
  REQUIRE(encode(put_request{}).empty());
  REQUIRE(encode(txn{}).empty());
  REQUIRE(encode(watch_response{}).empty());
  REQUIRE(encode(status_request{}).empty());
  REQUIRE(encode(request_op{}).empty());
}

TEST_CASE("encode: scalars", "[wire]") {
  REQUIRE(encode(put("a", "bc", {.lease = 300, .prev_kv = true})) ==
          "\x0a\x01"
          "a\x12\x02"
          "bc\x18\xac\x02\x20\x01");
}

TEST_CASE("encode: negative numbers take ten bytes", "[wire]") {
  lease_keep_alive_request request;
  request.id = -1;
  REQUIRE(encode(request) == "\x08" + std::string(9, static_cast<char>(0xff)) + "\x01");
  request.id = std::numeric_limits<std::int64_t>::min();
  REQUIRE(encode(request) == "\x08" + std::string(9, static_cast<char>(0x80)) + "\x01");

  event strange;
  strange.type = static_cast<event_type>(-2);
  REQUIRE(encode(strange) == "\x08\xfe" + std::string(8, static_cast<char>(0xff)) + "\x01");
}

TEST_CASE("encode: the operand of a comparison is written even if it is zero or empty", "[wire]") {
  REQUIRE(encode(create_revision("k") == 0) == "\x10\x01\x1a\x01k\x28\x00"s);
  REQUIRE(encode(value("k") != "") == "\x08\x03\x10\x03\x1a\x01k\x3a\x00"s);
  REQUIRE(encode(lease("k").prefix() < 5) == "\x08\x02\x10\x04\x1a\x01k\x40\x05\x82\x04\x01l"s);
}

TEST_CASE("encode: each kind of operand has a number of its own", "[wire]") {
  const auto operand = [](std::uint32_t number) { return varint_field(number, 9); };
  const auto ends_with = [](const compare& condition, const std::string& tail) {
    return encode(condition).ends_with(tail);
  };
  REQUIRE(ends_with(version("k") == 9, operand(4)));
  REQUIRE(ends_with(create_revision("k") == 9, operand(5)));
  REQUIRE(ends_with(mod_revision("k") == 9, operand(6)));
  REQUIRE(ends_with(value("k") == "9", delimited_field(7, "9")));
  REQUIRE(ends_with(lease("k") == 9, operand(8)));
}

TEST_CASE("encode: present but empty messages are written where presence means something", "[wire]") {
  event change;
  change.kv.emplace();
  REQUIRE(encode(change) == "\x12\x00"s);
  REQUIRE(encode(request_op{range_request{}}) == "\x0a\x00"s);
  REQUIRE(encode(watch_request{watch_progress_request{}}) == "\x1a\x00"s);
  REQUIRE(encode(txn{}.then(txn{})) == "\x12\x02\x22\x00"s);
  watch_response answer;
  answer.events.resize(2);
  REQUIRE(encode(answer) == "\x5a\x00\x5a\x00"s);
}

TEST_CASE("encode: repeated enumerators are packed, repeated text keeps its empty items", "[wire]") {
  watch_create_request request;
  request.filters = {watch_filter::no_put, watch_filter::no_delete};
  REQUIRE(encode(request) == "\x2a\x02\x00\x01"s);
  lease_time_to_live_response answer;
  answer.keys = {"a", "", "b"};
  REQUIRE(encode(answer) == "\x2a\x01\x61\x2a\x00\x2a\x01\x62"s);
}

TEST_CASE("encode: keys and values may hold any byte", "[wire]") {
  std::string every;
  for (int byte = 0; byte < 256; ++byte) every += static_cast<char>(static_cast<unsigned char>(byte));
  const put_request request = put("\0\xff/\0"s, every);
  put_request back;
  REQUIRE(decode(encode(request), back) == decode_error::none);
  REQUIRE(back == request);
}

TEST_CASE("encode: empty headers within empty messages, between others", "[wire]") {
  // The sizes of embedded messages have to stay in step when some of them come to nothing.
  txn_response inner;
  inner.responses.resize(3);
  inner.responses[0].response.emplace<range_response>();
  inner.responses[1].response.emplace<txn_response>();
  auto& written = inner.responses[2].response.emplace<put_response>();
  written.header.revision = 5;
  written.prev_kv.emplace();

  txn_response answer;
  answer.responses.resize(2);
  answer.responses[0].response = inner;
  auto& read = answer.responses[1].response.emplace<range_response>();
  read.kvs.resize(2);
  read.kvs[1].key = "k";

  txn_response back;
  REQUIRE(decode(encode(answer), back) == decode_error::none);
  REQUIRE(back == answer);
}

TEST_CASE("encode: cost grows with the depth of nesting, not by powers of it", "[wire]") {
  txn nested;
  for (int depth = 0; depth < 2000; ++depth) nested = txn{}.then(std::move(nested));
  const std::string bytes = encode(nested);
  // Below 64 bytes of contents a level costs four bytes, later six or eight.
  REQUIRE(bytes.size() > 2000U * 4);
  REQUIRE(bytes.size() < 2000U * 8);
  txn back;
  REQUIRE(decode(bytes, back) == decode_error::too_deep);
}

TEST_CASE("encode: many embedded messages", "[wire]") {
  range_response answer;
  for (int i = 0; i < 10000; ++i) {
    key_value kv;
    kv.key = std::to_string(i);
    kv.mod_revision = i;
    answer.kvs.push_back(kv);
  }
  range_response back;
  REQUIRE(decode(encode(answer), back) == decode_error::none);
  REQUIRE(back == answer);
}

TEST_CASE("encode: two gigabytes are refused", "[.][large]") {
  put_request request;
  request.value.assign(std::size_t{1} << 31U, 'x');
  REQUIRE_THROWS_AS(encode(request), std::length_error);
  put_request back;
  REQUIRE(decode(request.value, back) == decode_error::too_large);
}

}  // namespace
}  // namespace conclave::test
