// A loop over independent items on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace mmcompile {

// Calls body(begin, end) for ranges that cover 0..count - 1. Threads take ranges as they get free,
// so a busy machine delays only one range. The body must not throw.
template <class Body>
void parallel_ranges(std::int64_t count, int threads, const Body& body) {
  constexpr int ranges_per_thread = 8;
  const std::int64_t workers = std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(count, 1));
  const std::int64_t length =
      std::max<std::int64_t>(1, count / (workers * ranges_per_thread));
  std::atomic<std::int64_t> next = 0;
  const auto work = [&] {
    for (;;) {
      const std::int64_t begin = next.fetch_add(length, std::memory_order_relaxed);
      if (begin >= count) return;
      body(begin, std::min(count, begin + length));
    }
  };
  std::vector<std::jthread> helpers;
  for (std::int64_t i = 1; i < workers; ++i) helpers.emplace_back(work);
  work();
}

}  // namespace mmcompile
