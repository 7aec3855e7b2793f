// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/detail/wire/messages.hpp>

#include <string_view>
#include <tuple>

#include "conclave_test.pb.h"

/// Every message of ours beside the class that protoc generates for the same fields.

namespace conclave::test {

template <class Ours, class Generated>
struct message_pair {
  using ours = Ours;
  using generated = Generated;
};

using message_pairs = std::tuple<
    message_pair<response_header, ResponseHeader>, message_pair<key_value, KeyValue>,
    message_pair<event, Event>, message_pair<range_request, RangeRequest>,
    message_pair<range_response, RangeResponse>, message_pair<put_request, PutRequest>,
    message_pair<put_response, PutResponse>, message_pair<delete_range_request, DeleteRangeRequest>,
    message_pair<delete_range_response, DeleteRangeResponse>,
    message_pair<compaction_request, CompactionRequest>,
    message_pair<compaction_response, CompactionResponse>, message_pair<compare, Compare>,
    message_pair<request_op, RequestOp>, message_pair<response_op, ResponseOp>, message_pair<txn, TxnRequest>,
    message_pair<txn_response, TxnResponse>, message_pair<lease_grant_request, LeaseGrantRequest>,
    message_pair<lease_grant_response, LeaseGrantResponse>,
    message_pair<lease_revoke_request, LeaseRevokeRequest>,
    message_pair<lease_revoke_response, LeaseRevokeResponse>,
    message_pair<lease_keep_alive_request, LeaseKeepAliveRequest>,
    message_pair<lease_keep_alive_response, LeaseKeepAliveResponse>,
    message_pair<lease_time_to_live_request, LeaseTimeToLiveRequest>,
    message_pair<lease_time_to_live_response, LeaseTimeToLiveResponse>,
    message_pair<lease_leases_request, LeaseLeasesRequest>, message_pair<lease_status, LeaseStatus>,
    message_pair<lease_leases_response, LeaseLeasesResponse>,
    message_pair<watch_create_request, WatchCreateRequest>,
    message_pair<watch_cancel_request, WatchCancelRequest>,
    message_pair<watch_progress_request, WatchProgressRequest>, message_pair<watch_request, WatchRequest>,
    message_pair<watch_response, WatchResponse>, message_pair<authenticate_request, AuthenticateRequest>,
    message_pair<authenticate_response, AuthenticateResponse>, message_pair<status_request, StatusRequest>,
    message_pair<downgrade_info, DowngradeInfo>, message_pair<status_response, StatusResponse>>;

/// Calls `check.template operator()<Ours, Generated>()` for each pair.
template <class Check>
void for_each_message(Check check) {
  [&]<class... Pairs>(std::tuple<Pairs...>*) {
    (check.template operator()<typename Pairs::ours, typename Pairs::generated>(), ...);
  }(static_cast<message_pairs*>(nullptr));
}

}  // namespace conclave::test
