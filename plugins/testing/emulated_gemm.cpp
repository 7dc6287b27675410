#include "emulated_backend.h"
#include "gemm.h"

// Those of kTiles that are compiled; planted faults need but a few.
#ifndef MMCOMPILE_EMULATED_TILES
#define MMCOMPILE_EMULATED_TILES 0, 1, 2, 3, 4, 5
#endif

namespace mmcompile::backend {
namespace {

template <int tile, typename Atoms>
bool run_tile(const GemmLaunch& launch, const GemmParams& params, emulator::Memory& memory) {
  if (launch.tile != tile) return false;
  emulator::launch(static_cast<int>(launch.tiles), launch.splits, kTiles[tile].threads(),
                   bytes(kTiles[tile].shared_bytes()), settings.options, memory,
                   [&] { mixed_gemm<kTiles[tile], Atoms>(params); });
  return true;
}

template <typename Atoms, int... tile>
void run_any(const GemmLaunch& launch, const GemmParams& params, emulator::Memory& memory,
             std::integer_sequence<int, tile...>) {
  if (!(run_tile<tile, Atoms>(launch, params, memory) || ...))
    throw std::runtime_error("this tile was not compiled");
}

}  // namespace

MmcStatus launch_gemm(const GemmLaunch& launch, const GemmParams& params, const MmcDevice& device,
                      void*, MmcError* error) {
  return guarded(error, [&] {
    emulator::Memory memory;
    const std::int64_t words = scale_words(params.segments);
    const std::size_t y_bytes = bytes(params.rows, params.out_channels, type_bytes(params.y_type));
    memory.add(params.act_codes, bytes(params.rows, params.act_row_bytes), false, "act_codes",
               true);
    memory.add(params.act_scales, bytes(words, params.rows, 4), false, "act_scales", true);
    memory.add(params.weight, bytes(params.out_channels, params.weight_row_bytes), false, "weight");
    memory.add(params.weight_scales, bytes(words, params.out_channels, 4), false, "weight_scales");
    memory.add(params.y, y_bytes, true, "y");
    if (params.bias != nullptr)
      memory.add(params.bias, bytes(params.out_channels, 4), false, "bias");
    if (params.residual != nullptr) memory.add(params.residual, y_bytes, false, "residual");
    if (params.splits > 1) {
      memory.add(params.counters, bytes(launch.tiles, 4), true, "counters", true);
      memory.add(params.partials,
                 bytes(launch.tiles, launch.splits, kTiles[launch.tile].tile_floats() * 4), true,
                 "partials");
    }
    constexpr std::integer_sequence<int, MMCOMPILE_EMULATED_TILES> tiles;
    if (device.architecture == 120)
      run_any<NativeAtoms>(launch, params, memory, tiles);
    else
      run_any<PortableAtoms>(launch, params, memory, tiles);
  });
}

}  // namespace mmcompile::backend
