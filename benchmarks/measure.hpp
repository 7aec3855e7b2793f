// SPDX-License-Identifier: BSL-1.0
#pragma once

// What conclave_bench and floor_bench share: the command line, what a run costs this process and etcd, and the
// line of JSON that tells it. benchmarks/peers/go/main.go has the same in Go.

#include "count_allocations.hpp"

#include <conclave/testing/etcd_server.hpp>
#include <conclave/testing/loopback.hpp>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bench {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// ---- the command line -----------------------------------------------------------------------------------------

struct options {
  std::string bench;
  std::string endpoints = "127.0.0.1:2379";
  std::size_t count = 1000;      ///< Operations; waiters in `waiters`.
  std::size_t value_size = 100;  ///< Bytes.
  std::size_t warmup = 100;      ///< Operations before what is measured.
  std::size_t depth = 64;        ///< Calls under way, or locks at a time.
  std::size_t contenders = 4;    ///< Sessions, or coroutines of one session.
  std::size_t processes = 0;     ///< Zero: all in this one.
  std::size_t producers = 1;
  std::size_t consumers = 1;
  std::size_t batch = 1;     ///< Items that a consumer of `drain` asks for at a time.
  std::size_t locks = 1;     ///< Over which the waiters are spread.
  std::size_t sessions = 1;  ///< Of the waiters.
  std::size_t noise = 0;     ///< Unrelated writes a second meanwhile.
  std::size_t limit = 0;     ///< Seconds after which no more is counted; zero: none.
  bool combined = false;     ///< put-pipelined: as independent writes.
  bool posted = false;       ///< floor: another thread waits for the answers, and posts them.

  [[nodiscard]] std::string value() const { return std::string(value_size, 'x'); }
};

inline options parse(int argc, char** argv) {
  options out;
  if (const char* const given = std::getenv("ETCD_ENDPOINTS"); given != nullptr && *given != '\0')
    out.endpoints = given;
  const std::map<std::string_view, std::size_t*> numbers{
      {"--count", &out.count},         {"--value-size", &out.value_size}, {"--warmup", &out.warmup},
      {"--depth", &out.depth},         {"--contenders", &out.contenders}, {"--processes", &out.processes},
      {"--producers", &out.producers}, {"--consumers", &out.consumers},   {"--locks", &out.locks},
      {"--sessions", &out.sessions},   {"--noise", &out.noise},           {"--limit", &out.limit},
      {"--batch", &out.batch}};
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (!word.starts_with("--")) {
      if (!out.bench.empty()) throw std::invalid_argument("two cases: " + out.bench + ", " + argv[i]);
      out.bench = word;
      continue;
    }
    if (word == "--combined" || word == "--posted") {
      (word == "--combined" ? out.combined : out.posted) = true;
      continue;
    }
    const std::string_view given = i + 1 < argc ? argv[++i] : "";
    if (word == "--endpoints") {
      out.endpoints = given;
      continue;
    }
    const auto found = numbers.find(word);
    if (found == numbers.end()) throw std::invalid_argument("no option " + std::string{word});
    const auto end = std::from_chars(given.data(), given.data() + given.size(), *found->second);
    if (given.empty() || end.ec != std::errc{} || end.ptr != given.data() + given.size())
      throw std::invalid_argument(std::string{word} + " needs a number");
  }
  return out;
}

/// A part of the store that no other run uses.
inline std::string fresh_prefix() {
  return "bench/" + std::to_string(std::chrono::system_clock::now().time_since_epoch().count()) + "-" +
         std::to_string(::getpid()) + "/";
}

// ---- the process ----------------------------------------------------------------------------------------------

inline double cpu_seconds(int of = RUSAGE_SELF) {
  rusage use{};
  ::getrusage(of, &use);
  return static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

/// Voluntary context switches: how often some thread of this process went to sleep.
inline double sleeps() {
  rusage use{};
  ::getrusage(RUSAGE_SELF, &use);
  return static_cast<double>(use.ru_nvcsw);
}

inline std::size_t rss_kib() {
  std::size_t total = 0;
  std::size_t resident = 0;
  std::ifstream{"/proc/self/statm"} >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) / 1024;
}

inline std::size_t threads() {
  const std::filesystem::directory_iterator tasks{"/proc/self/task"};
  return static_cast<std::size_t>(std::distance(begin(tasks), end(tasks)));
}

// ---- etcd -----------------------------------------------------------------------------------------------------

/// The first endpoint's port on this machine.
inline std::uint16_t port_of(const std::string& endpoints) {
  const auto first = endpoints.substr(0, endpoints.find(','));
  const auto port = std::stoul(first.substr(first.rfind(':') + 1));
  return static_cast<std::uint16_t>(port);
}

struct etcd_counters {
  double proposals = 0;
  double rpcs = 0;
  double cpu = 0;

  static etcd_counters now(const std::string& endpoints) {
    const auto text =
        conclave::testing::http_request(port_of(endpoints), "/metrics", {}, std::chrono::seconds{10}).body;
    using conclave::testing::detail::etcd_metric;
    return {etcd_metric(text, "etcd_server_proposals_committed_total"),
            etcd_metric(text, "grpc_server_started_total"), etcd_metric(text, "process_cpu_seconds_total")};
  }
};

// ---- a run ----------------------------------------------------------------------------------------------------

