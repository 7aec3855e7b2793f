// SPDX-License-Identifier: BSL-1.0

// The codec on bytes that nobody vouches for, beside the classes that protoc generates. The first byte chooses the
// message.

#include <sanitizer/allocator_interface.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "fuzz/fuzzing.hpp"
#include "unit/wire/message_pairs.hpp"

namespace conclave::test {
namespace {

using detail::wire::decode;
using detail::wire::decode_error;
using detail::wire::encode;

/// What may be allocated for each byte read, all together. The dearest is an element of a vector, made by a tag and
/// a length of zero, in a vector that grows.
constexpr std::size_t most_per_byte = 512;

thread_local bool counting = false;
thread_local std::size_t allocated = 0;

void on_malloc(const volatile void*, std::size_t size) {
  if (counting) allocated += size;
}
void on_free(const volatile void*) {}

template <class Ours, class Generated>
void check(std::string_view bytes) {
  allocated = 0;
  counting = true;
  Ours ours;
  const decode_error error = decode(bytes, ours);
  counting = false;
  demand(allocated <= 1024 + most_per_byte * bytes.size(), "memory is in proportion to the bytes read");

  Generated generated;
  const bool expected = generated.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  demand(expected == (error == decode_error::none), "what protobuf accepts is accepted, and nothing else");
  if (error != decode_error::none) {
    demand(error <= decode_error::too_large, "an error is one of those that have a name");
    return;
  }

  const std::string encoded = encode(ours);
  Ours again;
  demand(decode(encoded, again) == decode_error::none, "what was encoded is decoded");
  demand(again == ours, "a message survives being encoded and decoded");
  demand(encode(again) == encoded, "a message has one encoding");

  Generated theirs;
  demand(theirs.ParseFromString(encoded), "protobuf reads what we write");
  demand(theirs.SerializeAsString() == encoded, "protobuf writes the same");
  generated.DiscardUnknownFields();
  demand(decode(generated.SerializeAsString(), again) == decode_error::none, "we read what protobuf writes");
  demand(again == ours, "protobuf sees the same message");
}

using checker = void (*)(std::string_view);

template <class... Pairs>
constexpr std::array<checker, sizeof...(Pairs)> checkers(std::tuple<Pairs...>*) {
  return {&check<typename Pairs::ours, typename Pairs::generated>...};
}

}  // namespace
}  // namespace conclave::test

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  using namespace conclave::test;
  demand(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) != 0, "allocations are seen");
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace conclave::test;
  static constexpr auto all = checkers(static_cast<message_pairs*>(nullptr));
  if (size == 0) return 0;
  all[bytes[0] % all.size()]({reinterpret_cast<const char*>(bytes) + 1, size - 1});
  return 0;
}
