// Loading rows: from whatever layout the source has to groups of 16 rows × 32 ordered channels.
//
// A group holds the rows in the lanes of vectors, `group[channel][lane]`. Where rows are contiguous
// in memory, runs of a channel are copied straight into groups. Otherwise whole rows are put into
// channel order first, one after the other, and 32 channels of 16 rows are transposed at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "mmcompile/pack.h"

namespace mmcompile {

constexpr int kLanes = 16;
// Rows per tile: where rows are contiguous, long runs of memory (128 fp32 are eight cache lines),
// else kLanes, so that a tile's rows stay in the cache between ordering and encoding.
constexpr int kContiguousTile = 128;

using Group = float[kSegmentStep][kLanes];

template <class T>
constexpr float widen(T value);
template <>
constexpr float widen(float value) {
  return value;
}

struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};
template <>
[[gnu::always_inline]] constexpr float widen(Half value) {
  return half_to_float(value.bits);
}
template <>
[[gnu::always_inline]] constexpr float widen(Bfloat16 value) {
  return bfloat16_to_float(value.bits);
}

// A channel order for reading whole rows: any channel stands in for padding, which is zeroed after.
struct GatherOrder {
  explicit GatherOrder(std::span<const std::int32_t> order) : channels(order.begin(), order.end()) {
    for (std::size_t c = 0; c < channels.size(); ++c) {
      if (channels[c] != kPadding) continue;
      channels[c] = 0;
      paddings.push_back(c);
    }
  }

  std::vector<std::int32_t> channels;
  std::vector<std::size_t> paddings;  // the positions that hold kPadding
};

// One tile of the work.
struct Tile {
  const ValueMatrix& source;
  const Layout& layout;
  const GatherOrder& gather_order;
  std::int64_t first_row;
  int rows;                // of this tile, at most kContiguousTile
  std::int64_t rows_left;  // from first_row on, that the same thread packs
  std::int64_t row_bytes;
  void* gathered;       // scratch of kLanes × K_pad values, unless rows are contiguous
  std::uint8_t* codes;  // of first_row
  ScalesOut scales;     // of first_row
  ErrorSums* sums;      // one per segment

  bool contiguous() const { return source.row_stride == 1; }
};

// Calls body(T{}) with T the source's type.
template <class Body>
[[gnu::always_inline]] inline void with_type(ValueType type, const Body& body) {
  switch (type) {
    case ValueType::kFloat32:
      body(float{});
      break;
    case ValueType::kFloat16:
      body(Half{});
      break;
    case ValueType::kBfloat16:
      body(Bfloat16{});
      break;
  }
}

// Copies 32 channels of rows that are contiguous in memory (row_stride 1).
template <class T>
[[gnu::always_inline]] inline void load_contiguous(const Tile& tile, const std::int32_t* channels,
                                                   Group* groups) {
  const T* base = static_cast<const T*>(tile.source.data) + tile.first_row;
  const int full_groups = tile.rows / kLanes;
  const int rest = tile.rows % kLanes;
  for (int c = 0; c < kSegmentStep; ++c) {
    if (channels[c] == kPadding) {
      for (int g = 0; g * kLanes < tile.rows; ++g)
        std::memset(groups[g][c], 0, sizeof groups[g][c]);
      continue;
    }
    const T* run = base + channels[c] * tile.source.channel_stride;
    for (int g = 0; g < full_groups; ++g, run += kLanes) {
      float* lanes = groups[g][c];
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = widen(run[lane]);
    }
    if (rest == 0) continue;
    float* lanes = groups[full_groups][c];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < rest ? widen(run[lane]) : 0.0f;
  }
}

// Asks for some of the 32 channels that load_contiguous will copy next.
template <class T>
[[gnu::always_inline]] inline void prefetch_contiguous(const Tile& tile,
                                                       const std::int32_t* channels, int begin,
                                                       int end) {
  const T* base = static_cast<const T*>(tile.source.data) + tile.first_row;
  for (int c = begin; c < end; ++c) {
    if (channels[c] == kPadding) continue;
    const T* run = base + channels[c] * tile.source.channel_stride;
    for (int row = 0; row < tile.rows; row += 64 / sizeof(T)) __builtin_prefetch(run + row, 0, 2);
  }
}

