#include "choice.h"

#include <algorithm>

namespace mmcompile {
namespace {

constexpr int kMostSplits = 16;
// A block that shares K still has enough chunks to fill its pipeline.
constexpr int kLeastChunks = 4;
// Shared memory of an SM of sm_120, and what the system keeps of it per block.
constexpr int kSharedPerMultiprocessor = 102400;
constexpr int kSharedPerBlock = 1024;

// The cost of a chunk, in clock cycles of an SM. Both instructions take 16 rows by 8 columns by 32
// bytes of K in 16 cycles of one of four tensor cores, at the rates of sm_120. Loads come from the
// L2 cache at about 20 bytes per cycle and SM. Modelled; the ranking is what matters.
double chunk_cycles(const Tile& tile) {
  const double multiply = static_cast<double>(tile.rows) * tile.channels * tile.warps_k / 16;
  const double load = tile.stage_bytes() / 20.0;
  constexpr double barrier = 50;
  return std::max(multiply, load) + barrier;
}
constexpr double kStartChunks = 3;  // filling the pipeline and writing y, in chunks

// What splitting K costs on top: every block writes its sums, and the last one of a tile reads all.
double sum_cycles(const Tile& tile, int splits) {
  return splits == 1 ? 0 : 4.0 * tile.tile_floats() * (1 + splits) / 20.0;
}
// Blocks that share the K of their tiles, over those that the GPU holds at a time.
constexpr int kMostWaves = 2;

int blocks_per_multiprocessor(const Tile& tile) {
  const int by_memory = kSharedPerMultiprocessor / (tile.shared_bytes() + kSharedPerBlock);
  return std::clamp(by_memory, 1, 2);
}

std::int64_t capacity(const MmcDevice& device, const Tile& tile) {
  return std::int64_t{device.multiprocessors} * blocks_per_multiprocessor(tile);
}

constexpr std::int64_t divided_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step;
}

std::int64_t output_tiles(const MmcLinear& linear, std::int64_t rows, const Tile& tile) {
  return divided_up(rows, tile.rows) * divided_up(linear.out_channels, tile.channels);
}

constexpr std::size_t aligned(std::size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

int tile_count(const MmcDevice& device) {
  return device.architecture / 10 == 12 ? kTileCount : kPortableTileCount;
}

MmcDevice largest_device(std::string_view architectures) {
  // Whole chips: GB202, GH100, and AD102, which runs sm_80 code. Each needs at least the workspace
  // of those below it.
  constexpr struct {
    std::string_view compiled;
    MmcDevice device;
  } largest[] = {{"120", {-1, 120, 192}}, {"90", {-1, 90, 144}}, {"80", {-1, 89, 144}}};
  for (const auto& [compiled, device] : largest)
    if (architectures.find(compiled) != std::string_view::npos) return device;
  return largest[0].device;
}

GemmLaunch plan_launch(const MmcLinear& linear, const MmcDevice& device, std::int64_t rows,
                       int tile_index) {
  const Tile& tile = kTiles[tile_index];
  const ChunkCount chunks = count_chunks(linear, tile);
  const std::int64_t tiles = output_tiles(linear, rows, tile);
  const std::int64_t blocks = capacity(device, tile);
  const int most_splits = tile.can_split() ? std::min(kMostSplits, chunks.all / kLeastChunks) : 1;
  GemmLaunch best{};
  for (int splits = 1; splits == 1 || splits <= most_splits; ++splits) {
    if (splits > 1 && tiles * splits > kMostWaves * blocks) break;
    const auto waves = static_cast<double>(divided_up(tiles * splits, blocks));
    const double turns = static_cast<double>(divided_up(chunks.all, splits)) + kStartChunks;
    const double cycles = waves * turns * chunk_cycles(tile) * blocks_per_multiprocessor(tile) +
                          sum_cycles(tile, splits);
    if (splits == 1 || cycles < best.modelled_cycles)
      best = {.tile = tile_index,
              .tiles = tiles,
              .splits = splits,
              .chunks = chunks,
              .modelled_cycles = cycles};
  }
  return best;
}

GemmLaunch choose_launch(const MmcLinear& linear, const MmcDevice& device, std::int64_t rows) {
  constexpr int decoding_tiles = 2;
  for (int tile = 0; tile < decoding_tiles; ++tile)
    if (rows <= kTiles[tile].rows) return plan_launch(linear, device, rows, tile);
  GemmLaunch best = plan_launch(linear, device, rows, decoding_tiles);
  for (int tile = decoding_tiles + 1; tile < tile_count(device); ++tile) {
    const GemmLaunch launch = plan_launch(linear, device, rows, tile);
    if (launch.modelled_cycles < best.modelled_cycles) best = launch;
  }
  return best;
}

MmcWorkspaceLayout workspace_layout(const MmcLinear& linear, const MmcDevice& device,
                                    std::int64_t rows) {
  const auto r = static_cast<std::size_t>(rows);
  std::size_t counters = 0;
  std::size_t floats = 0;
  for (int i = 0; i < tile_count(device); ++i) {
    const Tile& tile = kTiles[i];
    if (!tile.can_split()) continue;
    const auto blocks = static_cast<std::size_t>(std::min(
        kMostWaves * capacity(device, tile), output_tiles(linear, rows, tile) * kMostSplits));
    counters = std::max(counters, blocks);
    floats = std::max(floats, blocks * static_cast<std::size_t>(tile.tile_floats()));
  }
  MmcWorkspaceLayout layout{};
  layout.codes = 0;
  layout.scales = aligned(r * static_cast<std::size_t>(linear.info.act_row_bytes));
  layout.counters =
      layout.scales + aligned(r * static_cast<std::size_t>(linear.info.act_scale_words) * 4);
  layout.partials = layout.counters + aligned(counters * 4);
  layout.bytes = layout.partials + aligned(floats * 4);
  return layout;
}

}  // namespace mmcompile
