// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include <grpcpp/completion_queue.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>
#include <grpcpp/support/status.h>

#include <conclave/detail/rpc/context_service.hpp>
#include <conclave/detail/rpc/receiver.hpp>
#include <conclave/detail/rpc/status.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// What the completion queue hands back.
class grpc_tag {
public:
  /// On the library's own thread; must only hand over.
  virtual void on_event(bool ok) noexcept = 0;

protected:
  ~grpc_tag() = default;
};

/// The process's one thread of the library: it waits for gRPC's completions and passes each to its tag, which
/// posts it to whoever waits. It lives as long as the process: a thread that could be joined would have to be
/// joined by some destructor, possibly on itself.
class grpc_reactor {
public:
  static grpc_reactor& instance() {
    static grpc_reactor* const forever = new grpc_reactor;
    return *forever;
  }

  grpc::CompletionQueue* queue() noexcept { return &queue_; }

  /// Call it right before an operation is started with the queue: it orders what the caller wrote before what
  /// the reactor's thread reads (gRPC does so too, but its library is not instrumented for race detectors).
  void publish() noexcept { sequence_.fetch_add(1, std::memory_order_release); }

private:
  grpc_reactor() {
    std::thread{[this] {
      void* tag = nullptr;
      bool ok = false;
      while (queue_.Next(&tag, &ok)) {
        (void)sequence_.load(std::memory_order_acquire);
        static_cast<grpc_tag*>(tag)->on_event(ok);
      }
    }}.detach();
  }

  grpc::CompletionQueue queue_;
  std::atomic<unsigned> sequence_{0};
};

/// An operation that the reactor's thread completes: it posts itself to the waiting executor, where
/// `finish_here` runs and then the operation, with all that gRPC was given, is destroyed.
class grpc_operation : public grpc_tag, public context_member {
public:
  virtual ~grpc_operation() = default;

  grpc_operation(asio::any_io_executor executor, context_service& service)
      : executor_(std::move(executor)), service_(service) {}

  void on_event(bool ok) noexcept final {
    ok_ = ok;
    auto& service = service_;
    service.begin_handoff(*this);
    {
      auto executor = std::move(executor_);
      asio::post(executor, [self = std::unique_ptr<grpc_operation>(this)] { self->finish_here(); });
    }
    service.end_handoff();
  }

protected:
  /// On the waiting executor: resumes whoever waits. The operation is destroyed after that: gRPC takes a while for it,
  /// and the next one may be on its way by then.
  virtual void finish_here() = 0;

  [[nodiscard]] bool ok() const noexcept { return ok_; }
  [[nodiscard]] context_service& service() const noexcept { return service_; }

private:
  asio::any_io_executor executor_;
  context_service& service_;
  bool ok_ = false;
};

inline grpc::ByteBuffer to_byte_buffer(std::string bytes) {
  // gRPC takes ownership of the string; short ones are cheaper copied.
  if (bytes.size() <= 256) {
    grpc::Slice slice{bytes.data(), bytes.size()};
    return {&slice, 1};
  }
  auto* owned = new std::string(std::move(bytes));
  grpc::Slice slice{owned->data(), owned->size(), [](void* data) { delete static_cast<std::string*>(data); },
                    owned};
  return {&slice, 1};
}

inline std::string to_bytes(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.Valid()) return {};
  if (!buffer.TrySingleSlice(&slice).ok() && !buffer.DumpToSingleSlice(&slice).ok()) return {};
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

inline status to_status(const grpc::Status& from) {
  return {static_cast<status_code>(from.error_code()), from.error_message()};
}

}  // namespace conclave::detail::rpc
