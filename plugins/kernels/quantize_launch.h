// How many rows a block of the quantizing kernel takes, and how: plain arithmetic for the host.
#pragma once

#include <cstdint>

#include "parameters.h"

namespace mmcompile {

inline constexpr int kStagedThreads = 256;
inline constexpr int kDirectThreads = 64;

// Ordered channels of a segment that a warp takes at a time.
inline constexpr int kChunk = 256;

// What the banks of shared memory deliver at a time.
inline constexpr int kBankBytes = 128;

// Shared memory that a block may ask for on all architectures (99 KB on sm_120, which has 100), and
// what lets several blocks be on a multiprocessor, where one loads while others compute.
inline constexpr int kMaxStagedBytes = 98 * 1024;
inline constexpr int kSharedStagedBytes = 48 * 1024;

#if defined(__CUDACC__)
__host__ __device__
#endif
    constexpr int chunks_of(int channels) {
  return (channels + kChunk - 1) / kChunk;
}

struct QuantizeLaunch {
  bool staged;         // quantize_staged, else quantize_direct
  int rows_per_block;  // their kRows: 1, 2 or 4; 1 for quantize_direct
  int grid_x;
  int grid_y;
  int threads;
  int shared_bytes;
};

// Rows transposed in shared memory, with a column of zeros, in whole rows of banks.
constexpr std::int64_t staged_bytes(MmcType x_type, int rows_per_block, std::int64_t in_channels) {
  const std::int64_t bytes = (in_channels + 1) * rows_per_block * (x_type == MMC_FLOAT32 ? 4 : 2);
  return (bytes + kBankBytes - 1) / kBankBytes * kBankBytes;
}

// Few warps are spread over the GPU, and wait for one load of `order` and one of x. More warps per
// multiprocessor than eight would be limited by what scattered loads cost each: those stage their
// rows, 8 bytes of a channel at a time where that leaves a block for every multiprocessor. (16
// bytes would take twice the registers.)
constexpr QuantizeLaunch choose_quantize(MmcType x_type, std::int32_t rows,
                                         std::int32_t in_channels, const SegmentList& segments,
                                         int multiprocessors) {
  int chunks = 0;
  for (int s = 0; s < segments.count; ++s) chunks += chunks_of(segments.segment[s].channels);
  constexpr int direct_warps = kDirectThreads / 32;
  const QuantizeLaunch direct{false,          1, rows, (chunks + direct_warps - 1) / direct_warps,
                              kDirectThreads, 0};
  if (static_cast<std::int64_t>(rows) * chunks <= 8LL * multiprocessors ||
      staged_bytes(x_type, 1, in_channels) > kMaxStagedBytes)
    return direct;
  for (int count = x_type == MMC_FLOAT32 ? 2 : 4; count > 0; count /= 2) {
    const std::int64_t bytes = staged_bytes(x_type, count, in_channels);
    const int blocks = static_cast<int>((static_cast<std::int64_t>(rows) + count - 1) / count);
    if (count > 1 && (bytes > kSharedStagedBytes || blocks < multiprocessors)) continue;
    return {true, count, blocks, 1, kStagedThreads, static_cast<int>(bytes)};
  }
  return direct;
}

}  // namespace mmcompile
