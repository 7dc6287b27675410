// Encoding a group of 16 rows × 32 channels: block scales, codes, packed words, squared errors.
//
// All arithmetic is the scalar code of formats.h in `omp simd` loops over the 16 lanes. Codes and
// sums of squared error come out of one pass over the values. Where the better of two scales is
// searched, a block is encoded under both and the lanes keep what errs less.
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

// The two scales of a searched segment: MX by the thresholds that never and always add one to the
// exponent, NVFP4 with amax on 6, the largest element, and on 4, below which elements lie closer.
struct Candidates {
  explicit Candidates(float tensor_scale)
      : first{threshold_carry(kHighestThreshold), nvfp4_factor(tensor_scale), tensor_scale},
        second{threshold_carry(kLowestThreshold), 0.25f * (1.0f / tensor_scale), tensor_scale} {}

  Constants first, second;
};

// The scales of one block of 16 rows, and what follows from them.
struct BlockScales {
  alignas(64) float multiplier[kLanes];  // values to elements
  alignas(64) float unit[kLanes];        // values to errors' unit, a power of two
  alignas(64) float step[kLanes];        // elements to errors' unit
  alignas(64) float unit_size[kLanes];   // 1 / unit; NaN if the block is not finite
};

// Bits of the largest magnitude of the rows' blocks that begin with channel `first`. Clears the
// blocks that hold NaN or Inf.
template <int format>
[[gnu::always_inline]] inline void find_amax(Group& group, int first, std::uint32_t* amax) {
  constexpr BlockFormat block = kBlockFormats[format];
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
  if (largest >= kExponentField) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int c = 0; c < block.block && amax[lane] >= kExponentField; ++c)
        group[first + c][lane] = 0.0f;
  }
}

// Scales of the blocks with these amax, and `bytes`, their codes.
template <int format>
[[gnu::always_inline]] inline void scale_block(const Constants& constants,
                                               const std::uint32_t* amax, std::uint32_t* bytes,
                                               BlockScales& scales) {
  constexpr BlockFormat block = kBlockFormats[format];
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

// How codes fill words: units of whole words, and what a block and a group have of them.
template <int format>
struct CodeWords {
  static constexpr int bits = kBlockFormats[format].element.bits;
  static constexpr int unit_channels = bits == 6 ? 16 : kWordBits / bits;  // 16 of 6 bits: 3 words
  static constexpr int unit = unit_channels * bits / kWordBits;
  static constexpr int block = kBlockFormats[format].block * bits / kWordBits;
  static constexpr int group = kSegmentStep * bits / kWordBits;
};

// Encodes the rows' blocks that begin with channel `first` under given scales. The sums are of
// fp32, in the order of the channels.
template <int format>
[[gnu::always_inline]] inline void encode_block(const Group& group, int first,
                                                const BlockScales& scales,
                                                std::uint32_t (*words)[kLanes], float* squares,
                                                float* errors) {
  using Words = CodeWords<format>;
  for (int c = 0; c < kBlockFormats[format].block; c += Words::unit_channels)
    encode_unit<format, Words::unit_channels, Words::unit>(
        group, first + c, scales, words + c * Words::bits / kWordBits, squares, errors);
}

// What encoding the blocks of 16 rows under one scale each gives.
template <int format>
struct EncodedBlock {
  alignas(64) std::uint32_t words[CodeWords<format>::block][kLanes];
  alignas(64) std::uint32_t bytes[kLanes];
  alignas(64) float squares[kLanes] = {};
  alignas(64) float errors[kLanes] = {};
  BlockScales scales;
};

// Encodes the blocks under their second scales and keeps those that err less than under the first,
// whose words and sums are given; ties keep the first.
template <int format>
[[gnu::always_inline]] inline void keep_better(const Constants& constants, const Group& group,
                                               int first, const std::uint32_t* amax,
                                               std::uint32_t (*words)[kLanes], std::uint32_t* bytes,
                                               BlockScales& scales, float* squares, float* errors) {
  // Errors of MX blocks are in units of their scale, and the second, if it differs, is twice the
  // first; those of NVFP4 blocks are in units of amax.
  constexpr float ratio = kBlockFormats[format].scale == ScaleFormat::kE8M0 ? 4.0f : 1.0f;
  EncodedBlock<format> second;
  scale_block<format>(constants, amax, second.bytes, second.scales);
  encode_block<format>(group, first, second.scales, second.words, second.squares, second.errors);
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool better = ratio * second.errors[lane] < errors[lane];
    unrolled<CodeWords<format>::block>([&](auto w) __attribute__((always_inline)) {
      words[w][lane] = better ? second.words[w][lane] : words[w][lane];
    });
    bytes[lane] = better ? second.bytes[lane] : bytes[lane];
    scales.unit_size[lane] = better ? second.scales.unit_size[lane] : scales.unit_size[lane];
    squares[lane] = better ? second.squares[lane] : squares[lane];
    errors[lane] = better ? second.errors[lane] : errors[lane];
  }
}

// Quantizes a group and writes the codes of its first `rows` rows, which lie `row_bytes` apart;
// puts the lanes' scale bytes into `scale_words` from bit `scale_shift` on; adds each lane's
// squares and squared errors to `squares` and `errors`. `second` gives the other scale where the
// better of two is searched.
template <int format, bool searched>
[[gnu::always_inline]] inline void encode_group(const Constants& constants, const Constants& second,
                                                Group& group, int rows, std::uint8_t* codes,
                                                std::int64_t row_bytes, std::uint32_t* scale_words,
                                                int scale_shift, double* squares, double* errors) {
  constexpr int block_channels = kBlockFormats[format].block;
  constexpr int blocks = kSegmentStep / block_channels;
  alignas(64) std::uint32_t words[CodeWords<format>::group][kLanes];
  for (int b = 0; b < blocks; ++b) {
    const int first = b * block_channels;
    std::uint32_t (*block_words)[kLanes] = words + b * CodeWords<format>::block;
    alignas(64) std::uint32_t amax[kLanes];
    alignas(64) std::uint32_t bytes[kLanes];
    alignas(64) float block_squares[kLanes] = {};
    alignas(64) float block_errors[kLanes] = {};
    BlockScales block_scales;
    find_amax<format>(group, first, amax);
    scale_block<format>(constants, amax, bytes, block_scales);
    encode_block<format>(group, first, block_scales, block_words, block_squares, block_errors);
    if constexpr (searched)
      keep_better<format>(second, group, first, amax, block_words, bytes, block_scales,
                          block_squares, block_errors);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const double unit = block_scales.unit_size[lane];
      squares[lane] += block_squares[lane] * (unit * unit);
      errors[lane] += block_errors[lane] * (unit * unit);
      scale_words[lane] |= bytes[lane] << (scale_shift + 8 * b);
    }
  }
  for (int lane = 0; lane < rows; ++lane) {
    std::uint32_t row[CodeWords<format>::group];
    for (int w = 0; w < CodeWords<format>::group; ++w) row[w] = words[w][lane];
    std::memcpy(codes + lane * row_bytes, row, sizeof row);
  }
}

}  // namespace mmcompile
