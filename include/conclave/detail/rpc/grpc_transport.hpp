// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <conclave/detail/rpc/grpc_channel.hpp>
#include <conclave/detail/rpc/grpc_reactor.hpp>
#include <conclave/detail/rpc/grpc_stream.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// The real way out: one server through gRPC.
class grpc_transport final : public transport {
public:
  /// `target` in gRPC's syntax; `endpoint` as the user wrote it; `receive_limit` in bytes, -1 for none; `tls`
  /// null for a plain connection.
  grpc_transport(const std::string& target, std::string endpoint, int receive_limit,
                 const tls_credentials* tls = nullptr)
      : endpoint_(std::move(endpoint)), channel_(grpc_channel::make(target, receive_limit, tls)) {}

  ~grpc_transport() override { channel_->close(); }

  [[nodiscard]] const std::string& endpoint() const noexcept override { return endpoint_; }
  [[nodiscard]] bool ready() const noexcept override { return channel_->ready(); }
  [[nodiscard]] bool failing() const noexcept override { return channel_->failing(); }

  void connect(std::chrono::milliseconds limit, std::unique_ptr<receiver<bool>> done) override {
    channel_->connect(limit, std::move(done));
  }

  void unary(const char* path, std::string request, metadata headers, std::chrono::milliseconds limit,
             std::unique_ptr<receiver<unary_result>> done) override {
    auto& service = context_service::of(done->executor());
    auto* call = new unary_call(channel_, service, std::move(done));
    call->prepare(headers, limit);
    if (!service.add_foreign(*call)) {
      delete call;
      return;
    }
    call->start(path, std::move(request));
  }

  std::shared_ptr<stream> open(const char* path, metadata headers) override {
    return std::make_shared<grpc_stream>(channel_, path, headers);
  }

private:
  class unary_call final : public grpc_operation, public cancellable {
  public:
    unary_call(std::shared_ptr<grpc_channel> channel, context_service& service,
               std::unique_ptr<receiver<unary_result>> done)
        : grpc_operation(done->executor(), service), channel_(std::move(channel)), done_(std::move(done)) {}

    void prepare(const metadata& headers, std::chrono::milliseconds limit) {
      for (const auto& [name, value] : headers) context_.AddMetadata(name, value);
      context_.set_deadline(grpc_channel::deadline_after(limit));
      done_->cancel_through(*this);
    }

    void start(const char* path, std::string request) {
      auto& reactor = grpc_reactor::instance();
      const grpc::ByteBuffer bytes = to_byte_buffer(std::move(request));
      reader_ = channel_->stub().PrepareUnaryCall(&context_, path, bytes, reactor.queue());
      reader_->StartCall();
      auto* const reader = reader_.get();
      reactor.publish();
      // The call may complete, and this object be gone, before Finish returns.
      reader->Finish(&response_, &status_, static_cast<grpc_tag*>(this));
    }

    void cancel() noexcept override { context_.TryCancel(); }

  private:
    void on_context_shutdown() noexcept override { context_.TryCancel(); }

    void finish_here() override {
      unary_result result{to_status(status_), {}};
      if (result.state.ok()) {
        if (response_.Valid())
          result.body = to_bytes(response_);
        else
          result.state = {status_code::unimplemented, "No message returned for unary request"};
      }
      receiver<unary_result>::complete(std::move(done_), std::move(result));
    }

    std::shared_ptr<grpc_channel> channel_;
    std::unique_ptr<receiver<unary_result>> done_;
    grpc::ClientContext context_;
    grpc::ByteBuffer response_;
    grpc::Status status_;
    std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader_;
  };

  std::string endpoint_;
  std::shared_ptr<grpc_channel> channel_;
};

}  // namespace conclave::detail::rpc
