// Quantizes and packs rows, 32 ordered channels of a tile of rows at a time.
//
// Rows lie in the lanes of vectors: a group is 16 rows × 32 channels, copied from whatever layout
// the source has into `values[channel][lane]`. All arithmetic is the scalar code of formats.h in
// `omp simd` loops over the lanes; the tile function is compiled for several instruction sets and
// chosen at run time. Codes and sums of squared error come out of one pass over a group.
#include "mmcompile/pack.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "threads.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MMCOMPILE_X86_DISPATCH 1
#endif

namespace mmcompile {
namespace {

constexpr int kLanes = 16;
// Rows per tile: long runs of memory where rows are contiguous (64 fp32 are four cache lines), few
// rows where channels are, so that a tile's rows stay in the cache while channels are gathered.
constexpr int kContiguousTile = TILE;
constexpr int kGatherTile = kLanes;
constexpr int kWordBits = 32;

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

// One tile of rows of the work.
struct Tile {
  const ValueMatrix& source;
  const Layout& layout;
  std::int64_t first_row;
  int rows;           // at most kContiguousTile
  int next_rows;      // rows of the tile that follows, 0 if another thread may take it
  std::uint8_t* codes;   // of first_row
  std::uint8_t* scales;  // of first_row
  std::int64_t row_bytes;
  std::int64_t scale_bytes;
  ErrorSums* sums;  // one per segment
};

// Copies 32 channels of rows that are contiguous in memory (row_stride 1).
template <class T>
[[gnu::always_inline]] inline void load_contiguous(const Tile& tile, const std::int32_t* channels,
                                                   Group* groups) {
  const T* base = static_cast<const T*>(tile.source.data) + tile.first_row;
  for (int c = 0; c < kSegmentStep; ++c) {
    const T* run = base + channels[c] * tile.source.channel_stride;
    for (int first = 0; first < tile.rows; first += kLanes) {
      float* lanes = groups[first / kLanes][c];
      const int count = std::min(kLanes, tile.rows - first);
      if (channels[c] == kPadding) {
        std::memset(lanes, 0, kLanes * sizeof(float));
      } else if (count == kLanes) {
#pragma omp simd
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = widen(run[first + lane]);
      } else {
        for (int lane = 0; lane < kLanes; ++lane)
          lanes[lane] = lane < count ? widen(run[first + lane]) : 0.0f;
      }
    }
  }
}

// Asks for the 32 channels that load_contiguous will copy next.
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

// Copies 32 channels of up to 16 rows from any layout, element by element.
template <class T>
[[gnu::always_inline]] inline void load_gather(const Tile& tile, const std::int32_t* channels,
                                               Group& group) {
  std::int64_t offsets[kSegmentStep];
  for (int c = 0; c < kSegmentStep; ++c)
    offsets[c] = channels[c] == kPadding ? 0 : channels[c] * tile.source.channel_stride;
  if (tile.rows < kLanes) std::memset(group, 0, sizeof group);
  const T* row = static_cast<const T*>(tile.source.data) + tile.first_row * tile.source.row_stride;
  for (int lane = 0; lane < tile.rows; ++lane, row += tile.source.row_stride) {
#pragma GCC unroll 32
    for (int c = 0; c < kSegmentStep; ++c) group[c][lane] = widen(row[offsets[c]]);
  }
  for (int c = 0; c < kSegmentStep; ++c)
    if (channels[c] == kPadding) std::memset(group[c], 0, sizeof group[c]);
}

// Asks for a share of the rows that load_gather will meet in the next tile: it jumps about in
// them, which no hardware prefetcher follows.
template <class T>
[[gnu::always_inline]] inline void prefetch_next_rows(const Tile& tile, std::int64_t begin,
                                                      std::int64_t end) {
  if (tile.source.channel_stride != 1) return;
  const T* row = static_cast<const T*>(tile.source.data) +
                 (tile.first_row + tile.rows) * tile.source.row_stride;
  for (int r = 0; r < tile.next_rows; ++r, row += tile.source.row_stride)
    for (std::int64_t c = begin; c < end; c += 64 / sizeof(T)) __builtin_prefetch(row + c, 0, 2);
}

// Calls body(0), body(1), … body(count - 1) with compile-time numbers: loops that must be gone
// before the vectorizer looks at the loop around them.
template <int count, class Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, count>{});
}

// What a segment's blocks have in common.
struct Constants {
  std::uint32_t carry;  // MX
  float factor;         // NVFP4: amax to block scale
  float tensor_scale;   // NVFP4
};

