// SPDX-License-Identifier: BSL-1.0

// The codec beside the classes that protoc generates: same bytes out, same messages in, for every
// message.

#include <google/protobuf/util/message_differencer.h>

#include <set>
#include <string>
#include <string_view>

#include "message_pairs.hpp"
#include "random_message.hpp"
#include "raw_bytes.hpp"
#include "support/catch.hpp"

namespace conclave::test {
namespace {

using detail::wire::decode;
using detail::wire::decode_error;
using detail::wire::encode;
using google::protobuf::util::MessageDifferencer;

template <class Generated>
std::string name_of() {
  return std::string{Generated::descriptor()->name()};
}

/// The last part of the member's name, from the compiler's rendering of the template argument.
template <auto Member>
std::string member_name() {
  std::string text = __PRETTY_FUNCTION__;
  const std::size_t start = text.rfind("&conclave::");
  text = text.substr(start, text.find_first_of(";])", start) - start);
  return text.substr(text.rfind(':') + 1);
}

template <auto Member, std::uint32_t Number>
void require_same_fields(detail::wire::field<Number, Member>, const google::protobuf::Descriptor& type,
                         std::set<int>& seen) {
  const auto* const field = type.FindFieldByNumber(static_cast<int>(Number));
  INFO("field " << Number);
  REQUIRE(field);
  REQUIRE(std::string{field->name()} == member_name<Member>());
  seen.insert(field->number());
}

template <auto Member, std::uint32_t... Numbers>
void require_same_fields(detail::wire::oneof<Member, Numbers...>, const google::protobuf::Descriptor& type,
                         std::set<int>& seen) {
  for (const std::uint32_t number : {Numbers...}) {
    const auto* const field = type.FindFieldByNumber(static_cast<int>(number));
    INFO("field " << number);
    REQUIRE(field);
    REQUIRE(field->containing_oneof());
    REQUIRE(std::string{field->containing_oneof()->name()} == member_name<Member>());
    seen.insert(field->number());
  }
}

/// Requires that both parsers accept `bytes` or both refuse them, and see the same message in them.
template <class Ours, class Generated>
bool require_agreement(std::string_view bytes) {
  Ours ours;
  Generated generated;
  const bool accepted = decode(bytes, ours) == decode_error::none;
  const bool expected = generated.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  if (accepted != expected) {
    INFO(to_hex(bytes));
    REQUIRE(accepted == expected);
  }
  if (!accepted) return false;

  generated.DiscardUnknownFields();
  Generated again;
  const bool parsed = again.ParseFromString(encode(ours));
  if (!parsed || !MessageDifferencer::Equivalent(generated, again)) {
    INFO(to_hex(bytes));
    REQUIRE(parsed);
    REQUIRE(again.DebugString() == generated.DebugString());
  }
  return true;
}

TEST_CASE("tables name the fields of the protocol", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    INFO(name_of<Generated>());
    std::set<int> seen;
    [&]<class... Fields>(detail::wire::fields<Fields...>) {
      (require_same_fields(Fields{}, *Generated::descriptor(), seen), ...);
    }(typename detail::wire::table<Ours>::type{});
    REQUIRE(static_cast<int>(seen.size()) == Generated::descriptor()->field_count());
  });
}

TEST_CASE("random messages of ours survive generated classes", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    for (std::uint64_t seed = first_seed(), end = seed + 1000; seed != end; ++seed) {
      random_values random{seed};
      Ours ours;
      fill(ours, random, 1 + static_cast<int>(random.below(6)));
      const std::string bytes = encode(ours);

      Generated generated;
      const bool parsed = generated.ParseFromString(bytes);
      generated.DiscardUnknownFields();
      const bool same_bytes = generated.SerializeAsString() == bytes;
      Ours back;
      const decode_error error = decode(bytes, back);
      if (!parsed || !same_bytes || error != decode_error::none || !(back == ours)) {
        INFO(name_of<Generated>() << ", seed " << seed << ": " << to_hex(bytes));
        REQUIRE(parsed);
        REQUIRE(to_hex(generated.SerializeAsString()) == to_hex(bytes));
        REQUIRE(to_string(error) == to_string(decode_error::none));
        REQUIRE(back == ours);
      }
    }
    SUCCEED(name_of<Generated>());
  });
}

