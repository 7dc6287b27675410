// Quantizing and packing weights on the CPU: layout version 2 of docs/spec.md.
//
// A packed weight of N output channels (rows) under a channel order and a list of segments is
//   codes   uint8[N, row_bytes]       per row and segment a little-endian bit stream, channel after
//                                     channel, padded with zeros to kSegmentAlignment bytes
//   scales  uint8[scale_words, N, 4]  per segment one byte per block, block after block, in words
//                                     of four, the last padded with zeros
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mmcompile/formats.h"

namespace mmcompile {

// All segments are multiples of this many channels, the longest block.
inline constexpr int kSegmentStep = 32;

// The codes of every segment begin at a multiple of this many bytes of their row.
inline constexpr int kSegmentAlignment = 16;

// Scale bytes per word.
inline constexpr int kScaleWord = 4;

// Mantissa thresholds lie between these: the lowest adds one to the exponent of every block whose
// amax is no power of two, the highest to none.
inline constexpr double kLowestThreshold = 1;
inline constexpr double kHighestThreshold = 2;

// The entry of a channel order that stands for a channel of zeros.
inline constexpr std::int32_t kPadding = -1;

// A run of ordered channels of one format.
struct Segment {
  std::int64_t channels;  // multiple of kSegmentStep
  int format;             // index into kBlockFormats
  std::uint32_t carry;    // threshold_carry of an MX format
  bool searched = false;  // the better of two scales per block instead; the carry has no effect

  // Bytes of a row's codes, without and with the padding behind them.
  constexpr std::int64_t code_bytes() const {
    return channels * kBlockFormats[format].element.bits / 8;
  }
  constexpr std::int64_t row_bytes() const {
    return (code_bytes() + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
  }
  constexpr std::int64_t scale_words() const {
    return (channels / kBlockFormats[format].block + kScaleWord - 1) / kScaleWord;
  }
};

enum class ValueType : std::uint8_t { kFloat32, kFloat16, kBfloat16 };

// A matrix of values in memory, element (row, channel) at row·row_stride + channel·channel_stride.
struct ValueMatrix {
  const void* data;
  ValueType type;
  std::int64_t rows;        // N, or the tokens of an activation
  std::int64_t channels;    // K
  std::int64_t row_stride;  // in elements, as is the next
  std::int64_t channel_stride;
};

// What all functions below need to know of a layout.
struct Layout {
  std::span<const std::int32_t> order;  // K_pad source channels or kPadding; not for dequantize
  std::span<const Segment> segments;    // their channels sum to K_pad
  float tensor_scale;                   // NVFP4's, a power of two in 2^-100..2^100

  std::int64_t channels() const {
    std::int64_t sum = 0;
    for (const Segment& segment : segments) sum += segment.channels;
    return sum;
  }
  std::int64_t row_bytes() const {
    std::int64_t bytes = 0;
    for (const Segment& segment : segments) bytes += segment.row_bytes();
    return bytes;
  }
  std::int64_t scale_words() const {
    std::int64_t words = 0;
    for (const Segment& segment : segments) words += segment.scale_words();
    return words;
  }
};

// The scales of some rows: word w of row n is the kScaleWord bytes at data + w·stride +
// n·kScaleWord. The stride is kScaleWord times the rows of the whole array, of which these may be a
// part.
template <class Byte>
struct ScaleArray {
  Byte* data;
  std::int64_t stride;  // bytes

  // The scales from that word of that row on.
  ScaleArray from(std::int64_t word, std::int64_t row) const {
    return {data + word * stride + row * kScaleWord, stride};
  }
};
using Scales = ScaleArray<const std::uint8_t>;
using ScalesOut = ScaleArray<std::uint8_t>;

// Σ w² and Σ (w - w_hat)² over a segment; NaN where the weights hold NaN or Inf.
struct ErrorSums {
  double squares = 0;
  double errors = 0;
};

// Names of the instruction sets that this processor has and quantize_pack can use, best first.
std::vector<std::string> instruction_sets();

// Quantizes and packs all rows; returns one entry per segment. Neither the bytes nor the sums
// depend on the number of threads or the instruction set (the best one, unless named).
std::vector<ErrorSums> quantize_pack(const ValueMatrix& weight, const Layout& layout,
                                     std::uint8_t* codes, ScalesOut scales, int threads,
                                     const std::string& instruction_set = "");

// Unpacks rows to values, fp32[rows, K_pad], exactly.
void dequantize(const std::uint8_t* codes, Scales scales, const Layout& layout, std::int64_t rows,
                float* values, int threads);

// Puts rows into a channel order, fp32[rows, K_pad]; K_pad is a multiple of kSegmentStep.
void order_rows(const ValueMatrix& matrix, std::span<const std::int32_t> order, float* values,
                int threads);

// Quantizes and dequantizes rows, fp32[rows, K_pad]: what a kernel makes of its activations.
void quantize_rows(const ValueMatrix& matrix, const Layout& layout, float* values, int threads);

}  // namespace mmcompile