// The scales of one block of 16 rows, and what follows from them.
struct BlockScales {
  alignas(64) float multiplier[kLanes];  // values to elements
  alignas(64) float unit[kLanes];        // values to errors' unit, a power of two
  alignas(64) float step[kLanes];        // elements to errors' unit
  alignas(64) float unit_size[kLanes];   // 1 / unit; NaN if the block is not finite
};

template <int format>
[[gnu::always_inline]] inline void scale_block(const Constants& constants, Group& group, int first,
                                               std::uint32_t* bytes, BlockScales& scales) {
  constexpr BlockFormat block = kBlockFormats[format];
  alignas(64) std::uint32_t amax[kLanes];
  std::uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int lane = 0; lane < kLanes; ++lane) {
    // Magnitudes compare like their bits; Inf and NaN are the largest.
    std::uint32_t bits = 0;
    unrolled<block.block>([&](auto c) __attribute__((always_inline)) {
      bits = std::max(bits, float_bits(group[first + c][lane]) & kMagnitudeBits);
    });
    amax[lane] = bits;
    largest = std::max(largest, bits);
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool finite = amax[lane] < kExponentField;
    if constexpr (block.scale == ScaleFormat::kE8M0) {
      const std::uint32_t byte = e8m0_scale<block.element>(amax[lane], constants.carry);
      bytes[lane] = byte;
      scales.multiplier[lane] = e8m0_reciprocal(byte);
      scales.unit[lane] = e8m0_reciprocal(byte);
      scales.step[lane] = 1.0f;
      scales.unit_size[lane] = e8m0_value(byte);
    } else {
      const std::uint32_t byte = nvfp4_scale(amax[lane], constants.factor);
      const float value = finite ? decode<kE4M3>(byte) * constants.tensor_scale : 0.0f;
      bytes[lane] = byte;
      scales.multiplier[lane] = value > 0 ? 1.0f / value : 0.0f;
      // 2^-floor(log2 amax), kept from the ends of the exponent range.
      const std::uint32_t field = amax[lane] >> kFloatMantissaBits;
      const std::uint32_t unit_field = std::clamp(254 - static_cast<int>(field), 1, 253);
      scales.unit[lane] = bits_float(unit_field << kFloatMantissaBits);
      scales.step[lane] = value * scales.unit[lane];
      scales.unit_size[lane] =
          bits_float(finite ? (254 - unit_field) << kFloatMantissaBits : kQuietNan);
    }
  }
  if (largest >= kExponentField) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int c = 0; c < block.block && amax[lane] >= kExponentField; ++c)
        group[first + c][lane] = 0.0f;
  }
}

// Encodes the channels whose codes fill whole words, and adds their squares and squared errors, in
// the blocks' unit, to `squares` and `errors`.
template <int format, int unit_channels, int unit_words>
[[gnu::always_inline]] inline void encode_unit(const Group& group, int first,
                                               const BlockScales& scales,
                                               std::uint32_t (*words)[kLanes], float* squares,
                                               float* errors) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int bits = block.element.bits;
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    std::uint32_t word[unit_words] = {};
    float square = squares[lane];
    float error = errors[lane];
    const float multiplier = scales.multiplier[lane];
    unrolled<unit_channels>([&](auto c) __attribute__((always_inline)) {
      const float value = group[first + c][lane];
      const std::uint32_t scaled_bits = float_bits(value * multiplier);
      const Rounded rounded = round_magnitude<block.element>(scaled_bits & kMagnitudeBits);
      const std::uint32_t code = rounded.code | (scaled_bits >> 31 << (bits - 1));
      constexpr int position = c * bits;
      word[position / kWordBits] |= code << (position % kWordBits);
      if constexpr (position % kWordBits + bits > kWordBits)
        word[position / kWordBits + 1] |= code >> (kWordBits - position % kWordBits);
      float magnitude, difference;
      if constexpr (block.scale == ScaleFormat::kE8M0) {
        magnitude = bits_float(scaled_bits & kMagnitudeBits);
        difference = magnitude - rounded.magnitude;
      } else {
        magnitude = bits_float(float_bits(value) & kMagnitudeBits) * scales.unit[lane];
        difference = magnitude - rounded.magnitude * scales.step[lane];
      }
      square += magnitude * magnitude;
      error += difference * difference;
    });
    unrolled<unit_words>(
        [&](auto w) __attribute__((always_inline)) { words[w][lane] = word[w]; });
    squares[lane] = square;
    errors[lane] = error;
  }
}

