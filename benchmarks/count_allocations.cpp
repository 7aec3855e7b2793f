// SPDX-License-Identifier: BSL-1.0

// Replaces operator new of the whole program by one that counts. A translation unit of its own: where new is
// inlined and delete is not, GCC takes them for a mismatch.

#include "count_allocations.hpp"

#include <cstdlib>
#include <new>

std::atomic<std::uint64_t> bench::allocations{0};

void* operator new(std::size_t size) {
  bench::allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc{};
}
void* operator new[](std::size_t size) { return ::operator new(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
