// SPDX-License-Identifier: BSL-1.0

// What the decoder does with bytes that no sane encoder writes: rules of the format, and attacks.

#include <conclave/detail/wire/messages.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "conclave_test.pb.h"
#include "raw_bytes.hpp"
#include "support/catch.hpp"

namespace conclave::test {
namespace {

using detail::wire::decode;
using detail::wire::decode_error;
using detail::wire::encode;

/// Decodes what must be a message, and what protobuf takes for one.
template <class Ours, class Generated>
Ours accepted(std::string_view bytes) {
  INFO(to_hex(bytes));
  Ours ours;
  REQUIRE(to_string(decode(bytes, ours)) == to_string(decode_error::none));
  Generated generated;
  REQUIRE(generated.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())));
  return ours;
}

/// The error for what protobuf refuses, too.
template <class Ours, class Generated>
std::string_view refusal(std::string_view bytes) {
  INFO(to_hex(bytes));
  Generated generated;
  REQUIRE_FALSE(generated.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())));
  Ours ours;
  return to_string(decode(bytes, ours));
}

std::string_view key_value_refusal(std::string_view bytes) { return refusal<key_value, KeyValue>(bytes); }

const std::string_view truncated = to_string(decode_error::truncated);
const std::string_view malformed = to_string(decode_error::malformed);
const std::string_view too_deep = to_string(decode_error::too_deep);
const std::string_view too_large = to_string(decode_error::too_large);

TEST_CASE("decode: no bytes are an empty message, and what was there before is gone", "[wire]") {
  key_value kv;
  kv.key = "old";
  REQUIRE(decode(std::string_view{}, kv) == decode_error::none);
  REQUIRE(kv == key_value{});
}

TEST_CASE("decode: unknown fields of every wire type are skipped", "[wire]") {
  const std::string unknown = varint_field(100, 5) + fixed64_field(101) + delimited_field(102, "text") +
                              group_field(103, varint_field(1, 9) + group_field(1, fixed32_field(2))) +
                              fixed32_field(104) + varint_field(0x1fffffff, 1);
  const auto kv = accepted<key_value, KeyValue>(unknown + delimited_field(1, "k") + unknown +
                                                varint_field(4, 3) + unknown);
  key_value expected;
  expected.key = "k";
  expected.version = 3;
  REQUIRE(kv == expected);
}

TEST_CASE("decode: a field with another wire type than its own is unknown", "[wire]") {
  const auto kv = accepted<key_value, KeyValue>(varint_field(1, 5) + delimited_field(4, "x") +
                                                fixed64_field(4) + group_field(1, "") + fixed32_field(6));
  REQUIRE(kv == key_value{});

  const auto wanted = accepted<watch_create_request, WatchCreateRequest>(fixed32_field(5) + fixed64_field(5));
  REQUIRE(wanted.filters.empty());
}

TEST_CASE("decode: the last of several scalars counts", "[wire]") {
  const auto kv = accepted<key_value, KeyValue>(delimited_field(1, "long name") + varint_field(4, 1) +
                                                delimited_field(1, "k") + varint_field(4, 0));
  REQUIRE(kv.key == "k");
  REQUIRE(kv.version == 0);
}

TEST_CASE("decode: embedded messages merge", "[wire]") {
  const auto answer = accepted<put_response, PutResponse>(
      delimited_field(1, varint_field(1, 7) + varint_field(3, 1)) +
      delimited_field(2, delimited_field(1, "k") + varint_field(4, 1)) +
      delimited_field(1, varint_field(3, 2)) + delimited_field(2, varint_field(4, 9)));
  REQUIRE(answer.header.cluster_id == 7);
  REQUIRE(answer.header.revision == 2);
  REQUIRE(answer.prev_kv);
  REQUIRE(answer.prev_kv->key == "k");
  REQUIRE(answer.prev_kv->version == 9);
}

TEST_CASE("decode: of a oneof the last alternative counts, and merges with itself", "[wire]") {
  const auto replaced = accepted<request_op, RequestOp>(delimited_field(2, delimited_field(1, "put")) +
                                                        delimited_field(1, delimited_field(1, "range")));
  REQUIRE(std::get<range_request>(replaced.request).key == "range");

  const auto merged = accepted<request_op, RequestOp>(delimited_field(2, delimited_field(1, "k")) +
                                                      delimited_field(2, delimited_field(2, "v")));
  REQUIRE(std::get<put_request>(merged.request) == put("k", "v"));

  const auto forgotten =
      accepted<request_op, RequestOp>(delimited_field(2, delimited_field(1, "k")) + delimited_field(1, "") +
                                      delimited_field(2, delimited_field(2, "v")));
  REQUIRE(std::get<put_request>(forgotten.request) == put("", "v"));

  const auto condition =
      accepted<compare, Compare>(varint_field(5, 3) + delimited_field(7, "v") + varint_field(6, 0));
  REQUIRE(std::get<compare_operand<compare_target::mod>>(condition.target_union).value == 0);
}

