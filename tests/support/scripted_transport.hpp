// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/client.hpp>
#include <conclave/detail/rpc/clock.hpp>
#include <conclave/detail/rpc/context_service.hpp>
#include <conclave/detail/rpc/methods.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/detail/wire/messages.hpp>

#if defined(CONCLAVE_USE_BOOST_ASIO)
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/io_context.hpp>
#else
#include <asio/bind_cancellation_slot.hpp>
#include <asio/io_context.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "model_etcd.hpp"

/// The library on virtual time, against an etcd in memory: no gRPC, no thread, no socket, no waiting. All is for
/// one thread, and what happens in a test happens in the same order each time.

namespace conclave::test {

/// Time that passes only when a test says so.
class manual_clock final : public detail::rpc::clock, public std::enable_shared_from_this<manual_clock> {
public:
  using time_point = detail::rpc::time_point;

  explicit manual_clock(std::uint64_t seed) : random_{seed} {}

  time_point now() const noexcept override { return now_; }
  std::int64_t unix_nanoseconds() const noexcept override {
    return 1'700'000'000'000'000'000 + std::chrono::nanoseconds{now_.time_since_epoch()}.count();
  }
  /// Whoever asks for the next random number gets std::bad_alloc: stands for any place that allocates.
  void run_out_of_memory() { out_of_memory_ = true; }

  std::uint64_t entropy() override {
    if (std::exchange(out_of_memory_, false)) throw std::bad_alloc{};
    std::uint64_t z = random_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31U);
  }
  std::unique_ptr<detail::rpc::timer> make_timer(const asio::any_io_executor& executor) override {
    return std::make_unique<manual_timer>(shared_from_this(), executor);
  }

  using event_id = std::uint64_t;
  event_id at(time_point when, std::function<void()> what) {
    events_.emplace(std::pair{std::max(when, now_), ++last_}, std::move(what));
    return last_;
  }
  void forget(event_id id) noexcept {
    std::erase_if(events_, [id](const auto& each) { return each.first.second == id; });
  }

  std::optional<time_point> next() const {
    if (events_.empty()) return std::nullopt;
    return events_.begin()->first.first;
  }

  /// Nothing happens any more.
  void close() { const auto last = std::exchange(events_, {}); }

  /// Moves on, and runs what is due by then, in order.
  void move_to(time_point when) {
    now_ = std::max(now_, when);
    while (!events_.empty() && events_.begin()->first.first <= now_) {
      const auto first = events_.extract(events_.begin());
      first.mapped()();
    }
  }

private:
  class manual_timer final : public detail::rpc::timer {
  public:
    manual_timer(std::shared_ptr<manual_clock> on, asio::any_io_executor executor)
        : clock_{std::move(on)}, executor_{std::move(executor)} {}
    ~manual_timer() override { stop(); }

    void expire_at(time_point when, std::function<void()> done) override {
      stop();
      event_ = clock_->at(when, [this, done = std::move(done)] {
        event_ = 0;
        asio::post(executor_, [round = round_, mine = *round_, done] {
          if (*round == mine) done();
        });
      });
    }
    void stop() noexcept override {
      ++*round_;
      if (event_ != 0) clock_->forget(std::exchange(event_, 0));
    }

  private:
    std::shared_ptr<manual_clock> clock_;
    asio::any_io_executor executor_;
    event_id event_{0};
    std::shared_ptr<std::uint64_t> round_{std::make_shared<std::uint64_t>(0)};
  };

  time_point now_{std::chrono::hours{1}};
  std::uint64_t random_;
  bool out_of_memory_{false};
  std::uint64_t last_{0};
  std::map<std::pair<time_point, event_id>, std::function<void()>> events_;
};

