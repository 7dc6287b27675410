// Block formats: the tables and the scalar arithmetic of docs/spec.md, for the host and for CUDA.
//
// Everything is branchless where it counts, so that compilers vectorize loops over these functions,
// and free of fp32 subnormals wherever inputs are normal. Rounding assumes the default mode (to
// nearest even) and no contraction into fused multiply-adds (-ffp-contract=off).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MMCOMPILE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MMCOMPILE_HOST_DEVICE [[gnu::always_inline]] inline
#endif

namespace mmcompile {

// A small float; code = sign | exponent | mantissa, from the highest bit to the lowest.
struct Element {
  int bits;
  int exponent_bits;
  int mantissa_bits;
  int bias;
  int emin;   // exponent of the smallest normal value, 1 - bias
  int emax;   // floor(log2 max)
  float max;  // largest finite magnitude
};

inline constexpr Element kE2M1{4, 2, 1, 1, 0, 2, 6.0f};
inline constexpr Element kE2M3{6, 2, 3, 1, 0, 2, 7.5f};
inline constexpr Element kE3M2{6, 3, 2, 3, -2, 4, 28.0f};
inline constexpr Element kE4M3{8, 4, 3, 7, -6, 8, 448.0f};  // the `fn` variant: no infinity

enum class ScaleFormat : std::uint8_t { kE8M0, kE4M3 };

struct BlockFormat {
  int id;
  Element element;
  int block;  // elements per scale
  ScaleFormat scale;
};

// In the order of their ids, which ONNX nodes and mmcompile.formats share.
inline constexpr BlockFormat kBlockFormats[] = {
    {0, kE2M1, 32, ScaleFormat::kE8M0},  // mxfp4
    {1, kE2M3, 32, ScaleFormat::kE8M0},  // mxfp6_e2m3
    {2, kE3M2, 32, ScaleFormat::kE8M0},  // mxfp6_e3m2
    {3, kE4M3, 32, ScaleFormat::kE8M0},  // mxfp8
    {4, kE2M1, 16, ScaleFormat::kE4M3},  // nvfp4
};
inline constexpr int kFormatCount = 5;

inline constexpr std::uint32_t kSignBit = 0x80000000u;        // sign of an fp32
inline constexpr std::uint32_t kMagnitudeBits = 0x7FFFFFFFu;  // all but the sign
inline constexpr std::uint32_t kExponentField = 0x7F800000u;  // exponent of an fp32; bits of +Inf
inline constexpr std::uint32_t kMantissaField = 0x007FFFFFu;  // 2^23 - 1
inline constexpr std::uint32_t kTwoToMinus127 = 0x00400000u;  // 2^-127, a subnormal
inline constexpr std::uint32_t kQuietNan = 0x7FC00000u;
inline constexpr std::uint32_t kE8M0Nan = 255;
inline constexpr std::uint32_t kE4M3Nan = 0x7F;  // S.1111.111, positive
inline constexpr int kFloatBias = 127;
inline constexpr int kFloatMantissaBits = 23;

MMCOMPILE_HOST_DEVICE constexpr std::uint32_t float_bits(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}

MMCOMPILE_HOST_DEVICE constexpr float bits_float(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

// The bits of 2^exponent, for exponents of normal values (-126..127).
MMCOMPILE_HOST_DEVICE constexpr std::uint32_t power_bits(int exponent) {
  return static_cast<std::uint32_t>(exponent + kFloatBias) << kFloatMantissaBits;
}

struct Rounded {
  std::uint32_t code;  // without sign
  float magnitude;     // the value of that code
};

// The element nearest to a magnitude, ties to even, saturating; `bits` are those of an fp32 >= 0,
// Inf included. NaN saturates: who must not, asks before.
//
// With e = max(exponent of the magnitude, emin) the grid there has the step 2^(e - mantissa_bits),
// which is the last place of the fp32 numbers from 2^(e + 23 - mantissa_bits) on. Adding that power
// rounds to the grid and leaves the number of steps in the sum's lowest bits. The code is that
// number plus the steps of all lower binades, also where rounding carries into the next binade.
template <Element E>
MMCOMPILE_HOST_DEVICE constexpr Rounded round_magnitude(std::uint32_t bits) {
  constexpr std::uint32_t max_bits = float_bits(E.max);
  constexpr std::uint32_t emin_bits = power_bits(E.emin);
  constexpr int step_shift = kFloatMantissaBits - E.mantissa_bits;
  const std::uint32_t clamped = bits < max_bits ? bits : max_bits;
  const std::uint32_t field = clamped & kExponentField;
  const std::uint32_t binade = field > emin_bits ? field : emin_bits;
  const std::uint32_t power = binade + (static_cast<std::uint32_t>(step_shift) << 23);
  const float sum = bits_float(clamped) + bits_float(power);
  const std::uint32_t steps = float_bits(sum) - power;
  const std::uint32_t lower_binades = (binade >> step_shift) - (emin_bits >> step_shift);
  return {steps + lower_binades, sum - bits_float(power)};
}

// The code of the nearest element; zero keeps its sign. Not for NaN.
template <Element E>
MMCOMPILE_HOST_DEVICE constexpr std::uint32_t encode(float value) {
  const std::uint32_t bits = float_bits(value);
  return round_magnitude<E>(bits & kMagnitudeBits).code | (bits >> 31 << (E.bits - 1));
}

// The value of a code below 2^bits; NaN for E4M3's S.1111.111.
template <Element E>
MMCOMPILE_HOST_DEVICE constexpr float decode(std::uint32_t code) {
  constexpr std::uint32_t magnitude_codes = 1u << (E.bits - 1);
  const std::uint32_t magnitude_code = code & (magnitude_codes - 1);
  const std::uint32_t sign = (code & magnitude_codes) << (32 - E.bits);
  const std::uint32_t shifted = magnitude_code << (kFloatMantissaBits - E.mantissa_bits);
  const float normal = bits_float(shifted + power_bits(-E.bias));
  // 2^emin · (1 + mantissa) - 2^emin: a subnormal element without a subnormal fp32.
  const float hidden = bits_float(power_bits(E.emin));
  const float subnormal = bits_float(shifted + power_bits(E.emin)) - hidden;
  const float magnitude = magnitude_code >> E.mantissa_bits ? normal : subnormal;
  const std::uint32_t bits = magnitude > E.max ? kQuietNan : float_bits(magnitude);
  return bits_float(bits | sign);
}

// What an MX block's amax has added to its bits: carries into the exponent iff the mantissa of amax
// exceeds the threshold in [1, 2], of which 2 stands for "never".
constexpr std::uint32_t threshold_carry(double threshold) {
  if (threshold >= 2) return 0;
  return kMantissaField - static_cast<std::uint32_t>((threshold - 1) * (1 << 23));
}

// E8M0 byte of a block: floor(log2 amax) - emax, plus the carry, clamped; 255 (NaN) if amax is NaN
// or Inf. Zero and subnormal fp32 fall to byte 0 by the same formula.
template <Element E>
MMCOMPILE_HOST_DEVICE constexpr std::uint32_t e8m0_scale(std::uint32_t amax_bits,
                                                         std::uint32_t carry) {
  const int field = static_cast<int>((amax_bits + carry) >> kFloatMantissaBits) - E.emax;
  const int clamped = field < 0 ? 0 : (field > 254 ? 254 : field);
  return amax_bits >= kExponentField ? kE8M0Nan : static_cast<std::uint32_t>(clamped);
}

// 2^(byte - 127), NaN for 255.
MMCOMPILE_HOST_DEVICE constexpr float e8m0_value(std::uint32_t byte) {
  const std::uint32_t power = byte == 0 ? kTwoToMinus127 : byte << kFloatMantissaBits;
  return bits_float(byte == kE8M0Nan ? kQuietNan : power);
}

// 2^(127 - byte), the exact reciprocal of a scale; any number for 255.
MMCOMPILE_HOST_DEVICE constexpr float e8m0_reciprocal(std::uint32_t byte) {
  return bits_float(byte < 254 ? (254 - byte) << kFloatMantissaBits : kTwoToMinus127);
}

// NVFP4 scales are amax / 6 in units of the tensor scale, a power of two, hence this is exact.
MMCOMPILE_HOST_DEVICE constexpr float nvfp4_factor(float tensor_scale) {
  constexpr float one_sixth = 1.0f / 6.0f;  // 0x3E2AAAAB
  return one_sixth * (1.0f / tensor_scale);
}

// E4M3 byte of an NVFP4 block; 0x7F (NaN) if amax is NaN or Inf.
MMCOMPILE_HOST_DEVICE constexpr std::uint32_t nvfp4_scale(std::uint32_t amax_bits, float factor) {
  const float scaled = bits_float(amax_bits) * factor;
  const std::uint32_t code = round_magnitude<kE4M3>(float_bits(scaled)).code;
  return amax_bits >= kExponentField ? kE4M3Nan : code;
}

// The fp32 that widens an IEEE half exactly.
MMCOMPILE_HOST_DEVICE constexpr float half_to_float(std::uint16_t half) {
  const std::uint32_t magnitude = half & 0x7FFFu;
  const std::uint32_t sign = (half & 0x8000u) << 16;
  // Exponent bias 15 against 127; Inf and NaN (magnitude >= 0x7C00) skip the rest of the field.
  const std::uint32_t rebias = magnitude >= 0x7C00u ? 2 * power_bits(-15) : power_bits(-15);
  const std::uint32_t normal = (magnitude << 13) + rebias;
  // Below 2^-14 (magnitude < 0x400) the step is 2^-24.
  const float subnormal =
      static_cast<float>(static_cast<std::int32_t>(magnitude)) * bits_float(power_bits(-24));
  return bits_float((magnitude < 0x400u ? float_bits(subnormal) : normal) | sign);
}

// The fp32 whose upper half a bfloat16 is.
MMCOMPILE_HOST_DEVICE constexpr float bfloat16_to_float(std::uint16_t bfloat16) {
  return bits_float(static_cast<std::uint32_t>(bfloat16) << 16);
}

}  // namespace mmcompile