TEST_CASE("decode: an operation that we do not know is no operation", "[wire]") {
  const auto answer = accepted<txn_response, TxnResponse>(delimited_field(3, delimited_field(9, "?")) +
                                                          delimited_field(3, delimited_field(2, "")));
  REQUIRE(answer.responses.size() == 2);
  REQUIRE(std::holds_alternative<std::monostate>(answer.at(0).response));
  REQUIRE(answer.at(1).put() == put_response{});
}

TEST_CASE("decode: repeated numbers may be packed, or not, or both", "[wire]") {
  const std::string bytes = varint_field(5, 1) + delimited_field(5, raw_varint(0) + raw_varint(77)) +
                            delimited_field(5, "") + varint_field(5, ~std::uint64_t{0});
  const auto request = accepted<watch_create_request, WatchCreateRequest>(bytes);
  REQUIRE(request.filters == std::vector<watch_filter>{watch_filter::no_delete, watch_filter::no_put,
                                                       static_cast<watch_filter>(77),
                                                       static_cast<watch_filter>(-1)});
  REQUIRE(refusal<watch_create_request, WatchCreateRequest>(delimited_field(5, "\x01\x80"s)) == truncated);
}

TEST_CASE("decode: enumerators are cut to 32 bits, and unknown ones are kept", "[wire]") {
  const auto one = accepted<event, Event>(varint_field(1, 0xffffffff00000001U));
  REQUIRE(one.type == event_type::delete_);
  const auto strange = accepted<event, Event>(varint_field(1, 1234));
  REQUIRE(static_cast<std::int32_t>(strange.type) == 1234);
  REQUIRE(encode(strange) == varint_field(1, 1234));
  const auto negative = accepted<event, Event>(varint_field(1, ~std::uint64_t{0} - 4));
  REQUIRE(static_cast<std::int32_t>(negative.type) == -5);
}

TEST_CASE("decode: any number but zero is true", "[wire]") {
  REQUIRE(accepted<put_request, PutRequest>(varint_field(4, std::uint64_t{1} << 63U)).prev_kv);
  REQUIRE_FALSE(accepted<put_request, PutRequest>("\x20\x80\x80\x00"s).prev_kv);
}

TEST_CASE("decode: varints may be padded to ten bytes, not to eleven", "[wire]") {
  const std::string nine(9, static_cast<char>(0x80));
  REQUIRE(accepted<key_value, KeyValue>(raw_tag(4, 0) + "\x83" + nine.substr(1) + '\0').version == 3);
  REQUIRE(key_value_refusal(raw_tag(4, 0) + nine + "\x80\x01") == malformed);
  REQUIRE(key_value_refusal(raw_tag(4, 0) + std::string(1000, static_cast<char>(0x80))) == malformed);
  REQUIRE(key_value_refusal(raw_tag(100, 0) + std::string(11, static_cast<char>(0xff))) == malformed);
  REQUIRE(key_value_refusal(raw_tag(4, 0) + nine) == truncated);
}

TEST_CASE("decode: tags that cannot be are malformed", "[wire]") {
  REQUIRE(key_value_refusal("\0"s) == malformed);
  for (std::uint32_t type = 0; type < 8; ++type) {
    REQUIRE(key_value_refusal(raw_tag(0, type) + "12345678") == malformed);
  }
  for (const std::uint32_t number : {1U, 4U, 100U}) {
    for (const std::uint32_t type : {4U, 6U, 7U}) {
      REQUIRE(key_value_refusal(raw_tag(number, type) + "12345678") == malformed);
    }
  }
  REQUIRE(key_value_refusal("\x8a\x80\x80\x80\x80\x00\x01k"s) == malformed);  // six bytes
  REQUIRE(key_value_refusal("\x8a\x80"s) == truncated);
}

TEST_CASE("decode: groups end with their own number and inside their message", "[wire]") {
  REQUIRE(key_value_refusal(raw_tag(9, 3) + raw_tag(8, 4)) == malformed);
  REQUIRE(key_value_refusal(raw_tag(9, 3) + varint_field(1, 1)) == truncated);
  REQUIRE(key_value_refusal(raw_tag(9, 4)) == malformed);
  REQUIRE(refusal<event, Event>(delimited_field(2, raw_tag(9, 3)) + raw_tag(9, 4)) == truncated);
  REQUIRE(refusal<event, Event>(delimited_field(2, raw_tag(2, 4))) == malformed);
}