/// An operation under way: completes its receiver once, by a post, and lets go of it when its context is
/// destroyed.
template <class T>
class pending final : public detail::rpc::waiting_member,
                      public detail::rpc::cancellable,
                      public std::enable_shared_from_this<pending<T>> {
public:
  /// `on_cancel` must complete it. Null when the context is being destroyed.
  static std::shared_ptr<pending> make(std::unique_ptr<detail::rpc::receiver<T>> done,
                                       std::function<void(pending&)> on_cancel) {
    auto self = std::make_shared<pending>(std::move(done), std::move(on_cancel));
    self->attached_ = self->service_.add(*self);
    if (!self->attached_) return nullptr;
    self->receiver_->cancel_through(*self);
    return self;
  }

  pending(std::unique_ptr<detail::rpc::receiver<T>> done, std::function<void(pending&)> on_cancel)
      : service_{detail::rpc::context_service::of(done->executor())},
        receiver_{std::move(done)},
        on_cancel_{std::move(on_cancel)} {}
  ~pending() {
    if (attached_) service_.remove(*this);
  }

  void complete(T value) {
    if (!receiver_) return;
    if (std::exchange(attached_, false)) service_.remove(*this);
    auto executor = receiver_->executor();
    asio::post(executor, [self = this->shared_from_this(), receiver = std::move(receiver_),
                          value = std::move(value)]() mutable {
      detail::rpc::receiver<T>::complete(std::move(receiver), std::move(value));
    });
  }

private:
  void cancel() noexcept override {
    if (receiver_) on_cancel_(*this);
  }
  std::shared_ptr<void> keep() noexcept override { return this->weak_from_this().lock(); }
  void on_context_shutdown() noexcept override {
    attached_ = false;
    receiver_.reset();
  }

  detail::rpc::context_service& service_;
  std::unique_ptr<detail::rpc::receiver<T>> receiver_;
  std::function<void(pending&)> on_cancel_;
  bool attached_{false};
};

/// What happens to a call.
enum class fate {
  answered,
  refused,        ///< "unavailable", and not applied
  answer_lost,    ///< applied, and then the connection breaks
  never_arrives,  ///< not applied, and no answer before the deadline
  answer_late,    ///< applied, and answered by `scripted_server::answer_late_ones`
  lost_late,      ///< applied, and at `scripted_server::answer_late_ones` the connection breaks
  not_served,     ///< refused for good: the server has no such method
  arrives_late,   ///< applied at `scripted_server::answer_late_ones`, when nobody waits for the answer
};

/// The one server of a world: `model_etcd` behind gRPC's paths and etcd's bytes.
class scripted_server final : public std::enable_shared_from_this<scripted_server> {
public:
  explicit scripted_server(std::shared_ptr<manual_clock> clock) : clock_{std::move(clock)} {
    etcd.on_revision = [this](const std::vector<event>&) { pump_all(); };
  }

  model_etcd etcd;
  /// Whether keepalives are answered.
  bool answers_keepalives{true};
  /// Whether watches are told of events: some servers have forgotten some.
  bool tells_events{true};
  /// How many answers to come are stale: they say, and hold, what the store was at the beginning.
  int stale_answers{0};

  /// What happens to the next call of this name ("KV.Txn"), and then to the one after it.
  void next(const std::string& name, fate what) { script_[name].push_back(what); }

  /// What happens to a call for which nothing else is planned; all are answered if empty.
  std::function<fate(const std::string& name)> rule;

  /// How many calls of this name have been made, or messages of a stream sent ("LeaseKeepAlive").
  int count(const std::string& name) const {
    const auto found = calls_.find(name);
    return found == calls_.end() ? 0 : found->second;
  }

  /// How many there were.
  std::size_t answer_late_ones() {
    const auto late = std::exchange(late_, {});
    for (const auto& each : late) each();
    return late.size();
  }

  bool up() const { return up_; }

  /// The process dies: connections break.
  void stop() {
    up_ = false;
    for (const auto& weak : std::exchange(streams_, {}))
      if (const auto each = weak.lock()) each->end({detail::rpc::status_code::unavailable, "Socket closed"});
  }
  void start() {
    up_ = true;
    for (const auto& each : std::exchange(connecting_, {})) each->complete(true);
  }

  /// The process comes back with nothing stored.
  void start_empty() {
    auto on_revision = std::move(etcd.on_revision);
    etcd = model_etcd{};
    etcd.on_revision = std::move(on_revision);
    start();
  }

