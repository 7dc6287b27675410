#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "mmcompile/formats.h"

namespace mmcompile {
namespace {

constexpr int kSegmentStep = 32;
// Keeps every count of channels, and of bytes in a row, within 31 bits.
constexpr std::int64_t kMostChannels = 1 << 26;

constexpr bool is_nvfp4(int format) {
  return kBlockFormats[format].scale == ScaleFormat::kE4M3;
}

constexpr std::int32_t rounded_up(std::int64_t value, std::int64_t step) {
  return static_cast<std::int32_t>((value + step - 1) / step * step);
}

bool is_power_of_two(float value) {
  int exponent = 0;
  return std::isfinite(value) && std::frexp(value, &exponent) == 0.5f &&
         std::abs(exponent - 1) <= 100;
}

Instruction instruction_of(const MmcSegment& segment) {
  if (is_nvfp4(segment.act_format)) return Instruction::kNvf4;
  const bool both_e2m1 = kBlockFormats[segment.act_format].element.bits == 4 &&
                         kBlockFormats[segment.weight_format].element.bits == 4;
  return both_e2m1 ? Instruction::kMxf4 : Instruction::kMxf8;
}

// Format ids: 0 mxfp4, 1 mxfp6_e2m3, 2 mxfp6_e3m2, 3 mxfp8.
WeightCode weight_code_of(int weight_format, Instruction instruction) {
  constexpr WeightCode codes[] = {WeightCode::kE2M1, WeightCode::kE2M3, WeightCode::kE3M2,
                                  WeightCode::kAsInstruction};
  return instruction == Instruction::kMxf8 ? codes[weight_format] : WeightCode::kAsInstruction;
}

MmcStatus check_segment(const MmcSegment& segment, int s, MmcError* error) {
  if (segment.channels <= 0 || segment.channels % kSegmentStep != 0)
    return fail(error, MMC_INVALID_ARGUMENT,
                "segment %d: %d channels are no positive multiple of 32", s, segment.channels);
  for (const int format : {segment.act_format, segment.weight_format})
    if (format < 0 || format >= kFormatCount)
      return fail(error, MMC_INVALID_ARGUMENT, "segment %d: format id %d is not in 0..%d", s,
                  format, kFormatCount - 1);
  if (!(segment.act_threshold >= 1 && segment.act_threshold <= 2))
    return fail(error, MMC_INVALID_ARGUMENT, "segment %d: threshold %g is outside [1, 2]", s,
                static_cast<double>(segment.act_threshold));
  if (is_nvfp4(segment.act_format) != is_nvfp4(segment.weight_format))
    return fail(error, MMC_UNSUPPORTED,
                "segment %d: no tensor-core instruction multiplies NVFP4 with an MX format", s);
  return MMC_OK;
}

// The segment's place behind what is in `info`, which grows by it.
SegmentParams placed(const MmcSegment& segment, MmcLinearInfo& info) {
  const Instruction instruction = instruction_of(segment);
  const Element& weight = kBlockFormats[segment.weight_format].element;
  const int act_bits = instruction == Instruction::kMxf8 ? 8 : 4;
  const int word_channels = instruction == Instruction::kNvf4 ? 64 : 128;
  const SegmentParams params{
      .first_channel = static_cast<std::int32_t>(info.padded_channels),
      .channels = segment.channels,
      .act_byte = static_cast<std::int32_t>(info.act_row_bytes),
      .weight_byte = static_cast<std::int32_t>(info.weight_row_bytes),
      .act_word = static_cast<std::int32_t>(info.act_scale_words),
      .weight_word = static_cast<std::int32_t>(info.weight_scale_words),
      .act_carry = threshold_carry(segment.act_threshold),
      .instruction = instruction,
      .weight_code = weight_code_of(segment.weight_format, instruction),
      .act_format = static_cast<std::uint8_t>(segment.act_format),
  };
  const std::int64_t words = (segment.channels + word_channels - 1) / word_channels;
  info.padded_channels += segment.channels;
  info.act_row_bytes += segment.channels * act_bits / 8;
  info.weight_row_bytes += rounded_up(std::int64_t{segment.channels} * weight.bits / 8, 16);
  info.act_scale_words += words;
  info.weight_scale_words += words;
  return params;
}

}  // namespace

MmcStatus fail(MmcError* error, MmcStatus status, const char* format, ...) {
  if (error != nullptr) {
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(error->text, sizeof(error->text), format, arguments);
    va_end(arguments);
  }
  return status;
}

MmcStatus make_linear(const MmcLayer& layer, MmcLinear& linear, MmcError* error) {
  for (const auto& [name, channels] :
       {std::pair{"in_channels", layer.in_channels}, std::pair{"out_channels", layer.out_channels}})
    if (channels < 1 || channels > kMostChannels)
      return fail(error, MMC_INVALID_ARGUMENT, "%s is %lld, needed is 1..%lld", name,
                  static_cast<long long>(channels), static_cast<long long>(kMostChannels));
  if (layer.segment_count < 1 || layer.segment_count > MMC_MAX_SEGMENTS)
    return fail(error, MMC_UNSUPPORTED, "a layer of %d segments; the kernels take 1 to %d",
                layer.segment_count, MMC_MAX_SEGMENTS);
  if (layer.segments == nullptr) return fail(error, MMC_INVALID_ARGUMENT, "segments is null");
  for (const auto& [name, scale] : {std::pair{"act_tensor_scale", layer.act_tensor_scale},
                                    std::pair{"weight_tensor_scale", layer.weight_tensor_scale}})
    if (!is_power_of_two(scale))
      return fail(error, MMC_INVALID_ARGUMENT, "%s is %g, no power of two in 2^-100..2^100", name,
                  static_cast<double>(scale));
  std::int64_t channels = 0;
  for (int s = 0; s < layer.segment_count; ++s) {
    const MmcStatus status = check_segment(layer.segments[s], s, error);
    if (status != MMC_OK) return status;
    channels += layer.segments[s].channels;
    if (channels > kMostChannels)
      return fail(error, MMC_INVALID_ARGUMENT, "the segments have more than %lld channels",
                  static_cast<long long>(kMostChannels));
  }
  linear = {.in_channels = layer.in_channels,
            .out_channels = layer.out_channels,
            .info = {},
            .segments = {.count = layer.segment_count, .segment = {}},
            .act_tensor_scale = layer.act_tensor_scale,
            .weight_tensor_scale = layer.weight_tensor_scale};
  SegmentParams* const first = linear.segments.segment;
  for (int s = 0; s < layer.segment_count; ++s) first[s] = placed(layer.segments[s], linear.info);
  std::stable_partition(first, first + layer.segment_count, [](const SegmentParams& segment) {
    return segment.instruction == Instruction::kNvf4;
  });
  return MMC_OK;
}

ChunkCount count_chunks(const MmcLinear& linear, const Tile& tile) {
  ChunkCount count{0, 0};
  for (int s = 0; s < linear.segments.count; ++s) {
    const SegmentParams& segment = linear.segments.segment[s];
    const bool bytes = segment.instruction == Instruction::kMxf8;
    const int row_bytes = bytes ? segment.channels : segment.channels / 2;
    const int chunks = (row_bytes + tile.chunk_bytes() - 1) / tile.chunk_bytes();
    count.all += chunks;
    if (segment.instruction == Instruction::kNvf4) count.nvf4 += chunks;
  }
  return count;
}

}  // namespace mmcompile
