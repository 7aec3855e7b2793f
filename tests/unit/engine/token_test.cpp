// SPDX-License-Identifier: BSL-1.0

// Calls and streams of a client with a user while there is no token to be had. On virtual time, against an etcd in
// memory.

#include <conclave/client.hpp>

#include <chrono>
#include <new>
#include <utility>

#include "support/catch.hpp"
#include "support/scripted_transport.hpp"

namespace {

using conclave::client;
using conclave::client_options;
using conclave::errc;
using conclave::test::fate;
using conclave::test::world;
using namespace std::chrono_literals;

client_options alice() {
  client_options out;
  out.user("alice", "password");
  return out;
}

/// The next call for a token breaks off, at `fail_for_memory`.
void hold_the_next_token(world& w) { w.server().next("Auth.Authenticate", fate::lost_late); }

/// It would be tried again, but there is no memory.
void fail_for_memory(world& w) {
  w.settle();
  w.clock().run_out_of_memory();
  w.server().answer_late_ones();
  w.settle();
}

}  // namespace

TEST_CASE(
    "a token that cannot be had for want of memory fails those who wait for it, and is asked for anew") {
  world w;
  const client c = w.connect(alice());
  hold_the_next_token(w);
  auto first = w.start(c.put("k", "1"));
  auto second = w.start(c.put("k", "2"));
  fail_for_memory(w);
  CHECK_THROWS_AS(first.value(), std::bad_alloc);
  CHECK_THROWS_AS(second.value(), std::bad_alloc);
  CHECK(w.server().count("KV.Put") == 0);
  (void)w.get(c.put("k", "3"));
  CHECK(w.server().count("Auth.Authenticate") == 2);
}

TEST_CASE("a stream that cannot be opened for want of memory is opened anew") {
  world w;
  const client c = w.connect(alice());
  hold_the_next_token(w);
  auto events = w.get(c.watch("k", {.start_revision = 1}));  // asks for nothing by itself
  auto seen = w.start(events.next());
  fail_for_memory(w);
  CHECK(w.server().count("Auth.Authenticate") == 1);
  w.advance(2s);
  (void)w.get(c.put("k", "v"));
  CHECK(seen.value().front().kv->value == "v");
}

TEST_CASE("a call that waits for a token ends at its own deadline, without having been sent") {
  world w;
  const client c = w.connect(alice());
  w.server().stop();
  w.server().next("Auth.Authenticate", fate::never_arrives);
  auto writing = w.start(c.put("k", "v"));
  w.advance(2500ms);
  w.server().start();  // half of the time is gone when the token is asked for, with a time of its own
  w.advance(2400ms);
  CHECK(w.server().count("Auth.Authenticate") == 1);
  CHECK_FALSE(writing.done());
  w.advance(100ms);
  CHECK(writing.error() == errc::timed_out);
  // Who comes later waits for the same answer.
  auto later = w.start(c.put("k", "w"));
  w.advance(3s);
  CHECK(later.error() == errc::timed_out);
  CHECK(w.server().count("KV.Put") == 0);
  (void)w.get(c.put("k", "x"));
}