  /// The process is stopped and continues: nothing breaks, nothing is answered.
  void freeze() { frozen_ = true; }
  void thaw() {
    frozen_ = false;
    for (const auto& each : std::exchange(arrived_, {})) each();
    pump_all();
  }

  /// The streams break; the server goes on.
  void break_streams() {
    for (const auto& weak : std::exchange(streams_, {}))
      if (const auto each = weak.lock()) each->end({detail::rpc::status_code::unavailable, "Socket closed"});
  }

  /// Forgets everything under way: what has yet to be answered keeps streams, and they keep the server.
  void close() {
    arrived_.clear();
    late_.clear();
    silent_.clear();
    connecting_.clear();
  }

  std::optional<manual_clock::time_point> next_expiry() const {
    return up_ && !frozen_ ? etcd.next_expiry() : std::nullopt;
  }

private:
  friend class scripted_transport;
  using unary_result = detail::rpc::unary_result;
  using status_code = detail::rpc::status_code;
  using call = std::shared_ptr<pending<unary_result>>;

  class server_stream final : public detail::rpc::stream, public std::enable_shared_from_this<server_stream> {
  public:
    server_stream(std::shared_ptr<scripted_server> of, std::string name)
        : server_{std::move(of)}, name_{std::move(name)} {}

    void start(std::unique_ptr<detail::rpc::receiver<bool>> done) override {
      const auto op = make<bool>(std::move(done));
      if (!op) return;
      if (!server_->up_) end({status_code::unavailable, "failed to connect to all addresses"});
      if (!ended_) server_->streams_.push_back(weak_from_this());
      op->complete(!ended_);
    }

    void read(std::unique_ptr<detail::rpc::receiver<std::optional<std::string>>> done) override {
      reading_ = make<std::optional<std::string>>(std::move(done));
      serve_reader();
    }

    void write(std::string message, std::unique_ptr<detail::rpc::receiver<bool>> done) override {
      const auto op = make<bool>(std::move(done));
      if (!op) return;
      op->complete(!ended_);
      if (ended_) return;
      ++server_->calls_[name_];
      server_->when_not_frozen(
          [self = shared_from_this(), message = std::move(message)] { self->receive(message); });
    }

    void finish(std::unique_ptr<detail::rpc::receiver<detail::rpc::status>> done) override {
      if (const auto op = make<detail::rpc::status>(std::move(done))) op->complete(status_);
    }

    void cancel() noexcept override { end({status_code::cancelled, "CANCELLED"}); }

    void end(detail::rpc::status how) {
      if (std::exchange(ended_, true)) return;
      status_ = std::move(how);
      answers_.clear();
      serve_reader();
    }

    /// Sends the events that watches have yet to be told.
    void pump() {
      if (ended_) return;
      for (auto& [id, each] : watches_) {
        watch_response out;
        out.header = server_->etcd.header();
        out.watch_id = id;
        out.events = server_->etcd.events_since(each.next, each.what.key, each.what.range_end);
        each.next = server_->etcd.current() + 1;
        for (const auto filter : each.what.filters) {
          const auto hidden = filter == watch_filter::no_put ? event_type::put : event_type::delete_;
          std::erase_if(out.events, [hidden](const event& e) { return e.type == hidden; });
        }
        if (!out.events.empty() && server_->tells_events) answer(out);
      }
    }

  private:
    struct watch {
      watch_create_request what;
      revision next;
    };

    template <class T>
    std::shared_ptr<pending<T>> make(std::unique_ptr<detail::rpc::receiver<T>> done) {
      return pending<T>::make(std::move(done), [weak = weak_from_this()](auto&) {
        if (const auto self = weak.lock()) self->cancel();
      });
    }

    template <class Message>
    void answer(const Message& message) {
      answers_.push_back(detail::wire::encode(message));
      serve_reader();
    }

    void serve_reader() {
      if (!reading_ || (answers_.empty() && !ended_)) return;
      std::optional<std::string> message;
      if (!answers_.empty()) {
        message = std::move(answers_.front());
        answers_.pop_front();
      }
      std::exchange(reading_, nullptr)->complete(std::move(message));
    }

