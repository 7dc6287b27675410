// Unpacks and dequantizes rows: the inverse of pack.cpp, by tables.
#include <array>

#include "mmcompile/pack.h"
#include "threads.h"

namespace mmcompile {
namespace {

template <Element E>
constexpr auto decode_table() {
  std::array<float, 1 << E.bits> table{};
  for (std::uint32_t code = 0; code < table.size(); ++code) table[code] = decode<E>(code);
  return table;
}

template <Element E>
constexpr auto kDecodeTable = decode_table<E>();

template <Element E>
void unpack_block(const std::uint8_t* codes, int channels, float scale, float* values) {
  constexpr const auto& table = kDecodeTable<E>;
  for (int c = 0; c < channels; c += 4) {  // four codes fill 2, 3 or 4 bytes
    std::uint32_t word = 0;
    for (int b = 0; b < E.bits / 2; ++b) word |= static_cast<std::uint32_t>(*codes++) << (8 * b);
    for (int i = 0; i < 4; ++i)
      values[c + i] = table[word >> (i * E.bits) & (table.size() - 1)] * scale;
  }
}

template <int format>
void unpack_segment(const Segment& segment, const std::uint8_t* codes, Scales scales,
                    float tensor_scale, float* values) {
  constexpr BlockFormat block = kBlockFormats[format];
  for (std::int64_t b = 0; b < segment.channels / block.block; ++b) {
    const std::uint32_t byte = scales.from(b / kScaleWord, 0).data[b % kScaleWord];
    const float scale =
        block.scale == ScaleFormat::kE8M0 ? e8m0_value(byte) : decode<kE4M3>(byte) * tensor_scale;
    unpack_block<block.element>(codes, block.block, scale, values);
    codes += block.block * block.element.bits / 8;
    values += block.block;
  }
}

}  // namespace

void dequantize(const std::uint8_t* codes, Scales scales, const Layout& layout, std::int64_t rows,
                float* values, int threads) {
  const std::int64_t row_bytes = layout.row_bytes();
  const auto padded = layout.channels();
  parallel_ranges(rows, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::uint8_t* row_codes = codes + row * row_bytes;
      Scales row_scales = scales.from(0, row);
      float* row_values = values + row * padded;
      for (const Segment& segment : layout.segments) {
        using Unpack = void (*)(const Segment&, const std::uint8_t*, Scales, float, float*);
        constexpr Unpack by_format[] = {unpack_segment<0>, unpack_segment<1>, unpack_segment<2>,
                                        unpack_segment<3>, unpack_segment<4>};
        by_format[segment.format](segment, row_codes, row_scales, layout.tensor_scale, row_values);
        row_codes += segment.row_bytes();
        row_scales = row_scales.from(segment.scale_words(), 0);
        row_values += segment.channels;
      }
    }
  });
}

}  // namespace mmcompile
