// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/rpc/status.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/lease.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/etcd/types.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace conclave::test {

/// A small etcd in memory, as far as the recipes go: a store with revisions and its history, transactions,
/// leases that expire. It knows nothing of bytes and of connections; times are told to it.
class model_etcd {
public:
  using time_point = std::chrono::steady_clock::time_point;

  /// Why a request was refused, as etcd says it: gRPC's status and the text.
  struct refusal {
    detail::rpc::status_code code;
    std::string text;
  };
  template <class Response>
  using answer = std::variant<Response, refusal>;

  /// The server's --max-txn-ops.
  std::size_t most_operations = 128;
  /// The alarm for space: what is charged for space is refused. (Nested puts are not charged.)
  bool full = false;

  /// Called once for each revision, with all its events.
  std::function<void(const std::vector<event>&)> on_revision;

  revision current() const { return revision_; }
  const std::map<std::string, key_value>& keys() const { return keys_; }
  bool has_lease(lease_id id) const { return leases_.contains(id); }
  std::size_t leases() const { return leases_.size(); }

  /// The keys that start with `prefix`, in their order of creation.
  std::vector<std::string> line(const std::string& prefix) const {
    std::vector<const key_value*> found;
    for (const auto& [key, kv] : keys_)
      if (key.starts_with(prefix)) found.push_back(&kv);
    std::sort(found.begin(), found.end(),
              [](const auto* a, const auto* b) { return a->create_revision < b->create_revision; });
    std::vector<std::string> out;
    for (const auto* each : found) out.push_back(each->key);
    return out;
  }

  /// All events from revision `from` on that concern a range.
  std::vector<event> events_since(revision from, const std::string& key, const std::string& range_end) const {
    std::vector<event> out;
    for (const auto& each : history_)
      if (each.kv->mod_revision >= from && in_range(each.kv->key, key, range_end)) out.push_back(each);
    return out;
  }

  static bool in_range(const std::string& key, const std::string& from, const std::string& range_end) {
    if (range_end.empty()) return key == from;
    return key >= from && (range_end == std::string(1, '\0') || key < range_end);
  }

  // ---- the services -------------------------------------------------------------------------------------

  answer<range_response> apply(const range_request& request) {
    if (request.revision > revision_)
      return refusal{detail::rpc::status_code::out_of_range,
                     "etcdserver: mvcc: required revision is a future revision"};
    return read(request);
  }

  answer<put_response> apply(const put_request& request) { return alone<put_response>(request); }
  answer<delete_range_response> apply(const delete_range_request& request) {
    return alone<delete_range_response>(request);
  }

  answer<txn_response> apply(const txn& request) {
    if (!fits(request, most_operations))
      return refusal{detail::rpc::status_code::invalid_argument,
                     "etcdserver: too many operations in txn request"};
    if (!written_by(request.success) || !written_by(request.failure))
      return refusal{detail::rpc::status_code::invalid_argument,
                     "etcdserver: duplicate key given in txn request"};
    if (full && charged(request))
      return refusal{detail::rpc::status_code::resource_exhausted,
                     "etcdserver: mvcc: database space exceeded"};
    std::vector<bool> path;
    decide(request, path);
    auto step = path.cbegin();
    if (const auto missing = missing_lease(request, step)) return *missing;
    step = path.cbegin();
    std::vector<event> events;
    txn_response out = run(request, step, events);
    commit(std::move(events));
    out.header = header();
    return out;
  }

  answer<lease_grant_response> apply(const lease_grant_request& request, time_point now) {
    if (leases_.contains(request.id))
      return refusal{detail::rpc::status_code::failed_precondition, "etcdserver: lease already exists"};
    const std::int64_t ttl = std::max<std::int64_t>(request.ttl, 2);  // the server's minimum
    const lease_id id = request.id != 0 ? request.id : ++last_lease_;
    leases_[id] = {std::chrono::seconds{ttl}, now + std::chrono::seconds{ttl}, {}};
    lease_grant_response out;
    out.header = header();
    out.id = id;
    out.ttl = ttl;
    return out;
  }

