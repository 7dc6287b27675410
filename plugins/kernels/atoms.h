// Block-scaled matrix products of a warp, in two implementations with one meaning and the same
// fragments: the tensor-core instructions of sm_120, and fp16 mma for GPUs that lack them.
//
// A slice is 64 bytes of K; an instruction takes half of it, a `step`. Both implementations keep
// the scales of a slice in registers of their own layout.
#pragma once

#include "device.h"
#include "parameters.h"

namespace mmcompile {

// Words of scales per row and slice.
template <Instruction instruction>
inline constexpr int kScaleWords = instruction == Instruction::kNvf4 ? 2 : 1;

// Where a warp finds the scales of a slice in shared memory: word j of row r of its fragments is at
// start + 4·(j·row_stride + r). Of kMxf8, whose word serves two slices, `shift` is 0 or 16; `step`
// (widen.h) is added to every byte.
struct ScaleSource {
  SharedOffset start;
  int row_stride;
  int shift;
  std::uint32_t step;
};

template <Instruction instruction>
MMCOMPILE_DEVICE std::uint32_t load_scale_word(const ScaleSource& source, int row, int j) {
  const SharedOffset place =
      source.start + static_cast<SharedOffset>(4 * (j * source.row_stride + row));
  std::uint32_t word = device::load_shared<std::uint32_t>(place);
  if constexpr (instruction == Instruction::kMxf8) word >>= source.shift;
  return source.step == 0 ? word : device::add_bytes_saturating(word, source.step);
}

// The instructions of the sm_120 family. One register holds the scales of two A fragments (32
// rows: lane 4g + t has row 8t + g) or of four B fragments (32 columns, likewise), and the
// instruction names the lanes.
struct NativeAtoms {
  template <Instruction instruction, int fragments, int rows>
  struct Scales {
    static constexpr int kPerRegister = 32 / rows;
    static constexpr int kRegisters = (fragments + kPerRegister - 1) / kPerRegister;
    std::uint32_t word[kScaleWords<instruction>][kRegisters];

    MMCOMPILE_DEVICE void load(const ScaleSource& source, int lane) {
      // Where there are fewer fragments, further lanes repeat them.
      constexpr int lanes = (fragments < kPerRegister ? fragments : kPerRegister) * rows / 8;
      const int row = lane / 4 + 8 * (lane % 4 % lanes);
#pragma unroll
      for (int j = 0; j < kScaleWords<instruction>; ++j)
#pragma unroll
        for (int i = 0; i < kRegisters; ++i)
          word[j][i] = load_scale_word<instruction>(source, row + 32 * i, j);
    }
  };
  template <Instruction instruction, int fragments>
  using ScalesA = Scales<instruction, fragments, 16>;
  template <Instruction instruction, int fragments>
  using ScalesB = Scales<instruction, fragments, 8>;

  template <Instruction instruction, int step, int m, int n, typename A, typename B>
  MMCOMPILE_DEVICE static void multiply(float (&c)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2], const A& scales_a,
                                        const B& scales_b) {
    constexpr int j = instruction == Instruction::kNvf4 ? step : 0;
    const std::uint32_t scale_a = scales_a.word[j][m / 2];
    const std::uint32_t scale_b = scales_b.word[j][n / 4];
    if constexpr (instruction == Instruction::kMxf4)
      device::mma_mxf4<2 * step, m % 2, 2 * step, n % 4>(c, a, b, scale_a, scale_b);
    else if constexpr (instruction == Instruction::kNvf4)
      device::mma_nvf4<0, m % 2, 0, n % 4>(c, a, b, scale_a, scale_b);
    else
      device::mma_mxf8<step, m % 2, step, n % 4>(c, a, b, scale_a, scale_b);
  }
};

// The same products by fp16 mma, which is exact on unscaled elements: every one of them is an fp16
// number, up to a power of two. A block's sum starts at zero and is scaled in fp32. Lanes pair the
// channels of A and B alike, so it does not matter that fp16 fragments order them otherwise.
struct PortableAtoms {
  // Scale words of the rows that a lane's accumulators, or (NVFP4) its elements, belong to: rows g
  // and g + 8 of an A fragment; columns 2t and 2t + 1 of a B fragment, or (NVFP4) column g.
  template <Instruction instruction, int fragments>
  struct ScalesA {
    std::uint32_t word[fragments][2][kScaleWords<instruction>];

