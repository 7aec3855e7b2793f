// SPDX-License-Identifier: BSL-1.0

// The codec against the classes that protoc generates, on the messages of the hot paths. Both encode into a new
// string and decode into a new message, as a call does.

#include <benchmark/benchmark.h>

#include <conclave/detail/wire/messages.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/etcd/watch.hpp>

#include "conclave_test.pb.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

namespace pb = conclave::test;
namespace wire = conclave::detail::wire;

// Each sample gives one message in both forms.

struct put_sample {
  using ours = conclave::put_request;
  using theirs = pb::PutRequest;
  static theirs make() {
    theirs out;
    out.set_key("bench/1700000000000000000/key/1234");
    out.set_value(std::string(100, 'x'));
    return out;
  }
};

struct put_answer_sample {
  using ours = conclave::put_response;
  using theirs = pb::PutResponse;
  static void fill(pb::ResponseHeader& header) {
    header.set_cluster_id(0xcdf818194e3a8c32);
    header.set_member_id(0x8e9e05c52164694d);
    header.set_revision(123'456);
    header.set_raft_term(2);
  }
  static theirs make() {
    theirs out;
    fill(*out.mutable_header());
    return out;
  }
};

struct lock_sample {
  using ours = conclave::txn;
  using theirs = pb::TxnRequest;
  static theirs make() {
    const std::string key = "accounts/42/694d7b5c2f1a9e03";
    theirs out;
    auto& compare = *out.add_compare();
    compare.set_target(pb::Compare::CREATE);
    compare.set_key(key);
    compare.set_create_revision(0);
    auto& made = *out.add_success()->mutable_request_put();
    made.set_key(key);
    made.set_lease(0x694d7b5c2f1a9e03);
    auto& first = *out.add_success()->mutable_request_range();
    first.set_key("accounts/42/");
    first.set_range_end("accounts/420");
    first.set_limit(1);
    first.set_sort_order(pb::RangeRequest::ASCEND);
    first.set_sort_target(pb::RangeRequest::CREATE);
    return out;
  }
};

/// 64 claims in one.
struct claims_sample {
  using ours = conclave::txn;
  using theirs = pb::TxnRequest;
  static theirs make() {
    theirs out;
    for (int i = 0; i < 64; ++i) {
      const auto key = "jobs/1700000000000000" + std::to_string(100 + i);
      auto& one = *out.add_success()->mutable_request_txn();
      auto& compare = *one.add_compare();
      compare.set_target(pb::Compare::MOD);
      compare.set_key(key);
      compare.set_mod_revision(100'000 + i);
      one.add_success()->mutable_request_delete_range()->set_key(key);
    }
    return out;
  }
};

struct page_sample {
  using ours = conclave::range_response;
  using theirs = pb::RangeResponse;
  static theirs make() {
    theirs out;
    put_answer_sample::fill(*out.mutable_header());
    for (int i = 0; i < 1000; ++i) {
      auto& kv = *out.add_kvs();
      kv.set_key("jobs/17000000000000" + std::to_string(10'000 + i));
      kv.set_create_revision(100'000 + i);
      kv.set_mod_revision(100'000 + i);
      kv.set_version(1);
      kv.set_value(std::string(100, 'x'));
    }
    out.set_count(1000);
    return out;
  }
};

struct event_sample {
  using ours = conclave::watch_response;
  using theirs = pb::WatchResponse;
  static theirs make() {
    theirs out;
    put_answer_sample::fill(*out.mutable_header());
    out.set_watch_id(7);
    auto& one = *out.add_events();
    one.set_type(pb::Event::DELETE);
    one.mutable_kv()->set_key("accounts/42/694d7b5c2f1a9e03");
    one.mutable_kv()->set_mod_revision(123'456);
    return out;
  }
};

template <class Sample>
typename Sample::ours ours_of(const std::string& bytes) {
  typename Sample::ours out;
  if (wire::decode(bytes, out) != wire::decode_error::none || wire::encode(out).size() != bytes.size()) {
    std::fprintf(stderr, "codec_bench: the two forms of a message are not the same\n");
    std::exit(1);
  }
  return out;
}

template <class Sample>
void encode_ours(benchmark::State& state) {
  const auto bytes = Sample::make().SerializeAsString();
  const auto message = ours_of<Sample>(bytes);
  for ([[maybe_unused]] auto each : state) benchmark::DoNotOptimize(wire::encode(message));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
}

template <class Sample>
void encode_theirs(benchmark::State& state) {
  const auto message = Sample::make();
  for ([[maybe_unused]] auto each : state) benchmark::DoNotOptimize(message.SerializeAsString());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(message.ByteSizeLong()));
}

template <class Sample>
void decode_ours(benchmark::State& state) {
  const auto bytes = Sample::make().SerializeAsString();
  for ([[maybe_unused]] auto each : state) {
    typename Sample::ours message;
    benchmark::DoNotOptimize(wire::decode(bytes, message));
    benchmark::DoNotOptimize(message);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
}

template <class Sample>
void decode_theirs(benchmark::State& state) {
  const auto bytes = Sample::make().SerializeAsString();
  for ([[maybe_unused]] auto each : state) {
    typename Sample::theirs message;
    benchmark::DoNotOptimize(message.ParseFromString(bytes));
    benchmark::DoNotOptimize(message);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
}

BENCHMARK(encode_ours<put_sample>)->Name("encode put/conclave");
BENCHMARK(encode_theirs<put_sample>)->Name("encode put/protobuf");
BENCHMARK(decode_ours<put_answer_sample>)->Name("decode put answer/conclave");
BENCHMARK(decode_theirs<put_answer_sample>)->Name("decode put answer/protobuf");
BENCHMARK(encode_ours<lock_sample>)->Name("encode lock/conclave");
BENCHMARK(encode_theirs<lock_sample>)->Name("encode lock/protobuf");
BENCHMARK(encode_ours<claims_sample>)->Name("encode 64 claims/conclave");
BENCHMARK(encode_theirs<claims_sample>)->Name("encode 64 claims/protobuf");
BENCHMARK(decode_ours<page_sample>)->Name("decode 1000 items/conclave");
BENCHMARK(decode_theirs<page_sample>)->Name("decode 1000 items/protobuf");
BENCHMARK(decode_ours<event_sample>)->Name("decode watch event/conclave");
BENCHMARK(decode_theirs<event_sample>)->Name("decode watch event/protobuf");

}  // namespace

BENCHMARK_MAIN();
