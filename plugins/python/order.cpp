// Puts rows into a channel order: load.h, a tile at a time.
#include "load.h"
#include "mmcompile/pack.h"
#include "threads.h"

namespace mmcompile {
namespace {

constexpr int kGroups = kContiguousTile / kLanes;

// Orders a tile whose rows are contiguous in memory: 32 channels of 16 rows are transposed at once.
template <class T>
void order_contiguous(const Tile& tile, float* values) {
  const auto channels = static_cast<std::int64_t>(tile.layout.order.size());
  alignas(64) Group groups[kGroups];
  alignas(64) float rows[kLanes][kSegmentStep];
  for (std::int64_t c = 0; c < channels; c += kSegmentStep) {
    load_contiguous<T>(tile, tile.layout.order.data() + c, groups);
    for (int first = 0; first < tile.rows; first += kLanes) {
      for (int lane = 0; lane < kLanes; lane += 4)
        for (int i = 0; i < kSegmentStep; i += 4)
          transpose_quad(&groups[first / kLanes][i][lane], kLanes, &rows[lane][i], kSegmentStep);
      const int used = std::min(kLanes, tile.rows - first);
      for (int lane = 0; lane < used; ++lane)
        std::memcpy(values + (first + lane) * channels + c, rows[lane], sizeof rows[lane]);
    }
  }
}

// Orders any other tile, row after row.
template <class T>
void order_gathered(const Tile& tile, float* values) {
  gather_rows_of<T>(tile);
  const T* ordered = static_cast<const T*>(tile.gathered);
  const std::int64_t count = tile.rows * static_cast<std::int64_t>(tile.layout.order.size());
  for (std::int64_t i = 0; i < count; ++i) values[i] = widen(ordered[i]);
}

}  // namespace

void order_rows(const ValueMatrix& matrix, std::span<const std::int32_t> order, float* values,
                int threads) {
  const auto channels = static_cast<std::int64_t>(order.size());
  const Segment all{channels, 0, 0};
  const Layout layout{order, {&all, 1}, 1.0f};
  const GatherOrder gather_order(order);
  const bool contiguous = matrix.row_stride == 1;
  const std::int64_t tile_rows = contiguous ? kContiguousTile : kLanes;
  const std::int64_t tiles = (matrix.rows + tile_rows - 1) / tile_rows;
  parallel_ranges(tiles, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> gathered(contiguous ? 0 : static_cast<std::size_t>(kLanes * channels));
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = t * tile_rows;
      const Tile tile{.source = matrix,
                      .layout = layout,
                      .gather_order = gather_order,
                      .first_row = row,
                      .rows = static_cast<int>(std::min(tile_rows, matrix.rows - row)),
                      .rows_left = matrix.rows - row,
                      .row_bytes = 0,
                      .gathered = gathered.data(),
                      .codes = nullptr,
                      .scales = {},
                      .sums = nullptr};
      with_type(matrix.type, [&]<class T>(T) {
        if (contiguous)
          order_contiguous<T>(tile, values + row * channels);
        else
          order_gathered<T>(tile, values + row * channels);
      });
    }
  });
}

}  // namespace mmcompile
