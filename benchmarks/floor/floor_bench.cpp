// SPDX-License-Identifier: BSL-1.0

// floor_bench CASE [OPTION...]: what conclave_bench does, with nothing between the program and gRPC. The least
// calls that do the work, on one thread that waits for their answers itself: no other thread, no executor, no
// coroutine; messages are protobuf's generated classes. It keeps no lease alive, retries nothing and is cancelled
// by nobody. With --posted another thread waits for the answers, and posts each to an io_context that the first one
// runs, and that waits for a timer as well: that much an Asio program cannot be without, since gRPC's sockets are not
// Asio's.

#include "../measure.hpp"

#include "conclave_test.pb.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>

#include <deque>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>

namespace {

namespace pb = conclave::test;
using bench::clock;

void require(bool that, const std::string& otherwise) {
  if (!that) throw std::runtime_error(otherwise);
}

std::string without_scheme(const std::string& endpoints) {
  const auto first = endpoints.substr(0, endpoints.find(','));
  const auto scheme = first.find("://");
  return scheme == first.npos ? first : first.substr(scheme + 3);
}

/// What gRPC hands back from its queue.
class event {
public:
  virtual ~event() = default;
  virtual void happened(bool ok) = 0;
};

/// One channel, one queue, and one thread unless the answers are posted.
class server {
public:
  server(const std::string& endpoints, bool posted)
      : channel_(grpc::CreateChannel(without_scheme(endpoints), grpc::InsecureChannelCredentials())),
        stub_(channel_) {
    require(channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds{10}),
            "cannot connect to " + endpoints);
    if (!posted) return;
    timer_.expires_after(std::chrono::hours{1});
    timer_.async_wait([](std::error_code) {});
    waiting_ = std::thread{[this] { post_all(); }};
  }

  server(const server&) = delete;
  server& operator=(const server&) = delete;

  ~server() {
    if (!waiting_.joinable()) return;
    queue_.Shutdown();
    waiting_.join();
  }

  grpc::GenericStub& stub() { return stub_; }
  grpc::CompletionQueue* queue() { return &queue_; }

  /// Lets one event happen.
  void step() {
    if (waiting_.joinable()) {
      context_.run_one();
      return;
    }
    void* tag = nullptr;
    bool ok = false;
    require(queue_.Next(&tag, &ok), "gRPC's queue has ended");
    static_cast<event*>(tag)->happened(ok);
  }

private:
  void post_all() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok))
      asio::post(context_, [which = static_cast<event*>(tag), ok] { which->happened(ok); });
  }

  std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
  asio::io_context context_{1};
  asio::steady_timer timer_{
      context_};  ///< Keeps the context running, and makes it wait as one with sockets does.
  std::thread waiting_;
};

template <class Message>
grpc::ByteBuffer to_bytes(const Message& message) {
  grpc::ByteBuffer out;
  bool own = false;
  require(grpc::SerializationTraits<Message>::Serialize(message, &out, &own).ok(), "not to be encoded");
  return out;
}

template <class Message>
void from_bytes(grpc::ByteBuffer& bytes, Message& into) {
  require(grpc::SerializationTraits<Message>::Deserialize(&bytes, &into).ok(), "not to be decoded");
}

/// A call under way; ends by calling `then`, and deletes itself.
template <class Response>
class call final : public event {
public:
  using next = std::function<void(const Response&)>;

  template <class Request>
  static void start(server& on, const char* method, const Request& request, next then) {
    auto* const self = new call{std::move(then)};
    self->context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds{30});
    self->reader_ = on.stub().PrepareUnaryCall(&self->context_, method, to_bytes(request), on.queue());
    self->reader_->StartCall();
    self->reader_->Finish(&self->answer_, &self->status_, static_cast<event*>(self));
  }

private:
  explicit call(next then) : then_(std::move(then)) {}

  void happened(bool) override {
    const std::unique_ptr<call> self{this};
    require(status_.ok(), status_.error_message());
    Response response;
    from_bytes(answer_, response);
    then_(response);
  }

  next then_;
  grpc::ClientContext context_;
  grpc::ByteBuffer answer_;
  grpc::Status status_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader_;
};

