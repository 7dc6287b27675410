// Packed 4- and 6-bit weights → E4M3 bytes, four at a time, by moving bits.
//
// A code's exponent field and mantissa are put where E4M3 has its own, aligned at the binary point.
// Since both formats count subnormals from their lowest binade, every value comes out right up to
// one power of two, the difference of the exponent biases, which the block scale takes up: its
// byte is an exponent too, so kScaleStep is added to it.
#pragma once

#include "device.h"
#include "parameters.h"

namespace mmcompile {

// What widening divides values by, as a power of two, in each byte of a word of scales. Scale
// bytes are at most 248 here (docs/spec.md, section 6); the addition saturates at 255, NaN.
template <WeightCode code>
inline constexpr std::uint32_t kScaleStep = 0;
template <>
inline constexpr std::uint32_t kScaleStep<WeightCode::kE2M1> = 0x06060606u;
template <>
inline constexpr std::uint32_t kScaleStep<WeightCode::kE2M3> = 0x06060606u;
template <>
inline constexpr std::uint32_t kScaleStep<WeightCode::kE3M2> = 0x04040404u;

// Bytes of a slice (64 channels) of such weights, and their distance in shared memory, where rows
// start at multiples of 16 bytes and quads read without bank conflicts.
template <WeightCode code>
inline constexpr int kPackedSliceBytes = code == WeightCode::kE2M1 ? 32 : 48;
inline constexpr int kPackedPitch = 48;

// Four nibbles, lowest first: s ee m → s 00ee m00.
MMCOMPILE_DEVICE std::uint32_t widen_e2m1(std::uint32_t nibbles) {
  const std::uint32_t pairs = (nibbles | nibbles << 8) & 0x00FF00FFu;
  const std::uint32_t codes = (pairs | pairs << 4) & 0x0F0F0F0Fu;
  return (codes & 0x08080808u) << 4 | (codes & 0x07070707u) << 2;
}

// Four 6-bit codes in the low 24 bits: s ee mmm → s 00ee mmm, and s eee mm → s 0eee mm0.
template <WeightCode code>
MMCOMPILE_DEVICE std::uint32_t widen_6bit(std::uint32_t packed) {
  constexpr int shift = code == WeightCode::kE3M2 ? 1 : 0;
  const std::uint32_t pairs = (packed & 0x00000FFFu) | (packed & 0x00FFF000u) << 4;
  const std::uint32_t codes = (pairs & 0x003F003Fu) | (pairs & 0x0FC00FC0u) << 2;
  return (codes & 0x20202020u) << 2 | (codes & 0x1F1F1F1Fu) << shift;
}

// The four channels 4t..4t+3 of half a block of 32 that starts at `half`: a fragment's word.
template <WeightCode code>
MMCOMPILE_DEVICE std::uint32_t load_widened(SharedOffset half, int t) {
  if constexpr (code == WeightCode::kE2M1) {
    return widen_e2m1(device::load_shared<std::uint16_t>(half + 2 * t));
  } else {
    // Bytes 3t..3t+2 of twelve: they end in the word of byte 3t, or in the one after it.
    const std::uint32_t low = device::load_shared<std::uint32_t>(half + 3 * t / 4 * 4);
    const std::uint32_t high = device::load_shared<std::uint32_t>(half + (3 * t + 2) / 4 * 4);
    const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
    return widen_6bit<code>(static_cast<std::uint32_t>(both >> 8 * (3 * t % 4)));
  }
}

// Bytes that half a block of 32 takes.
template <WeightCode code>
inline constexpr int kPackedHalfBytes = code == WeightCode::kE2M1 ? 8 : 12;

}  // namespace mmcompile
