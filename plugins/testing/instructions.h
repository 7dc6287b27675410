// The tensor-core instructions, for a warp whose lanes' registers all lie at hand.
//
// Fragments: PTX ISA, "Matrix fragments for mma.m16n8k16", "...k32", "...k64" and "Block scaling
// for mma.sync". All of them are one pattern over registers of 32 bits, whatever the width of an
// element: a quad of lanes holds a row of A or a column of B, each lane a word of it.
//
// Arithmetic: products and scales are exact in double, their sum is rounded only in double (in the
// block-scaled ones the sum of a scale's block is exact), is added to c, and rounded to fp32 once.
// Hardware rounds differently, and less well: how is not documented.
#pragma once

#include <array>
#include <cstdint>

#include "mmcompile/formats.h"

namespace mmcompile::emulator {

inline constexpr int kLanes = 32;
inline constexpr int kRows = 16;    // of A and C
inline constexpr int kColumns = 8;  // of B and C

struct Place {
  int line;  // row of A, column of B
  int k;
};
struct PlaceOfC {
  int row;
  int column;
};
struct PlaceOfScale {
  int lane;
  int byte;  // of that lane's register
};

// The element that lane's register `word` holds at `element`, counted from its low end, where a
// register holds `per_word` elements (2 of fp16, 4 of E4M3, 8 of E2M1).
constexpr Place place_in_a(int per_word, int lane, int word, int element) {
  return {lane / 4 + 8 * (word % 2), per_word * (lane % 4 + 4 * (word / 2)) + element};
}
constexpr Place place_in_b(int per_word, int lane, int word, int element) {
  return {lane / 4, per_word * (lane % 4 + 4 * word) + element};
}
constexpr PlaceOfC place_in_c(int lane, int index) {
  return {lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2};
}
// Where the scale of a row's (column's) block of K comes from, by the instruction's selectors.
constexpr PlaceOfScale scale_of_a(int byte, int thread, int row, int block) {
  return {4 * (row % 8) + 2 * thread + row / 8, byte + block};
}
constexpr PlaceOfScale scale_of_b(int byte, int thread, int column, int block) {
  return {4 * column + thread, byte + block};
}

// What a lane passes to an mma: c is updated, scales are unused by mma_f16.
struct MmaOperands {
  float* c;
  const std::uint32_t* a;  // 4
  const std::uint32_t* b;  // 2
  std::uint32_t scale_a;
  std::uint32_t scale_b;
};
using WarpOperands = const MmaOperands* const (&)[kLanes];

// --- decoding, element by element ---

template <Element E>
constexpr std::array<float, (1u << E.bits)> decode_table() {
  std::array<float, (1u << E.bits)> table{};
  for (std::uint32_t code = 0; code < table.size(); ++code) table[code] = decode<E>(code);
  return table;
}
inline constexpr auto kValuesOfE2M1 = decode_table<kE2M1>();
inline constexpr auto kValuesOfE4M3 = decode_table<kE4M3>();

struct DecodeHalf {
  static constexpr int per_word = 2;
  static double value(std::uint32_t word, int element) {
    return half_to_float(static_cast<std::uint16_t>(word >> (16 * element)));
  }
};
struct DecodeE4M3 {
  static constexpr int per_word = 4;
  static double value(std::uint32_t word, int element) {
    return kValuesOfE4M3[(word >> (8 * element)) & 0xFFu];
  }
};
struct DecodeE2M1 {
  static constexpr int per_word = 8;
  static double value(std::uint32_t word, int element) {
    return kValuesOfE2M1[(word >> (4 * element)) & 0xFu];
  }
};

// ue8m0: 2^(byte - 127), NaN for 255. ue4m3: E4M3 without its sign, NaN for 0x7F.
inline double scale_value(ScaleFormat format, std::uint32_t byte) {
  if (format == ScaleFormat::kE8M0) return e8m0_value(byte);
  return kValuesOfE4M3[byte & 0x7Fu];
}

// --- the instructions ---

// c += a · b over blocks of K that a factor of a row and one of a column belong to.
template <typename Decode, int blocks, typename ScaleA, typename ScaleB>
void multiply_accumulate(WarpOperands lanes, ScaleA scale_a, ScaleB scale_b) {
  constexpr int k_size = 8 * Decode::per_word;
  constexpr int block_size = k_size / blocks;
  // K before columns: the innermost loop below runs over columns, and compilers vectorize it.
  alignas(64) double a[kRows][k_size];
  alignas(64) double b[k_size][kColumns];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int word = 0; word < 4; ++word)
      for (int element = 0; element < Decode::per_word; ++element) {
        const Place place = place_in_a(Decode::per_word, lane, word, element);
        a[place.line][place.k] = Decode::value(lanes[lane]->a[word], element);
      }
    for (int word = 0; word < 2; ++word)
      for (int element = 0; element < Decode::per_word; ++element) {
        const Place place = place_in_b(Decode::per_word, lane, word, element);
        b[place.k][place.line] = Decode::value(lanes[lane]->b[word], element);
      }
  }
  double column_scale[blocks][kColumns];
  for (int block = 0; block < blocks; ++block)
    for (int column = 0; column < kColumns; ++column)
      column_scale[block][column] = scale_b(column, block);
  for (int row = 0; row < kRows; ++row) {
    double total[kColumns] = {};
    for (int block = 0; block < blocks; ++block) {
      double sum[kColumns] = {};
      for (int k = block * block_size; k < (block + 1) * block_size; ++k)
        for (int column = 0; column < kColumns; ++column) sum[column] += a[row][k] * b[k][column];
      const double row_scale = scale_a(row, block);
      for (int column = 0; column < kColumns; ++column)
        total[column] += row_scale * column_scale[block][column] * sum[column];
    }
    for (int half = 0; half < 2; ++half)
      for (int quad = 0; quad < 4; ++quad) {
        const int index = 2 * (row / 8) + half;
        const int lane = 4 * (row % 8) + quad;
        const PlaceOfC place = place_in_c(lane, index);
        float& c = lanes[lane]->c[index];
        c = static_cast<float>(static_cast<double>(c) + total[place.column]);
      }
  }
}

inline void mma_f16_warp(WarpOperands lanes) {
  const auto one = [](int, int) { return 1.0; };
  multiply_accumulate<DecodeHalf, 1>(lanes, one, one);
}

template <typename Decode, int blocks, ScaleFormat format>
void mma_block_scaled_warp(WarpOperands lanes, int byte_a, int thread_a, int byte_b, int thread_b) {
  multiply_accumulate<Decode, blocks>(
      lanes,
      [=](int row, int block) {
        const PlaceOfScale place = scale_of_a(byte_a, thread_a, row, block);
        return scale_value(format, lanes[place.lane]->scale_a >> (8 * place.byte) & 0xFFu);
      },
      [=](int column, int block) {
        const PlaceOfScale place = scale_of_b(byte_b, thread_b, column, block);
        return scale_value(format, lanes[place.lane]->scale_b >> (8 * place.byte) & 0xFFu);
      });
}

}  // namespace mmcompile::emulator
