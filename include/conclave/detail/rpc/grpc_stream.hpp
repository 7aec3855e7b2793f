// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <conclave/detail/rpc/grpc_channel.hpp>
#include <conclave/detail/rpc/grpc_reactor.hpp>
#include <conclave/detail/rpc/transport.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// A duplex stream of gRPC. Every operation under way keeps the stream alive, so its context outlives
/// whatever gRPC still has to write into.
class grpc_stream final : public stream, public std::enable_shared_from_this<grpc_stream> {
public:
  grpc_stream(std::shared_ptr<grpc_channel> channel, const char* path, const metadata& headers)
      : channel_(std::move(channel)) {
    for (const auto& [name, value] : headers) context_.AddMetadata(name, value);
    calls_ = channel_->stub().PrepareCall(&context_, path, grpc_reactor::instance().queue());
  }

  void start(std::unique_ptr<receiver<bool>> done) override {
    begin<bool>(
        std::move(done), [this](auto& op) { calls_->StartCall(tag(op)); },
        [](auto& op) { return op.succeeded(); });
  }

  void read(std::unique_ptr<receiver<std::optional<std::string>>> done) override {
    begin<std::optional<std::string>>(
        std::move(done), [this](auto& op) { calls_->Read(&op.buffer(), tag(op)); },
        [](auto& op) { return op.succeeded() ? std::optional{to_bytes(op.buffer())} : std::nullopt; });
  }

  void write(std::string message, std::unique_ptr<receiver<bool>> done) override {
    begin<bool>(
        std::move(done),
        [this, &message](auto& op) {
          auto bytes = to_byte_buffer(std::move(message));
          op.buffer().Swap(&bytes);
          calls_->Write(op.buffer(), tag(op));
        },
        [](auto& op) { return op.succeeded(); });
  }

  void finish(std::unique_ptr<receiver<status>> done) override {
    begin<status>(
        std::move(done), [this](auto& op) { calls_->Finish(&op.result(), tag(op)); },
        [](auto& op) { return to_status(op.result()); });
  }

  void cancel() noexcept override { context_.TryCancel(); }

private:
  template <class T, class Result>
  class operation final : public grpc_operation, public cancellable {
  public:
    operation(std::shared_ptr<grpc_stream> on, context_service& service, std::unique_ptr<receiver<T>> done,
              Result result)
        : grpc_operation(done->executor(), service),
          stream_(std::move(on)),
          done_(std::move(done)),
          make_(result) {}

    void bind() { done_->cancel_through(*this); }
    [[nodiscard]] bool succeeded() const noexcept { return ok(); }
    grpc::ByteBuffer& buffer() noexcept { return buffer_; }
    grpc::Status& result() noexcept { return status_; }

    void cancel() noexcept override { stream_->context_.TryCancel(); }

  private:
    void on_context_shutdown() noexcept override { stream_->context_.TryCancel(); }

    void finish_here() override {
      T value = make_(*this);
      receiver<T>::complete(std::move(done_), std::move(value));
    }

    std::shared_ptr<grpc_stream> stream_;
    std::unique_ptr<receiver<T>> done_;
    Result make_;
    grpc::ByteBuffer buffer_;
    grpc::Status status_;
  };

  static void* tag(grpc_tag& operation) noexcept { return &operation; }

  template <class T, class Begin, class Result>
  void begin(std::unique_ptr<receiver<T>> done, Begin start, Result result) {
    auto& service = context_service::of(done->executor());
    auto* each = new operation<T, Result>(shared_from_this(), service, std::move(done), result);
    each->bind();
    if (!service.add_foreign(*each)) {
      delete each;
      return;
    }
    grpc_reactor::instance().publish();
    start(*each);  // it may complete, and be gone, before this returns
  }

  std::shared_ptr<grpc_channel> channel_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> calls_;
};

}  // namespace conclave::detail::rpc