    void receive(const std::string& bytes) {
      if (ended_) return;
      if (name_ == "LeaseKeepAlive") {
        lease_keep_alive_request request;
        must_decode(bytes, request);
        if (server_->answers_keepalives) answer(server_->etcd.apply(request, server_->clock_->now()));
        return;
      }
      watch_request request;
      must_decode(bytes, request);
      watch_response out;
      out.header = server_->etcd.header();
      if (const auto* create = std::get_if<watch_create_request>(&request.request_union)) {
        out.watch_id = create->watch_id;
        out.created = true;
        const auto next = create->start_revision != 0 ? create->start_revision : server_->etcd.current() + 1;
        watches_[create->watch_id] = {*create, next};
        answer(out);
        pump();
      } else if (const auto* cancel = std::get_if<watch_cancel_request>(&request.request_union)) {
        if (watches_.erase(cancel->watch_id) == 0) return;
        out.watch_id = cancel->watch_id;
        out.canceled = true;
        answer(out);
      }
    }

    std::shared_ptr<scripted_server> server_;
    std::string name_;
    std::deque<std::string> answers_;
    std::shared_ptr<pending<std::optional<std::string>>> reading_;
    std::map<std::int64_t, watch> watches_;
    bool ended_{false};
    detail::rpc::status status_;
  };

  template <class Message>
  static void must_decode(const std::string& bytes, Message& message) {
    if (detail::wire::decode(bytes, message) != detail::wire::decode_error::none)
      throw std::logic_error{"the library sent a malformed message"};
  }

  void when_not_frozen(std::function<void()> what) {
    if (frozen_)
      arrived_.push_back(std::move(what));
    else
      what();
  }

  void pump_all() {
    if (frozen_) return;
    std::erase_if(streams_, [](const auto& each) { return each.expired(); });
    for (const auto& weak : std::vector(streams_))
      if (const auto each = weak.lock()) each->pump();
  }

  void connect(std::chrono::milliseconds limit, std::unique_ptr<detail::rpc::receiver<bool>> done) {
    const auto op = pending<bool>::make(std::move(done), [](auto& self) { self.complete(false); });
    if (!op) return;
    if (up_) {
      op->complete(true);
      return;
    }
    connecting_.push_back(op);
    clock_->at(clock_->now() + limit, [this, op] {
      std::erase(connecting_, op);
      op->complete(up_);
    });
  }

  void unary(std::string_view path, std::string request, std::chrono::milliseconds limit,
             std::unique_ptr<detail::rpc::receiver<unary_result>> done) {
    const call op = pending<unary_result>::make(std::move(done), [](auto& self) {
      self.complete({{status_code::cancelled, "CANCELLED"}, {}});
    });
    if (!op) return;
    clock_->at(clock_->now() + limit, [weak = std::weak_ptr(op)] {
      if (const auto late = weak.lock())
        late->complete({{status_code::deadline_exceeded, "Deadline Exceeded"}, {}});
    });
    const std::string name = short_name(path);
    ++calls_[name];
    if (!up_) {
      op->complete({{status_code::unavailable, "failed to connect to all addresses"}, {}});
      return;
    }
    auto what = rule ? rule(name) : fate::answered;
    if (auto& planned = script_[name]; !planned.empty()) {
      what = planned.front();
      planned.pop_front();
    }
    switch (what) {
      case fate::refused:
        op->complete({{status_code::unavailable, "etcdserver: no leader"}, {}});
        return;
      case fate::not_served:
        op->complete({{status_code::unimplemented, "unknown method " + name}, {}});
        return;
      case fate::arrives_late:
        late_.push_back([this, name, request = std::move(request)] { (void)serve(name, request); });
        [[fallthrough]];
      case fate::never_arrives:
        silent_.push_back(op);
        return;
      case fate::answered:
      case fate::answer_lost:
      case fate::answer_late:
      case fate::lost_late:
        break;
    }
    when_not_frozen([this, name, request = std::move(request), op, what] {
      unary_result result = serve(name, request);
      if (what == fate::answer_lost || what == fate::lost_late)
        result = {{status_code::unavailable, "Socket closed"}, {}};
      if (what == fate::answer_late || what == fate::lost_late)
        late_.push_back([op, result = std::move(result)] { op->complete(result); });
      else
        op->complete(std::move(result));
    });
  }

