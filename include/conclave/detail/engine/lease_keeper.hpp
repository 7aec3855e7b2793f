// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/lease_keeper_machine.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/detail/engine/stream_link.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// Drives lease keepers: a stream for every few leases, since a server works through a stream one by one and
/// a sick lease holds up its neighbours. On the strand.
class lease_keeper final : public runtime_observer, public std::enable_shared_from_this<lease_keeper> {
public:
  struct listener {
    std::function<void(time_point valid_until)> on_renewed;
    std::function<void(lease_keeper_machine::loss)> on_lost;
  };

  explicit lease_keeper(std::shared_ptr<runtime> on) : runtime_(std::move(on)) {}

  /// A time to live as a server tells it, within what a clock can count.
  static std::chrono::seconds lease_time(std::int64_t ttl) noexcept {
    constexpr std::int64_t century = std::int64_t{100} * 365 * 24 * 3600;
    return std::chrono::seconds{std::clamp<std::int64_t>(ttl, 0, century)};
  }

  /// Keeps a lease that was granted for `ttl` by a call sent at `granted`, until `remove` or its loss.
  void add(lease_id id, duration ttl, time_point granted, listener to) {
    shard* const where = free_shard();
    where->leases.emplace(id, std::move(to));
    home_[id] = where;
    act(*where, where->machine.add(id, ttl, granted, runtime_->now()));
  }

  void remove(lease_id id) {
    const auto found = home_.find(id);
    if (found == home_.end()) return;
    shard& where = *found->second;
    home_.erase(found);
    where.leases.erase(id);
    act(where, where.machine.remove(id));
  }

  /// Asks for a lease's renewal now: there is reason to doubt that it lives.
  void renew(lease_id id) {
    const auto found = home_.find(id);
    if (found != home_.end()) act(*found->second, found->second->machine.renew(id, runtime_->now()));
  }

  void on_cluster_reset() override {
    const auto all = home_;
    for (const auto& [id, where] : all) {
      const auto found = where->leases.find(id);
      if (found == where->leases.end()) continue;
      const auto to = found->second;
      remove(id);
      to.on_lost(lease_keeper_machine::loss::cluster_reset);
    }
  }

  void close() {
    closed_ = true;
    for (auto& each : shards_) {
      if (each->timer) runtime_->cancel(*each->timer);
      if (each->link) each->link->close();
    }
    shards_.clear();
    home_.clear();
  }

private:
  static constexpr std::size_t leases_per_stream = 32;

  struct shard {
    explicit shard(std::uint64_t seed) : machine(seed) {}
    lease_keeper_machine machine;
    std::unordered_map<lease_id, listener> leases;
    std::shared_ptr<stream_link> link;
    std::optional<runtime::timer_id> timer;
  };

  shard* free_shard() {
    for (auto& each : shards_)
      if (each->leases.size() < leases_per_stream) return each.get();
    shards_.push_back(std::make_unique<shard>(runtime_->seed()));
    return shards_.back().get();
  }

  void act(shard& where, const lease_keeper_machine::actions& what) {
    for (const auto& each : what) {
      if (closed_) return;
      std::visit([&](const auto& action) { apply(where, action); }, each);
    }
    if (closed_) return;
    if (where.timer) runtime_->cancel(*std::exchange(where.timer, std::nullopt));
    if (const auto when = where.machine.next_wakeup()) {
      where.timer = runtime_->at(*when, [weak = weak_from_this(), &where] {
        const auto self = weak.lock();
        if (!self || self->closed_) return;
        where.timer.reset();
        self->act(where, where.machine.on_timer(self->runtime_->now()));
      });
    }
  }

  void apply(shard& where, const lease_keeper_machine::open_stream&) {
    stream_link::events events;
    // A link that was replaced is closed and says nothing more, so `where` is the shard it belongs to.
    events.on_open = [weak = weak_from_this(), &where] {
      if (const auto self = weak.lock())
        self->act(where, where.machine.on_stream_open(self->runtime_->now()));
    };
    events.on_message = [weak = weak_from_this(), &where](const std::string& bytes) {
      if (const auto self = weak.lock()) self->receive(where, bytes);
    };
    events.on_closed = [weak = weak_from_this(), &where](const rpc::status&) {
      const auto self = weak.lock();
      if (!self) return;
      where.link.reset();
      self->act(where, where.machine.on_stream_closed(self->runtime_->now()));
    };
    where.link = std::make_shared<stream_link>(runtime_, std::move(events));
    where.link->open(rpc::lease_keep_alive_path);
  }

  void apply(shard& where, const lease_keeper_machine::close_stream& action) {
    if (where.link) std::exchange(where.link, nullptr)->close(action.suspect);
  }

  void apply(shard& where, const lease_keeper_machine::send_keepalive& action) {
    lease_keep_alive_request request;
    request.id = action.id;
    if (where.link) where.link->send(wire::encode(request));
  }

  void apply(shard& where, const lease_keeper_machine::renewed& action) {
    const auto found = where.leases.find(action.id);
    if (found != where.leases.end()) found->second.on_renewed(action.valid_until);
  }

  void apply(shard& where, const lease_keeper_machine::lost& action) {
    const auto found = where.leases.find(action.id);
    if (found == where.leases.end()) return;
    const auto to = std::move(found->second);
    where.leases.erase(found);
    home_.erase(action.id);
    to.on_lost(action.why);
  }

  void apply(shard& where, const lease_keeper_machine::confirm& action) {
    runtime_->spawn(ask(shared_from_this(), &where, action.id));
  }

  static asio::awaitable<void> ask(std::shared_ptr<lease_keeper> self, shard* where, lease_id id);

  void receive(shard& where, const std::string& bytes) {
    lease_keep_alive_response answer;
    const auto now = runtime_->now();
    if (wire::decode(bytes, answer) != wire::decode_error::none) {
      apply(where, lease_keeper_machine::close_stream{true});
      act(where, where.machine.on_stream_closed(now));
      return;
    }
    act(where, where.machine.on_answer(answer.id, lease_time(answer.ttl), now));
  }

  std::shared_ptr<runtime> runtime_;
  std::vector<std::unique_ptr<shard>> shards_;
  std::unordered_map<lease_id, shard*> home_;
  bool closed_ = false;
};

}  // namespace conclave::detail::engine

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/engine/impl/lease_keeper.ipp>
#endif
