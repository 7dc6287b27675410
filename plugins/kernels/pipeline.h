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

MMCOMPILE_DEVICE int act_bytes(const SegmentParams& segment) {
  return segment.instruction == Instruction::kMxf8 ? segment.channels : segment.channels / 2;
}

template <Tile tile>
MMCOMPILE_DEVICE int chunks_of(const SegmentParams& segment) {
  return (act_bytes(segment) + tile.chunk_bytes() - 1) / tile.chunk_bytes();
}

// The segment that chunk `chunk` of K belongs to, and (in `chunk`) the chunk's number within it.
template <Tile tile>
MMCOMPILE_DEVICE int find_segment(const SegmentList& segments, int& chunk) {
  int segment = 0;
  while (segment < segments.count - 1 && chunk >= chunks_of<tile>(segments.segment[segment])) {
    chunk -= chunks_of<tile>(segments.segment[segment]);
    ++segment;
  }
  return segment;
}

// What the multiplying side has to know of the chunk that is next. In registers: the segments
// themselves lie in constant memory, where a lookup by number takes long.
template <Tile tile>
class Walk {
 public:
  MMCOMPILE_DEVICE Walk(const SegmentList& segments, int first_chunk) : segments_(segments) {
    chunk_ = first_chunk;
    segment_ = find_segment<tile>(segments, chunk_);
    enter();
  }
  MMCOMPILE_DEVICE void advance() {
    ++chunk_;
    if (--left_ > 0) return;
    chunk_ = 0;
    if (++segment_ < segments_.count) enter();
  }
  MMCOMPILE_DEVICE Instruction instruction() const { return instruction_; }
  MMCOMPILE_DEVICE WeightCode weight_code() const { return weight_code_; }
  MMCOMPILE_DEVICE int chunk() const { return chunk_; }  // within its segment

 private:
  MMCOMPILE_DEVICE void enter() {
    const SegmentParams& segment = segments_.segment[segment_];
    instruction_ = segment.instruction;
    weight_code_ = segment.weight_code;
    left_ = chunks_of<tile>(segment) - chunk_;
  }

  const SegmentList& segments_;
  int segment_;
  int chunk_;
  int left_;  // chunks of the segment, this one included
  Instruction instruction_;
  WeightCode weight_code_;
};

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

enum class Operand { kActivations, kWeights };

// One operand of a block: its threads copy chunk after chunk, each of them the same pieces of every
// chunk. Whatever a chunk has in common with the one before it is kept in registers; segments are
// looked up where one begins.
template <Tile tile, Operand operand>
class OperandStream {
 public:
  static constexpr bool kIsWeights = operand == Operand::kWeights;
  static constexpr int kRows = kIsWeights ? tile.channels : tile.rows;
  static constexpr int kSlices = tile.warps_k;
  using Stage = StageLayout<kRows, kSlices>;

  // Rows first_row.. of the operand, from a chunk of K on.
  MMCOMPILE_DEVICE OperandStream(const GemmParams& params, int first_row, int first_chunk)
      : segments_(params.segments),
        row_bytes_(kIsWeights ? params.weight_row_bytes : params.act_row_bytes),
        row_count_(kIsWeights ? params.out_channels : params.rows) {
    const int row = first_row + code_row();
    const int scale_row = first_row + device::thread_index() % kRows;
    rows_left_ = row_count_ - row;
    has_scale_row_ = scale_row < row_count_;
    row_codes_ = (kIsWeights ? params.weight : params.act_codes) + row * row_bytes_;
    row_scales_ = (kIsWeights ? params.weight_scales : params.act_scales) + scale_row;
    segment_ = find_segment<tile>(segments_, first_chunk);
    enter(first_chunk);
  }

  // Starts the copies of the next chunk to a stage, unless there is none.
  MMCOMPILE_DEVICE void load(SharedOffset stage, bool active) const {
#pragma unroll
    for (int i = 0; i < (kRows + kRowStep - 1) / kRowStep; ++i) {
      const bool has_row = kRows % kRowStep == 0 || code_row() + i * kRowStep < kRows;
      device::copy_async<16>(
          stage + code_place_ + i * code_pitch_, codes_ + i * kRowStep * row_bytes_,
          i * kRowStep < rows_left_ && bytes_left_ > 0, active && has_piece_ && has_row);
    }
    // A word of kMxf8 serves two slices.
    const int word = slice_ * words_ >> (words_are_shared_ ? 1 : 0);
    const std::uint32_t* const scales = scales_ + static_cast<std::int64_t>(word) * row_count_;
    device::copy_async<4>(stage + scale_place_, scales, has_scale_row_ && word < segment_words_,
                          active && has_scale_);
    if constexpr (kScaleItems == tile.threads())
      device::copy_async<4>(stage + scale_place_ + 4 * kRows, scales + row_count_,
                            has_scale_row_ && word + 1 < segment_words_, active && words_ == 2);
  }

