// The quantizing kernel in the emulator, for tests/kernels/test_quantize.py.
#include "quantize.h"

#include <cstdint>
#include <cstdio>
#include <exception>

#include "emulator.h"

namespace mmcompile {
namespace {

struct Segments {
  std::int32_t count;
  const std::int32_t* channels;
  const std::int32_t* act_format;
  const std::int32_t* instruction;
  const double* threshold;
};

// What a launch gets, beside the arrays' sizes.
struct Call {
  const void* x;
  std::int64_t x_bytes;
  const std::int32_t* order;
  Segments segments;
  std::uint8_t* codes;
  std::uint32_t* scales;
  std::uint32_t* counters;
  std::int32_t scale_words;
  std::int32_t counter_count;
  std::int32_t rows;
  std::int32_t in_channels;
  std::int32_t padded_channels;
  std::int32_t row_bytes;
  float tensor_scale;
  std::int32_t x_type;
  std::int32_t conversions;
  QuantizeLaunch launch;
  std::uint64_t seed;
};

SegmentList segment_list(const Segments& segments) {
  SegmentList list{};
  list.count = segments.count;
  std::int32_t channel = 0;
  std::int32_t byte = 0;
  std::int32_t word = 0;
  for (int s = 0; s < segments.count; ++s) {
    SegmentParams& segment = list.segment[s];
    segment.instruction = static_cast<Instruction>(segments.instruction[s]);
    segment.act_format = static_cast<std::uint8_t>(segments.act_format[s]);
    segment.act_carry = threshold_carry(segments.threshold[s]);
    segment.first_channel = channel;
    segment.channels = segments.channels[s];
    segment.act_byte = byte;
    segment.act_word = word;
    const int word_channels = segment.instruction == Instruction::kNvf4 ? 64 : 128;
    channel += segment.channels;
    byte += segment.instruction == Instruction::kMxf8 ? segment.channels : segment.channels / 2;
    word += (segment.channels + word_channels - 1) / word_channels;
  }
  return list;
}

template <MmcType kType, int kRows, Conversions conversions>
void launch(const Call& call, const QuantizeParams& params, emulator::Memory& memory) {
  const QuantizeLaunch& shape = call.launch;
  emulator::launch(shape.grid_x, shape.grid_y, shape.threads,
                   static_cast<std::size_t>(shape.shared_bytes), {.seed = call.seed}, memory, [&] {
                     if (shape.staged)
                       quantize_staged<kType, kRows, conversions>(params);
                     else
                       quantize_direct<kType, kRows, conversions>(params);
                   });
}

template <MmcType kType, int kRows>
void launch_converting(const Call& call, const QuantizeParams& params, emulator::Memory& memory) {
  switch (static_cast<Conversions>(call.conversions)) {
    case Conversions::kNone:
      return launch<kType, kRows, Conversions::kNone>(call, params, memory);
    case Conversions::kE4M3:
      return launch<kType, kRows, Conversions::kE4M3>(call, params, memory);
    case Conversions::kE2M1AndE4M3:
      return launch<kType, kRows, Conversions::kE2M1AndE4M3>(call, params, memory);
  }
}

template <MmcType kType>
void launch_rows(const Call& call, const QuantizeParams& params, emulator::Memory& memory) {
  switch (call.launch.rows_per_block) {
    case 1:
      return launch_converting<kType, 1>(call, params, memory);
    case 2:
      return launch_converting<kType, 2>(call, params, memory);
    default:
      return launch_converting<kType, 4>(call, params, memory);
  }
}

void run(const Call& call) {
  const QuantizeParams params{
      .x = call.x,
      .order = call.order,
      .codes = call.codes,
      .scales = call.scales,
      .counters = call.counters,
      .counter_count = call.counter_count,
      .rows = call.rows,
      .in_channels = call.in_channels,
      .padded_channels = call.padded_channels,
      .row_bytes = call.row_bytes,
      .act_tensor_scale = call.tensor_scale,
      .segments = segment_list(call.segments),
  };
  const auto rows = static_cast<std::size_t>(call.rows);
  emulator::Memory memory;
  memory.add(call.x, static_cast<std::size_t>(call.x_bytes), false, "x");
  memory.add(call.order, 4 * static_cast<std::size_t>(call.padded_channels), false, "order");
  memory.add(call.codes, rows * static_cast<std::size_t>(call.row_bytes), true, "codes");
  memory.add(call.scales, rows * 4 * static_cast<std::size_t>(call.scale_words), true, "scales");
  memory.add(call.counters, 4 * static_cast<std::size_t>(call.counter_count), true, "counters");
  switch (static_cast<MmcType>(call.x_type)) {
    case MMC_FLOAT32:
      return launch_rows<MMC_FLOAT32>(call, params, memory);
    case MMC_FLOAT16:
      return launch_rows<MMC_FLOAT16>(call, params, memory);
    case MMC_BFLOAT16:
      return launch_rows<MMC_BFLOAT16>(call, params, memory);
  }
}

// 8 values times 2^exponent, as codes of 4 bits (two words of them wasted) or bytes.
template <quantize::Coding coding, Conversions conversions, int significant_bits>
void encode_all(const float* values, std::int64_t count, int format, int exponent,
                std::uint8_t* codes) {
  constexpr float unit = quantize::unit_of(coding, conversions);
  const quantize::Grid grid = quantize::grid_of_segment<coding>(format, unit);
  const float multiplier = bits_float(power_bits(exponent)) * unit;
  for (std::int64_t first = 0; first < count; first += quantize::kChannels) {
    float x[quantize::kChannels];
    for (int i = 0; i < quantize::kChannels; ++i) x[i] = values[first + i];
    const Words2 packed =
        quantize::encode_values<coding, conversions, significant_bits>(x, multiplier, grid);
    for (int i = 0; i < quantize::kChannels; ++i) {
      const int bits = quantize::is_4_bit(coding) ? 4 : 8;
      const std::uint32_t word = packed.word[i * bits / 32];
      codes[first + i] = static_cast<std::uint8_t>(word >> (i * bits % 32) & ((1u << bits) - 1));
    }
  }
}

template <quantize::Coding coding, Conversions conversions>
void encode_short(const float* values, std::int64_t count, int significant_bits, int format,
                  int exponent, std::uint8_t* codes) {
  if (significant_bits == 8)
    encode_all<coding, conversions, 8>(values, count, format, exponent, codes);
  else if (significant_bits == 11)
    encode_all<coding, conversions, 11>(values, count, format, exponent, codes);
  else
    encode_all<coding, conversions, 24>(values, count, format, exponent, codes);
}

}  // namespace
}  // namespace mmcompile

