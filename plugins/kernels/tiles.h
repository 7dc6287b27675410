// The tile shapes of the GEMM, and which one serves a shape best. Plain host code.
#pragma once

#include <cstdint>

#include "parameters.h"

namespace mmcompile {

// What a block computes at a time: `rows` of x by `channels` of output. The tensor core's A operand
// has 16 rows, B has 8 columns: with few rows of x, weights are better taken as A (`swapped`).
struct Tile {
  bool swapped;
  int rows;
  int channels;
  int warps_a;  // warps along the A operand, along B, and along K: the last each take a slice of
  int warps_b;  // every chunk, and add their sums up in the end
  int warps_k;
  int stages;  // chunks in shared memory: one in use, the others on their way

  constexpr int a_rows() const { return swapped ? channels : rows; }
  constexpr int b_rows() const { return swapped ? rows : channels; }
  constexpr int threads() const { return 32 * warps_a * warps_b * warps_k; }
  constexpr int fragments_a() const { return a_rows() / warps_a / 16; }  // per warp
  constexpr int fragments_b() const { return b_rows() / warps_b / 8; }
  // A chunk is one slice of kSliceBytes per row and warp along K.
  constexpr int chunk_bytes() const { return kSliceBytes * warps_k; }
  // Per slice and row: codes, and up to two words of scales.
  constexpr int stage_bytes() const {
    return warps_k * (rows + channels) * (kSliceBytes + 2 * static_cast<int>(sizeof(float)));
  }
  constexpr int tile_floats() const { return rows * channels; }
  // Whether blocks may share the K of one tile. The largest tile has no registers left for
  // that.
  constexpr bool can_split() const { return tile_floats() <= 128 * 128; }
  constexpr int shared_bytes() const {
    const int pipeline = stages * stage_bytes();
    const int sums = warps_k > 1 ? (warps_k - 1) * tile_floats() * 4 : 0;
    return pipeline > sums ? pipeline : sums;
  }
};

inline constexpr Tile kTiles[] = {
    {true, 8, 32, 2, 1, 4, 4},    {true, 16, 32, 2, 1, 4, 3},    {false, 32, 64, 1, 2, 4, 3},
    {false, 64, 128, 2, 4, 1, 5}, {false, 128, 128, 2, 4, 1, 4}, {false, 128, 256, 2, 4, 1, 3},
};
inline constexpr const char* kTileNames[] = {"decode8", "decode16", "small",
                                             "medium",  "large",    "huge"};
inline constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);
// GPUs without block-scaled instructions have the first ones: the others would spill registers.
inline constexpr int kPortableTileCount = 4;
static_assert(kTileCount == sizeof(kTileNames) / sizeof(kTileNames[0]));

// Every GPU that the library serves has this much shared memory per block (sm_120: 99 KiB).
inline constexpr int kSharedLimit = 101376;

constexpr bool tiles_are_sound() {
  for (const Tile& tile : kTiles) {
    if (tile.shared_bytes() > kSharedLimit || tile.threads() > 512) return false;
    if (tile.a_rows() % (16 * tile.warps_a) != 0 || tile.b_rows() % (8 * tile.warps_b) != 0)
      return false;
    const int a = tile.fragments_a();
    const int b = tile.fragments_b();
    // Scale registers hold two A fragments or four B fragments each.
    if (a > 2 && a % 2 != 0) return false;
    if (b != 1 && b != 2 && b % 4 != 0) return false;
  }
  return true;
}
static_assert(tiles_are_sound());

}  // namespace mmcompile