constexpr auto put_method = "/etcdserverpb.KV/Put";
constexpr auto range_method = "/etcdserverpb.KV/Range";
constexpr auto delete_method = "/etcdserverpb.KV/DeleteRange";
constexpr auto txn_method = "/etcdserverpb.KV/Txn";
constexpr auto grant_method = "/etcdserverpb.Lease/LeaseGrant";
constexpr auto revoke_method = "/etcdserverpb.Lease/LeaseRevoke";
constexpr auto watch_method = "/etcdserverpb.Watch/Watch";

/// A call and its answer.
template <class Response, class Request>
Response ask(server& on, const char* method, const Request& request) {
  std::optional<Response> out;
  call<Response>::start(on, method, request, [&](const Response& answer) { out = answer; });
  while (!out) on.step();
  return *std::move(out);
}

struct bed {
  const bench::options& given;
  bench::run& run;
  server& on;
  std::string prefix;
  std::string value;
  [[nodiscard]] std::size_t total() const { return given.warmup + given.count; }
};

/// Does `one(i, done)` for each number below the total, `depth` at a time.
template <class One>
void repeat(bed& b, std::size_t depth, One one) {
  std::size_t begun = 0;
  std::size_t ended = 0;
  std::size_t running = 0;
  bool enough = false;
  std::function<void()> next = [&] {
    if (enough || begun == b.total()) return;
    const auto since = clock::now();
    ++running;
    one(begun++, [&, since] {
      --running;
      if (enough) return;
      if (ended >= b.given.warmup) b.run.add(since);
      if (++ended == b.given.warmup) b.run.start();
      if (ended == b.total() || (ended > b.given.warmup && b.run.over())) {
        b.run.stop();
        enough = true;
      }
      next();
    });
  };
  if (b.given.warmup == 0) b.run.start();
  for (std::size_t i = 0; i < depth; ++i) next();
  while (running != 0) b.on.step();
}

/// A watch of all keys below one on a stream of its own.
class watch final : public event {
public:
  watch(bed& b, const std::string& below, std::function<void(const pb::Event&)> on_event)
      : on_event_(std::move(on_event)) {
    stream_ = b.on.stub().PrepareCall(&context_, watch_method, b.on.queue());
    stream_->StartCall(static_cast<event*>(this));
    while (state_ != state::started) b.on.step();
    pb::WatchRequest request;
    auto& create = *request.mutable_create_request();
    create.set_key(b.prefix + below + "/");
    create.set_range_end(b.prefix + below + "0");
    stream_->Write(to_bytes(request), static_cast<event*>(this));
    while (state_ != state::written) b.on.step();
    stream_->Read(&bytes_, static_cast<event*>(this));
    while (state_ != state::reading) b.on.step();
  }

  void cancel(bed& b) {
    context_.TryCancel();
    while (state_ != state::ended) b.on.step();
    grpc::Status status;
    stream_->Finish(&status, static_cast<event*>(this));
    state_ = state::reading;
    while (state_ != state::ended) b.on.step();
  }

private:
  enum class state { starting, started, written, reading, ended };

  void happened(bool ok) override {
    if (state_ == state::starting || state_ == state::started) {
      require(ok, "no watch");
      state_ = state_ == state::starting ? state::started : state::written;
      return;
    }
    if (!ok || !bytes_.Valid()) {
      state_ = state::ended;
      return;
    }
    state_ = state::reading;
    pb::WatchResponse response;
    from_bytes(bytes_, response);
    bytes_.Clear();
    stream_->Read(&bytes_, static_cast<event*>(this));
    for (const auto& each : response.events()) on_event_(each);
  }

  std::function<void(const pb::Event&)> on_event_;
  grpc::ClientContext context_;
  grpc::ByteBuffer bytes_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  state state_ = state::starting;
};

// ---- puts -------------------------------------------------------------------------------------------------------

pb::PutRequest put_of(bed& b, const std::string& key) {
  pb::PutRequest out;
  out.set_key(b.prefix + key);
  out.set_value(b.value);
  return out;
}

