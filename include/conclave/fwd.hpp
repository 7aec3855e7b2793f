// SPDX-License-Identifier: BSL-1.0
#pragma once

/// Declares the classes of the library and includes only the version: for headers that only name them. It costs no
/// time, where any other header brings Asio or gRPC with it.

#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI {

class client;
class client_options;
class tls_options;
class kept_lease;
class watcher;
class session;
class mutex;
class unique_lock;
class basic_queue;
class queue;
class priority_queue;
class txn;
class error;
enum class errc;
enum class condition;
enum class commit_outcome;

struct commit_result;
struct compare_and_put_result;
struct lock_line;
struct session_options;
struct watch_options;
struct compare;
struct put_options;
struct range_options;
struct delete_options;
struct key_value;
struct event;
struct txn_response;

}  // namespace conclave
