// The mixed GEMM: y = x̂ · ŵᵀ + bias + residual over all segments, one accumulator, one rounding.
//
// A block computes one tile of y over one of `splits` ranges of K. Its threads copy operands into a
// ring of stages (pipeline.h) while its warps multiply what has arrived (atoms.h). Where K is
// split, every block leaves its sums in memory, and the last one to do so adds them all up, in the
// order of the splits: the same digits in every run.
#pragma once

#include <type_traits>
#include <utility>

#include "atoms.h"
#include "device.h"
#include "epilogue.h"
#include "pipeline.h"
#include "tiles.h"

namespace mmcompile {

// f(0), f(1), … with constants, since instructions need them.
template <int count, typename F>
MMCOMPILE_DEVICE void unroll(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, count>{});
}

// A warp of the block: its lane, and its place along A, B and K.
template <Tile tile>
struct Warp {
  int lane;
  int a;
  int b;
  int k;

  MMCOMPILE_DEVICE Warp() {
    const int warp = device::thread_index() / kWarp;
    lane = device::thread_index() % kWarp;
    a = warp % tile.warps_a;
    b = warp / tile.warps_a % tile.warps_b;
    k = warp / (tile.warps_a * tile.warps_b);
  }
  MMCOMPILE_DEVICE int first_a() const { return a * 16 * tile.fragments_a(); }
  MMCOMPILE_DEVICE int first_b() const { return b * 8 * tile.fragments_b(); }
};

// The place of piece 2·step + i of a row, from that of piece i; since slices are multiples of 64
// bytes, swizzling commutes with it.
MMCOMPILE_DEVICE SharedOffset step_place(SharedOffset place, int step) {
  return place ^ 32 * step;
}

// acc += the product of one slice, whose operands lie in shared memory at `stage`. Calls `between`
// in the middle, when the tensor cores have work to do.
template <Tile tile, typename Atoms, Instruction instruction, WeightCode code, typename Between>
MMCOMPILE_DEVICE void multiply_slice(Accumulators<tile>& acc, const Warp<tile>& warp,
                                     SharedOffset stage, int slice_of_segment, Between&& between) {
  constexpr int kA = tile.fragments_a();
  constexpr int kB = tile.fragments_b();
  constexpr bool widen = code != WeightCode::kAsInstruction;
  using StageA = StageLayout<tile.a_rows(), tile.warps_k>;
  using StageB = StageLayout<tile.b_rows(), tile.warps_k>;
  constexpr int weights = kWeightsOfStage<tile>;
  const SharedOffset a_start = stage + (tile.swapped ? weights : 0);
  const SharedOffset b_start = stage + (tile.swapped ? 0 : weights);
  const SharedOffset a_codes = a_start + warp.k * StageA::kSliceSize;
  const SharedOffset b_codes = b_start + warp.k * StageB::kSliceSize;
  const int lane = warp.lane;
  const int shift = instruction == Instruction::kMxf8 ? slice_of_segment % 2 * 16 : 0;

  typename Atoms::template ScalesA<instruction, kA> scales_a;
  scales_a.load(
      {.start = a_start + StageA::kScales + warp.k * StageA::kScaleSize + 4 * warp.first_a(),
       .row_stride = tile.a_rows(),
       .shift = shift,
       .step = tile.swapped ? kScaleStep<code> : 0},
      lane);
  typename Atoms::template ScalesB<instruction, kB> scales_b;
  scales_b.load(
      {.start = b_start + StageB::kScales + warp.k * StageB::kScaleSize + 4 * warp.first_b(),
       .row_stride = tile.b_rows(),
       .shift = shift,
       .step = tile.swapped ? 0 : kScaleStep<code>},
      lane);

  unroll<2>([&](auto step) {
    if constexpr (decltype(step)::value == 1) between();
    std::uint32_t a[kA][4];
#pragma unroll
    for (int m = 0; m < kA; ++m) {
      const int row = warp.first_a() + 16 * m;
      if constexpr (widen && tile.swapped) {
        const SharedOffset place =
            a_codes + kPackedPitch * (row + lane / 4) + 2 * step * kPackedHalfBytes<code>;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = load_widened<code>(
              place + i % 2 * 8 * kPackedPitch + i / 2 * kPackedHalfBytes<code>, lane % 4);
      } else {
        const Words4 words =
            device::load_matrices(step_place(a_codes + swizzled(row + lane % 16, lane / 16), step));
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = words.word[i];
      }
    }
    // A few fragments of B at a time: registers are scarce in the largest tile.
    constexpr int group = kB < 4 ? kB : 4;
    unroll<kB / group>([&](auto g) {
      std::uint32_t b[group][2];
      const int first = warp.first_b() + 8 * group * g;
      if constexpr (widen && !tile.swapped) {
#pragma unroll
        for (int n = 0; n < group; ++n) {
          const SharedOffset place = b_codes + kPackedPitch * (first + 8 * n + lane / 4) +
                                     2 * step * kPackedHalfBytes<code>;
          b[n][0] = load_widened<code>(place, lane % 4);
          b[n][1] = load_widened<code>(place + kPackedHalfBytes<code>, lane % 4);
        }
      } else if constexpr (group == 1) {
        const Words2 words = device::load_matrices_2(
            step_place(b_codes + swizzled(first + lane % 8, lane / 8 % 2), step));
        b[0][0] = words.word[0];
        b[0][1] = words.word[1];
      } else {
#pragma unroll
        for (int n = 0; n < group; n += 2) {
          const int row = first + 8 * n + lane % 8 + lane / 16 * 8;
          const Words4 words =
              device::load_matrices(step_place(b_codes + swizzled(row, lane / 8 % 2), step));
          b[n][0] = words.word[0];
          b[n][1] = words.word[1];
          b[n + 1][0] = words.word[2];
          b[n + 1][1] = words.word[3];
        }
      }
      unroll<kA>([&](auto m) {
        unroll<group>([&](auto n) {
          constexpr int column = group * decltype(g)::value + decltype(n)::value;
          Atoms::template multiply<instruction, decltype(step)::value, decltype(m)::value, column>(
              acc.value[m][column], a[m], b[n], scales_a, scales_b);
        });
      });
    });
  });
}

