// Moving operands from global to shared memory, chunk by chunk of K, over all segments.
//
// A stage of shared memory holds, per operand, the codes of `warps_k` slices, then their scales:
//   codes   [slice][row][64 bytes], 16-byte pieces swizzled so that ldmatrix has no bank conflicts
//           (packed weights of a kMxf8 segment: [slice][row][48 bytes], not swizzled)
//   scales  [slice][2][row] words
// What lies behind the end of a segment, of the rows or of the output channels arrives as zeros,
// which add nothing.
#pragma once

#include "device.h"
#include "parameters.h"
#include "tiles.h"
#include "widen.h"

namespace mmcompile {

// A place on the way through K: chunk `chunk` of segment `segment`.
struct Walk {
  int segment = 0;
  int chunk = 0;
};

MMCOMPILE_DEVICE int act_bytes(const SegmentParams& segment) {
  return segment.instruction == Instruction::kMxf8 ? segment.channels : segment.channels / 2;
}

template <Tile tile>
MMCOMPILE_DEVICE int chunks_of(const SegmentParams& segment) {
  return (act_bytes(segment) + tile.chunk_bytes() - 1) / tile.chunk_bytes();
}

template <Tile tile>
MMCOMPILE_DEVICE Walk walk_to(const SegmentList& segments, int chunk) {
  Walk walk;
  walk.chunk = chunk;
  while (walk.segment < segments.count &&
         walk.chunk >= chunks_of<tile>(segments.segment[walk.segment])) {
    walk.chunk -= chunks_of<tile>(segments.segment[walk.segment]);
    ++walk.segment;
  }
  return walk;
}

template <Tile tile>
MMCOMPILE_DEVICE void advance(Walk& walk, const SegmentList& segments) {
  if (++walk.chunk == chunks_of<tile>(segments.segment[walk.segment])) {
    ++walk.segment;
    walk.chunk = 0;
  }
}

// Where 16-byte piece `piece` (0..3) of a row of codes lies in its slice. Eight rows from a
// multiple of eight on have their pieces of one number in eight different groups of four banks.
MMCOMPILE_DEVICE SharedOffset swizzled(int row, int piece) {
  return static_cast<SharedOffset>(kSliceBytes * row + 16 * (piece ^ (row >> 1 & 3)));
}

// Places of an operand with `rows` rows within a stage that starts at 0.
template <int rows, int slices>
struct StageLayout {
  static constexpr int kSliceSize = rows * kSliceBytes;
  static constexpr int kScales = slices * kSliceSize;  // from the operand's start
  static constexpr int kScaleSize = 2 * rows * 4;      // per slice
  static constexpr int kSize = kScales + slices * kScaleSize;
};

// One operand of a block, and how its threads share the copying of a chunk of K.
template <int rows, int slices, int threads>
class OperandLoader {
 public:
  using Stage = StageLayout<rows, slices>;

  // Rows first_row.. of `row_count` in all; of the others zeros are loaded.
  MMCOMPILE_DEVICE OperandLoader(const std::uint8_t* codes, std::int64_t row_bytes,
                                 const std::uint32_t* scales, int row_count, int first_row)
      : codes_(codes),
        row_bytes_(row_bytes),
        scales_(scales),
        row_count_(row_count),
        first_row_(first_row) {}

  // Starts the copies of one chunk: `chunk_start` bytes into a segment of `segment_bytes` that
  // begins at byte `first_byte` of the rows; a slice has `slice_bytes`, swizzled if that is 64.
  MMCOMPILE_DEVICE void load_codes(SharedOffset stage, int first_byte, int segment_bytes,
                                   int chunk_start, int slice_bytes) const {
    // A thread copies one piece of every kRowStep-th row.
    const int slice = device::thread_index() % kRowPieces / 4;
    const int piece = device::thread_index() % 4;
    const int row = device::thread_index() / kRowPieces;
    const int start = chunk_start + slice * slice_bytes + 16 * piece;
    const bool packed = slice_bytes != kSliceBytes;
    const SharedOffset place = stage + slice * Stage::kSliceSize +
                               (packed ? kPackedPitch * row + 16 * piece : swizzled(row, piece));
    const int pitch = packed ? kPackedPitch : kSliceBytes;
    const std::uint8_t* source = codes_ + (first_row_ + row) * row_bytes_ + first_byte + start;
    if (16 * piece >= slice_bytes) return;
#pragma unroll
    for (int i = 0; i < (rows + kRowStep - 1) / kRowStep; ++i) {
      if (rows % kRowStep != 0 && row + i * kRowStep >= rows) break;
      const bool valid = first_row_ + row + i * kRowStep < row_count_ && start < segment_bytes;
      device::copy_async<16>(place + i * kRowStep * pitch,
                             valid ? source + i * kRowStep * row_bytes_ : codes_, valid);
    }
  }

