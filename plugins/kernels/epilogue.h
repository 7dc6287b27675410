// From accumulators to y: sums over warps and over splits of K, bias, residual, one rounding.
//
// Accumulators are those of mma: in value[m][n], lane 4g + t holds rows g (values 0, 1) and g + 8
// (2, 3), columns 2t and 2t + 1, of A fragment m by B fragment n.
#pragma once

#include "device.h"
#include "parameters.h"
#include "tiles.h"

namespace mmcompile {

struct TilePlace {
  int index;  // of the tile in the grid
  int first_row;
  int first_channel;
};

template <Tile tile>
struct Accumulators {
  static constexpr int kA = tile.fragments_a();
  static constexpr int kB = tile.fragments_b();
  float value[kA][kB][4];

  MMCOMPILE_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < kA; ++m)
#pragma unroll
      for (int n = 0; n < kB; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) value[m][n][i] = 0;
  }
  MMCOMPILE_DEVICE void scale(float first, float second) {
#pragma unroll
    for (int m = 0; m < kA; ++m)
#pragma unroll
      for (int n = 0; n < kB; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          value[m][n][i] = device::multiply(device::multiply(value[m][n][i], first), second);
  }
  // The four values of a fragment as bits, for memory.
  MMCOMPILE_DEVICE Words4 words(int m, int n) const {
    return {{float_bits(value[m][n][0]), float_bits(value[m][n][1]), float_bits(value[m][n][2]),
             float_bits(value[m][n][3])}};
  }
  MMCOMPILE_DEVICE void add(int m, int n, const Words4& words) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      value[m][n][i] = device::add(value[m][n][i], bits_float(words.word[i]));
  }
};

// Threads that hold the sums of the block once its warps along K are added up: those of the first.
template <Tile tile>
inline constexpr int kOwners = tile.threads() / tile.warps_k;

// Adds up the warps along K, in order, into the first of them. All threads of the block; shared
// memory is free for use, and is so again for who waits at a barrier.
template <Tile tile>
MMCOMPILE_DEVICE void sum_warps(Accumulators<tile>& acc, int warp_k) {
  using Acc = Accumulators<tile>;
  constexpr int fragments = Acc::kA * Acc::kB;
  const int owner = device::thread_index() % kOwners<tile>;
  const auto place = [&](int k, int m, int n) {
    return static_cast<SharedOffset>(
        16 * (((k - 1) * fragments + m * Acc::kB + n) * kOwners<tile> + owner));
  };
  if (warp_k > 0) {
#pragma unroll
    for (int m = 0; m < Acc::kA; ++m)
#pragma unroll
      for (int n = 0; n < Acc::kB; ++n) device::store_shared(place(warp_k, m, n), acc.words(m, n));
  }
  device::sync_threads();
  if (warp_k > 0) return;
  for (int k = 1; k < tile.warps_k; ++k) {
#pragma unroll
    for (int m = 0; m < Acc::kA; ++m)
#pragma unroll
      for (int n = 0; n < Acc::kB; ++n) acc.add(m, n, device::load_shared<Words4>(place(k, m, n)));
  }
}

// Leaves this split's sums in memory. True in the block that came last, which then has the sums of
// all splits. All threads of the block.
template <Tile tile>
MMCOMPILE_DEVICE bool sum_splits(Accumulators<tile>& acc, const GemmParams& params, int tile_index,
                                 int split, bool owns) {
  using Acc = Accumulators<tile>;
  const std::int64_t first =
      static_cast<std::int64_t>(tile_index) * params.splits * tile.tile_floats();
  const auto place = [&](int s, int m, int n) {
    return reinterpret_cast<Words4*>(params.partials + first + s * tile.tile_floats()) +
           (m * Acc::kB + n) * kOwners<tile> + device::thread_index();
  };
  if (owns) {
#pragma unroll
    for (int m = 0; m < Acc::kA; ++m)
#pragma unroll
      for (int n = 0; n < Acc::kB; ++n) device::store_global(place(split, m, n), acc.words(m, n));
  }
  // Every thread's sums are visible before the block counts itself in.
  device::fence_global();
  device::sync_threads();
  if (device::thread_index() == 0) {
    const std::uint32_t before = device::increment_global(params.counters + tile_index);
    device::store_shared<std::uint32_t>(0, before);
  }
  device::sync_threads();
  const std::uint32_t before = device::load_shared<std::uint32_t>(0);
  if (before + 1 != static_cast<std::uint32_t>(params.splits)) return false;
  device::fence_global();
  if (!owns) return true;
  acc.clear();
  for (int s = 0; s < params.splits; ++s) {
#pragma unroll
    for (int m = 0; m < Acc::kA; ++m)
#pragma unroll
      for (int n = 0; n < Acc::kB; ++n) acc.add(m, n, device::load_global(place(s, m, n)));
  }
  return true;
}

