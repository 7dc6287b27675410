// What the library's host code decides, as JSON lines, for the benchmarks that model the kernels.
//
//     launches tiles          the tiles of the GEMM
//     launches < shapes       one line a shape: architecture multiprocessors rows in_channels
//                             out_channels, then channels, activation and weight format ids of
//                             every segment; answered by the launch that is chosen, then by what
//                             every tile would launch
//
// Compiled with plugins/library/choice.cpp and linear.cpp, so that nothing is decided twice.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "choice.h"
#include "quantize_launch.h"

namespace {

using namespace mmcompile;

void print_tiles() {
  for (int i = 0; i < kTileCount; ++i) {
    const Tile& tile = kTiles[i];
    std::printf(
        "{\"name\": \"%s\", \"swapped\": %s, \"rows\": %d, \"channels\": %d, \"warps_a\": %d, "
        "\"warps_b\": %d, \"warps_k\": %d, \"stages\": %d, \"threads\": %d, \"shared_bytes\": %d, "
        "\"stage_bytes\": %d, \"fragments_a\": %d, \"fragments_b\": %d, \"chunk_bytes\": %d, "
        "\"can_split\": %s}\n",
        kTileNames[i], tile.swapped ? "true" : "false", tile.rows, tile.channels, tile.warps_a,
        tile.warps_b, tile.warps_k, tile.stages, tile.threads(), tile.shared_bytes(),
        tile.stage_bytes(), tile.fragments_a(), tile.fragments_b(), tile.chunk_bytes(),
        tile.can_split() ? "true" : "false");
  }
}

void print_launch(const GemmLaunch& launch) {
  std::printf("{\"tile\": %d, \"tiles\": %lld, \"splits\": %d, \"chunks\": %d, \"cycles\": %.17g}",
              launch.tile, static_cast<long long>(launch.tiles), launch.splits, launch.chunks.all,
              launch.modelled_cycles);
}

bool answer(const std::string& line) {
  std::istringstream words(line);
  MmcDevice device{};
  std::int64_t rows = 0;
  MmcLayer layer{};
  layer.act_tensor_scale = layer.weight_tensor_scale = 1;
  words >> device.architecture >> device.multiprocessors >> rows >> layer.in_channels >>
      layer.out_channels;
  std::vector<MmcSegment> segments;
  MmcSegment segment{};
  segment.act_threshold = 2;
  while (words >> segment.channels >> segment.act_format >> segment.weight_format)
    segments.push_back(segment);
  layer.segments = segments.data();
  layer.segment_count = static_cast<std::int32_t>(segments.size());
  MmcLinear linear{};
  MmcError error{};
  if (make_linear(layer, linear, &error) != MMC_OK) {
    std::fprintf(stderr, "%s: %s\n", line.c_str(), error.text);
    return false;
  }
  const QuantizeLaunch quantize = choose_quantize(MMC_BFLOAT16, static_cast<std::int32_t>(rows),
                                                  static_cast<std::int32_t>(layer.in_channels),
                                                  linear.segments, device.multiprocessors);
  std::printf("{\"chosen\": ");
  print_launch(choose_launch(linear, device, rows));
  std::printf(", \"every\": [");
  for (int tile = 0; tile < tile_count(device); ++tile) {
    if (tile > 0) std::printf(", ");
    print_launch(plan_launch(linear, device, rows, tile));
  }
  std::printf(
      "], \"act_row_bytes\": %lld, \"act_scale_words\": %lld, \"weight_row_bytes\": %lld, "
      "\"weight_scale_words\": %lld, \"staged\": %s}\n",
      static_cast<long long>(linear.info.act_row_bytes),
      static_cast<long long>(linear.info.act_scale_words),
      static_cast<long long>(linear.info.weight_row_bytes),
      static_cast<long long>(linear.info.weight_scale_words), quantize.staged ? "true" : "false");
  return true;
}

}  // namespace

int main(int count, char**) {
  if (count == 1) {
    std::string line;
    while (std::getline(std::cin, line))
      if (!answer(line)) return 1;
  } else {
    print_tiles();
  }
  return 0;
}
