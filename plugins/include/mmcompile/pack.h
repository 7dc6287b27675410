// Quantizing and packing weights on the CPU: layout version 1 of docs/spec.md.
//
// A packed weight of N output channels (rows) under a channel order and a list of segments is
//   codes   uint8[N, row_bytes]    per row a little-endian bit stream, channel after channel
//   scales  uint8[N, scale_bytes]  per row one byte per block, channel after channel
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

// The entry of a channel order that stands for a channel of zeros.
inline constexpr std::int32_t kPadding = -1;

// A run of ordered channels of one format.
struct Segment {
  std::int64_t channels;  // multiple of kSegmentStep
  int format;             // index into kBlockFormats
  std::uint32_t carry;    // threshold_carry of an MX format

  constexpr std::int64_t row_bytes() const {
    return channels * kBlockFormats[format].element.bits / 8;
  }
  constexpr std::int64_t scale_bytes() const { return channels / kBlockFormats[format].block; }
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
  std::int64_t scale_bytes() const {
    std::int64_t bytes = 0;
    for (const Segment& segment : segments) bytes += segment.scale_bytes();
    return bytes;
  }
};

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
                                     std::uint8_t* codes, std::uint8_t* scales, int threads,
                                     const std::string& instruction_set = "");

// Unpacks rows to values, fp32[rows, K_pad], exactly.
void dequantize(const std::uint8_t* codes, const std::uint8_t* scales, const Layout& layout,
                std::int64_t rows, float* values, int threads);

// Quantizes and dequantizes rows, fp32[rows, K_pad]: what a kernel makes of its activations.
void quantize_rows(const ValueMatrix& matrix, const Layout& layout, float* values, int threads);

}  // namespace mmcompile
