// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <cstdint>

namespace bench {

/// Calls of operator new, by this program and by the C++ libraries that it uses, as count_allocations.cpp
/// counts them.
extern std::atomic<std::uint64_t> allocations;

}  // namespace bench
