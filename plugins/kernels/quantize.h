// Activations x[rows, in_channels] → codes and scales in the order of the layer's channels.
//
// A warp takes chunks of 256 consecutive ordered channels of a segment, each lane 8 of them, of
// `kRows` rows at once: 4 lanes hold a block of 32 (2 lanes one of 16), and consecutive lanes
// write consecutive codes. The channels come from all over the rows. For many rows, a block first
// copies its rows to shared memory, transposed, so that one access fetches a channel of all
// rows (quantize_staged); for few, threads fetch them from global memory (quantize_direct).
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.h"
#include "parameters.h"
#include "quantize_block.h"
#include "quantize_launch.h"

namespace mmcompile {
namespace quantize {

template <MmcType kType>
using Value = std::conditional_t<kType == MMC_FLOAT32, std::uint32_t, std::uint16_t>;

// The values of a channel in `kRows` rows, row after row.
template <MmcType kType, int kRows>
struct Column {
  static constexpr int kBytes = kRows * static_cast<int>(sizeof(Value<kType>));
  using Bits = std::conditional_t<
      kBytes == 16, Words4,
      std::conditional_t<kBytes == 8, Words2,
                         std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>>>;
  Bits bits;

  MMCOMPILE_DEVICE std::uint32_t word(int index) const {
    if constexpr (kBytes > 4)
      return bits.word[index];
    else
      return bits;
  }

  // The magnitude of a row's value in the upper bits, whatever the lower ones are.
  MMCOMPILE_DEVICE std::uint32_t upper_magnitude(int row) const {
    if constexpr (kType == MMC_FLOAT32)
      return word(row) << 1;
    else
      return word(row / 2) << (row % 2 != 0 ? 1 : 17);
  }

  MMCOMPILE_DEVICE float value(int row) const {
    if constexpr (kType == MMC_FLOAT32) return bits_float(word(row));
    const std::uint32_t pair = word(row / 2);
    if constexpr (kType == MMC_BFLOAT16)
      return bits_float(row % 2 != 0 ? pair & 0xFFFF0000u : pair << 16);
    return device::half_to_float_native(
        static_cast<std::uint16_t>(row % 2 != 0 ? pair >> 16 : pair));
  }
};

// Of a value, its leading one included.
template <MmcType kType>
inline constexpr int kSignificantBits = kType == MMC_FLOAT32   ? 24
                                        : kType == MMC_FLOAT16 ? 11
                                                               : 8;

// The bits of the fp32 whose upper_magnitude that is.
template <MmcType kType>
MMCOMPILE_DEVICE std::uint32_t magnitude_bits(std::uint32_t upper) {
  if constexpr (kType == MMC_FLOAT32) return upper >> 1;
  if constexpr (kType == MMC_BFLOAT16) return upper >> 1 & 0x7FFF0000u;
  return float_bits(device::half_to_float_native(static_cast<std::uint16_t>(upper >> 17)));
}

// From a word per row, which holds the value in its lower, or upper, part.
template <MmcType kType, int kRows>
MMCOMPILE_DEVICE Column<kType, kRows> make_column(const std::uint32_t (&rows)[kRows], bool upper) {
  Column<kType, kRows> column;
  if constexpr (kRows == 1) {
    column.bits = static_cast<Value<kType>>(upper ? rows[0] >> 16 : rows[0]);
  } else if constexpr (kType == MMC_FLOAT32) {
    for (int row = 0; row < kRows; ++row) column.bits.word[row] = rows[row];
  } else {
    const std::uint32_t selector = upper ? 0x7632 : 0x5410;
    const std::uint32_t first = device::permute_bytes(rows[0], rows[1], selector);
    if constexpr (kRows == 2)
      column.bits = first;
    else
      column.bits = {{first, device::permute_bytes(rows[2], rows[3], selector)}};
  }
  return column;
}

// Where a column lies in shared memory. Lanes read and write channels 8·lane + i: these fall into
// different banks.
template <MmcType kType, int kRows>
MMCOMPILE_DEVICE SharedOffset column_offset(std::uint32_t channel) {
  constexpr std::uint32_t bytes = Column<kType, kRows>::kBytes;
  return (channel ^ (channel >> 3 & (kBankBytes / bytes - 1))) * bytes;
}

// The rows of a block.
struct Rows {
  const QuantizeParams& params;
  int first;
  int count;  // of them, at least 1; what is beyond is read from the last, and not written

  MMCOMPILE_DEVICE Rows(const QuantizeParams& all, int first_row)
      : params(all), first(first_row), count(all.rows - first_row) {}

