// Arithmetic of the quantizing kernel: the scale of a block, and eight values of a row that become
// codes. docs/spec.md, sections 3 and 4, bit by bit.
//
// Where the hardware has no conversion to E2M1 or E4M3, values are rounded to the format's grid in
// fp32, and then converted to fp16, exactly: multiplied by a power of two that lets the format's
// subnormals be fp16's, a value has its code in the bits of its half.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"

namespace mmcompile {

// The conversions that kernels may take from the hardware (sm_89 has E4M3's, sm_120 both). All
// give the same codes.
enum class Conversions : std::uint8_t { kNone, kE4M3, kE2M1AndE4M3 };

namespace quantize {

// Consecutive ordered channels of a row, whose codes one thread makes.
inline constexpr int kChannels = 8;

// What the values of a segment become.
enum class Coding : std::uint8_t {
  kMxE2M1,  // 4 bits, an E8M0 scale
  kNvE2M1,  // 4 bits, an E4M3 scale
  kMxE4M3,  // bytes, converted by the hardware
  kMxGrid,  // bytes; rounded to the grid of the segment's format, then written as E4M3, exactly
};

MMCOMPILE_HOST_DEVICE constexpr bool is_4_bit(Coding coding) {
  return coding == Coding::kMxE2M1 || coding == Coding::kNvE2M1;
}
MMCOMPILE_HOST_DEVICE constexpr int block_of(Coding coding) {
  return coding == Coding::kNvE2M1 ? 16 : 32;
}
MMCOMPILE_HOST_DEVICE constexpr bool is_converted(Coding coding, Conversions conversions) {
  return is_4_bit(coding) ? conversions == Conversions::kE2M1AndE4M3
                          : conversions != Conversions::kNone;
}
MMCOMPILE_HOST_DEVICE constexpr bool is_rounded(Coding coding, Conversions conversions) {
  return coding == Coding::kMxGrid || !is_converted(coding, conversions);
}

// Values are held in this unit, a power of two: one that gives them the subnormals of fp16, whose
// smallest normal value is 2^-14, where codes are taken from halves.
MMCOMPILE_HOST_DEVICE constexpr float unit_of(Coding coding, Conversions conversions) {
  if (is_converted(coding, conversions)) return 1.0f;
  return bits_float(power_bits(-14 - (is_4_bit(coding) ? kE2M1.emin : kE4M3.emin)));
}

// The values of an element format, in some unit.
struct Grid {
  int emax;
  float max;
  float smallest_normal;
  float last_place;  // 2^(23 - mantissa bits): where an fp32 has that step, over where E has it
};

template <Element E>
MMCOMPILE_HOST_DEVICE constexpr Grid grid_of(float unit) {
  return {E.emax, E.max * unit, bits_float(power_bits(E.emin)) * unit,
          bits_float(power_bits(kFloatMantissaBits - E.mantissa_bits))};
}

// Of the MX format with this index.
template <Coding coding>
MMCOMPILE_HOST_DEVICE constexpr Grid grid_of_segment(int format, float unit) {
  if (coding == Coding::kMxE4M3) return grid_of<kE4M3>(unit);
  if (is_4_bit(coding) || format == 0) return grid_of<kE2M1>(unit);
  if (format == 1) return grid_of<kE2M3>(unit);
  return format == 2 ? grid_of<kE3M2>(unit) : grid_of<kE4M3>(unit);
}

struct Scaling {
  std::uint32_t byte;
  float multiplier;  // of the block's values; NaN if the block is
};

// `unit` as above. Since emax is at least 2, no byte but NaN's is above 253.
MMCOMPILE_DEVICE Scaling mx_scaling(std::uint32_t amax_bits, std::uint32_t carry, int emax,
                                    float unit) {
  if (amax_bits >= kExponentField) return {kE8M0Nan, bits_float(kQuietNan)};
  const int field = static_cast<int>((amax_bits + carry) >> kFloatMantissaBits) - emax;
  const std::uint32_t byte = field > 0 ? static_cast<std::uint32_t>(field) : 0;
  const float reciprocal = bits_float((254 - byte) << kFloatMantissaBits);
  return {byte, device::multiply(reciprocal, unit)};
}

// 1 / s, rounded once; for the values of E4M3 from 2^-9 on. The difference of the bits is within an
// eighth of it, and each of Newton's steps squares that error. A division would take a branch and
// a call.
MMCOMPILE_DEVICE float reciprocal_of_scale(float s) {
  float inverse = bits_float(0x7EF311C3u - float_bits(s));
  for (int step = 0; step < 3; ++step) {
    const float error = device::fused_multiply_add(-s, inverse, 1.0f);
    inverse = device::fused_multiply_add(inverse, error, inverse);
  }
  return inverse;
}

// 1 / (s · ts) is rounded as 1 / s is, since tensor scales and units are powers of two; so is
// nvfp4_factor.
MMCOMPILE_DEVICE Scaling nvfp4_scaling(std::uint32_t amax_bits, float tensor_scale, float unit) {
  if (amax_bits >= kExponentField) return {kE4M3Nan, bits_float(kQuietNan)};
  const float inverse_tensor_scale = bits_float(2 * power_bits(0) - float_bits(tensor_scale));
  const float factor = device::multiply(nvfp4_factor(1.0f), inverse_tensor_scale);
  const float scaled = device::multiply(bits_float(amax_bits), factor);
  const Rounded scale = round_magnitude<kE4M3>(float_bits(scaled));
  if (scale.code == 0) return {0, 0.0f};
  return {scale.code, device::multiply(reciprocal_of_scale(scale.magnitude),
                                       device::multiply(unit, inverse_tensor_scale))};
}

// The value of the grid nearest to a magnitude, ties to even; saturates only if `clamp`, else goes
// on above the grid's maximum in the same steps.
//
// Adding a number whose last place is the step of the grid rounds to that; 2^(23 - mantissa bits)
// times the binade is one. If the magnitude has at most 11 significant bits, so is that multiple
// of the magnitude itself: it stays a multiple of two steps, and 2^-20 more of itself can't lift
// it into the next binade.
template <int significant_bits, bool clamp>
MMCOMPILE_DEVICE float round_to_grid(float magnitude, const Grid& grid) {
  std::uint32_t bits = float_bits(magnitude);
  if constexpr (clamp) bits = bits < float_bits(grid.max) ? bits : float_bits(grid.max);
  const std::uint32_t floor_bits = float_bits(grid.smallest_normal);
  const std::uint32_t binade = significant_bits <= 11 ? bits : bits & kExponentField;
  const float base = bits_float(binade > floor_bits ? binade : floor_bits);
  const float sum = device::fused_multiply_add(base, grid.last_place, bits_float(bits));
  return device::fused_multiply_add(base, -grid.last_place, sum);
}

MMCOMPILE_DEVICE std::uint32_t to_halves(float low, float high) {
  return device::float_to_half(low) | static_cast<std::uint32_t>(device::float_to_half(high)) << 16;
}

// Rounds the magnitudes of two halves to nine bits less, ties to even.
//
// In units of 2^-14, that is to E2M1. Values of 8 significant bits may come here straight from
// fp32: from half E2M1's lowest tie (2^-16 here) on, halves hold them exactly.
MMCOMPILE_DEVICE std::uint32_t round_halves(std::uint32_t halves) {
  return halves + 0x00FF00FFu + (halves >> 9 & 0x00010001u);
}

// E2M1 codes of values in units of 2^-14, to be rounded if `round`; 8, next above the maximum,
// saturates.
template <bool round>
MMCOMPILE_DEVICE std::uint32_t e2m1_of_halves(const float (&v)[kChannels]) {
  std::uint32_t halves[4];
  for (int i = 0; i < 4; ++i) {
    const int first = i % 2 * 4 + i / 2;
    halves[i] = to_halves(v[first], v[first + 2]);
    if constexpr (round) halves[i] = round_halves(halves[i]);
  }
  // The upper bytes of the halves: sign, two zeros, overflow (8), the code's three bits, a zero or
  // a remainder. Those of even channels, and of odd ones.
  const std::uint32_t even = device::permute_bytes(halves[0], halves[1], 0x7531);
  const std::uint32_t odd = device::permute_bytes(halves[2], halves[3], 0x7531);
  std::uint32_t codes = (even >> 1 & 0x0F0F0F0Fu) | (odd << 3 & 0xF0F0F0F0u);
  codes -= (codes & 0x88888888u) >> 3;
  return codes | (even >> 4 & 0x08080808u) | (odd & 0x80808080u);
}

// E4M3 codes of multiples of 2^-8.
MMCOMPILE_DEVICE std::uint32_t e4m3_of_halves(float v0, float v1, float v2, float v3) {
  // A half is: sign, a zero, the code's seven bits, zeros.
  const std::uint32_t low = to_halves(v0, v1);
  const std::uint32_t high = to_halves(v2, v3);
  return (device::permute_bytes(low << 1, high << 1, 0x7531) & 0x7F7F7F7Fu) |
         (device::permute_bytes(low, high, 0x7531) & 0x80808080u);
}

MMCOMPILE_DEVICE std::uint32_t pack_e2m1(const float (&v)[kChannels]) {
  return device::convert_e2m1x2(v[0], v[1]) | device::convert_e2m1x2(v[2], v[3]) << 8 |
         device::convert_e2m1x2(v[4], v[5]) << 16 | device::convert_e2m1x2(v[6], v[7]) << 24;
}
MMCOMPILE_DEVICE std::uint32_t pack_e4m3(float v0, float v1, float v2, float v3) {
  return device::convert_e4m3x2(v0, v1) | device::convert_e4m3x2(v2, v3) << 16;
}

// Scaled by a power of two, values keep their bits.
MMCOMPILE_HOST_DEVICE constexpr int bits_after_scaling(Coding coding, int significant_bits) {
  return coding == Coding::kNvE2M1 ? 24 : significant_bits;
}
MMCOMPILE_HOST_DEVICE constexpr bool is_rounded_in_halves(Coding coding, Conversions conversions,
                                                          int significant_bits) {
  return is_4_bit(coding) && !is_converted(coding, conversions) &&
         bits_after_scaling(coding, significant_bits) <= 8;
}

// The codes of 8 values of a block that have at most `significant_bits`; `word[1]` is unused where
// codes have 4 bits.
template <Coding coding, Conversions conversions, int significant_bits>
MMCOMPILE_DEVICE Words2 encode_values(const float (&x)[kChannels], float multiplier,
                                      const Grid& grid) {
  constexpr bool converted = is_converted(coding, conversions);
  constexpr bool in_halves = is_rounded_in_halves(coding, conversions, significant_bits);
  constexpr bool clamp = coding != Coding::kMxE2M1;  // whose values end below 8
  float v[kChannels];
  for (int i = 0; i < kChannels; ++i) {
    if constexpr (is_rounded(coding, conversions) && !in_halves) {
      const float magnitude = device::multiply(std::fabs(x[i]), multiplier);
      constexpr int bits = bits_after_scaling(coding, significant_bits);
      const float rounded = round_to_grid<bits, clamp>(magnitude, grid);
      v[i] = bits_float(float_bits(rounded) | (float_bits(x[i]) & kSignBit));
    } else {
      v[i] = device::multiply(x[i], multiplier);
    }
  }
  Words2 codes;
  if constexpr (is_4_bit(coding) && converted) {
    codes = {{pack_e2m1(v), 0}};
  } else if constexpr (is_4_bit(coding)) {
    codes = {{e2m1_of_halves<in_halves>(v), 0}};
  } else if constexpr (converted) {
    codes = {{pack_e4m3(v[0], v[1], v[2], v[3]), pack_e4m3(v[4], v[5], v[6], v[7])}};
  } else {
    codes = {{e4m3_of_halves(v[0], v[1], v[2], v[3]), e4m3_of_halves(v[4], v[5], v[6], v[7])}};
  }
  // All codes of a NaN block are 0.
  const std::uint32_t keep = float_bits(multiplier) == kQuietNan ? 0u : ~0u;
  return {{codes.word[0] & keep, codes.word[1] & keep}};
}

}  // namespace quantize
}  // namespace mmcompile
