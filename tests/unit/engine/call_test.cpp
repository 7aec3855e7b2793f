// SPDX-License-Identifier: BSL-1.0

// How often, and to whom, a write is sent that nobody answers. On virtual time.

#include <conclave/detail/engine/call.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/scripted_transport.hpp"

namespace {

namespace asio = conclave::asio;
namespace engine = conclave::detail::engine;
namespace rpc = conclave::detail::rpc;
using conclave::errc;
using conclave::put;
using conclave::test::fate;
using namespace std::chrono_literals;

/// A member of the cluster, and when it was asked.
class member final : public conclave::test::scripted_transport {
public:
  member(std::shared_ptr<conclave::test::scripted_server> to,
         std::shared_ptr<conclave::test::manual_clock> clock)
      : scripted_transport{std::move(to)}, clock_{std::move(clock)}, born_{clock_->now()} {}

  std::vector<std::chrono::milliseconds> asked;

  void unary(const char* path, std::string request, rpc::metadata headers, std::chrono::milliseconds limit,
             std::unique_ptr<rpc::receiver<rpc::unary_result>> done) override {
    asked.push_back(std::chrono::duration_cast<std::chrono::milliseconds>(clock_->now() - born_));
    scripted_transport::unary(path, std::move(request), std::move(headers), limit, std::move(done));
  }

private:
  std::shared_ptr<conclave::test::manual_clock> clock_;
  rpc::time_point born_;
};

using times = std::vector<std::chrono::milliseconds>;

class cluster {
public:
  explicit cluster(std::size_t size) {
    std::vector<std::shared_ptr<rpc::transport>> list;
    for (std::size_t i = 0; i < size; ++i)
      list.push_back(members.emplace_back(std::make_shared<member>(store, clock_)));
    on_ = engine::runtime::make(context_.get_executor(), std::move(list), clock_, engine::key_space{""}, {});
  }
  ~cluster() {
    store->close();
    clock_->close();
  }

  /// Ends with its code, within `limit`.
  std::error_code put_again(std::chrono::milliseconds limit = 5s) {
    return ends(call_again(on_, &again), limit);
  }
  std::error_code put_once(std::chrono::milliseconds limit = 5s) { return ends(call_once(on_), limit); }

private:
  static asio::awaitable<void> call_again(std::shared_ptr<engine::runtime> on, engine::resends* counted) {
    (void)co_await engine::call(on, put("k", "v"), *counted);
  }
  static asio::awaitable<void> call_once(std::shared_ptr<engine::runtime> on) {
    (void)co_await engine::call(on, put("k", "v"));
  }

  std::error_code ends(asio::awaitable<void> work, std::chrono::milliseconds limit) {
    bool done = false;
    std::error_code code;
    asio::co_spawn(context_, std::move(work), [&](std::exception_ptr failed) {
      done = true;
      try {
        if (failed) std::rethrow_exception(failed);
      } catch (const std::system_error& e) {
        code = e.code();
      }
    });
    const auto until = clock_->now() + limit;
    settle();
    while (!done && clock_->next() && *clock_->next() <= until) {
      clock_->move_to(*clock_->next());
      settle();
    }
    if (!done) throw std::logic_error{"the call has not ended"};
    return code;
  }
  void settle() {
    context_.restart();
    while (context_.poll_one() != 0) {
    }
  }

  std::shared_ptr<conclave::test::manual_clock> clock_{std::make_shared<conclave::test::manual_clock>(1)};

public:
  std::shared_ptr<conclave::test::scripted_server> store{
      std::make_shared<conclave::test::scripted_server>(clock_)};
  std::vector<std::shared_ptr<member>> members;
  engine::resends again;

private:
  std::shared_ptr<engine::runtime> on_;
  asio::io_context context_{1};  // goes first
};

}  // namespace

TEST_CASE("a write that may be sent again goes to another member when one is silent") {
  cluster c{2};
  c.store->next("KV.Put", fate::never_arrives);
  CHECK_FALSE(c.put_again());
  CHECK(c.members[0]->asked == times{0ms});
  CHECK(c.members[1]->asked == times{2500ms});
  CHECK(c.again.unanswered == 1);
}

TEST_CASE("members that are all silent have a turn each") {
  cluster c{3};
  for (int i = 0; i < 10; ++i) c.store->next("KV.Put", fate::never_arrives);
  CHECK(c.put_again() == errc::outcome_unknown);
  CHECK(c.members[0]->asked.front() == 0ms);
  CHECK(c.members[1]->asked.front() == 2500ms);
  CHECK(c.members[2]->asked.front() == 3750ms);
}

TEST_CASE("the only server is asked once more") {
  cluster c{1};
  c.store->next("KV.Put", fate::never_arrives);
  SECTION("and answers") {
    CHECK_FALSE(c.put_again());
    CHECK(c.again.unanswered == 1);
  }
  SECTION("and stays silent") {
    c.store->next("KV.Put", fate::never_arrives);
    CHECK(c.put_again() == errc::outcome_unknown);
    CHECK(c.again.unanswered == 2);
  }
  CHECK(c.members[0]->asked == times{0ms, 2500ms});
}

TEST_CASE("a write that must not be sent twice waits for its only answer") {
  cluster c{2};
  c.store->next("KV.Put", GENERATE(fate::never_arrives, fate::answer_lost));
  CHECK(c.put_once() == errc::outcome_unknown);
  CHECK(c.members[0]->asked == times{0ms});
  CHECK(c.members[1]->asked.empty());
}

TEST_CASE("a write that may be sent again goes on soon when its connection breaks") {
  cluster c{2};
  c.store->next("KV.Put", fate::answer_lost);
  CHECK_FALSE(c.put_again(100ms));
  CHECK(c.store->count("KV.Put") == 2);
  CHECK(c.again.unanswered == 1);
}

TEST_CASE("what one attempt left in doubt the refusal of a later one does not deny") {
  cluster c{1};
  const bool doubt = GENERATE(true, false);
  if (doubt) c.store->next("KV.Put", fate::answer_lost);
  for (int i = 0; i < 100; ++i) c.store->next("KV.Put", fate::refused);
  CHECK(c.put_again() == (doubt ? errc::outcome_unknown : errc::unavailable));
  CHECK(c.again.unanswered == (doubt ? 1 : 0));
}