// Quantizes a group and writes its codes and scales to the rows of `tile` from `first_row` on.
template <int format>
[[gnu::always_inline]] inline void encode_group(const Constants& constants, Group& group, int rows,
                                                std::uint8_t* codes, std::int64_t row_bytes,
                                                std::uint8_t* scale_bytes,
                                                std::int64_t scale_row_bytes, double* squares,
                                                double* errors) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int bits = block.element.bits;
  constexpr int group_words = kSegmentStep * bits / kWordBits;
  constexpr int unit_channels = bits == 6 ? 16 : kWordBits / bits;  // 16 codes of 6 bits: 3 words
  constexpr int unit_words = unit_channels * bits / kWordBits;
  constexpr int blocks = kSegmentStep / block.block;
  alignas(64) std::uint32_t words[group_words][kLanes];
  alignas(64) std::uint32_t bytes[blocks][kLanes];
  for (int b = 0; b < blocks; ++b) {
    BlockScales scales;
    scale_block<format>(constants, group, b * block.block, bytes[b], scales);
    alignas(64) float block_squares[kLanes] = {};
    alignas(64) float block_errors[kLanes] = {};
#pragma GCC unroll 8
    for (int c = 0; c < block.block; c += unit_channels) {
      const int first = b * block.block + c;
      encode_unit<format, unit_channels, unit_words>(group, first, scales,
                                                     words + first * bits / kWordBits,
                                                     block_squares, block_errors);
    }
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const double unit = scales.unit_size[lane];
      squares[lane] += block_squares[lane] * (unit * unit);
      errors[lane] += block_errors[lane] * (unit * unit);
    }
  }
  for (int lane = 0; lane < rows; ++lane) {
    std::uint32_t row[group_words];
    for (int w = 0; w < group_words; ++w) row[w] = words[w][lane];
    std::memcpy(codes + lane * row_bytes, row, sizeof row);
    for (int b = 0; b < blocks; ++b)
      scale_bytes[lane * scale_row_bytes + b] = static_cast<std::uint8_t>(bytes[b][lane]);
  }
}

template <class T, int format>
[[gnu::always_inline]] inline void pack_segment(const Tile& tile, const Segment& segment,
                                                std::int64_t first_channel, std::uint8_t* codes,
                                                std::uint8_t* scales, ErrorSums& sums) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int step_bytes = kSegmentStep * block.element.bits / 8;
  constexpr int step_scales = kSegmentStep / block.block;
  constexpr int most_groups = kContiguousTile / kLanes;
  const Constants constants{segment.carry, nvfp4_factor(tile.layout.tensor_scale),
                            tile.layout.tensor_scale};
  const std::int32_t* order = tile.layout.order.data();
  const auto padded = static_cast<std::int64_t>(tile.layout.order.size());
  const bool contiguous = tile.source.row_stride == 1;
  const int groups_used = (tile.rows + kLanes - 1) / kLanes;
  alignas(64) Group groups[most_groups];
  alignas(64) double squares[most_groups][kLanes] = {};
  alignas(64) double errors[most_groups][kLanes] = {};
  for (std::int64_t c = first_channel; c < first_channel + segment.channels; c += kSegmentStep) {
    if (contiguous) {
      load_contiguous<T>(tile, order + c, groups);
    } else {
      load_gather<T>(tile, order + c, groups[0]);
      prefetch_next_rows<T>(tile, c, std::min(c + kSegmentStep, tile.source.channels));
    }
    for (int g = 0; g < groups_used; ++g) {
      const int rows = std::min(kLanes, tile.rows - g * kLanes);
      if (contiguous && c + kSegmentStep < padded)
        prefetch_contiguous<T>(tile, order + c + kSegmentStep, g * kSegmentStep / groups_used,
                               (g + 1) * kSegmentStep / groups_used);
      encode_group<format>(constants, groups[g], rows, codes + g * kLanes * tile.row_bytes,
                           tile.row_bytes, scales + g * kLanes * tile.scale_bytes,
                           tile.scale_bytes, squares[g], errors[g]);
    }
    codes += step_bytes;
    scales += step_scales;
  }
  for (int g = 0; g < groups_used; ++g) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.squares += squares[g][lane];
      sums.errors += errors[g][lane];
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void pack_tile_as(const Tile& tile) {
  std::int64_t channel = 0;
  std::uint8_t* codes = tile.codes;
  std::uint8_t* scales = tile.scales;
  for (std::size_t s = 0; s < tile.layout.segments.size(); ++s) {
    const Segment& segment = tile.layout.segments[s];
    switch (segment.format) {
      case 0: pack_segment<T, 0>(tile, segment, channel, codes, scales, tile.sums[s]); break;
      case 1: pack_segment<T, 1>(tile, segment, channel, codes, scales, tile.sums[s]); break;
      case 2: pack_segment<T, 2>(tile, segment, channel, codes, scales, tile.sums[s]); break;
      case 3: pack_segment<T, 3>(tile, segment, channel, codes, scales, tile.sums[s]); break;
      case 4: pack_segment<T, 4>(tile, segment, channel, codes, scales, tile.sums[s]); break;
    }
    channel += segment.channels;
    codes += segment.row_bytes();
    scales += segment.scale_bytes();
  }
}

