// What the host hands to the kernels: plain structs, passed by value as kernel parameters.
#pragma once

#include <cstdint>

#include "mmcompile/kernels.h"

namespace mmcompile {

// Bytes of quantized activations that a main loop takes from a row at a time: 128 channels of
// 4-bit codes or 64 of E4M3 bytes. One 4-byte word of scales belongs to 128 channels of an MX
// format or 64 of NVFP4.
inline constexpr int kSliceBytes = 64;

// The tensor-core instruction of a segment. 6-bit formats have none of their own: they run as
// E4M3, which holds all their values.
enum class Instruction : std::uint8_t { kMxf4, kNvf4, kMxf8 };

// How weights lie in memory, which is not always what the instruction takes: 4- and 6-bit weights
// of a kMxf8 segment are widened to E4M3 bytes on the way in.
enum class WeightCode : std::uint8_t { kAsInstruction, kE2M1, kE2M3, kE3M2 };

// A segment of a layer, with the places of its data: docs/kernels.md, "Layout".
struct SegmentParams {
  std::int32_t first_channel;  // position in the channel order
  std::int32_t channels;       // a positive multiple of 32
  std::int32_t act_byte;       // of its codes in a row of quantized activations; 16 | act_byte
  std::int32_t weight_byte;    // of its codes in a row of weights; 16 | weight_byte
  std::int32_t act_word;       // its first word of activation scales
  std::int32_t weight_word;    // its first word of weight scales
  std::uint32_t act_carry;     // threshold_carry of its activation format
  Instruction instruction;
  WeightCode weight_code;
  std::uint8_t act_format;  // index into kBlockFormats
};

struct SegmentList {
  std::int32_t count;
  // Segments of the kNvf4 instruction come first: their sum is scaled before others are added.
  SegmentParams segment[MMC_MAX_SEGMENTS];
};

struct QuantizeParams {
  const void* x;              // [rows, in_channels]
  const std::int32_t* order;  // [padded channels]
  std::uint8_t* codes;        // [rows, row_bytes]
  std::uint32_t* scales;      // [scale words, rows]
  std::uint32_t* counters;    // set to zero for the GEMM
  std::int32_t counter_count;
  std::int32_t rows;
  std::int32_t in_channels;
  std::int32_t padded_channels;
  std::int32_t row_bytes;
  float act_tensor_scale;
  SegmentList segments;
};

struct GemmParams {
  const std::uint8_t* act_codes;       // [rows, act_row_bytes]
  const std::uint32_t* act_scales;     // [act scale words, rows]
  const std::uint8_t* weight;          // [out_channels, weight_row_bytes]
  const std::uint32_t* weight_scales;  // [weight scale words, out_channels]
  const float* bias;                   // [out_channels], or null
  const void* residual;                // [rows, out_channels] of y_type, or null
  void* y;                             // [rows, out_channels]
  std::uint32_t* counters;             // zero, one per output tile; only where splits > 1
  float* partials;                     // [output tiles, splits, tile]; only where splits > 1
  std::int32_t rows;
  std::int32_t out_channels;
  std::int64_t act_row_bytes;
  std::int64_t weight_row_bytes;
  std::int32_t y_type;       // MmcType
  bool y_pairs;              // every even element of y lies at a multiple of two elements
  std::int32_t splits;       // of the chunks of K; 1..number of chunks
  std::int32_t chunks;       // of K, over all segments
  std::int32_t nvf4_chunks;  // of them, those of kNvf4 segments, which come first
  float nvf4_scale[2];       // product of both tensor scales, in two factors
  SegmentList segments;
};

}  // namespace mmcompile