  template <MmcType kType>
  MMCOMPILE_DEVICE const Value<kType>* start(int row) const {
    const std::int64_t index = first + (row < count ? row : count - 1);
    return static_cast<const Value<kType>*>(params.x) + index * params.in_channels;
  }
};

// A source channel of all rows; zeros for -1, and for what is no channel at all.
template <MmcType kType, int kRows>
MMCOMPILE_DEVICE Column<kType, kRows> fetch_direct(const Rows& rows, int channel) {
  const bool padding =
      static_cast<std::uint32_t>(channel) >= static_cast<std::uint32_t>(rows.params.in_channels);
  std::uint32_t values[kRows];
  for (int row = 0; row < kRows; ++row) {
    const std::uint32_t value =
        device::load_constant(rows.start<kType>(row) + (padding ? 0 : channel));
    values[row] = padding ? 0 : value;
  }
  return make_column<kType, kRows>(values, false);
}

// Column `in_channels` of the staged rows is zeros; that's where -1 falls, too.
template <MmcType kType, int kRows>
MMCOMPILE_DEVICE Column<kType, kRows> fetch_staged(const Rows& rows, int channel) {
  const std::uint32_t zeros = static_cast<std::uint32_t>(rows.params.in_channels);
  const std::uint32_t index = static_cast<std::uint32_t>(channel);
  const SharedOffset place = column_offset<kType, kRows>(index < zeros ? index : zeros);
  return {device::load_shared<typename Column<kType, kRows>::Bits>(place)};
}

// Copies the rows to shared memory, 16 bytes of a row at a time, or by values where rows do not
// start at multiples of 16 bytes.
template <MmcType kType, int kRows>
MMCOMPILE_DEVICE void stage_rows(const Rows& rows) {
  using Staged = Column<kType, kRows>;
  constexpr int vector = 16 / static_cast<int>(sizeof(Value<kType>));
  const int channels = rows.params.in_channels;
  const auto address = reinterpret_cast<std::uintptr_t>(rows.params.x);
  if (address % 16 == 0 && channels % vector == 0) {
    for (int first = vector * device::thread_index(); first < channels;
         first += vector * kStagedThreads) {
      Words4 data[kRows];
      for (int row = 0; row < kRows; ++row)
        data[row] =
            device::load_constant(reinterpret_cast<const Words4*>(rows.start<kType>(row) + first));
      // The lowest bits of `first` are zeros: adding i to it is flipping them.
      const SharedOffset place = column_offset<kType, kRows>(static_cast<std::uint32_t>(first));
      for (int i = 0; i < vector; ++i) {
        std::uint32_t values[kRows];
        for (int row = 0; row < kRows; ++row) values[row] = data[row].word[i * 4 / vector];
        const bool upper = vector == 8 && i % 2 != 0;
        device::store_shared(place ^ static_cast<SharedOffset>(i * Staged::kBytes),
                             make_column<kType, kRows>(values, upper).bits);
      }
    }
  } else {
    for (int channel = device::thread_index(); channel < channels; channel += kStagedThreads) {
      std::uint32_t values[kRows];
      for (int row = 0; row < kRows; ++row)
        values[row] = device::load_constant(rows.start<kType>(row) + channel);
      device::store_shared(column_offset<kType, kRows>(static_cast<std::uint32_t>(channel)),
                           make_column<kType, kRows>(values, false).bits);
    }
  }
  if (device::thread_index() == 0)
    device::store_shared(column_offset<kType, kRows>(static_cast<std::uint32_t>(channels)),
                         Staged{}.bits);
}

// The lanes of a block share its rows: they bring all their rows' maxima, and each lane finds out
// those of the rows that it owns, computes their scales, and tells the others.
template <Coding coding, int kRows>
struct Shares {
  static constexpr int kLanes = block_of(coding) / kChannels;
  static constexpr int kOwners = kRows < kLanes ? kRows : kLanes;  // with different rows
  static constexpr int kOwned = kRows / kOwners;

  MMCOMPILE_DEVICE static int lane() { return device::thread_index() % kWarp; }
  MMCOMPILE_DEVICE static int row(int owned) { return owned * kOwners + lane() % kOwners; }

  // The maxima over the block of the owned rows. Where two lanes own different rows, they hand
  // each other what they do not own.
  MMCOMPILE_DEVICE static void reduce(const std::uint32_t (&rows)[kRows],
                                      std::uint32_t (&owned)[kOwned]) {
    std::uint32_t held[kRows];
    for (int i = 0; i < kRows; ++i) held[i] = rows[i];
    for (int mask = 1; mask < kLanes; mask *= 2) {
      const bool odd = (lane() & mask) != 0;
      const int count = mask < kOwners ? kRows / (2 * mask) : kOwned;
      for (int i = 0; i < count; ++i) {
        std::uint32_t keep = held[i];
        std::uint32_t send = held[i];
        if (mask < kOwners) {
          keep = odd ? held[2 * i + 1] : held[2 * i];
          send = odd ? held[2 * i] : held[2 * i + 1];
        }
        const std::uint32_t other = device::shuffle_xor(send, mask);
        held[i] = keep > other ? keep : other;
      }
    }
    for (int i = 0; i < kOwned; ++i) owned[i] = held[i];
  }