MMCOMPILE_DEVICE float load_value(const void* array, std::int64_t i, int type) {
  if (type == MMC_FLOAT32) return device::load_global(static_cast<const float*>(array) + i);
  const std::uint16_t bits = device::load_global(static_cast<const std::uint16_t*>(array) + i);
  return type == MMC_FLOAT16 ? device::half_to_float_native(bits) : bfloat16_to_float(bits);
}

MMCOMPILE_DEVICE std::uint16_t round_to_16(float value, int type) {
  return type == MMC_FLOAT16 ? device::float_to_half(value) : device::float_to_bfloat16(value);
}

MMCOMPILE_DEVICE void store_value(void* array, std::int64_t i, int type, float value) {
  if (type == MMC_FLOAT32)
    device::store_global(static_cast<float*>(array) + i, value);
  else
    device::store_global(static_cast<std::uint16_t*>(array) + i, round_to_16(value, type));
}

// Two neighbours at an even index of an array whose rows have an even length, and which starts at a
// multiple of two elements.
MMCOMPILE_DEVICE void store_pair(void* array, std::int64_t i, int type, float low, float high) {
  if (type == MMC_FLOAT32) {
    device::store_global(reinterpret_cast<Words2*>(static_cast<float*>(array) + i),
                         Words2{{float_bits(low), float_bits(high)}});
  } else {
    const std::uint32_t pair =
        round_to_16(low, type) | static_cast<std::uint32_t>(round_to_16(high, type)) << 16;
    device::store_global(reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(array) + i),
                         pair);
  }
}

// y = acc + bias + residual, rounded once. The calling warp's fragments start at a_start of the A
// operand's rows of the tile, and at b_start of B's.
template <Tile tile>
MMCOMPILE_DEVICE void write_tile(const Accumulators<tile>& acc, const GemmParams& params,
                                 const TilePlace& place, int a_start, int b_start) {
  using Acc = Accumulators<tile>;
  const int lane = device::thread_index() % kWarp;
  const bool pairs = !tile.swapped && params.y_pairs;
  const auto finished = [&](float sum, std::int64_t row, int channel) {
    float value = sum;
    if (params.bias != nullptr)
      value = device::add(value, device::load_constant(params.bias + channel));
    if (params.residual != nullptr)
      value = device::add(
          value, load_value(params.residual, row * params.out_channels + channel, params.y_type));
    return value;
  };
#pragma unroll
  for (int m = 0; m < Acc::kA; ++m) {
#pragma unroll
    for (int n = 0; n < Acc::kB; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int a = a_start + 16 * m + 8 * half + lane / 4;
        const int b = b_start + 8 * n + 2 * (lane % 4);
        const float* sums = acc.value[m][n] + 2 * half;
        if (pairs) {
          const std::int64_t row = place.first_row + a;
          const int channel = place.first_channel + b;
          if (row < params.rows && channel < params.out_channels)
            store_pair(params.y, row * params.out_channels + channel, params.y_type,
                       finished(sums[0], row, channel), finished(sums[1], row, channel + 1));
          continue;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::int64_t row = place.first_row + (tile.swapped ? b + i : a);
          const int channel = place.first_channel + (tile.swapped ? a : b + i);
          if (row < params.rows && channel < params.out_channels)
            store_value(params.y, row * params.out_channels + channel, params.y_type,
                        finished(sums[i], row, channel));
        }
      }
    }
  }
}

}  // namespace mmcompile
