// `MmcLinear`: a checked layer with the places of its data. Plain host code, no CUDA.
#pragma once

#include "parameters.h"
#include "tiles.h"

struct MmcLinear {
  std::int64_t in_channels;
  std::int64_t out_channels;
  MmcLinearInfo info;
  mmcompile::SegmentList segments;
  float act_tensor_scale;
  float weight_tensor_scale;
};

namespace mmcompile {

// Fills `error`, if there is one, as printf would, and returns `status`.
[[gnu::format(printf, 3, 4)]] MmcStatus fail(MmcError* error, MmcStatus status, const char* format,
                                             ...);

MmcStatus make_linear(const MmcLayer& layer, MmcLinear& linear, MmcError* error);

// Slices of K over all segments, as chunks of a tile; first those of kNvf4 segments.
struct ChunkCount {
  int all;
  int nvf4;
};
ChunkCount count_chunks(const MmcLinear& linear, const Tile& tile);

}  // namespace mmcompile