  // All rows' values, of the owned ones: `reduce` backwards.
  MMCOMPILE_DEVICE static void spread(const float (&owned)[kOwned], float (&rows)[kRows]) {
    for (int i = 0; i < kOwned; ++i) rows[i] = owned[i];
    for (int mask = kOwners / 2; mask > 0; mask /= 2) {
      const bool odd = (lane() & mask) != 0;
      for (int i = kRows / (2 * mask) - 1; i >= 0; --i) {
        const float own = rows[i];
        const float other = device::shuffle_xor(own, mask);
        rows[2 * i] = odd ? other : own;
        rows[2 * i + 1] = odd ? own : other;
      }
    }
  }
};

// Assembles the bytes of four blocks to a word of each owned row, and writes it. All lanes of the
// warp take part; those beyond the segment bring zero bytes, the padding of the last word.
template <Coding coding, int kRows>
MMCOMPILE_DEVICE void store_scales(const Rows& rows, const SegmentParams& segment, int position,
                                   const std::uint32_t (&bytes)[Shares<coding, kRows>::kOwned]) {
  using Share = Shares<coding, kRows>;
  const QuantizeParams& params = rows.params;
  const int lane_of_word = Share::lane() % (4 * Share::kLanes);
  const std::int64_t index = segment.act_word + position / (4 * block_of(coding));
  std::uint32_t* const out = params.scales + index * params.rows + rows.first;
  for (int i = 0; i < Share::kOwned; ++i) {
    std::uint32_t word = bytes[i] << (8 * (lane_of_word / Share::kLanes));
    word |= device::shuffle_xor(word, Share::kLanes);
    word |= device::shuffle_xor(word, 2 * Share::kLanes);
    const int row = Share::row(i);
    if (lane_of_word < Share::kOwners && position < segment.channels && row < rows.count)
      device::store_global(out + row, word);
  }
}

template <Coding coding, Conversions conversions, MmcType kType>
MMCOMPILE_DEVICE Scaling scaling_of(const QuantizeParams& params, const SegmentParams& segment,
                                    const Grid& grid, std::uint32_t upper_magnitude) {
  constexpr float unit = unit_of(coding, conversions);
  const std::uint32_t amax_bits = magnitude_bits<kType>(upper_magnitude);
  if constexpr (coding == Coding::kNvE2M1)
    return nvfp4_scaling(amax_bits, params.act_tensor_scale, unit);
  else
    return mx_scaling(amax_bits, segment.act_carry, grid.emax, unit);
}

// Quantizes the 8 channels of each lane: those from `position` of the segment on.
template <Coding coding, Conversions conversions, MmcType kType, int kRows>
MMCOMPILE_DEVICE void quantize_columns(const Rows& rows, const SegmentParams& segment, int position,
                                       const Column<kType, kRows> (&columns)[kChannels]) {
  using Share = Shares<coding, kRows>;
  const Grid grid = grid_of_segment<coding>(segment.act_format, unit_of(coding, conversions));
  std::uint32_t upper[kRows] = {};
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kChannels; ++i) {
      const std::uint32_t magnitude = columns[i].upper_magnitude(row);
      upper[row] = upper[row] > magnitude ? upper[row] : magnitude;
    }
  std::uint32_t owned_upper[Share::kOwned];
  std::uint32_t bytes[Share::kOwned];
  float owned_multipliers[Share::kOwned];
  Share::reduce(upper, owned_upper);
  for (int i = 0; i < Share::kOwned; ++i) {
    const Scaling scaling =
        scaling_of<coding, conversions, kType>(rows.params, segment, grid, owned_upper[i]);
    bytes[i] = scaling.byte;
    owned_multipliers[i] = scaling.multiplier;
  }
  store_scales<coding, kRows>(rows, segment, position, bytes);
  float multipliers[kRows];
  Share::spread(owned_multipliers, multipliers);