  answer<lease_revoke_response> apply(const lease_revoke_request& request) {
    if (!revoke(request.id))
      return refusal{detail::rpc::status_code::not_found, "etcdserver: requested lease not found"};
    lease_revoke_response out;
    out.header = header();
    return out;
  }

  answer<lease_time_to_live_response> apply(const lease_time_to_live_request& request, time_point now) const {
    lease_time_to_live_response out;
    out.header = header();
    out.id = request.id;
    out.ttl = -1;
    if (const auto found = leases_.find(request.id); found != leases_.end()) {
      out.ttl = std::chrono::duration_cast<std::chrono::seconds>(found->second.expires - now).count();
      out.granted_ttl = found->second.ttl.count();
      if (request.keys) out.keys.assign(found->second.keys.begin(), found->second.keys.end());
    }
    return out;
  }

  lease_keep_alive_response apply(const lease_keep_alive_request& request, time_point now) {
    lease_keep_alive_response out;
    out.header = header();
    out.id = request.id;
    if (const auto found = leases_.find(request.id); found != leases_.end()) {
      found->second.expires = now + found->second.ttl;
      out.ttl = found->second.ttl.count();
    }
    return out;
  }

  /// What an administrator does, or the server by itself; false if there is no such lease.
  bool revoke(lease_id id) {
    const auto found = leases_.find(id);
    if (found == leases_.end()) return false;
    std::vector<event> events;
    for (const auto& key : std::set<std::string>{found->second.keys}) erase(key, events);
    leases_.erase(found);
    commit(std::move(events));
    return true;
  }

  /// Ends the leases whose time is over.
  void expire(time_point now) {
    std::vector<lease_id> over;
    for (const auto& [id, each] : leases_)
      if (now >= each.expires) over.push_back(id);
    for (const auto id : over) revoke(id);
  }
  std::optional<time_point> next_expiry() const {
    std::optional<time_point> out;
    for (const auto& [id, each] : leases_) out = out ? std::min(*out, each.expires) : each.expires;
    return out;
  }

  response_header header() const {
    response_header out;
    out.cluster_id = 1;
    out.member_id = 1;
    out.revision = revision_;
    return out;
  }

private:
  struct lease_entry {
    std::chrono::seconds ttl;
    time_point expires;
    std::set<std::string> keys;
  };

  template <class Response, class Request>
  answer<Response> alone(const Request& request) {
    auto whole = apply(txn{}.then(request));
    if (auto* refused = std::get_if<refusal>(&whole)) return *refused;
    auto& done = std::get<txn_response>(whole);
    Response out = std::get<Response>(std::move(done.responses.front().response));
    out.header = done.header;
    return out;
  }

  range_response read(const range_request& request) const {
    const std::map<std::string, key_value>& from =
        request.revision == 0 ? keys_ : snapshots_.at(request.revision);
    range_response out;
    out.header = header();
    for (const auto& [key, kv] : from)
      if (in_range(key, request.key, request.range_end)) out.kvs.push_back(kv);
    out.count = static_cast<std::int64_t>(out.kvs.size());
    if (request.sort_target == sort_target::create)
      std::sort(out.kvs.begin(), out.kvs.end(),
                [](const auto& a, const auto& b) { return a.create_revision < b.create_revision; });
    if (request.sort_target == sort_target::mod)
      std::sort(out.kvs.begin(), out.kvs.end(),
                [](const auto& a, const auto& b) { return a.mod_revision < b.mod_revision; });
    if (request.sort_order == sort_order::descend) std::reverse(out.kvs.begin(), out.kvs.end());
    if (request.limit != 0 && out.count > request.limit) {
      out.kvs.resize(static_cast<std::size_t>(request.limit));
      out.more = true;
    }
    if (request.keys_only)
      for (auto& each : out.kvs) each.value.clear();
    if (request.count_only) out.kvs.clear();
    return out;
  }

