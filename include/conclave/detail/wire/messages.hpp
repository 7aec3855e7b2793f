// SPDX-License-Identifier: BSL-1.0
#pragma once

/// The codec and the tables of all messages.

#include <conclave/detail/wire/auth_tables.hpp>
#include <conclave/detail/wire/codec.hpp>
#include <conclave/detail/wire/kv_tables.hpp>
#include <conclave/detail/wire/lease_tables.hpp>
#include <conclave/detail/wire/maintenance_tables.hpp>
#include <conclave/detail/wire/txn_tables.hpp>
#include <conclave/detail/wire/types_tables.hpp>
#include <conclave/detail/wire/watch_tables.hpp>
