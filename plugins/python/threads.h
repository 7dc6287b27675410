// A loop over independent items on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace mmcompile {

// Calls body(begin, end) for ranges that cover 0..count - 1. Threads take ranges as they get free,
// so a busy machine delays only one range. The first exception of a body ends the loop.
template <class Body>
void parallel_ranges(std::int64_t count, int threads, const Body& body) {
  constexpr int ranges_per_thread = 8;
  const std::int64_t workers = std::clamp<std::int64_t>(count, 1, threads);
  const std::int64_t length = std::max<std::int64_t>(1, count / (workers * ranges_per_thread));
  std::atomic<std::int64_t> next = 0;
  std::atomic_flag failed;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (;;) {
        const std::int64_t begin = next.fetch_add(length);
        if (begin >= count) return;
        body(begin, std::min(count, begin + length));
      }
    } catch (...) {
      next = count;
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (std::int64_t i = 1; i < workers; ++i) helpers.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace mmcompile