void put_at_depth(bed& b, std::size_t depth) {
  repeat(b, depth, [&](std::size_t i, auto done) {
    call<pb::PutResponse>::start(b.on, put_method, put_of(b, "key/" + std::to_string(i % 4096)),
                                 [done](const pb::PutResponse&) { done(); });
  });
}

/// As many puts as may be under way, in one transaction at a time: the most that combining can come to.
void put_together(bed& b) {
  pb::TxnRequest gathered;
  std::vector<std::function<void()>> waiting;
  std::function<void()> flush = [&] {
    if (waiting.empty()) return;
    call<pb::TxnResponse>::start(
        b.on, txn_method, std::exchange(gathered, {}),
        [&flush, these = std::exchange(waiting, {})](const pb::TxnResponse& answer) {
          require(answer.succeeded() && static_cast<std::size_t>(answer.responses_size()) == these.size(),
                  "not all was put");
          for (const auto& done : these) done();
          flush();
        });
  };
  repeat(b, b.given.depth, [&](std::size_t i, auto done) {
    *gathered.add_success()->mutable_request_put() = put_of(b, "key/" + std::to_string(i % 4096));
    waiting.emplace_back(done);
    const bool first = i + 1 == std::min(b.given.depth, b.total());
    if (first) flush();
  });
}

void put(bed& b) { put_at_depth(b, 1); }
void put_pipelined(bed& b) { b.given.combined ? put_together(b) : put_at_depth(b, b.given.depth); }

// ---- locks ------------------------------------------------------------------------------------------------------

void add_compare(pb::TxnRequest& to, const std::string& key, std::int64_t create_revision) {
  auto& compare = *to.add_compare();
  compare.set_result(pb::Compare::EQUAL);
  compare.set_target(pb::Compare::CREATE);
  compare.set_key(key);
  compare.set_create_revision(create_revision);
}

/// The key under the lease if it is not there.
pb::TxnRequest join(const std::string& key, std::int64_t lease) {
  pb::TxnRequest out;
  add_compare(out, key, 0);
  auto& made = *out.add_success()->mutable_request_put();
  made.set_key(key);
  made.set_lease(lease);
  return out;
}

/// The same, and whether it is the only one in the line.
pb::TxnRequest join_and_ask(const std::string& name, const std::string& key, std::int64_t lease) {
  auto out = join(key, lease);
  auto& whether_alone = *out.add_success()->mutable_request_range();
  whether_alone.set_key(name + "/");
  whether_alone.set_range_end(name + "0");
  whether_alone.set_limit(2);
  whether_alone.set_keys_only(true);
  return out;
}

pb::TxnRequest leave(const std::string& key, std::int64_t token) {
  pb::TxnRequest out;
  add_compare(out, key, token);
  out.add_success()->mutable_request_delete_range()->set_key(key);
  return out;
}

std::int64_t grant(bed& b) {
  pb::LeaseGrantRequest request;
  request.set_ttl(300);
  return ask<pb::LeaseGrantResponse>(b.on, grant_method, request).id();
}

void revoke(bed& b, std::int64_t lease) {
  pb::LeaseRevokeRequest request;
  request.set_id(lease);
  (void)ask<pb::LeaseRevokeResponse>(b.on, revoke_method, request);
}

void lock_at_depth(bed& b, std::size_t depth) {
  const auto lease = grant(b);
  std::deque<std::size_t> free;
  for (std::size_t i = 0; i < depth; ++i) free.push_back(i);
  repeat(b, depth, [&](std::size_t, auto done) {
    const auto which = free.front();
    free.pop_front();
    const auto name = b.prefix + "lock/" + std::to_string(which);
    const auto key = name + "/1";
    call<pb::TxnResponse>::start(
        b.on, txn_method, join_and_ask(name, key, lease),
        [&b, &free, which, key, done](const pb::TxnResponse& in) {
          require(in.succeeded() && in.responses(1).response_range().kvs_size() == 1, "the lock was held");
          call<pb::TxnResponse>::start(b.on, txn_method, leave(key, in.header().revision()),
                                       [&free, which, done](const pb::TxnResponse& out) {
                                         require(out.succeeded(), "the lock was lost");
                                         free.push_back(which);
                                         done();
                                       });
        });
  });
  revoke(b, lease);
}

