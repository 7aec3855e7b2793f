// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <conclave/etcd/key_range.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/lease.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/etcd/types.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// A client's part of the store: every key that it sends gets a prefix, every key that it receives loses it.
/// Compatible with the namespaces of etcd's Go client.
class key_space {
public:
  explicit key_space(std::string prefix = {}) : prefix_(std::move(prefix)) {}

  [[nodiscard]] const std::string& prefix() const noexcept { return prefix_; }

  /// One key, or the begin of a range.
  void enter(std::string& key) const { key.insert(0, prefix_); }

  /// Both ends of a range; an empty end means a single key, "\0" the end of all keys.
  void enter(std::string& key, std::string& range_end) const {
    if (prefix_.empty()) return;
    if (range_end.size() == 1 && range_end[0] == '\0')
      range_end = prefix_end(prefix_);
    else if (!range_end.empty())
      enter(range_end);
    // The lowest key of all stands for the begin of this part.
    if (key.size() == 1 && key[0] == '\0' && !range_end.empty()) key.clear();
    enter(key);
  }

  void enter(range_request& request) const { enter(request.key, request.range_end); }
  void enter(put_request& request) const { enter(request.key); }
  void enter(delete_range_request& request) const { enter(request.key, request.range_end); }

  void enter(txn& request) const {
    if (prefix_.empty()) return;
    for (auto& each : request.compare) enter(each.key, each.range_end);
    for (auto* branch : {&request.success, &request.failure})
      for (auto& each : *branch) std::visit([this](auto& operation) { enter(operation); }, each.request);
  }

  /// Requests that name no key.
  template <class Request>
  void enter(Request&) const noexcept {}

  void leave(std::string& key) const {
    if (key.size() >= prefix_.size()) key.erase(0, prefix_.size());
  }
  void leave(key_value& each) const { leave(each.key); }

  void leave(range_response& response) const {
    if (prefix_.empty()) return;
    for (auto& each : response.kvs) leave(each);
  }
  void leave(put_response& response) const {
    if (response.prev_kv) leave(*response.prev_kv);
  }
  void leave(delete_range_response& response) const {
    if (prefix_.empty()) return;
    for (auto& each : response.prev_kvs) leave(each);
  }
  void leave(txn_response& response) const {
    if (prefix_.empty()) return;
    for (auto& each : response.responses)
      std::visit([this](auto& operation) { leave(operation); }, each.response);
  }
  /// A lease may hold keys of others, too: those are not shown.
  void leave(lease_time_to_live_response& response) const {
    if (prefix_.empty()) return;
    std::erase_if(response.keys, [this](const std::string& key) { return key.rfind(prefix_, 0) != 0; });
    for (auto& each : response.keys) leave(each);
  }
  void leave(event& each) const {
    if (each.kv) leave(*each.kv);
    if (each.prev_kv) leave(*each.prev_kv);
  }

  /// Answers that name no key.
  template <class Response>
  void leave(Response&) const noexcept {}

private:
  std::string prefix_;
};

}  // namespace conclave::detail::engine