  bool holds(const compare& each) const {
    std::vector<const key_value*> concerned;
    for (const auto& [key, kv] : keys_)
      if (in_range(key, each.key, each.range_end)) concerned.push_back(&kv);
    static const key_value none;
    if (concerned.empty()) {
      if (each.target == compare_target::value) return false;
      concerned.push_back(&none);
    }
    return std::all_of(concerned.begin(), concerned.end(),
                       [&](const key_value* kv) { return holds(each, *kv); });
  }

  template <class T>
  static bool related(compare_result how, const T& left, const T& right) {
    switch (how) {
      case compare_result::equal:
        return left == right;
      case compare_result::greater:
        return left > right;
      case compare_result::less:
        return left < right;
      case compare_result::not_equal:
        return left != right;
    }
    return false;
  }

  static bool holds(const compare& each, const key_value& kv) {
    const auto number = [&]<compare_target Target>(std::int64_t left) {
      const auto* given = std::get_if<compare_operand<Target>>(&each.target_union);
      return related(each.result, left, given != nullptr ? given->value : std::int64_t{0});
    };
    switch (each.target) {
      case compare_target::version:
        return number.template operator()<compare_target::version>(kv.version);
      case compare_target::create:
        return number.template operator()<compare_target::create>(kv.create_revision);
      case compare_target::mod:
        return number.template operator()<compare_target::mod>(kv.mod_revision);
      case compare_target::lease:
        return number.template operator()<compare_target::lease>(kv.lease);
      case compare_target::value: {
        const auto* given = std::get_if<compare_operand<compare_target::value>>(&each.target_union);
        return related(each.result, kv.value, given != nullptr ? given->value : std::string{});
      }
    }
    return false;
  }

  using branch = std::vector<request_op>;
  /// Which branch each transaction takes, nested ones after those around them.
  using path_step = std::vector<bool>::const_iterator;

  /// All compares, nested ones too, see the store before the whole transaction.
  void decide(const txn& request, std::vector<bool>& path) const {
    const bool holding = std::all_of(request.compare.begin(), request.compare.end(),
                                     [this](const compare& each) { return holds(each); });
    path.push_back(holding);
    for (const auto& each : holding ? request.success : request.failure)
      if (const auto* nested = std::get_if<txn>(&each.request)) decide(*nested, path);
  }

  /// A level takes its largest number from what is allowed; what is below it has the rest.
  static bool fits(const txn& request, std::size_t allowed) {
    const auto taken = std::max({request.compare.size(), request.success.size(), request.failure.size()});
    if (taken > allowed) return false;
    const auto below = [&](const request_op& each) {
      const auto* nested = std::get_if<txn>(&each.request);
      return nested == nullptr || fits(*nested, allowed - taken);
    };
    return std::all_of(request.success.begin(), request.success.end(), below) &&
           std::all_of(request.failure.begin(), request.failure.end(), below);
  }

  struct written {
    std::set<std::string> puts;
    std::vector<delete_range_request> deletes;

    bool has(const std::string& key) const {
      return puts.contains(key) || std::any_of(deletes.begin(), deletes.end(), [&](const auto& each) {
               return in_range(key, each.key, each.range_end);
             });
    }
  };

  /// Nothing if a key is put twice, or put and deleted on one level, or put after a nested transaction that
  /// deletes it. Both branches of a nested transaction count, but not against each other.
  static std::optional<written> written_by(const branch& operations) {
    written out;
    for (const auto& each : operations)
      if (const auto* deletes = std::get_if<delete_range_request>(&each.request))
        out.deletes.push_back(*deletes);
    for (const auto& each : operations) {
      const auto* nested = std::get_if<txn>(&each.request);
      if (nested == nullptr) continue;
      auto inner = written_by(nested->success);
      const auto other = written_by(nested->failure);
      if (!inner || !other) return std::nullopt;
      inner->puts.insert(other->puts.begin(), other->puts.end());
      inner->deletes.insert(inner->deletes.end(), other->deletes.begin(), other->deletes.end());
      if (std::any_of(inner->puts.begin(), inner->puts.end(), [&](const auto& key) { return out.has(key); }))
        return std::nullopt;
      out.puts.insert(inner->puts.begin(), inner->puts.end());
      out.deletes.insert(out.deletes.end(), inner->deletes.begin(), inner->deletes.end());
    }
    for (const auto& each : operations)
      if (const auto* puts = std::get_if<put_request>(&each.request)) {
        if (out.has(puts->key)) return std::nullopt;
        out.puts.insert(puts->key);
      }
    return out;
  }

