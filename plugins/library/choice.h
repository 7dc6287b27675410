// Which tile serves a shape best, and how many blocks share its K. Plain host code, no CUDA.
#pragma once

#include <string_view>

#include "linear.h"

namespace mmcompile {

// A launch of the GEMM.
struct GemmLaunch {
  int tile;                // index into kTiles
  std::int64_t tiles;      // of the output: the grid's x
  int splits;              // of K: the grid's y
  ChunkCount chunks;       // of K
  double modelled_cycles;  // of the tensor cores or of loads, whichever takes longer
};

int tile_count(const MmcDevice& device);

// The largest GPU that a library compiled for `architectures` serves, as mmc_architectures names
// them.
MmcDevice largest_device(std::string_view architectures);

// The launch with tile `tile`.
GemmLaunch plan_launch(const MmcLinear& linear, const MmcDevice& device, std::int64_t rows,
                       int tile);

// Up to 8 and 16 rows the decoding tiles, which read every weight once; else the tile that is
// modelled to be the fastest.
GemmLaunch choose_launch(const MmcLinear& linear, const MmcDevice& device, std::int64_t rows);

// Where things lie in a workspace that serves any tile for `rows` rows; with fewer rows nothing
// gets larger.
MmcWorkspaceLayout workspace_layout(const MmcLinear& linear, const MmcDevice& device,
                                    std::int64_t rows);

}  // namespace mmcompile
