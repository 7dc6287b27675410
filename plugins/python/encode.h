// Encoding a group of 16 rows × 32 channels: block scales, codes, packed words, squared errors.
//
// All arithmetic is the scalar code of formats.h in `omp simd` loops over the 16 lanes. Codes and
// sums of squared error come out of one pass over the values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "load.h"
#include "mmcompile/formats.h"

namespace mmcompile {

constexpr int kWordBits = 32;

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

// Scales of the rows' blocks that begin with channel `first`, and `bytes`, their codes. Clears the
// blocks that hold NaN or Inf.
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
    unrolled<unit_words>([&](auto w) __attribute__((always_inline)) { words[w][lane] = word[w]; });
    squares[lane] = square;
    errors[lane] = error;
  }
}

// Quantizes a group and writes the codes of its first `rows` rows, which lie `row_bytes` apart;
// puts the lanes' scale bytes into `scale_words` from bit `scale_shift` on; adds each lane's
// squares and squared errors to `squares` and `errors`.
template <int format>
[[gnu::always_inline]] inline void encode_group(const Constants& constants, Group& group, int rows,
                                                std::uint8_t* codes, std::int64_t row_bytes,
                                                std::uint32_t* scale_words, int scale_shift,
                                                double* squares, double* errors) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int bits = block.element.bits;
  constexpr int group_words = kSegmentStep * bits / kWordBits;
  constexpr int unit_channels = bits == 6 ? 16 : kWordBits / bits;  // 16 codes of 6 bits: 3 words
  constexpr int unit_words = unit_channels * bits / kWordBits;
  constexpr int blocks = kSegmentStep / block.block;
  alignas(64) std::uint32_t words[group_words][kLanes];
  for (int b = 0; b < blocks; ++b) {
    alignas(64) std::uint32_t bytes[kLanes];
    BlockScales block_scales;
    scale_block<format>(constants, group, b * block.block, bytes, block_scales);
    alignas(64) float block_squares[kLanes] = {};
    alignas(64) float block_errors[kLanes] = {};
    for (int c = 0; c < block.block; c += unit_channels) {
      const int first = b * block.block + c;
      encode_unit<format, unit_channels, unit_words>(group, first, block_scales,
                                                     words + first * bits / kWordBits,
                                                     block_squares, block_errors);
    }
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const double unit = block_scales.unit_size[lane];
      squares[lane] += block_squares[lane] * (unit * unit);
      errors[lane] += block_errors[lane] * (unit * unit);
      scale_words[lane] |= bytes[lane] << (scale_shift + 8 * b);
    }
  }
  for (int lane = 0; lane < rows; ++lane) {
    std::uint32_t row[group_words];
    for (int w = 0; w < group_words; ++w) row[w] = words[w][lane];
    std::memcpy(codes + lane * row_bytes, row, sizeof row);
  }
}

}  // namespace mmcompile