TEST_CASE("decode: a length may not reach past the end", "[wire]") {
  REQUIRE(key_value_refusal(raw_tag(1, 2)) == truncated);
  REQUIRE(key_value_refusal(raw_tag(1, 2) + "\x05" + "four") == truncated);
  REQUIRE(key_value_refusal(raw_tag(77, 2) + "\x05" + "four") == truncated);
  REQUIRE(key_value_refusal(fixed64_field(77).substr(0, 9)) == truncated);
  REQUIRE(key_value_refusal(fixed32_field(77).substr(0, 5)) == truncated);
  // Past the end of the inner message, though not of the outer one.
  REQUIRE(refusal<event, Event>(raw_tag(2, 2) + "\x03" + raw_tag(1, 2) + "\x05" + "12345678") == truncated);
  REQUIRE(refusal<event, Event>(raw_tag(2, 2) + "\x03" + raw_tag(99, 1) + "12345678") == truncated);
}

TEST_CASE("decode: huge lengths are refused without allocating", "[wire]") {
  const std::string tail(64, 'x');
  for (const std::uint32_t number : {1U, 77U}) {
    for (const std::uint64_t length : {std::uint64_t{0x7ffffff0}, std::uint64_t{0x7ffffffe}}) {
      REQUIRE(refusal<event, Event>(raw_tag(2, 2) + raw_varint(length) + tail) == truncated);
      REQUIRE(key_value_refusal(raw_tag(number, 2) + raw_varint(length) + tail) == truncated);
    }
    REQUIRE(key_value_refusal(raw_tag(number, 2) + raw_varint(0x7fffffff) + tail) == too_large);
    REQUIRE(key_value_refusal(raw_tag(number, 2) + raw_varint(0x80000000) + tail) == too_large);
    REQUIRE(key_value_refusal(raw_tag(number, 2) + raw_varint(0xffffffff) + tail) == too_large);
    REQUIRE(key_value_refusal(raw_tag(number, 2) + raw_varint(~std::uint64_t{0}) + tail) == malformed);
  }
}

TEST_CASE("decode: messages may be nested a hundred deep", "[wire]") {
  // An operation and its transaction are two levels.
  const auto nested = [](int pairs, std::string bytes) {
    for (; pairs > 0; --pairs) bytes = delimited_field(2, delimited_field(4, bytes));
    return bytes;
  };
  const auto deep = accepted<txn, TxnRequest>(nested(50, ""));
  REQUIRE(encode(deep) == nested(50, ""));
  REQUIRE(refusal<txn, TxnRequest>(nested(50, delimited_field(2, ""))) == too_deep);
  REQUIRE(refusal<txn, TxnRequest>(nested(51, "")) == too_deep);
  REQUIRE(refusal<txn, TxnRequest>(nested(20000, "")) == too_deep);
}

TEST_CASE("decode: groups count as levels", "[wire]") {
  const auto nested = [](int groups) {
    std::string begin;
    std::string end;
    for (int i = 0; i < groups; ++i) {
      begin += raw_tag(9, 3);
      end += raw_tag(9, 4);
    }
    return begin + end;
  };
  REQUIRE(accepted<key_value, KeyValue>(nested(100)) == key_value{});
  REQUIRE(key_value_refusal(nested(101)) == too_deep);
  REQUIRE(key_value_refusal(nested(100000)) == too_deep);
  REQUIRE(accepted<event, Event>(delimited_field(2, nested(99))).kv);
  REQUIRE(refusal<event, Event>(delimited_field(2, nested(100))) == too_deep);
  // Siblings do not add up.
  std::string many;
  for (int i = 0; i < 1000; ++i) many += group_field(9, "");
  REQUIRE(accepted<key_value, KeyValue>(many) == key_value{});
}

TEST_CASE("decode: errors have texts", "[wire]") {
  REQUIRE(to_string(decode_error::none) == "no error");
  REQUIRE(to_string(decode_error::truncated) == "truncated message");
  REQUIRE(to_string(decode_error::malformed) == "malformed message");
  REQUIRE(to_string(decode_error::too_deep) == "message nested too deeply");
  REQUIRE(to_string(decode_error::too_large) == "message too large");
  REQUIRE(to_string(static_cast<decode_error>(99)) == "unknown decode error");
}

}  // namespace
}  // namespace conclave::test
