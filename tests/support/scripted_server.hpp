// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/rpc/grpc_reactor.hpp>
#include <conclave/detail/rpc/methods.hpp>
#include <conclave/detail/rpc/status.hpp>
#include <conclave/detail/wire/messages.hpp>

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace conclave::test {

/// A real gRPC server in front of a real etcd. Calls pass through unchanged, except for what a test scripts:
/// answers that are lost, edited or no messages at all, streams that end or fall silent.
///
/// ```
/// scripted_etcd proxy{server.endpoint()};
/// proxy.next<txn>(scripted_etcd::lost());          // etcd applies the next Txn, its client sees UNAVAILABLE
/// client c{context, proxy.endpoint()};
/// ```
///
/// Everything here may be used from any thread. Scripts run one at a time, on the server's own thread. The
/// destructor ends every call, and does not wait for anybody's good will. Calls may be kept longer than the
/// server; they do nothing then.
class scripted_etcd {
public:
  using status = conclave::detail::rpc::status;
  using status_code = conclave::detail::rpc::status_code;

  class call;
  using call_ptr = std::shared_ptr<call>;

  /// What happens to a call instead of passing it on. What is not set passes.
  struct script {
    /// A call has come, without a message yet. Heard by scripts for streams only.
    std::function<void(const call_ptr&)> on_open;
    /// The client sent a message. Else: `forward` it.
    std::function<void(const call_ptr&, std::string)> on_message;
    /// etcd answered a message that was forwarded. Else: `send` it.
    std::function<void(const call_ptr&, std::string)> on_answer;
    /// etcd ended the call. Else: `end` it so.
    std::function<void(const call_ptr&, status)> on_end;
  };

private:
  /// What gRPC is to do for a call, and what follows.
  struct operation {
    std::function<void(bool)> then;
    bool owned_by_queue = true;
  };

  struct rule {
    std::string path;
    std::function<bool(const std::string&)> matches;  ///< Null for streams, which are told by their path.
    script what;
    bool once = true;
  };

  /// What calls need of the server; they may be kept longer than it.
  struct core {
    std::recursive_mutex mutex;
    bool closed = false;
    grpc::ServerCompletionQueue* queue = nullptr;
    std::shared_ptr<grpc::Channel> etcd;
    std::list<rule> rules;
    std::map<std::string, int> calls;
    std::map<std::string, int> messages;
    std::vector<std::weak_ptr<call>> live;

    std::optional<script> take_rule(const std::string& path, const std::string* message) {
      for (auto each = rules.begin(); each != rules.end(); ++each) {
        if (each->path != path || (message == nullptr) != (each->matches == nullptr)) continue;
        if (message != nullptr && !each->matches(*message)) continue;
        auto found = each->what;
        if (each->once) rules.erase(each);
        return found;
      }
      return std::nullopt;
    }
  };

public:
  /// One call of a client, unary or a stream.
  class call : public std::enable_shared_from_this<call> {
  public:
    explicit call(std::shared_ptr<core> of) : core_{std::move(of)}, wire_{std::make_unique<wire>()} {}

    const std::string& path() const { return path_; }

    /// Sends the client these bytes as one message.
    void send(std::string bytes) {
      const std::lock_guard lock{core_->mutex};
      if (stopped() || ending_) return;
      answers_.push_back(std::move(bytes));
      write_on();
    }
    template <class Message>
    void send(const Message& message) {
      send(conclave::detail::wire::encode(message));
    }

    /// Ends the call when all that was sent before is written.
    void end(status how = {}) {
      const std::lock_guard lock{core_->mutex};
      if (stopped() || ending_) return;
      ending_ = std::move(how);
      write_on();
    }

    /// Passes a message on to etcd.
    void forward(std::string bytes) {
      const std::lock_guard lock{core_->mutex};
      if (stopped()) return;
      requests_.push_back(std::move(bytes));
      if (!wire_->etcd)
        open_etcd();
      else
        forward_on();
    }

    /// Whether the call has ended, for whatever reason.
    bool over() const {
      const std::lock_guard lock{core_->mutex};
      return stopped();
    }

  private:
    friend class scripted_etcd;

    /// What gRPC writes into: it must stay until no operation is under way.
    struct wire {
      grpc::GenericServerContext context;
      grpc::GenericServerAsyncReaderWriter client{&context};
      grpc::ByteBuffer request;
      operation done;

      grpc::ClientContext etcd_context;
      std::unique_ptr<grpc::GenericStub> stub;
      std::unique_ptr<grpc::GenericClientAsyncReaderWriter> etcd;
      grpc::ByteBuffer answer;
      grpc::Status etcd_status;
    };

    bool stopped() const { return core_->closed || done_ || !wire_; }

    void* tag(std::function<void(call&, bool)> then) {
      ++pending_;
      auto each = std::make_unique<operation>();
      each->then = [self = shared_from_this(), then = std::move(then)](bool ok) {
        --self->pending_;
        then(*self, ok);
        self->settle();
      };
      return each.release();
    }

    /// gRPC's server does not end before its last call is destroyed.
    void settle() {
      if ((done_ || core_->closed) && pending_ == 0) wire_.reset();
    }

    static void accept(const std::shared_ptr<core>& on, grpc::AsyncGenericService& service) {
      if (on->closed) return;
      const auto self = std::make_shared<call>(on);
      auto& wire = *self->wire_;
      wire.done.owned_by_queue = false;
      wire.done.then = [raw = self.get()](bool) {
        const auto keep = raw->shared_from_this();
        --raw->pending_;
        raw->on_done();
        raw->settle();
      };
      wire.context.AsyncNotifyWhenDone(&wire.done);
      void* const accepted = self->tag([&service](call& here, bool ok) { here.on_accepted(service, ok); });
      service.RequestCall(&wire.context, &wire.client, on->queue, on->queue, accepted);
    }

    void on_accepted(grpc::AsyncGenericService& service, bool ok) {
      if (!ok) {
        wire_.reset();  // `done` is not told of a call that never was
        return;
      }
      ++pending_;  // for `done`
      running_ = shared_from_this();
      accept(core_, service);
      if (core_->closed) {
        wire_->context.TryCancel();
        return;
      }
      core_->live.push_back(weak_from_this());
      path_ = wire_->context.method();
      ++core_->calls[path_];
      if (auto found = core_->take_rule(path_, nullptr)) {
        script_ = std::move(*found);
        chosen_ = true;
        if (script_.on_open) script_.on_open(shared_from_this());
      }
      read_on();
    }

    void on_done() {
      done_ = true;
      answers_.clear();
      requests_.clear();
      if (wire_ && wire_->etcd) wire_->etcd_context.TryCancel();
      // Nobody needs them any more, and they may hold this call.
      script_ = {};
      running_.reset();
    }

    void read_on() {
      if (stopped() || ending_) return;
      wire_->client.Read(&wire_->request, tag([](call& here, bool ok) { here.on_read(ok); }));
    }

    void on_read(bool ok) {
      if (stopped()) return;
      if (!ok) {
        no_more_requests_ = true;
        forward_on();
        return;
      }
      std::string bytes = conclave::detail::rpc::to_bytes(wire_->request);
      ++core_->messages[path_];
      if (!std::exchange(chosen_, true)) {
        if (auto found = core_->take_rule(path_, &bytes)) script_ = std::move(*found);
      }
      if (script_.on_message)
        script_.on_message(shared_from_this(), std::move(bytes));
      else
        forward(std::move(bytes));
      read_on();
    }

    void write_on() {
      if (stopped() || writing_) return;
      if (!answers_.empty()) {
        writing_ = true;
        const auto bytes = conclave::detail::rpc::to_byte_buffer(std::move(answers_.front()));
        answers_.pop_front();
        wire_->client.Write(bytes, tag([](call& here, bool written) {
                              here.writing_ = false;
                              if (written) here.write_on();
                            }));
      } else if (ending_) {
        writing_ = true;
        const grpc::Status how{static_cast<grpc::StatusCode>(ending_->code), ending_->message};
        wire_->client.Finish(how, tag([](call&, bool) {}));
      }
    }

    void open_etcd() {
      for (const auto& [name, value] : wire_->context.client_metadata()) {
        const std::string_view text{name.data(), name.size()};
        if (text == "user-agent" || text == "te" || text.starts_with("grpc-") || text.starts_with(":"))
          continue;
        wire_->etcd_context.AddMetadata(std::string{text}, {value.data(), value.size()});
      }
      wire_->stub = std::make_unique<grpc::GenericStub>(core_->etcd);
      wire_->etcd = wire_->stub->PrepareCall(&wire_->etcd_context, path_, core_->queue);
      wire_->etcd->StartCall(tag([](call& here, bool ok) { here.on_etcd_open(ok); }));
    }

    void on_etcd_open(bool ok) {
      if (stopped()) return;
      etcd_open_ = ok;
      forward_on();
      read_etcd();
    }

    void forward_on() {
      if (stopped() || !etcd_open_ || forwarding_) return;
      if (!requests_.empty()) {
        forwarding_ = true;
        const auto bytes = conclave::detail::rpc::to_byte_buffer(std::move(requests_.front()));
        requests_.pop_front();
        wire_->etcd->Write(bytes, tag([](call& here, bool written) {
                             here.forwarding_ = false;
                             if (written) here.forward_on();
                           }));
      } else if (no_more_requests_) {
        forwarding_ = true;
        wire_->etcd->WritesDone(tag([](call&, bool) {}));
      }
    }

    void read_etcd() {
      if (stopped()) return;
      wire_->etcd->Read(&wire_->answer, tag([](call& here, bool ok) { here.on_etcd_read(ok); }));
    }

    void on_etcd_read(bool ok) {
      if (stopped()) return;
      if (!ok) {
        wire_->etcd->Finish(&wire_->etcd_status, tag([](call& here, bool) { here.on_etcd_end(); }));
        return;
      }
      std::string bytes = conclave::detail::rpc::to_bytes(wire_->answer);
      if (script_.on_answer)
        script_.on_answer(shared_from_this(), std::move(bytes));
      else
        send(std::move(bytes));
      read_etcd();
    }

    void on_etcd_end() {
      if (stopped()) return;
      status how = conclave::detail::rpc::to_status(wire_->etcd_status);
      if (script_.on_end)
        script_.on_end(shared_from_this(), std::move(how));
      else
        end(std::move(how));
    }

    std::shared_ptr<core> core_;
    std::unique_ptr<wire> wire_;
    std::string path_;
    script script_;
    call_ptr running_;  ///< Itself, until the client's side is over: nobody else may keep it.
    std::deque<std::string> answers_;
    std::deque<std::string> requests_;
    std::optional<status> ending_;
    int pending_ = 0;
    bool chosen_ = false;
    bool done_ = false;
    bool writing_ = false;
    bool etcd_open_ = false;
    bool forwarding_ = false;
    bool no_more_requests_ = false;
  };

  /// Listens on a free port of 127.0.0.1; `etcd` is the endpoint of the server behind it.
  explicit scripted_etcd(const std::string& etcd) : core_{std::make_shared<core>()} {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
    arguments.SetMaxReceiveMessageSize(-1);
    const std::string_view target = std::string_view{etcd}.substr(std::string_view{"http://"}.size());
    core_->etcd = grpc::CreateCustomChannel("ipv4:" + std::string{target}, grpc::InsecureChannelCredentials(),
                                            arguments);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterAsyncGenericService(&service_);
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    if (!server_ || port == 0) throw std::runtime_error{"the scripted server has no port"};
    endpoint_ = "http://127.0.0.1:" + std::to_string(port);
    core_->queue = queue_.get();
    call::accept(core_, service_);
    thread_ = std::thread{[this] { run(); }};
  }

  scripted_etcd(const scripted_etcd&) = delete;
  scripted_etcd& operator=(const scripted_etcd&) = delete;

  ~scripted_etcd() {
    std::vector<std::weak_ptr<call>> live;
    {
      const std::lock_guard lock{core_->mutex};
      core_->closed = true;
      core_->rules.clear();
      live = std::move(core_->live);
    }
    for (const auto& each : live) {
      const auto running = each.lock();
      if (!running) continue;
      const std::lock_guard lock{core_->mutex};
      if (running->wire_ && running->wire_->etcd) running->wire_->etcd_context.TryCancel();
    }
    server_->Shutdown(std::chrono::system_clock::now());
    queue_->Shutdown();
    thread_.join();
  }

  std::string endpoint() const { return endpoint_; }

  /// What happens to the next call of the method that `Request` is for, of those that match. Scripts that
  /// match the same call have their turns in order.
  template <class Request>
  void next(script what, std::function<bool(const Request&)> matches = {}) {
    add<Request>(std::move(what), std::move(matches), true);
  }
  /// The same for each such call from now on, until `forget`.
  template <class Request>
  void each(script what, std::function<bool(const Request&)> matches = {}) {
    add<Request>(std::move(what), std::move(matches), false);
  }

  /// What happens to the next stream of a path (`watch_path`, `lease_keep_alive_path`).
  void next_stream(const std::string& path, script what) { add({path, nullptr, std::move(what), true}); }
  void each_stream(const std::string& path, script what) { add({path, nullptr, std::move(what), false}); }

  /// Calls that come from now on pass through.
  void forget() {
    const std::lock_guard lock{core_->mutex};
    core_->rules.clear();
  }

  /// How many scripts wait for their call.
  std::size_t outstanding() const {
    const std::lock_guard lock{core_->mutex};
    return core_->rules.size();
  }

  /// How many calls, streams among them, have come on this path, and how many messages in them.
  int calls(const std::string& path) const { return count(core_->calls, path); }
  int messages(const std::string& path) const { return count(core_->messages, path); }

  template <class Message>
  static Message decoded(const std::string& bytes) {
    Message out;
    if (conclave::detail::wire::decode(bytes, out) != conclave::detail::wire::decode_error::none)
      throw std::logic_error{"the scripted server got a malformed message"};
    return out;
  }

  // The usual scripts.

  /// etcd is not asked. These messages, then OK.
  static script answered(std::vector<std::string> messages) {
    script out;
    out.on_message = [messages = std::move(messages)](const call_ptr& c, const std::string&) {
      for (const auto& each : messages) c->send(each);
      c->end();
    };
    return out;
  }

  /// etcd is not asked.
  static script refused(status how) {
    script out;
    out.on_message = [how = std::move(how)](const call_ptr& c, const std::string&) { c->end(how); };
    return out;
  }

  /// etcd is not asked, and nothing is ever said.
  static script silent() {
    script out;
    out.on_message = [](const call_ptr&, const std::string&) {};
    return out;
  }

  /// etcd does what it is asked, but the client is told this instead.
  static script lost(status how = {status_code::unavailable, "Socket closed"}) {
    script out;
    out.on_answer = [](const call_ptr&, const std::string&) {};
    out.on_end = [how = std::move(how)](const call_ptr& c, const status&) { c->end(how); };
    return out;
  }

  /// etcd does what it is asked, but these bytes are the answer.
  static script replaced(std::string bytes) {
    script out;
    out.on_answer = [bytes = std::move(bytes)](const call_ptr& c, const std::string&) { c->send(bytes); };
    return out;
  }

  /// Each of etcd's answers is changed by `edit(Response&)`.
  template <class Response, class Edit>
  static script edited(Edit edit) {
    script out;
    out.on_answer = [edit = std::move(edit)](const call_ptr& c, const std::string& bytes) {
      auto answer = decoded<Response>(bytes);
      edit(answer);
      c->send(answer);
    };
    return out;
  }

private:
  template <class Request>
  void add(script what, std::function<bool(const Request&)> matches, bool once) {
    auto bytes_match = [matches = std::move(matches)](const std::string& bytes) {
      return !matches || matches(decoded<Request>(bytes));
    };
    add({conclave::detail::rpc::method<Request>::path, std::move(bytes_match), std::move(what), once});
  }
  void add(rule each) {
    const std::lock_guard lock{core_->mutex};
    core_->rules.push_back(std::move(each));
  }

  int count(const std::map<std::string, int>& in, const std::string& path) const {
    const std::lock_guard lock{core_->mutex};
    const auto found = in.find(path);
    return found == in.end() ? 0 : found->second;
  }

  void run() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_->Next(&tag, &ok)) {
      auto* const each = static_cast<operation*>(tag);
      std::function<void(bool)> then;  // may destroy a call: after the mutex is released
      const std::lock_guard lock{core_->mutex};
      then = std::move(each->then);
      if (each->owned_by_queue) delete each;
      then(ok);
    }
  }

  std::shared_ptr<core> core_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::string endpoint_;
  std::thread thread_;
};

}  // namespace conclave::test