    MMCOMPILE_DEVICE void load(const ScaleSource& source, int lane) {
#pragma unroll
      for (int m = 0; m < fragments; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < kScaleWords<instruction>; ++j)
            word[m][half][j] =
                load_scale_word<instruction>(source, 16 * m + 8 * half + lane / 4, j);
    }
  };
  template <Instruction instruction, int fragments>
  struct ScalesB {
    static constexpr int kColumns = instruction == Instruction::kNvf4 ? 1 : 2;
    std::uint32_t word[fragments][kColumns][kScaleWords<instruction>];

    MMCOMPILE_DEVICE void load(const ScaleSource& source, int lane) {
      const int first = instruction == Instruction::kNvf4 ? lane / 4 : 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < fragments; ++n)
#pragma unroll
        for (int column = 0; column < kColumns; ++column)
#pragma unroll
          for (int j = 0; j < kScaleWords<instruction>; ++j)
            word[n][column][j] = load_scale_word<instruction>(source, 8 * n + first + column, j);
    }
  };

  template <Instruction instruction, int step, int m, int n, typename A, typename B>
  MMCOMPILE_DEVICE static void multiply(float (&c)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2], const A& scales_a,
                                        const B& scales_b) {
    if constexpr (instruction == Instruction::kMxf8) {
      float sum[4] = {};
      multiply_e4m3(sum, a[0], a[1], b[0]);
      multiply_e4m3(sum, a[2], a[3], b[1]);
      add_scaled<step, kE4M3Offset>(c, sum, scales_a.word[m], scales_b.word[n]);
    } else if constexpr (instruction == Instruction::kMxf4) {
      float low[4] = {};
      multiply_e2m1(low, a[0], a[1], b[0]);
      add_scaled<2 * step, kE2M1Offset>(c, low, scales_a.word[m], scales_b.word[n]);
      float high[4] = {};
      multiply_e2m1(high, a[2], a[3], b[1]);
      add_scaled<2 * step + 1, kE2M1Offset>(c, high, scales_a.word[m], scales_b.word[n]);
    } else {
      // Element times scale is an fp16 number too: 6 bits between 2^-10 and 2688.
      multiply_nvfp4<0>(c, a[0], a[1], b[0], scales_a.word[m][0][step], scales_a.word[m][1][step],
                        scales_b.word[n][0][step]);
      multiply_nvfp4<2>(c, a[2], a[3], b[1], scales_a.word[m][0][step], scales_a.word[m][1][step],
                        scales_b.word[n][0][step]);
    }
  }

 private:
  // Bits of an element put into fp16 (bias 15) at the same binary point divide it by 2^offset.
  static constexpr int kE4M3Offset = 8;
  static constexpr int kE2M1Offset = 14;

  struct Pairs {
    std::uint32_t word[2];  // channels 0 1 and 2 3, or of eight: pairs of channels
  };

  // Four E4M3 bytes → fp16 · 2^-8.
  MMCOMPILE_DEVICE static Pairs halves_of_e4m3(std::uint32_t bytes) {
    const std::uint32_t low = device::permute_bytes(bytes, 0, 0x1404);
    const std::uint32_t high = device::permute_bytes(bytes, 0, 0x3424);
    return {{(low & 0x80008000u) | (low >> 1 & 0x3F803F80u),
             (high & 0x80008000u) | (high >> 1 & 0x3F803F80u)}};
  }
  // Of eight E2M1 nibbles those numbered i and i + 4 → fp16 · 2^-14.
  template <int i>
  MMCOMPILE_DEVICE static std::uint32_t halves_of_e2m1(std::uint32_t nibbles) {
    const std::uint32_t raised = nibbles << (12 - 4 * i);
    return (raised & 0x80008000u) | (raised >> 3 & 0x0E000E00u);
  }

  // sum += the product over four channels a lane of rows g (`a0`) and g + 8 (`a1`).
  MMCOMPILE_DEVICE static void multiply_e4m3(float (&sum)[4], std::uint32_t a0, std::uint32_t a1,
                                             std::uint32_t b) {
    const Pairs x0 = halves_of_e4m3(a0);
    const Pairs x1 = halves_of_e4m3(a1);
    const Pairs y = halves_of_e4m3(b);
    device::mma_f16(sum, {x0.word[0], x1.word[0], x0.word[1], x1.word[1]}, {y.word[0], y.word[1]});
  }
  // The same over eight channels a lane.
  MMCOMPILE_DEVICE static void multiply_e2m1(float (&sum)[4], std::uint32_t a0, std::uint32_t a1,
                                             std::uint32_t b) {
    device::mma_f16(sum,
                    {halves_of_e2m1<0>(a0), halves_of_e2m1<0>(a1), halves_of_e2m1<1>(a0),
                     halves_of_e2m1<1>(a1)},
                    {halves_of_e2m1<0>(b), halves_of_e2m1<1>(b)});
    device::mma_f16(sum,
                    {halves_of_e2m1<2>(a0), halves_of_e2m1<2>(a1), halves_of_e2m1<3>(a0),
                     halves_of_e2m1<3>(a1)},
                    {halves_of_e2m1<2>(b), halves_of_e2m1<3>(b)});
  }

  // Both E4M3 scales of a word that belong to a lane's eight channels, in both fp16 of a word:
  // lanes 0 and 1 of a quad hold the lower block of 16, lanes 2 and 3 the upper one.
  template <int first_byte>
  MMCOMPILE_DEVICE static std::uint32_t half_scale(std::uint32_t word) {
    const int byte = first_byte + (device::thread_index() % 4) / 2;
    const std::uint32_t code = word >> 8 * byte & 0x7F;
    const std::uint32_t half = code == kE4M3Nan ? 0x7E00u : code << 7;
    // 2^8 · 2^-8; the scale of an fp16 pair.
    return device::multiply_half2(half | half << 16, 0x5C005C00u);
  }
  template <int i>
  MMCOMPILE_DEVICE static std::uint32_t scaled_e2m1(std::uint32_t nibbles, std::uint32_t scale) {
    constexpr std::uint32_t two_to_14 = 0x74007400u;
    return device::multiply_half2(device::multiply_half2(halves_of_e2m1<i>(nibbles), two_to_14),
                                  scale);
  }
  template <int first_byte>
  MMCOMPILE_DEVICE static void multiply_nvfp4(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                              std::uint32_t b, std::uint32_t word0,
                                              std::uint32_t word1, std::uint32_t word_b) {
    const std::uint32_t s0 = half_scale<first_byte>(word0);
    const std::uint32_t s1 = half_scale<first_byte>(word1);
    const std::uint32_t s = half_scale<first_byte>(word_b);
    device::mma_f16(c,
                    {scaled_e2m1<0>(a0, s0), scaled_e2m1<0>(a1, s1), scaled_e2m1<1>(a0, s0),
                     scaled_e2m1<1>(a1, s1)},
                    {scaled_e2m1<0>(b, s), scaled_e2m1<1>(b, s)});
    device::mma_f16(c,
                    {scaled_e2m1<2>(a0, s0), scaled_e2m1<2>(a1, s1), scaled_e2m1<3>(a0, s0),
                     scaled_e2m1<3>(a1, s1)},
                    {scaled_e2m1<2>(b, s), scaled_e2m1<3>(b, s)});
  }

  // 2^(byte - 127 + offset) as two factors of about half the exponent, so that four of them, of
  // both operands, neither overflow nor underflow in between; NaN for byte 255.
  struct Factors {
    float first;
    float second;
  };
  template <int byte, int offset>
  MMCOMPILE_DEVICE static Factors factors(std::uint32_t word) {
    const int code = static_cast<int>(word >> 8 * byte & 0xFF);
    const int exponent = code - 127 + offset;
    const int half = exponent >> 1;
    const float first = bits_float(power_bits(half));
    return {code == kE8M0Nan ? bits_float(kQuietNan) : first,
            bits_float(power_bits(exponent - half))};
  }
  template <int byte, int offset>
  MMCOMPILE_DEVICE static void add_scaled(float (&c)[4], const float (&sum)[4],
                                          const std::uint32_t (&rows)[2][1],
                                          const std::uint32_t (&columns)[2][1]) {
    const Factors row[2] = {factors<byte, offset>(rows[0][0]), factors<byte, offset>(rows[1][0])};
    const Factors column[2] = {factors<byte, offset>(columns[0][0]),
                               factors<byte, offset>(columns[1][0])};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Factors& r = row[i / 2];
      const Factors& k = column[i % 2];
      const float scaled = device::multiply(device::multiply(sum[i], r.first), k.first);
      c[i] = device::fused_multiply_add(device::multiply(scaled, r.second), k.second, c[i]);
    }
  }
};

}  // namespace mmcompile