extern "C" {

// 0, or 1 and a sentence.
int quantize_test_run(const mmcompile::Call* call, char* error, std::int64_t error_bytes) {
  try {
    mmcompile::run(*call);
    return 0;
  } catch (const std::exception& problem) {
    std::snprintf(error, static_cast<std::size_t>(error_bytes), "%s", problem.what());
    return 1;
  }
}

// What the library would launch.
void quantize_test_choose(const mmcompile::Call* call, int multiprocessors,
                          mmcompile::QuantizeLaunch* launch) {
  *launch =
      mmcompile::choose_quantize(static_cast<MmcType>(call->x_type), call->rows, call->in_channels,
                                 mmcompile::segment_list(call->segments), multiprocessors);
}

std::int64_t quantize_test_staged_bytes(int x_type, int rows, std::int64_t in_channels) {
  return mmcompile::staged_bytes(static_cast<MmcType>(x_type), rows, in_channels);
}

// The codes of values[count] times 2^exponent, without hardware, of a 4-bit segment or one of E4M3
// bytes; count is a multiple of 8.
void quantize_test_encode(const float* values, std::int64_t count, int significant_bits,
                          int is_4_bit, int format, int exponent, std::uint8_t* codes) {
  using mmcompile::Conversions;
  using mmcompile::quantize::Coding;
  if (is_4_bit != 0)
    mmcompile::encode_short<Coding::kMxE2M1, Conversions::kNone>(values, count, significant_bits,
                                                                 format, exponent, codes);
  else
    mmcompile::encode_short<Coding::kMxGrid, Conversions::kNone>(values, count, significant_bits,
                                                                 format, exponent, codes);
}

// 1 / s as NVFP4 scales are inverted.
float quantize_test_reciprocal(float s) {
  return mmcompile::quantize::reciprocal_of_scale(s);
}

}  // extern "C"