  unary_result serve(const std::string& name, const std::string& bytes) {
    const auto now = clock_->now();
    if (name == "KV.Range" && stale_answers > 0) {
      --stale_answers;
      return answer_to<range_request>(bytes, [&](const auto& r) { return model_etcd{}.apply(r); });
    }
    if (name == "KV.Range")
      return answer_to<range_request>(bytes, [&](const auto& r) { return etcd.apply(r); });
    if (name == "KV.Put") return answer_to<put_request>(bytes, [&](const auto& r) { return etcd.apply(r); });
    if (name == "KV.DeleteRange")
      return answer_to<delete_range_request>(bytes, [&](const auto& r) { return etcd.apply(r); });
    if (name == "KV.Txn") return answer_to<txn>(bytes, [&](const auto& r) { return etcd.apply(r); });
    if (name == "Lease.LeaseGrant")
      return answer_to<lease_grant_request>(bytes, [&](const auto& r) { return etcd.apply(r, now); });
    if (name == "Lease.LeaseRevoke")
      return answer_to<lease_revoke_request>(bytes, [&](const auto& r) { return etcd.apply(r); });
    if (name == "Auth.Authenticate")
      return answer_to<authenticate_request>(bytes, [this](const auto&) {
        authenticate_response out;
        out.header = etcd.header();
        out.token = "token";
        return model_etcd::answer<authenticate_response>{std::move(out)};
      });
    if (name == "Lease.LeaseTimeToLive")
      return answer_to<lease_time_to_live_request>(bytes, [&](const auto& r) { return etcd.apply(r, now); });
    return {{status_code::unimplemented, "unknown method " + name}, {}};
  }

  template <class Request, class Apply>
  static unary_result answer_to(const std::string& bytes, Apply apply) {
    Request request;
    must_decode(bytes, request);
    const model_etcd::answer<detail::rpc::response_of<Request>> out = apply(request);
    if (const auto* refused = std::get_if<model_etcd::refusal>(&out))
      return {{refused->code, refused->text}, {}};
    return {{}, detail::wire::encode(std::get<detail::rpc::response_of<Request>>(out))};
  }

  /// "/etcdserverpb.KV/Range" → "KV.Range"
  static std::string short_name(std::string_view path) {
    std::string out{path.substr(path.find('.') + 1)};
    std::replace(out.begin(), out.end(), '/', '.');
    return out;
  }

  std::shared_ptr<manual_clock> clock_;
  bool up_{true};
  bool frozen_{false};
  std::map<std::string, std::deque<fate>> script_;
  std::map<std::string, int> calls_;
  std::vector<std::weak_ptr<server_stream>> streams_;
  std::vector<std::shared_ptr<pending<bool>>> connecting_;
  std::vector<call> silent_;
  std::vector<std::function<void()>> late_;
  std::vector<std::function<void()>> arrived_;
};

/// One client's way to the server.
class scripted_transport : public detail::rpc::transport {
public:
  explicit scripted_transport(std::shared_ptr<scripted_server> to) : server_{std::move(to)} {}

  const std::string& endpoint() const noexcept override { return endpoint_; }
  bool ready() const noexcept override { return server_->up(); }
  bool failing() const noexcept override { return !server_->up(); }
  void connect(std::chrono::milliseconds limit, std::unique_ptr<detail::rpc::receiver<bool>> done) override {
    server_->connect(limit, std::move(done));
  }
  void unary(const char* path, std::string request, detail::rpc::metadata, std::chrono::milliseconds limit,
             std::unique_ptr<detail::rpc::receiver<detail::rpc::unary_result>> done) override {
    server_->unary(path, std::move(request), limit, std::move(done));
  }
  std::shared_ptr<detail::rpc::stream> open(const char* path, detail::rpc::metadata) override {
    const std::string_view whole{path};
    return std::make_shared<scripted_server::server_stream>(server_,
                                                            std::string{whole.substr(whole.rfind('/') + 1)});
  }

private:
  std::shared_ptr<scripted_server> server_;
  std::string endpoint_{"scripted"};
};