void lock_uncontended(bed& b) { lock_at_depth(b, 1); }
void lock_many(bed& b) { lock_at_depth(b, b.given.depth); }

/// A key for each contender, and one watch that tells who is first: the holder's delete is the next one's turn.
/// What a lock with fairness comes to when its hold takes no time.
void lock_contended(bed& b) {
  const auto lease = grant(b);
  const auto below = b.prefix + "lock/";
  std::vector<clock::time_point> since(b.given.contenders);
  std::deque<pb::KeyValue> line;
  std::size_t held = 0;
  std::size_t standing = 0;
  bool enough = false;
  std::function<void(std::size_t)> enter = [&](std::size_t which) {
    since[which] = clock::now();
    ++standing;
    call<pb::TxnResponse>::start(
        b.on, txn_method, join(below + std::to_string(which), lease),
        [](const pb::TxnResponse& answer) { require(answer.succeeded(), "a place was taken twice"); });
  };
  const auto admit_first = [&] {
    const auto& first = line.front();
    const auto which = static_cast<std::size_t>(std::stoull(first.key().substr(below.size())));
    if (!enough) {
      if (held >= b.given.warmup) b.run.add(since[which]);
      if (++held == b.given.warmup) b.run.start();
      enough = held == b.total() || (held > b.given.warmup && b.run.over());
      if (enough) b.run.stop();
    }
    call<pb::TxnResponse>::start(b.on, txn_method, leave(first.key(), first.create_revision()),
                                 [&, which](const pb::TxnResponse& answer) {
                                   require(answer.succeeded(), "the lock was lost");
                                   --standing;
                                   if (!enough) enter(which);
                                 });
  };
  if (b.given.warmup == 0) b.run.start();
  watch view{b, "lock", [&](const pb::Event& change) {
               const bool came = change.type() == pb::Event::PUT;
               require(came || line.front().key() == change.kv().key(), "somebody left out of turn");
               if (came)
                 line.push_back(change.kv());
               else
                 line.pop_front();
               if (came ? line.size() == 1 : !line.empty()) admit_first();
             }};
  for (std::size_t i = 0; i < b.given.contenders; ++i) enter(i);
  while (standing != 0) b.on.step();
  view.cancel(b);
  revoke(b, lease);
}

// ---- queues -----------------------------------------------------------------------------------------------------

void enqueue(bed& b) {
  repeat(b, b.given.producers, [&](std::size_t i, auto done) {
    call<pb::PutResponse>::start(b.on, put_method, put_of(b, "queue/" + std::to_string(i)),
                                 [done](const pb::PutResponse&) { done(); });
  });
}