/// Takes times from `start` to `stop`, and prints one line. Operations that end after the limit do not count.
class run {
public:
  explicit run(const options& of) : options_(of) { latencies_.reserve(of.count); }

  void start() {
    counters_ = etcd_counters::now(options_.endpoints);
    allocations_ = allocations.load(std::memory_order_relaxed);
    sleeps_ = sleeps();
    cpu_ = cpu_seconds();
    begin_ = clock::now();
    deadline_ = options_.limit == 0 ? clock::time_point::max()
                                    : begin_ + std::chrono::seconds{static_cast<long>(options_.limit)};
    running_ = true;
  }

  [[nodiscard]] clock::time_point begun_at() const { return begin_; }
  [[nodiscard]] bool over() const { return clock::now() >= deadline_; }

  /// One operation, from then to now.
  void add(clock::time_point since) { add(since, clock::now()); }
  void add(clock::time_point since, clock::time_point until) {
    if (!running_ || until > deadline_) return;
    end_ = std::max(end_, until);
    latencies_.push_back(until - since);
  }

  void stop() {
    if (!running_) return;
    running_ = false;
    if (end_ < begin_) end_ = clock::now();
    if (over()) end_ = deadline_;
    cpu_ = cpu_seconds() - cpu_;
    sleeps_ = sleeps() - sleeps_;
    allocations_ = allocations.load(std::memory_order_relaxed) - allocations_;
    threads_ = threads();
    rss_ = rss_kib();
    const auto now = etcd_counters::now(options_.endpoints);
    counters_ = {now.proposals - counters_.proposals, now.rpcs - counters_.rpcs, now.cpu - counters_.cpu};
  }

  /// Where the operations were in other processes: what those say of theirs. After `stop`.
  void take_over(double cpu, std::size_t rss, std::size_t threads_of_all) {
    cpu_ = cpu;
    rss_ = rss;
    threads_ = threads_of_all;
    end_ = begin_;
  }
  void add_late(clock::time_point since, clock::time_point until) {
    if (until > deadline_) return;
    end_ = std::max(end_, until);
    latencies_.push_back(until - since);
  }

  void note(const std::string& name, double value) { extra_.emplace_back(name, value); }

  void print(const char* impl) {
    if (latencies_.empty()) throw std::runtime_error("nothing was done");
    std::sort(latencies_.begin(), latencies_.end());
    const auto n = static_cast<double>(latencies_.size());
    const double seconds = std::chrono::duration<double>(end_ - begin_).count();
    const auto at = [&](double part) {
      const auto where = static_cast<std::size_t>(std::ceil(part * n)) - 1;
      return std::chrono::duration<double, std::micro>(latencies_[where]).count();
    };
    std::printf(
        "{\"bench\": \"%s\", \"impl\": \"%s\", \"n\": %zu, \"seconds\": %.6f, \"per_s\": %.1f, "
        "\"p50_us\": %.1f, \"p99_us\": %.1f, \"cpu_us_per_op\": %.1f, \"rss_kib\": %zu, "
        "\"threads\": %zu, \"proposals_per_op\": %.3f, \"rpcs_per_op\": %.3f, "
        "\"etcd_cpu_us_per_op\": %.1f",
        options_.bench.c_str(), impl, latencies_.size(), seconds, n / seconds, at(0.5), at(0.99),
        cpu_ * 1e6 / n, rss_, threads_, counters_.proposals / n, counters_.rpcs / n, counters_.cpu * 1e6 / n);
    std::printf(", \"allocations_per_op\": %.1f, \"sleeps_per_op\": %.2f",
                static_cast<double>(allocations_) / n, sleeps_ / n);
    for (const auto& [name, value] : extra_) std::printf(", \"%s\": %.1f", name.c_str(), value);
    std::printf("}\n");
    std::fflush(stdout);
  }

private:
  options options_;
  std::vector<clock::duration> latencies_;
  std::vector<std::pair<std::string, double>> extra_;
  etcd_counters counters_;
  std::uint64_t allocations_ = 0;
  double sleeps_ = 0;
  double cpu_ = 0;
  std::size_t threads_ = 0;
  std::size_t rss_ = 0;
  bool running_ = false;
  clock::time_point begin_;
  clock::time_point end_;
  clock::time_point deadline_;
};

/// Mutual exclusion, counted: throws when somebody is inside already.
class exclusion {
public:
  void enter() {
    if (inside_.fetch_add(1) != 0) throw std::runtime_error("two holders of one lock at a time");
  }
  void leave() { inside_.fetch_sub(1); }

private:
  std::atomic<int> inside_{0};
};

/// Each item once: item numbers below `count`, marked as they come.
class each_once {
public:
  explicit each_once(std::size_t count) : seen_(count) {}

  void take(std::size_t item) {
    if (item >= seen_.size())
      throw std::runtime_error("item " + std::to_string(item) + " was never enqueued");
    if (seen_[item].exchange(true)) throw std::runtime_error("item " + std::to_string(item) + " came twice");
    ++taken_;
  }
  [[nodiscard]] std::size_t taken() const { return taken_; }
  [[nodiscard]] bool all() const { return taken_ == seen_.size(); }

private:
  std::vector<std::atomic<bool>> seen_;
  std::size_t taken_ = 0;
};

}  // namespace bench