TEST_CASE("random generated messages survive ours", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    for (std::uint64_t seed = first_seed(), end = seed + 1000; seed != end; ++seed) {
      random_values random{seed};
      Generated generated;
      fill_generated(generated, random, 1 + static_cast<int>(random.below(6)));
      const std::string bytes = generated.SerializeAsString();

      Ours ours;
      const decode_error error = decode(bytes, ours);
      const std::string written = encode(ours);
      Generated back;
      const bool parsed = back.ParseFromString(written);
      if (error != decode_error::none || written != bytes || !parsed ||
          !MessageDifferencer::Equals(generated, back)) {
        INFO(name_of<Generated>() << ", seed " << seed);
        REQUIRE(to_string(error) == to_string(decode_error::none));
        REQUIRE(to_hex(written) == to_hex(bytes));
        REQUIRE(parsed);
        REQUIRE(back.DebugString() == generated.DebugString());
      }
    }
    SUCCEED(name_of<Generated>());
  });
}

TEST_CASE("two messages in a row merge as protobuf merges them", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    for (std::uint64_t seed = first_seed(), end = seed + 200; seed != end; ++seed) {
      INFO(name_of<Generated>() << ", seed " << seed);
      random_values random{seed};
      Generated first;
      Generated second;
      fill_generated(first, random, 4);
      fill_generated(second, random, 4);
      REQUIRE(require_agreement<Ours, Generated>(first.SerializeAsString() + second.SerializeAsString()));
    }
  });
}

TEST_CASE("a message cut short is refused exactly when protobuf refuses it", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    for (std::uint64_t seed = first_seed(), end = seed + 10; seed != end; ++seed) {
      INFO(name_of<Generated>() << ", seed " << seed);
      random_values random{seed};
      Generated whole;
      fill_generated(whole, random, 3);
      const std::string bytes = whole.SerializeAsString().substr(0, 2000);
      for (std::size_t size = 0; size < bytes.size(); ++size) {
        // A copy of its own, so that a sanitizer sees a read past its end.
        const std::string cut{bytes, 0, size};
        static_cast<void>(require_agreement<Ours, Generated>(cut));
      }
    }
    SUCCEED(name_of<Generated>());
  });
}

TEST_CASE("damaged messages are refused exactly when protobuf refuses them", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    int accepted = 0;
    for (std::uint64_t seed = first_seed(), end = seed + 2000; seed != end; ++seed) {
      INFO(name_of<Generated>() << ", seed " << seed);
      random_values random{seed};
      Generated whole;
      fill_generated(whole, random, 3);
      std::string bytes = whole.SerializeAsString();
      for (std::size_t left = 1 + random.below(4); left > 0; --left) {
        const std::size_t at = random.below(bytes.size() + 1);
        const auto byte = static_cast<char>(
            static_cast<unsigned char>(random.coin() ? random.below(256) : random.below(40)));
        switch (random.below(4)) {
          case 0:
            bytes.insert(at, 1, byte);
            break;
          case 1:
            bytes.erase(at, 1);
            break;
          case 2:
            bytes.insert(at, bytes, random.below(bytes.size() + 1), random.below(16));
            break;
          default:
            if (at < bytes.size()) bytes[at] = byte;
        }
      }
      accepted += require_agreement<Ours, Generated>(bytes) ? 1 : 0;
    }
    REQUIRE(accepted > 0);
    REQUIRE(accepted < 2000);
  });
}

TEST_CASE("noise is refused exactly when protobuf refuses it", "[wire]") {
  for_each_message([]<class Ours, class Generated>() {
    for (std::uint64_t seed = first_seed(), end = seed + 1000; seed != end; ++seed) {
      INFO(name_of<Generated>() << ", seed " << seed);
      random_values random{seed};
      std::string bytes(random.below(40), '\0');
      for (char& byte : bytes) {
        const std::size_t bound = random.coin() ? 256 : 34;
        byte = static_cast<char>(static_cast<unsigned char>(random.below(bound)));
      }
      static_cast<void>(require_agreement<Ours, Generated>(bytes));
    }
    SUCCEED(name_of<Generated>());
  });
}

}  // namespace
}  // namespace conclave::test
