// Quantizes and packs rows, a tile at a time: load.h, then encode.h, block after block.
//
// The tile function is compiled for several instruction sets and chosen at run time.
#include "mmcompile/pack.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "encode.h"
#include "load.h"
#include "threads.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MMCOMPILE_X86_DISPATCH 1
#endif

namespace mmcompile {
namespace {

// Writes the lanes' scale words, one array of kLanes per group, of the first `rows` rows; clears
// them.
[[gnu::always_inline]] inline void write_scales(std::uint32_t (*words)[kLanes], int rows,
                                                std::uint8_t* scales) {
  static_assert(sizeof words[0][0] == kScaleWord);
  for (int g = 0; g * kLanes < rows; ++g) {
    const int lanes = std::min(kLanes, rows - g * kLanes);
    if (lanes == kLanes)  // of a known size: one or two vectors
      std::memcpy(scales, words[g], sizeof words[g]);
    else
      std::memcpy(scales, words[g], static_cast<std::size_t>(lanes) * kScaleWord);
    std::memset(words[g], 0, sizeof words[g]);
    scales += sizeof words[g];
  }
}

template <int format, bool searched>
[[gnu::always_inline]] inline void pack_channels(const Tile& tile, const Segment& segment,
                                                 std::int64_t first_channel, std::uint8_t* codes,
                                                 ScalesOut scales, ErrorSums& sums) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int step_bytes = kSegmentStep * block.element.bits / 8;
  constexpr int step_scale_bits = 8 * kSegmentStep / block.block;
  constexpr int most_groups = kContiguousTile / kLanes;
  const float tensor_scale = tile.layout.tensor_scale;
  const Constants by_rule{segment.carry, nvfp4_factor(tensor_scale), tensor_scale};
  const Candidates candidates(tensor_scale);
  const Constants& constants = searched ? candidates.first : by_rule;
  const int groups_used = (tile.rows + kLanes - 1) / kLanes;
  alignas(64) Group groups[most_groups];
  alignas(64) double squares[most_groups][kLanes] = {};
  alignas(64) double errors[most_groups][kLanes] = {};
  alignas(64) std::uint32_t scale_words[most_groups][kLanes] = {};
  int scale_shift = 0;
  const std::int64_t end = first_channel + segment.channels;
  for (std::int64_t c = first_channel; c < end; c += kSegmentStep) {
    load_groups(tile, c, groups);
    for (int g = 0; g < groups_used; ++g) {
      prefetch_share(tile, c + kSegmentStep, g, groups_used);
      const int rows = std::min(kLanes, tile.rows - g * kLanes);
      encode_group<format, searched>(constants, candidates.second, groups[g], rows,
                                     codes + g * kLanes * tile.row_bytes, tile.row_bytes,
                                     scale_words[g], scale_shift, squares[g], errors[g]);
    }
    codes += step_bytes;
    scale_shift += step_scale_bits;
    if (scale_shift == kWordBits || c + kSegmentStep == end) {
      write_scales(scale_words, tile.rows, scales.data);
      scales = scales.from(1, 0);
      scale_shift = 0;
    }
  }
  if (const std::int64_t padding = segment.row_bytes() - segment.code_bytes()) {
    for (int row = 0; row < tile.rows; ++row)
      std::memset(codes + row * tile.row_bytes, 0, static_cast<std::size_t>(padding));
  }
  for (int g = 0; g < groups_used; ++g) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.squares += squares[g][lane];
      sums.errors += errors[g][lane];
    }
  }
}

template <int format>
[[gnu::always_inline]] inline void pack_segment(const Tile& tile, const Segment& segment,
                                                std::int64_t first_channel, std::uint8_t* codes,
                                                ScalesOut scales, ErrorSums& sums) {
  if (segment.searched)
    pack_channels<format, true>(tile, segment, first_channel, codes, scales, sums);
  else
    pack_channels<format, false>(tile, segment, first_channel, codes, scales, sums);
}

// Asks for the scales of a tile of kLanes rows. A word of so few rows is a cache line or two, far
// from those of the next word: stores to them would wait for memory one after the other.
[[gnu::always_inline]] inline void prefetch_scales(const Tile& tile) {
  const std::int64_t words = tile.layout.scale_words();
  const std::uint8_t* word = tile.scales.data;
  for (std::int64_t w = 0; w < words; ++w, word += tile.scales.stride) {
    __builtin_prefetch(word, 1);
    __builtin_prefetch(word + tile.rows * kScaleWord - 1, 1);
  }
}

[[gnu::always_inline]] inline void pack_tile_body(const Tile& tile) {
  if (!tile.contiguous()) {
    prefetch_scales(tile);
    gather_rows(tile);
  }
  std::int64_t channel = 0;
  std::uint8_t* codes = tile.codes;
  ScalesOut scales = tile.scales;
  for (std::size_t s = 0; s < tile.layout.segments.size(); ++s) {
    const Segment& segment = tile.layout.segments[s];
    switch (segment.format) {
      case 0:
        pack_segment<0>(tile, segment, channel, codes, scales, tile.sums[s]);
        break;
      case 1:
        pack_segment<1>(tile, segment, channel, codes, scales, tile.sums[s]);
        break;
      case 2:
        pack_segment<2>(tile, segment, channel, codes, scales, tile.sums[s]);
        break;
      case 3:
        pack_segment<3>(tile, segment, channel, codes, scales, tile.sums[s]);
        break;
      case 4:
        pack_segment<4>(tile, segment, channel, codes, scales, tile.sums[s]);
        break;
    }
    channel += segment.channels;
    codes += segment.row_bytes();
    scales = scales.from(segment.scale_words(), 0);
  }
}

