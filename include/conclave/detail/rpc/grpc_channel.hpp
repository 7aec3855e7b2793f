// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <utility>

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <conclave/detail/rpc/grpc_reactor.hpp>
#include <conclave/detail/rpc/tls.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// One gRPC channel to one server, and a standing watch on its connectivity. The watch keeps the channel
/// reconnecting (gRPC 1.51 may otherwise stay disconnected for ever once nothing waits) and wakes those who
/// wait for a connection.
class grpc_channel : public std::enable_shared_from_this<grpc_channel> {
public:
  /// `target` is in gRPC's syntax ("ipv4:127.0.0.1:2379"); `receive_limit` in bytes; `tls` null for a plain
  /// connection.
  static std::shared_ptr<grpc_channel> make(const std::string& target, int receive_limit,
                                            const tls_credentials* tls) {
    grpc::ChannelArguments arguments;
    // A connection of our own: keepalives must not stand behind a stranger's bulk traffic.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // etcd closes connections that are pinged more often than every 5 s, or while they are idle.
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3'000);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'500);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // A name is resolved anew when its servers cannot be reached, and not only every half minute.
    arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 2'000);
    arguments.SetMaxReceiveMessageSize(receive_limit);
    arguments.SetMaxSendMessageSize(-1);
    if (tls != nullptr && !tls->server_name.empty()) arguments.SetSslTargetNameOverride(tls->server_name);
    auto self = std::make_shared<grpc_channel>(
        private_tag{}, grpc::CreateCustomChannel(target, credentials(tls), arguments));
    (new watch(self))->arm(self->channel_->GetState(true));
    return self;
  }

  struct private_tag {};
  grpc_channel(private_tag, std::shared_ptr<grpc::Channel> channel)
      : channel_(std::move(channel)), stub_(channel_) {}

  grpc::GenericStub& stub() noexcept { return stub_; }

  [[nodiscard]] bool ready() const noexcept { return ready_.load(std::memory_order_acquire); }
  [[nodiscard]] bool failing() const noexcept { return failing_.load(std::memory_order_acquire); }

  /// Ends the standing watch; the channel goes away soon after its last call.
  void close() noexcept { closed_.store(true, std::memory_order_release); }

  void connect(std::chrono::milliseconds limit, std::unique_ptr<receiver<bool>> done) {
    auto& service = context_service::of(done->executor());
    auto* waiting = new waiter(shared_from_this(), service, std::move(done));
    if (!service.add_foreign(*waiting)) {
      delete waiting;
      return;
    }
    waiting->bind();
    auto& reactor = grpc_reactor::instance();
    const auto keep = shared_from_this();  // whoever is resumed by another thread may drop the channel
    std::lock_guard lock{mutex_};
    // From here on the waiter may fire on another thread, which then waits for this lock.
    reactor.publish();
    waiting->alarm().Set(reactor.queue(), deadline_after(ready() ? std::chrono::milliseconds{0} : limit),
                         waiting);
    waiting_.insert(waiting);
  }

  static gpr_timespec deadline_after(std::chrono::milliseconds limit) noexcept {
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(limit.count(), GPR_TIMESPAN));
  }

private:
  static std::shared_ptr<grpc::ChannelCredentials> credentials(const tls_credentials* tls) {
    if (tls == nullptr) return grpc::InsecureChannelCredentials();
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = tls->ca;
    options.pem_cert_chain = tls->certificate;
    options.pem_private_key = tls->key.reveal();
    auto made = grpc::SslCredentials(options);
    secret::overwrite(options.pem_private_key);
    return made;
  }

  class waiter final : public grpc_operation, public cancellable {
  public:
    waiter(std::shared_ptr<grpc_channel> channel, context_service& service,
           std::unique_ptr<receiver<bool>> done)
        : grpc_operation(done->executor(), service), channel_(std::move(channel)), done_(std::move(done)) {}

    /// Whether it has fired, or its context is gone.
    ~waiter() override { channel_->forget(*this); }

    grpc::Alarm& alarm() noexcept { return alarm_; }
    void bind() { done_->cancel_through(*this); }

    void cancel() noexcept override { channel_->wake(*this); }

  private:
    void on_context_shutdown() noexcept override { alarm_.Cancel(); }

    void finish_here() override { receiver<bool>::complete(std::move(done_), channel_->ready()); }

    std::shared_ptr<grpc_channel> channel_;
    std::unique_ptr<receiver<bool>> done_;
    grpc::Alarm alarm_;
  };

  /// The standing watch. It is re-armed in short slices because gRPC cannot end one early.
  class watch final : public grpc_tag {
  public:
    explicit watch(std::shared_ptr<grpc_channel> channel) : channel_(std::move(channel)) {}

    void arm(grpc_connectivity_state seen) {
      auto& reactor = grpc_reactor::instance();
      reactor.publish();
      channel_->channel_->NotifyOnStateChange(seen, deadline_after(std::chrono::seconds{1}), reactor.queue(),
                                              this);
    }

    void on_event(bool) noexcept override {
      if (channel_->closed_.load(std::memory_order_acquire)) {
        delete this;
        return;
      }
      const auto state = channel_->channel_->GetState(true);  // also leaves the idle state
      channel_->observe(state);
      arm(state);
    }

  private:
    std::shared_ptr<grpc_channel> channel_;
  };

  void observe(grpc_connectivity_state state) {
    const bool ready = state == GRPC_CHANNEL_READY;
    const bool failed = state == GRPC_CHANNEL_TRANSIENT_FAILURE;
    std::lock_guard lock{mutex_};
    ready_.store(ready, std::memory_order_release);
    if (!ready && !failed) return;
    const bool news = failing_.exchange(failed, std::memory_order_acq_rel) != failed;
    if (!ready && !news) return;  // those who came after the failure wait for a connection
    for (auto* each : waiting_) each->alarm().Cancel();
    waiting_.clear();
  }

  void wake(waiter& each) noexcept {
    std::lock_guard lock{mutex_};
    each.alarm().Cancel();
  }

  void forget(waiter& each) noexcept {
    std::lock_guard lock{mutex_};
    waiting_.erase(&each);
  }

  std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub stub_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> failing_{false};
  std::atomic<bool> closed_{false};
  std::mutex mutex_;
  std::unordered_set<waiter*> waiting_;
};

}  // namespace conclave::detail::rpc