/// A put, its event on a standing watch, and the transaction that claims the item. Beside the time of all, that
/// of the put's event alone.
void dequeue_latency(bed& b) {
  std::vector<clock::duration> events;
  clock::time_point since;
  std::size_t delivered = 0;
  if (b.given.warmup == 0) b.run.start();
  watch consumer{b, "queue", [&](const pb::Event& arrived) {
                   if (arrived.type() != pb::Event::PUT) return;
                   const auto seen = clock::now() - since;
                   pb::TxnRequest claim;
                   auto& compare = *claim.add_compare();
                   compare.set_result(pb::Compare::EQUAL);
                   compare.set_target(pb::Compare::MOD);
                   compare.set_key(arrived.kv().key());
                   compare.set_mod_revision(arrived.kv().mod_revision());
                   claim.add_success()->mutable_request_delete_range()->set_key(arrived.kv().key());
                   call<pb::TxnResponse>::start(b.on, txn_method, claim,
                                                [&, seen](const pb::TxnResponse& taken) {
                                                  require(taken.succeeded(), "somebody else took the item");
                                                  if (delivered >= b.given.warmup) {
                                                    events.push_back(seen);
                                                    b.run.add(since);
                                                  }
                                                  if (++delivered == b.given.warmup) b.run.start();
                                                });
                 }};
  for (std::size_t i = 0; i < b.total(); ++i) {
    ::usleep(110'000);
    bool answered = false;
    since = clock::now();
    call<pb::PutResponse>::start(b.on, put_method, put_of(b, "queue/" + std::to_string(i)),
                                 [&](const pb::PutResponse&) { answered = true; });
    while (!answered || delivered != i + 1) b.on.step();
  }
  b.run.stop();
  consumer.cancel(b);
  std::sort(events.begin(), events.end());
  require(!events.empty(), "nothing was delivered");
  b.run.note("event_p50_us",
             std::chrono::duration<double, std::micro>(events[(events.size() - 1) / 2]).count());
}

/// Reads the items a page at a time and claims each by a transaction of its own, `consumers` at a time: what
/// can be done without putting claims together.
void drain(bed& b) {
  std::size_t filled = 0;
  {
    std::size_t answered = 0;
    while (answered < b.total()) {
      for (; filled < b.total() && filled - answered < 64; ++filled) {
        char name[32];
        std::snprintf(name, sizeof name, "queue/%012zu", filled);
        call<pb::PutResponse>::start(b.on, put_method, put_of(b, name),
                                     [&](const pb::PutResponse&) { ++answered; });
      }
      b.on.step();
    }
  }
  std::deque<pb::KeyValue> window;
  std::deque<std::function<void()>> waiting;
  std::string from = b.prefix + "queue/";
  bool reading = false;
  std::size_t read = 0;
  const auto look = [&] {
    if (reading || window.size() > 200 || read == b.total()) return;
    reading = true;
    pb::RangeRequest request;
    request.set_key(from);
    request.set_range_end(b.prefix + "queue0");
    request.set_limit(1000);
    call<pb::RangeResponse>::start(b.on, range_method, request, [&](const pb::RangeResponse& found) {
      reading = false;
      require(found.kvs_size() != 0, "an item was lost");
      read += static_cast<std::size_t>(found.kvs_size());
      for (const auto& each : found.kvs()) window.push_back(each);
      from = window.back().key() + '\0';
      for (auto all = std::exchange(waiting, {}); const auto& each : all) each();
    });
  };
  std::function<void(std::function<void()>)> take = [&](std::function<void()> done) {
    look();
    if (window.empty()) {
      waiting.emplace_back([&take, done] { take(done); });
      return;
    }
    pb::TxnRequest claim;
    add_compare(claim, window.front().key(), window.front().create_revision());
    claim.add_success()->mutable_request_delete_range()->set_key(window.front().key());
    window.pop_front();
    call<pb::TxnResponse>::start(b.on, txn_method, claim, [done](const pb::TxnResponse& taken) {
      require(taken.succeeded(), "somebody else took the item");
      done();
    });
  };
  repeat(b, b.given.consumers, [&](std::size_t, auto done) { take(done); });
}

struct bench_case {
  const char* name;
  void (*work)(bed&);
};

const bench_case cases[] = {
    {"put", put},
    {"put-pipelined", put_pipelined},
    {"lock-uncontended", lock_uncontended},
    {"lock-contended", lock_contended},
    {"lock-many", lock_many},
    {"enqueue", enqueue},
    {"drain", drain},
    {"dequeue-latency", dequeue_latency},
};

int run_case(const bench::options& given) {
  for (const auto& each : cases) {
    if (each.name != given.bench) continue;
    bench::run run{given};
    server on{given.endpoints, given.posted};
    bed b{given, run, on, bench::fresh_prefix(), given.value()};
    each.work(b);
    pb::DeleteRangeRequest all;
    all.set_key(b.prefix);
    all.set_range_end(b.prefix.substr(0, b.prefix.size() - 1) + "0");
    (void)ask<pb::DeleteRangeResponse>(on, delete_method, all);
    run.print("floor");
    return 0;
  }
  std::cerr << "usage: floor_bench CASE [OPTION...]; the cases:";
  for (const auto& each : cases) std::cerr << ' ' << each.name;
  std::cerr << '\n';
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_case(bench::parse(argc, argv));
  } catch (const std::exception& e) {
    std::cerr << "floor_bench: " << e.what() << '\n';
    return 1;
  }
}