void pack_tile_generic(const Tile& tile) {
  pack_tile_body(tile);
}

#ifdef MMCOMPILE_X86_DISPATCH
[[gnu::target("avx2")]] void pack_tile_avx2(const Tile& tile) {
  pack_tile_body(tile);
}

[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]]
void pack_tile_avx512(const Tile& tile) {
  pack_tile_body(tile);
}
#endif

struct InstructionSet {
  const char* name;
  void (*pack_tile)(const Tile&);
};

// Those that this processor has, best first.
std::vector<InstructionSet> supported_sets() {
  std::vector<InstructionSet> sets;
#ifdef MMCOMPILE_X86_DISPATCH
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    sets.push_back({"avx512", pack_tile_avx512});
  if (__builtin_cpu_supports("avx2")) sets.push_back({"avx2", pack_tile_avx2});
#endif
  sets.push_back({"generic", pack_tile_generic});
  return sets;
}

InstructionSet chosen_set(const std::string& name) {
  for (const InstructionSet& set : supported_sets())
    if (name.empty() || name == set.name) return set;
  throw std::invalid_argument("this processor has no instruction set " + name);
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : supported_sets()) names.emplace_back(set.name);
  return names;
}

std::vector<ErrorSums> quantize_pack(const ValueMatrix& weight, const Layout& layout,
                                     std::uint8_t* codes, ScalesOut scales, int threads,
                                     const std::string& instruction_set) {
  const InstructionSet set = chosen_set(instruction_set);
  const GatherOrder gather_order(layout.order);
  const bool contiguous = weight.row_stride == 1;
  const int tile_rows = contiguous ? kContiguousTile : kLanes;
  const std::int64_t tiles = (weight.rows + tile_rows - 1) / tile_rows;
  const std::int64_t row_bytes = layout.row_bytes();
  const std::size_t segments = layout.segments.size();
  // Per tile, summed in order below, so that the result does not depend on who packed what.
  std::vector<ErrorSums> tile_sums(static_cast<std::size_t>(tiles) * segments);
  parallel_ranges(tiles, threads, [&](std::int64_t begin, std::int64_t end) {
    const auto gathered =
        std::make_unique_for_overwrite<float[]>(contiguous ? 0 : kLanes * layout.order.size());
    const std::int64_t end_row = std::min(end * tile_rows, weight.rows);
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = t * tile_rows;
      set.pack_tile({.source = weight,
                     .layout = layout,
                     .gather_order = gather_order,
                     .first_row = row,
                     .rows = static_cast<int>(std::min<std::int64_t>(tile_rows, end_row - row)),
                     .rows_left = end_row - row,
                     .row_bytes = row_bytes,
                     .gathered = gathered.get(),
                     .codes = codes + row * row_bytes,
                     .scales = scales.from(0, row),
                     .sums = tile_sums.data() + static_cast<std::size_t>(t) * segments});
    }
  });
  std::vector<ErrorSums> sums(segments);
  for (std::size_t i = 0; i < tile_sums.size(); ++i) {
    sums[i % segments].squares += tile_sums[i].squares;
    sums[i % segments].errors += tile_sums[i].errors;
  }
  return sums;
}

void quantize_rows(const ValueMatrix& matrix, const Layout& layout, float* values, int threads) {
  // Enough rows at once to make scratch memory cheap, few enough to share among the threads.
  constexpr std::int64_t most_rows = 256;
  const std::int64_t rows_at_once =
      std::clamp<std::int64_t>(matrix.rows / (4 * std::int64_t{threads}), kLanes, most_rows);
  const std::int64_t ranges = (matrix.rows + rows_at_once - 1) / rows_at_once;
  const std::int64_t code_bytes = rows_at_once * layout.row_bytes();
  const std::int64_t word_bytes = rows_at_once * kScaleWord;
  parallel_ranges(ranges, threads, [&](std::int64_t begin, std::int64_t end) {
    const auto codes = std::make_unique_for_overwrite<std::uint8_t[]>(
        static_cast<std::size_t>(code_bytes + layout.scale_words() * word_bytes));
    const ScalesOut scales{codes.get() + code_bytes, word_bytes};
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t row = r * rows_at_once;
      ValueMatrix part = matrix;
      part.rows = std::min(rows_at_once, matrix.rows - row);
      part.data = static_cast<const float*>(matrix.data) + row * matrix.row_stride;
      quantize_pack(part, layout, codes.get(), scales, 1);
      dequantize(codes.get(), {scales.data, scales.stride}, layout, part.rows,
                 values + row * layout.channels(), 1);
    }
  });
}

}  // namespace mmcompile