  // The scales of the chunk's slices: word j of slice s is word `words_per_slice`·s + j from
  // `chunk_word` on, in halves of words for kMxf8, whose slices share one by two.
  template <Instruction instruction>
  MMCOMPILE_DEVICE void load_scales(SharedOffset stage, int first_word, int segment_words,
                                    int first_slice) const {
    constexpr int words = instruction == Instruction::kNvf4 ? 2 : 1;
    constexpr int total = rows * slices * words;
#pragma unroll
    for (int i = 0; i < (total + threads - 1) / threads; ++i) {
      const int item = device::thread_index() + i * threads;
      if (total % threads != 0 && item >= total) break;
      const int row = item % rows;
      const int j = item / rows % words;
      const int slice = item / rows / words;
      const int word = instruction == Instruction::kMxf8 ? (first_slice + slice) / 2
                                                         : words * (first_slice + slice) + j;
      const bool valid = first_row_ + row < row_count_ && word < segment_words;
      const std::int64_t place =
          valid ? static_cast<std::int64_t>(first_word + word) * row_count_ + first_row_ + row : 0;
      device::copy_async<4>(
          stage + Stage::kScales + slice * Stage::kScaleSize + 4 * (j * rows + row),
          scales_ + place, valid);
    }
  }

 private:
  static constexpr int kRowPieces = 4 * slices;
  static constexpr int kRowStep = threads / kRowPieces;
  static_assert(threads % kRowPieces == 0 && kRowStep % 8 == 0, "rows apart swizzle alike");

  const std::uint8_t* codes_;
  std::int64_t row_bytes_;
  const std::uint32_t* scales_;
  int row_count_;
  int first_row_;
};

// Both operands of a block of the GEMM.
template <Tile tile>
class Loader {
 public:
  static constexpr int kThreads = tile.threads();
  using Activations = OperandLoader<tile.rows, tile.warps_k, kThreads>;
  using Weights = OperandLoader<tile.channels, tile.warps_k, kThreads>;
  // Within a stage, activations come first.
  static constexpr int kWeights = Activations::Stage::kSize;
  static_assert(kWeights + Weights::Stage::kSize == tile.stage_bytes());

  MMCOMPILE_DEVICE Loader(const GemmParams& params, int first_row, int first_channel)
      : segments_(params.segments),
        activations_(params.act_codes, params.act_row_bytes, params.act_scales, params.rows,
                     first_row),
        weights_(params.weight, params.weight_row_bytes, params.weight_scales, params.out_channels,
                 first_channel) {}

  MMCOMPILE_DEVICE void load_activations(SharedOffset stage, const Walk& walk) const {
    const SegmentParams& segment = segments_.segment[walk.segment];
    activations_.load_codes(stage, segment.act_byte, act_bytes(segment),
                            walk.chunk * tile.chunk_bytes(), kSliceBytes);
    load_scales(activations_, stage, segment, segment.act_word, walk);
  }

  MMCOMPILE_DEVICE void load_weights(SharedOffset stage, const Walk& walk) const {
    const SegmentParams& segment = segments_.segment[walk.segment];
    int slice_bytes = kSliceBytes;
    int segment_bytes = act_bytes(segment);
    if (segment.weight_code == WeightCode::kE2M1) {
      slice_bytes = kPackedSliceBytes<WeightCode::kE2M1>;
      segment_bytes = segment.channels / 2;
    } else if (segment.weight_code != WeightCode::kAsInstruction) {
      slice_bytes = kPackedSliceBytes<WeightCode::kE2M3>;
      segment_bytes = segment.channels / 4 * 3;  // and up to 8 bytes of padding, which are there
    }
    weights_.load_codes(stage + kWeights, segment.weight_byte, segment_bytes,
                        walk.chunk * tile.warps_k * slice_bytes, slice_bytes);
    load_scales(weights_, stage + kWeights, segment, segment.weight_word, walk);
  }

 private:
  template <typename Operand>
  MMCOMPILE_DEVICE static void load_scales(const Operand& operand, SharedOffset stage,
                                           const SegmentParams& segment, int first_word,
                                           const Walk& walk) {
    const int slice = walk.chunk * tile.warps_k;
    const int words_of_128 = (segment.channels + 127) / 128;
    switch (segment.instruction) {
      case Instruction::kMxf4:
        operand.template load_scales<Instruction::kMxf4>(stage, first_word, words_of_128, slice);
        break;
      case Instruction::kNvf4:
        operand.template load_scales<Instruction::kNvf4>(stage, first_word,
                                                         (segment.channels + 63) / 64, slice);
        break;
      case Instruction::kMxf8:
        operand.template load_scales<Instruction::kMxf8>(stage, first_word, words_of_128, slice);
        break;
    }
  }

  const SegmentList& segments_;
  Activations activations_;
  Weights weights_;
};

}  // namespace mmcompile
