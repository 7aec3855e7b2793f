// SPDX-License-Identifier: BSL-1.0

#include <conclave/detail/engine/server_list.hpp>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

namespace {

namespace rpc = conclave::detail::rpc;
using conclave::detail::engine::server_list;
using namespace std::chrono_literals;

/// A server that is only looked at.
class named_server final : public rpc::transport {
public:
  explicit named_server(std::string name) : name_(std::move(name)) {}

  bool up = true;
  bool broken = false;

  const std::string& endpoint() const noexcept override { return name_; }
  bool ready() const noexcept override { return up; }
  bool failing() const noexcept override { return broken; }
  void connect(std::chrono::milliseconds, std::unique_ptr<rpc::receiver<bool>>) override { nobody_asked(); }
  void unary(const char*, std::string, rpc::metadata, std::chrono::milliseconds,
             std::unique_ptr<rpc::receiver<rpc::unary_result>>) override {
    nobody_asked();
  }
  std::shared_ptr<rpc::stream> open(const char*, rpc::metadata) override {
    nobody_asked();
    return nullptr;
  }

private:
  static void nobody_asked() { throw std::logic_error{"a list of servers makes no calls"}; }
  std::string name_;
};

struct three {
  std::shared_ptr<named_server> a = std::make_shared<named_server>("a");
  std::shared_ptr<named_server> b = std::make_shared<named_server>("b");
  std::shared_ptr<named_server> c = std::make_shared<named_server>("c");
  server_list list{{a, b, c}};
  rpc::time_point now{1h};

  std::string pick() { return list.pick(now)->endpoint(); }
};

}  // namespace

TEST_CASE("one server is asked for as long as it serves") {
  three t;
  CHECK(t.pick() == "a");
  CHECK(t.pick() == "a");
  t.a->up = false;
  CHECK(t.pick() == "b");
  t.a->up = true;
  CHECK(t.pick() == "b");  // no reason to go back
}

TEST_CASE("without a connection it is each one's turn, and the first that connects is asked") {
  three t;
  t.a->up = t.b->up = t.c->up = false;
  CHECK(t.pick() == "a");
  t.list.pass(*t.a);
  CHECK(t.pick() == "b");
  t.list.pass(*t.a);  // somebody else's news, and old
  CHECK(t.pick() == "b");
  t.list.pass(*t.b);
  t.list.pass(*t.c);
  CHECK(t.pick() == "a");
  t.c->up = true;
  CHECK(t.pick() == "c");
}

TEST_CASE("a suspect is left to itself for a while, though connected, unless there is none else") {
  three t;
  CHECK(t.list.suspect(*t.a, t.now));
  CHECK(t.pick() == "b");
  t.b->up = t.c->up = false;
  CHECK(t.pick() == "a");
  t.b->up = true;
  CHECK(t.pick() == "b");
  CHECK(t.list.suspect(*t.b, t.now));
  t.c->up = true;
  CHECK(t.pick() == "c");
  t.c->up = false;
  t.now += server_list::quarantine;
  CHECK((t.pick() == "a" || t.pick() == "b"));
}

TEST_CASE("a single server has nobody to turn to") {
  const auto only = std::make_shared<named_server>("only");
  server_list list{{only}};
  CHECK_FALSE(list.suspect(*only, rpc::time_point{1h}));
  CHECK(list.pick(rpc::time_point{1h}) == only);
}

TEST_CASE("all servers fail only if each does") {
  three t;
  t.a->broken = t.b->broken = true;
  CHECK_FALSE(t.list.all_failing());
  t.c->broken = true;
  CHECK(t.list.all_failing());
}