  MMCOMPILE_DEVICE void advance() {
    codes_ += chunk_bytes_;
    bytes_left_ -= chunk_bytes_;
    slice_ += kSlices;
    if (--chunks_left_ > 0) return;
    if (++segment_ < segments_.count) enter(0);
  }

 private:
  // A thread copies one piece of every kRowStep-th row,
  static constexpr int kRowPieces = 4 * kSlices;
  static constexpr int kRowStep = tile.threads() / kRowPieces;
  static_assert(tile.threads() % kRowPieces == 0 && kRowStep % 8 == 0, "rows apart swizzle alike");
  // and a word of scales of one row and slice: the first or (of NVFP4's two) the second, or, where
  // there are no threads for that, both.
  static constexpr int kScaleItems = kRows * kSlices;
  static_assert(tile.threads() == kScaleItems || tile.threads() >= 2 * kScaleItems);

  MMCOMPILE_DEVICE static int code_row() { return device::thread_index() / kRowPieces; }

  MMCOMPILE_DEVICE void enter(int chunk) {
    const SegmentParams& segment = segments_.segment[segment_];
    chunks_left_ = chunks_of<tile>(segment) - chunk;
    enter_codes(segment, chunk);
    enter_scales(segment, chunk);
  }

  MMCOMPILE_DEVICE void enter_codes(const SegmentParams& segment, int chunk) {
    int slice_bytes = kSliceBytes;
    int segment_bytes = act_bytes(segment);
    if (kIsWeights && segment.weight_code == WeightCode::kE2M1) {
      slice_bytes = kPackedSliceBytes<WeightCode::kE2M1>;
      segment_bytes = segment.channels / 2;
    } else if (kIsWeights && segment.weight_code != WeightCode::kAsInstruction) {
      slice_bytes = kPackedSliceBytes<WeightCode::kE2M3>;
      segment_bytes = segment.channels / 4 * 3;  // and up to 8 bytes of padding, which are there
    }
    const bool packed = slice_bytes != kSliceBytes;
    const int slice = device::thread_index() % kRowPieces / 4;
    const int piece = device::thread_index() % 4;
    const int start = (chunk * kSlices + slice) * slice_bytes + 16 * piece;
    has_piece_ = 16 * piece < slice_bytes;
    codes_ = row_codes_ + (kIsWeights ? segment.weight_byte : segment.act_byte) + start;
    bytes_left_ = segment_bytes - start;
    chunk_bytes_ = kSlices * slice_bytes;
    code_place_ = slice * Stage::kSliceSize +
                  (packed ? kPackedPitch * code_row() + 16 * piece : swizzled(code_row(), piece));
    code_pitch_ = kRowStep * (packed ? kPackedPitch : kSliceBytes);
  }

  MMCOMPILE_DEVICE void enter_scales(const SegmentParams& segment, int chunk) {
    const int item = device::thread_index();
    const int row = item % kRows;
    const int slice = item / kRows % kSlices;
    const int j = item / kScaleItems;
    const bool nvfp4 = segment.instruction == Instruction::kNvf4;
    const int first_word = (kIsWeights ? segment.weight_word : segment.act_word) + j;
    words_ = nvfp4 ? 2 : 1;
    words_are_shared_ = segment.instruction == Instruction::kMxf8;
    slice_ = chunk * kSlices + slice;
    segment_words_ = (nvfp4 ? (segment.channels + 63) / 64 : (segment.channels + 127) / 128) - j;
    has_scale_ = j < words_;
    scales_ = row_scales_ + static_cast<std::int64_t>(first_word) * row_count_;
    scale_place_ = Stage::kScales + slice * Stage::kScaleSize + 4 * (j * kRows + row);
  }

  const SegmentList& segments_;
  std::int64_t row_bytes_;
  int row_count_;
  int rows_left_;  // from this thread's first row of codes on
  bool has_scale_row_;
  const std::uint8_t* row_codes_;
  const std::uint32_t* row_scales_;

  int segment_;
  int chunks_left_;  // of the segment, the next one included
  const std::uint8_t* codes_;
  int bytes_left_;  // of the segment, from `codes_` on
  int chunk_bytes_;
  bool has_piece_;
  SharedOffset code_place_;
  int code_pitch_;
  const std::uint32_t* scales_;  // of the segment
  int slice_;                    // of the segment, that this thread takes scales of
  int words_;                    // per slice
  bool words_are_shared_;
  int segment_words_;
  bool has_scale_;
  SharedOffset scale_place_;
};

template <Tile tile>
using ActivationStream = OperandStream<tile, Operand::kActivations>;
template <Tile tile>
using WeightStream = OperandStream<tile, Operand::kWeights>;

// Within a stage, activations come first.
template <Tile tile>
inline constexpr int kWeightsOfStage = ActivationStream<tile>::Stage::kSize;

}  // namespace mmcompile
