// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <conclave/detail/rpc/receiver.hpp>
#include <conclave/detail/rpc/status.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::rpc {

/// Names and values sent along with a call.
using metadata = std::vector<std::pair<std::string, std::string>>;

struct unary_result {
  status state;
  std::string body;
};

/// One duplex stream, in bytes. Used from one strand. At most one read and one write are under way at a time.
class stream {
public:
  virtual ~stream() = default;

  /// Opens the stream: false when the server cannot be reached, and the reason is in `finish`.
  virtual void start(std::unique_ptr<receiver<bool>> done) = 0;
  /// The next message, or nothing when the stream has ended.
  virtual void read(std::unique_ptr<receiver<std::optional<std::string>>> done) = 0;
  /// Sends a message: false when the stream has ended.
  virtual void write(std::string message, std::unique_ptr<receiver<bool>> done) = 0;
  /// How the stream ended. Call it once, after `read` or `start` said that it has, or after `cancel`.
  virtual void finish(std::unique_ptr<receiver<status>> done) = 0;
  /// Ends the stream at once, whatever the server does; whatever is under way completes.
  virtual void cancel() noexcept = 0;
};

/// One server: the way out of the process, and the seam below which tests and simulations put their own.
/// Every receiver is completed by a post to its executor, never inline, and exactly once.
class transport {
public:
  virtual ~transport() = default;

  /// The endpoint as the user wrote it, for errors.
  [[nodiscard]] virtual const std::string& endpoint() const noexcept = 0;

  /// Whether a call made now leaves at once. Any thread.
  [[nodiscard]] virtual bool ready() const noexcept = 0;

  /// Whether the last attempt to connect failed, and none has succeeded since: a call made now fails at once
  /// and says why. Any thread.
  [[nodiscard]] virtual bool failing() const noexcept = 0;

  /// Waits until `ready`, at most `limit`, or until an attempt to connect fails; completes with whether it is.
  /// Any thread.
  virtual void connect(std::chrono::milliseconds limit, std::unique_ptr<receiver<bool>> done) = 0;

  /// One call: `path` is the method's full name ("/etcdserverpb.KV/Range"), `limit` the deadline sent with
  /// it. Cancelling the receiver cancels the call. Any thread.
  virtual void unary(const char* path, std::string request, metadata headers, std::chrono::milliseconds limit,
                     std::unique_ptr<receiver<unary_result>> done) = 0;

  /// Prepares a stream, which does nothing before `stream::start`.
  virtual std::shared_ptr<stream> open(const char* path, metadata headers) = 0;
};

}  // namespace conclave::detail::rpc