template <Tile tile, typename Atoms, typename Between>
MMCOMPILE_DEVICE void multiply_chunk(Accumulators<tile>& acc, const Warp<tile>& warp,
                                     SharedOffset stage, const Walk<tile>& walk,
                                     Between&& between) {
  const int slice = walk.chunk() * tile.warps_k + warp.k;
  const auto multiply = [&]<Instruction instruction, WeightCode code>() {
    multiply_slice<tile, Atoms, instruction, code>(acc, warp, stage, slice, between);
  };
  constexpr WeightCode same = WeightCode::kAsInstruction;
  if (walk.instruction() == Instruction::kMxf4)
    multiply.template operator()<Instruction::kMxf4, same>();
  else if (walk.instruction() == Instruction::kNvf4)
    multiply.template operator()<Instruction::kNvf4, same>();
  else if (walk.weight_code() == same)
    multiply.template operator()<Instruction::kMxf8, same>();
  else if (walk.weight_code() == WeightCode::kE2M1)
    multiply.template operator()<Instruction::kMxf8, WeightCode::kE2M1>();
  else if (walk.weight_code() == WeightCode::kE2M3)
    multiply.template operator()<Instruction::kMxf8, WeightCode::kE2M3>();
  else
    multiply.template operator()<Instruction::kMxf8, WeightCode::kE3M2>();
}

// The block's place in y: output tiles of eight rows of tiles follow one another, so that blocks
// that run at the same time share operands in the L2 cache.
template <Tile tile>
MMCOMPILE_DEVICE TilePlace tile_place(const GemmParams& params, int index) {
  constexpr int group = 8;
  const int row_tiles = (params.rows - 1) / tile.rows + 1;
  const int channel_tiles = (params.out_channels - 1) / tile.channels + 1;
  const int first_row_tile = index / (group * channel_tiles) * group;
  const int height = row_tiles - first_row_tile < group ? row_tiles - first_row_tile : group;
  const int within = index % (group * channel_tiles);
  return {.index = index,
          .first_row = (first_row_tile + within % height) * tile.rows,
          .first_channel = within / height * tile.channels};
}

// Launched with tile.threads() threads, grid (output tiles, splits), tile.shared_bytes() of shared
// memory.
template <Tile tile, typename Atoms>
MMCOMPILE_DEVICE void mixed_gemm(const GemmParams& params) {
  constexpr int ahead = tile.stages - 1;
  const TilePlace place = tile_place<tile>(params, device::block_index_x());
  const int split = device::block_index_y();
  const int begin = static_cast<int>(std::int64_t{params.chunks} * split / params.splits);
  const int end = static_cast<int>(std::int64_t{params.chunks} * (split + 1) / params.splits);
  const Warp<tile> warp;

  // Weights do not depend on the kernel before this one, activations do.
  WeightStream<tile> weights(params, place.first_channel, begin);
  for (int i = 0; i < ahead && begin + i < end; ++i) {
    weights.load(i * tile.stage_bytes() + kWeightsOfStage<tile>, true);
    weights.advance();
  }
  device::wait_for_prerequisites();
  ActivationStream<tile> activations(params, place.first_row, begin);
  for (int i = 0; i < ahead; ++i) {
    if (begin + i < end) {
      activations.load(i * tile.stage_bytes(), true);
      activations.advance();
    }
    device::commit_async();
  }

  Accumulators<tile> acc;
  acc.clear();
  Walk<tile> walk(params.segments, begin);
  int stage = 0;
  for (int chunk = begin; chunk < end; ++chunk) {
    device::wait_async<ahead - 1>();
    device::sync_threads();
    const bool more = chunk + ahead < end;
    // The stage that everybody has read in the last turn.
    const int free_stage = (stage == 0 ? ahead : stage - 1) * tile.stage_bytes();
    multiply_chunk<tile, Atoms>(acc, warp, stage * tile.stage_bytes(), walk, [&] {
      activations.load(free_stage, more);
      weights.load(free_stage + kWeightsOfStage<tile>, more);
      device::commit_async();
    });
    if (more) {
      activations.advance();
      weights.advance();
    }
    // The sums so far are NVFP4's, still without the tensor scales.
    if (chunk + 1 == (end < params.nvf4_chunks ? end : params.nvf4_chunks))
      acc.scale(params.nvf4_scale[0], params.nvf4_scale[1]);
    walk.advance();
    stage = stage == ahead ? 0 : stage + 1;
  }

  const bool owns = warp.k == 0;
  if (tile.warps_k > 1 || params.splits > 1) {  // then shared memory is used for sums
    device::wait_async<0>();
    device::sync_threads();
  }
  if constexpr (tile.warps_k > 1) {
    sum_warps<tile>(acc, warp.k);
    device::sync_threads();
  }
  if constexpr (tile.can_split()) {
    if (params.splits > 1 && !sum_splits<tile>(acc, params, place.index, split, owns)) return;
  }
  if (owns) write_tile<tile>(acc, params, place, warp.first_a(), warp.first_b());
}

}  // namespace mmcompile