// Copies the rows of a tile in channel order, from any layout, to T[kLanes, K_pad]. Reading a row's
// channels in their new order jumps about in it, which no hardware prefetcher follows; so the next
// row is asked for meanwhile.
template <class T>
[[gnu::always_inline]] inline void gather_rows_of(const Tile& tile) {
  const std::int64_t padded = tile.layout.channels();
  const std::int64_t channels = tile.source.channels;
  const std::int64_t stride = tile.source.channel_stride;
  const std::int32_t* order = tile.gather_order.channels.data();
  const T* row = static_cast<const T*>(tile.source.data) + tile.first_row * tile.source.row_stride;
  T* ordered = static_cast<T*>(tile.gathered);
  for (int r = 0; r < tile.rows; ++r) {
    const T* next_row = row + tile.source.row_stride;
    if (stride == 1) {
      for (std::int64_t c = 0; c < padded; c += kSegmentStep) {
#pragma GCC unroll 32
        for (int i = 0; i < kSegmentStep; ++i) ordered[c + i] = row[order[c + i]];
        if (r + 1 >= tile.rows_left) continue;
        for (std::int64_t p = c; p < std::min(c + kSegmentStep, channels); p += 64 / sizeof(T))
          __builtin_prefetch(next_row + p);
      }
    } else {
      for (std::int64_t c = 0; c < padded; ++c) ordered[c] = row[order[c] * stride];
    }
    for (const std::size_t c : tile.gather_order.paddings) ordered[c] = T{};
    row = next_row;
    ordered += padded;
  }
  std::memset(ordered, 0, static_cast<std::size_t>((kLanes - tile.rows) * padded) * sizeof(T));
}

// Transposes 4 × 4 fp32 values; the strides are those of rows.
[[gnu::always_inline]] inline void transpose_quad(const float* from, std::int64_t from_stride,
                                                  float* to, std::int64_t to_stride) {
  using Quad = float [[gnu::vector_size(16)]];
  Quad in[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&in[i], from + i * from_stride, sizeof(Quad));
  const Quad low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5);
  const Quad low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5);
  const Quad high01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
  const Quad high23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
  const Quad out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                       __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                       __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                       __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &out[i], sizeof(Quad));
}

// Transposes fp32 values [kLanes][kSegmentStep] of that row stride, 4 × 4 at a time.
[[gnu::always_inline]] inline void transpose(const float* rows, std::int64_t stride, Group& group) {
  for (int lane = 0; lane < kLanes; lane += 4, rows += 4 * stride) {
#pragma GCC unroll 8
    for (int c = 0; c < kSegmentStep; c += 4)
      transpose_quad(rows + c, stride, &group[c][lane], kLanes);
  }
}

// Widens and transposes 32 channels of the rows that gather_rows left.
template <class T>
[[gnu::always_inline]] inline void load_gathered(const T* ordered, std::int64_t stride,
                                                 Group& group) {
  if constexpr (std::is_same_v<T, float>) {
    transpose(ordered, stride, group);
  } else {
    alignas(64) float rows[kLanes * kSegmentStep];
    for (int lane = 0; lane < kLanes; ++lane, ordered += stride) {
#pragma omp simd
      for (int c = 0; c < kSegmentStep; ++c) rows[lane * kSegmentStep + c] = widen(ordered[c]);
    }
    transpose(rows, kSegmentStep, group);
  }
}

// Orders the rows of a tile whose rows are not contiguous, once before its groups are loaded.
[[gnu::always_inline]] inline void gather_rows(const Tile& tile) {
  with_type(tile.source.type,
            [&]<class T>(T) __attribute__((always_inline)) { gather_rows_of<T>(tile); });
}

// Loads the 32 channels at position `channel` of the order for all rows of a tile.
[[gnu::always_inline]] inline void load_groups(const Tile& tile, std::int64_t channel,
                                               Group* groups) {
  with_type(tile.source.type, [&]<class T>(T) __attribute__((always_inline)) {
    if (tile.contiguous()) {
      load_contiguous<T>(tile, tile.layout.order.data() + channel, groups);
    } else {
      const T* ordered = static_cast<const T*>(tile.gathered) + channel;
      load_gathered(ordered, tile.layout.channels(), groups[0]);
    }
  });
}

// Asks for one of `shares` equal parts of what load_groups will copy for `channel`.
[[gnu::always_inline]] inline void prefetch_share(const Tile& tile, std::int64_t channel, int share,
                                                  int shares) {
  if (!tile.contiguous() || channel >= tile.layout.channels()) return;
  with_type(tile.source.type, [&]<class T>(T) __attribute__((always_inline)) {
    prefetch_contiguous<T>(tile, tile.layout.order.data() + channel, share * kSegmentStep / shares,
                           (share + 1) * kSegmentStep / shares);
  });
}

}  // namespace mmcompile
