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
#include <type_traits>
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
constexpr int kContiguousTile = 128;
constexpr int kGatherTile = kLanes;
constexpr int kWordBits = 32;

using Group = float[kSegmentStep][kLanes];
constexpr int kGroupSize = kSegmentStep * kLanes;

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
  std::int64_t rows_left;  // rows from first_row on that this thread is to pack
  const std::int32_t* gather_order;        // the order with 0 for kPadding
  std::span<const std::int32_t> paddings;  // the positions that hold kPadding
  void* gathered;  // unless rows are contiguous: room for kLanes × K_pad values
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
  const int full_groups = tile.rows / kLanes;
  const int rest = tile.rows % kLanes;
  for (int c = 0; c < kSegmentStep; ++c) {
    float* lanes = groups[0][c];
    if (channels[c] == kPadding) {
      for (int first = 0; first < tile.rows; first += kLanes, lanes += kGroupSize)
        std::memset(lanes, 0, kLanes * sizeof(float));
      continue;
    }
    const T* run = base + channels[c] * tile.source.channel_stride;
    for (int g = 0; g < full_groups; ++g, run += kLanes, lanes += kGroupSize) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = widen(run[lane]);
    }
    if (rest == 0) continue;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < rest ? widen(run[lane]) : 0.0f;
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

// Copies the rows of a tile in channel order, from any layout, to T[kLanes, K_pad]. Reading a row's
// channels in their new order jumps about in it, which no hardware prefetcher follows; so the next
// row is asked for meanwhile.
template <class T>
[[gnu::always_inline]] inline void gather_rows(const Tile& tile) {
  const auto padded = tile.layout.channels();
  const std::int64_t channels = tile.source.channels;
  const std::int64_t stride = tile.source.channel_stride;
  const std::int32_t* order = tile.gather_order;
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
    for (const std::int32_t c : tile.paddings) ordered[c] = T{};
    row = next_row;
    ordered += padded;
  }
  std::memset(ordered, 0, static_cast<std::size_t>((kLanes - tile.rows) * padded) * sizeof(T));
}

// Transposes fp32 values [kLanes][kSegmentStep] of that row stride, 4 × 4 at a time.
[[gnu::always_inline]] inline void transpose(const float* rows, std::int64_t stride, Group& group) {
  using Quad = float [[gnu::vector_size(16)]];
  for (int lane = 0; lane < kLanes; lane += 4, rows += 4 * stride) {
#pragma GCC unroll 8
    for (int c = 0; c < kSegmentStep; c += 4) {
      Quad in[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&in[i], rows + i * stride + c, sizeof(Quad));
      const Quad low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5);
      const Quad low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5);
      const Quad high01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
      const Quad high23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
      const Quad out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                           __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(&group[c + i][lane], &out[i], sizeof(Quad));
    }
  }
}

// Widens and transposes 32 channels of the rows that gather_rows left.
template <class T>
[[gnu::always_inline]] inline void load_gathered(const T* ordered, std::int64_t stride,
                                                 Group& group) {
  if constexpr (std::is_same_v<T, float>) {
    transpose(ordered, stride, group);
  } else {
    alignas(64) float rows[kLanes][kSegmentStep];
    for (int lane = 0; lane < kLanes; ++lane, ordered += stride) {
#pragma omp simd
      for (int c = 0; c < kSegmentStep; ++c) rows[lane][c] = widen(ordered[c]);
    }
    transpose(rows[0], kSegmentStep, group);
  }
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
      const std::uint32_t sign = scaled_bits >> (32 - bits) & 1u << (bits - 1);
      const std::uint32_t code = rounded.code | sign;
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
  const auto padded = tile.layout.channels();
  const bool contiguous = tile.source.row_stride == 1;
  const int groups_used = (tile.rows + kLanes - 1) / kLanes;
  alignas(64) Group groups[most_groups];
  alignas(64) double squares[most_groups][kLanes] = {};
  alignas(64) double errors[most_groups][kLanes] = {};
  for (std::int64_t c = first_channel; c < first_channel + segment.channels; c += kSegmentStep) {
    if (contiguous) {
      load_contiguous<T>(tile, order + c, groups);
    } else {
      load_gathered(static_cast<const T*>(tile.gathered) + c, padded, groups[0]);
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
  if (tile.source.row_stride != 1) gather_rows<T>(tile);
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
  std::vector<std::int32_t> gather_order(layout.order.begin(), layout.order.end());
  std::vector<std::int32_t> paddings;
  for (std::size_t c = 0; c < gather_order.size(); ++c) {
    if (gather_order[c] != kPadding) continue;
    gather_order[c] = 0;
    paddings.push_back(static_cast<std::int32_t>(c));
  }
  // Per tile, summed in order below, so that the result does not depend on who packed what.
  std::vector<ErrorSums> tile_sums(static_cast<std::size_t>(tiles) * segments);
  parallel_ranges(tiles, threads, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t end_row = std::min(end * tile_rows, weight.rows);
    std::vector<float> gathered(weight.row_stride == 1 ? 0 : kLanes * layout.order.size());
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = t * tile_rows;
      const auto rows = static_cast<int>(std::min<std::int64_t>(tile_rows, weight.rows - row));
      pack({weight, layout, row, rows, end_row - row, gather_order.data(), paddings, gathered.data(), codes + row * row_bytes, scales + row * scale_bytes,
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
  const auto padded = layout.channels();
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
