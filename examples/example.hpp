// SPDX-License-Identifier: BSL-1.0
#pragma once

// What the examples share: where the servers are, a clock that prints, and a main function that reports
// errors.

#include <asio.hpp>
#include <conclave/conclave.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace example {

using std::chrono::milliseconds;
using namespace std::chrono_literals;

/// Options for a client of the etcd that ETCD_ENDPOINTS names. Everything that the client reads and writes
/// gets `key_prefix`, so that an example does not meet other programs' keys.
inline conclave::client_options options(std::string key_prefix) {
  conclave::client_options result;
  const char* const endpoints = std::getenv("ETCD_ENDPOINTS");
  if (endpoints != nullptr && *endpoints != '\0') result.endpoints(endpoints);
  result.key_prefix("conclave-examples/" + std::move(key_prefix) + "/");
  return result;
}

/// The same with a part of the store that no other run uses. Clean it up with `delete_everything`.
inline conclave::client_options options_of_this_run(const std::string& name) {
  return options(name + "-" + std::to_string(std::chrono::system_clock::now().time_since_epoch().count()));
}

inline asio::awaitable<void> delete_everything(conclave::client client) {
  co_await client.delete_range(conclave::delete_prefix(""));
}

/// Prints lines with the time since its construction.
class timeline {
public:
  using clock = std::chrono::steady_clock;

  explicit timeline(clock::time_point start = clock::now()) : start_(start) {}

  clock::time_point start() const { return start_; }
  milliseconds now() const { return std::chrono::duration_cast<milliseconds>(clock::now() - start_); }
  void say(const std::string& text) const {
    std::printf("[%7.3f s] %s\n", std::chrono::duration<double>(clock::now() - start_).count(), text.c_str());
  }

private:
  clock::time_point start_;
};

inline asio::awaitable<void> sleep_for(milliseconds time) {
  asio::steady_timer timer{co_await asio::this_coro::executor};
  timer.expires_after(time);
  co_await timer.async_wait(asio::use_awaitable);
}

/// Runs coroutines side by side on one thread; `wait` completes when all have ended, and throws the first
/// failure.
class side_by_side {
public:
  explicit side_by_side(asio::any_io_executor on)
      : ended_(std::move(on), asio::steady_timer::time_point::max()) {}

  void start(asio::awaitable<void> work) {
    ++running_;
    asio::co_spawn(ended_.get_executor(), std::move(work), [this](std::exception_ptr failure) {
      if (failure && !failure_) failure_ = failure;
      if (--running_ == 0) ended_.cancel();
    });
  }

  asio::awaitable<void> wait() {
    asio::error_code woken;
    while (running_ != 0) co_await ended_.async_wait(asio::redirect_error(asio::use_awaitable, woken));
    if (failure_) std::rethrow_exception(failure_);
  }

private:
  asio::steady_timer ended_;
  std::exception_ptr failure_;
  int running_ = 0;
};

/// A command line of options that each take a number: `{"--scale", 1.0}` is an option and its default.
inline double number(int argc, char** argv, std::string_view option, double otherwise) {
  for (int i = 1; i < argc; ++i) {
    if (argv[i] != option) continue;
    const std::string_view text = i + 1 < argc ? argv[i + 1] : "";
    double value = 0;
    const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || end.ec != std::errc{} || end.ptr != text.data() + text.size() || value < 0)
      throw std::invalid_argument(std::string{option} + " needs a number");
    return value;
  }
  return otherwise;
}

/// Runs the coroutine that `make` returns until nothing is left to do. The exit code is 1, and the reason is
/// on standard error, if it throws.
template <class Make>
int run(Make make) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    asio::io_context context{1};
    std::exception_ptr failure;
    asio::co_spawn(context, make(), [&](std::exception_ptr thrown) {
      failure = thrown;
      if (failure) context.stop();
    });
    context.run();
    if (failure) std::rethrow_exception(failure);
    return 0;
  } catch (const std::system_error& e) {
    std::cerr << "error: " << e.what() << '\n';
    if (e.code() == conclave::condition::unavailable)
      std::cerr << "Is etcd running? ETCD_ENDPOINTS says where, for example http://127.0.0.1:2379\n";
  } catch (const std::exception& e) {
    std::cerr << "error: " << e.what() << '\n';
  }
  return 1;
}

}  // namespace example