  const QuantizeParams& params = rows.params;
  const int byte = segment.act_byte + (is_4_bit(coding) ? position / 2 : position);
  std::uint8_t* const out =
      params.codes + static_cast<std::int64_t>(rows.first) * params.row_bytes + byte;
  for (int row = 0; row < kRows; ++row) {
    float x[kChannels];
    for (int i = 0; i < kChannels; ++i) x[i] = columns[i].value(row);
    const Words2 codes =
        encode_values<coding, conversions, kSignificantBits<kType>>(x, multipliers[row], grid);
    if (position >= segment.channels || row >= rows.count) continue;
    std::uint8_t* const place = out + static_cast<std::int64_t>(row) * params.row_bytes;
    if constexpr (is_4_bit(coding))
      device::store_global(reinterpret_cast<std::uint32_t*>(place), codes.word[0]);
    else
      device::store_global(reinterpret_cast<Words2*>(place), codes);
  }
}

template <Conversions conversions, MmcType kType, int kRows>
MMCOMPILE_DEVICE void quantize_chunk(const Rows& rows, const SegmentParams& segment, int position,
                                     const Column<kType, kRows> (&columns)[kChannels]) {
  if (segment.instruction == Instruction::kMxf4) {
    quantize_columns<Coding::kMxE2M1, conversions>(rows, segment, position, columns);
  } else if (segment.instruction == Instruction::kNvf4) {
    quantize_columns<Coding::kNvE2M1, conversions>(rows, segment, position, columns);
  } else if (conversions != Conversions::kNone && segment.act_format == 3) {
    quantize_columns<Coding::kMxE4M3, conversions>(rows, segment, position, columns);
  } else {
    quantize_columns<Coding::kMxGrid, conversions>(rows, segment, position, columns);
  }
}

// Quantizes every `stride`-th chunk of the rows, from chunk `first` on, a warp at a time.
template <Conversions conversions, bool kStaged, MmcType kType, int kRows>
MMCOMPILE_DEVICE void quantize_chunks(const Rows& rows, int first, int stride) {
  const QuantizeParams& params = rows.params;
  int chunk = first;
  for (int s = 0; s < params.segments.count; ++s) {
    const SegmentParams& segment = params.segments.segment[s];
    const int chunks = chunks_of(segment.channels);
    for (; chunk < chunks; chunk += stride) {
      const int lane = device::thread_index() % kWarp;
      const int position = chunk * kChunk + lane * kChannels;
      Words4 order[2] = {{{~0u, ~0u, ~0u, ~0u}}, {{~0u, ~0u, ~0u, ~0u}}};
      if (position < segment.channels) {
        const auto* source =
            reinterpret_cast<const Words4*>(params.order + segment.first_channel + position);
        order[0] = device::load_constant(source);
        order[1] = device::load_constant(source + 1);
      }
      Column<kType, kRows> columns[kChannels];
      for (int i = 0; i < kChannels; ++i) {
        const int channel = static_cast<int>(order[i / 4].word[i % 4]);
        columns[i] = kStaged ? fetch_staged<kType, kRows>(rows, channel)
                             : fetch_direct<kType, kRows>(rows, channel);
      }
      quantize_chunk<conversions>(rows, segment, position, columns);
    }
    chunk -= chunks;
  }
}

MMCOMPILE_DEVICE void clear_counters(const QuantizeParams& params, int threads) {
  const std::int64_t grid_x = device::grid_size_x();
  const std::int64_t block = device::block_index_y() * grid_x + device::block_index_x();
  const std::int64_t stride = grid_x * device::grid_size_y() * threads;
  for (std::int64_t i = block * threads + device::thread_index(); i < params.counter_count;
       i += stride)
    device::store_global(params.counters + i, 0u);
}

}  // namespace quantize

// Blocks of kStagedThreads, each with `kRows` rows; shared memory: staged_bytes.
template <MmcType kType, int kRows, Conversions conversions>
MMCOMPILE_DEVICE void quantize_staged(const QuantizeParams& params) {
  device::launch_dependents();
  quantize::clear_counters(params, kStagedThreads);
  const quantize::Rows rows(params, device::block_index_x() * kRows);
  quantize::stage_rows<kType, kRows>(rows);
  device::sync_threads();
  quantize::quantize_chunks<conversions, true, kType, kRows>(rows, device::thread_index() / kWarp,
                                                             kStagedThreads / kWarp);
}

// Blocks of kDirectThreads; those of one x have `kRows` rows, and share their chunks along y.
template <MmcType kType, int kRows, Conversions conversions>
MMCOMPILE_DEVICE void quantize_direct(const QuantizeParams& params) {
  device::launch_dependents();
  quantize::clear_counters(params, kDirectThreads);
  const quantize::Rows rows(params, device::block_index_x() * kRows);
  constexpr int warps = kDirectThreads / kWarp;
  quantize::quantize_chunks<conversions, false, kType, kRows>(
      rows, device::block_index_y() * warps + device::thread_index() / kWarp,
      device::grid_size_y() * warps);
}

}  // namespace mmcompile
