// SPDX-License-Identifier: BSL-1.0
#pragma once

/// Everything but `conclave/testing/`, which programs under test do not need.

#include <conclave/asio.hpp>
#include <conclave/client.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/auth.hpp>
#include <conclave/etcd/kv.hpp>
#include <conclave/etcd/lease.hpp>
#include <conclave/etcd/maintenance.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/etcd/watch.hpp>
#include <conclave/fwd.hpp>
#include <conclave/kept_lease.hpp>
#include <conclave/mutex.hpp>
#include <conclave/priority_queue.hpp>
#include <conclave/queue.hpp>
#include <conclave/session.hpp>
#include <conclave/unique_lock.hpp>
#include <conclave/version.hpp>
#include <conclave/watcher.hpp>
#include <conclave/with_lock.hpp>