/// A coroutine that a test has started: look at it after `world::settle`.
template <class T>
class task {
public:
  bool done() const { return state_->done; }

  /// The result; throws what the coroutine threw, or std::logic_error while it has not finished.
  auto& value() {
    if (!done()) throw std::logic_error{"the task has not finished"};
    if (state_->failed) std::rethrow_exception(state_->failed);
    return *state_->result;
  }

  /// What it failed with; no error while it runs and when it succeeded.
  std::error_code error() const {
    try {
      if (state_->failed) std::rethrow_exception(state_->failed);
    } catch (const std::system_error& e) {
      return e.code();
    }
    return {};
  }

  void cancel() { state_->signal.emit(asio::cancellation_type::terminal); }

private:
  friend class world;
  using stored = std::conditional_t<std::is_void_v<T>, std::monostate, T>;
  struct state {
    bool done{false};
    std::optional<stored> result;
    std::exception_ptr failed;
    asio::cancellation_signal signal;
  };

  static asio::awaitable<void> run(asio::awaitable<T> work, std::shared_ptr<state> into) {
    try {
      if constexpr (std::is_void_v<T>) {
        co_await std::move(work);
        into->result.emplace();
      } else {
        T result = co_await std::move(work);
        into->result.emplace(std::move(result));
      }
    } catch (...) {
      into->failed = std::current_exception();
    }
  }

  std::shared_ptr<state> state_{std::make_shared<state>()};
};

/// A server, clients and time.
class world {
public:
  explicit world(std::uint64_t seed = 1) : clock_{std::make_shared<manual_clock>(seed)} {
    server_ = std::make_shared<scripted_server>(clock_);
  }
  ~world() {
    server_->close();
    clock_->close();
  }

  scripted_server& server() { return *server_; }
  model_etcd& etcd() { return server_->etcd; }
  manual_clock& clock() { return *clock_; }
  manual_clock::time_point now() const { return clock_->now(); }

  client connect(const client_options& options = {}) {
    std::vector<std::shared_ptr<detail::rpc::transport>> servers{
        std::make_shared<scripted_transport>(server_)};
    return client{context_.get_executor(), std::move(servers), clock_, options};
  }

  template <class T>
  task<T> start(asio::awaitable<T> work) {
    task<T> out;
    auto done = [state = out.state_](std::exception_ptr failed) {
      if (failed) state->failed = std::move(failed);  // cancelled before it began
      state->done = true;
    };
    asio::co_spawn(context_, task<T>::run(std::move(work), out.state_),
                   asio::bind_cancellation_slot(out.state_->signal.slot(), std::move(done)));
    return out;
  }

  /// Runs a coroutine that needs no time to pass, and returns its result.
  template <class T>
  T get(asio::awaitable<T> work) {
    auto out = start(std::move(work));
    settle();
    if constexpr (std::is_void_v<T>) {
      (void)out.value();
    } else {
      return std::move(out.value());
    }
  }

  /// Lets everything happen that happens without time passing.
  void settle() {
    context_.restart();
    for (int step = 0; context_.poll_one() != 0; ++step)
      if (step == 1'000'000) throw std::logic_error{"the world does not come to rest"};
  }

  /// Lets time pass, and what happens meanwhile happen in its order.
  void advance(std::chrono::milliseconds time) {
    const auto until = now() + time;
    for (int step = 0;; ++step) {
      settle();
      if (step == 1'000'000) throw std::logic_error{"the world does not come to rest"};
      auto next = clock_->next();
      if (const auto expiry = server_->next_expiry()) next = next ? std::min(*next, *expiry) : expiry;
      if (!next || *next > until) break;
      clock_->move_to(*next);
      if (server_->next_expiry() && *server_->next_expiry() <= now()) etcd().expire(now());
    }
    clock_->move_to(until);
    settle();
  }

private:
  std::shared_ptr<manual_clock> clock_;
  std::shared_ptr<scripted_server> server_;
  asio::io_context context_{1};  // goes first
};

}  // namespace conclave::test