  static bool charged(const txn& request) {
    const auto puts = [](const request_op& each) {
      return std::holds_alternative<put_request>(each.request);
    };
    return std::any_of(request.success.begin(), request.success.end(), puts) ||
           std::any_of(request.failure.begin(), request.failure.end(), puts);
  }

  /// A transaction that would use an unknown lease is refused as a whole.
  std::optional<refusal> missing_lease(const txn& request, path_step& step) const {
    for (const auto& each : *step++ ? request.success : request.failure) {
      if (const auto* nested = std::get_if<txn>(&each.request)) {
        if (const auto found = missing_lease(*nested, step)) return found;
      }
      const auto* writes = std::get_if<put_request>(&each.request);
      if (writes != nullptr && writes->lease != 0 && !leases_.contains(writes->lease))
        return refusal{detail::rpc::status_code::not_found, "etcdserver: requested lease not found"};
    }
    return std::nullopt;
  }

  txn_response run(const txn& request, path_step& step, std::vector<event>& events) {
    txn_response out;
    out.succeeded = *step++;
    for (const auto& each : out.succeeded ? request.success : request.failure) {
      response_op& done = out.responses.emplace_back();
      if (const auto* reads = std::get_if<range_request>(&each.request)) {
        done.response = read(*reads);
      } else if (const auto* puts = std::get_if<put_request>(&each.request)) {
        put_response put;
        if (const auto before = keys_.find(puts->key); puts->prev_kv && before != keys_.end())
          put.prev_kv = before->second;
        write(*puts, events);
        done.response = std::move(put);
      } else if (const auto* deletes = std::get_if<delete_range_request>(&each.request)) {
        delete_range_response deleted;
        for (const auto& [key, kv] : std::map<std::string, key_value>{keys_})
          if (in_range(key, deletes->key, deletes->range_end)) {
            erase(key, events);
            ++deleted.deleted;
            if (deletes->prev_kv) deleted.prev_kvs.push_back(kv);
          }
        done.response = deleted;
      } else if (const auto* nested = std::get_if<txn>(&each.request)) {
        done.response = run(*nested, step, events);
      }
    }
    return out;
  }

  void write(const put_request& request, std::vector<event>& events) {
    auto& kv = keys_[request.key];
    if (kv.lease != 0) leases_.at(kv.lease).keys.erase(request.key);
    if (kv.version == 0) kv.create_revision = revision_ + 1;
    kv.key = request.key;
    kv.mod_revision = revision_ + 1;
    ++kv.version;
    kv.value = request.value;
    kv.lease = request.lease;
    if (kv.lease != 0) leases_.at(kv.lease).keys.insert(request.key);
    events.push_back({event_type::put, kv, std::nullopt});
  }

  void erase(const std::string& key, std::vector<event>& events) {
    const auto found = keys_.find(key);
    if (found == keys_.end()) return;
    if (const auto of = leases_.find(found->second.lease); of != leases_.end()) of->second.keys.erase(key);
    keys_.erase(found);
    event gone{event_type::delete_, key_value{}, std::nullopt};
    gone.kv->key = key;
    gone.kv->mod_revision = revision_ + 1;
    events.push_back(std::move(gone));
  }

  void commit(std::vector<event> events) {
    if (events.empty()) return;
    ++revision_;
    snapshots_[revision_] = keys_;
    history_.insert(history_.end(), events.begin(), events.end());
    if (on_revision) on_revision(events);
  }

  revision revision_ = 1;
  std::map<std::string, key_value> keys_;
  std::map<revision, std::map<std::string, key_value>> snapshots_{{1, {}}};
  std::vector<event> history_;
  std::map<lease_id, lease_entry> leases_;
  lease_id last_lease_ = 0;
};

}  // namespace conclave::test