[[gnu::always_inline]] inline void pack_tile_body(const Tile& tile) {
  switch (tile.source.type) {
    case ValueType::kFloat32: pack_tile_as<float>(tile); break;
    case ValueType::kFloat16: pack_tile_as<Half>(tile); break;
    case ValueType::kBfloat16: pack_tile_as<Bfloat16>(tile); break;
  }
}

using PackTile = void (*)(const Tile&);

void pack_tile(const Tile& tile) { pack_tile_body(tile); }

#ifdef MMCOMPILE_X86_DISPATCH
[[gnu::target("avx2")]] void pack_tile_avx2(const Tile& tile) { pack_tile_body(tile); }

[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]]
void pack_tile_avx512(const Tile& tile) {
  pack_tile_body(tile);
}
#endif

PackTile choose_pack_tile() {
#ifdef MMCOMPILE_X86_DISPATCH
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return pack_tile_avx512;
  if (__builtin_cpu_supports("avx2")) return pack_tile_avx2;
#endif
  return pack_tile;
}

}  // namespace

std::vector<ErrorSums> quantize_pack(const ValueMatrix& weight, const Layout& layout,
                                     std::uint8_t* codes, std::uint8_t* scales, int threads) {
  static const PackTile pack = choose_pack_tile();
  const int tile_rows = weight.row_stride == 1 ? kContiguousTile : kGatherTile;
  const std::int64_t tiles = (weight.rows + tile_rows - 1) / tile_rows;
  const std::int64_t row_bytes = layout.row_bytes();
  const std::int64_t scale_bytes = layout.scale_bytes();
  const std::size_t segments = layout.segments.size();
  // Per tile, summed in order below, so that the result does not depend on who packed what.
  std::vector<ErrorSums> tile_sums(static_cast<std::size_t>(tiles) * segments);
  parallel_ranges(tiles, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = t * tile_rows;
      const auto rows = static_cast<int>(std::min<std::int64_t>(tile_rows, weight.rows - row));
      const auto next = static_cast<int>(
          t + 1 < end ? std::min<std::int64_t>(tile_rows, weight.rows - row - rows) : 0);
      pack({weight, layout, row, rows, next, codes + row * row_bytes, scales + row * scale_bytes,
            row_bytes, scale_bytes, tile_sums.data() + static_cast<std::size_t>(t) * segments});
    }
  });
  std::vector<ErrorSums> sums(segments);
  for (std::size_t i = 0; i < tile_sums.size(); ++i) {
    sums[i % segments].squares += tile_sums[i].squares;
    sums[i % segments].errors += tile_sums[i].errors;
  }
  return sums;
}

void quantize_rows(const ValueMatrix& matrix, const Layout& layout, float* values, int threads) {
  constexpr std::int64_t rows_at_once = 64;
  const auto padded = static_cast<std::int64_t>(layout.order.size());
  const std::int64_t ranges = (matrix.rows + rows_at_once - 1) / rows_at_once;
  const std::int64_t row_bytes = layout.row_bytes();
  const std::int64_t scale_bytes = layout.scale_bytes();
  parallel_ranges(ranges, threads, [&](std::int64_t begin, std::int64_t end) {
    const auto codes = std::make_unique<std::uint8_t[]>(
        static_cast<std::size_t>(rows_at_once * (row_bytes + scale_bytes)));
    std::uint8_t* scales = codes.get() + rows_at_once * row_bytes;
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t row = r * rows_at_once;
      ValueMatrix part = matrix;
      part.rows = std::min(rows_at_once, matrix.rows - row);
      part.data = static_cast<const float*>(matrix.data) + row * matrix.row_stride;
      quantize_pack(part, layout, codes.get(), scales, 1);
      dequantize(codes.get(), scales, layout, part.rows, values + row * padded, 1);
    }
  });
}

}  // namespace mmcompile
