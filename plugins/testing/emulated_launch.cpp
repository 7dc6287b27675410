// The library's machine on the CPU: the same kernels, run by the block emulator.
//
// Device 0 stands for an sm_120 with the native atoms; 1 and 2 for an sm_90 and an sm_80 with the
// portable ones, which differ in the conversions that they have.
#include <algorithm>
#include <exception>
#include <functional>
#include <mutex>

#include "backend.h"
#include "dispatch.h"
#include "emulator.h"
#include "gemm.h"

namespace mmcompile::backend {
namespace {

struct Settings {
  emulator::Options options;
  int multiprocessors = 4;
};
Settings settings;
std::mutex one_at_a_time;

std::size_t type_bytes(int type) { return type == MMC_FLOAT32 ? 4 : 2; }

std::size_t scale_words(const SegmentList& segments) {
  std::size_t words = 0;
  for (int s = 0; s < segments.count; ++s) {
    const SegmentParams& segment = segments.segment[s];
    const int word_channels = segment.instruction == Instruction::kNvf4 ? 64 : 128;
    words += static_cast<std::size_t>((segment.channels + word_channels - 1) / word_channels);
  }
  return words;
}

std::size_t size(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) {
  return static_cast<std::size_t>(a * b * c);
}

template <int tile, typename Atoms>
void run_gemm(const GemmLaunch& launch, const GemmParams& params, emulator::Memory& memory) {
  if (launch.tile != tile) return;
  emulator::launch(static_cast<int>(launch.tiles), launch.splits, kTiles[tile].threads(),
                   static_cast<std::size_t>(kTiles[tile].shared_bytes()), settings.options, memory,
                   [&] { mixed_gemm<kTiles[tile], Atoms>(params); });
}

template <typename Atoms, int... tile>
void run_gemm_of(const GemmLaunch& launch, const GemmParams& params, emulator::Memory& memory,
                 std::integer_sequence<int, tile...>) {
  (run_gemm<tile, Atoms>(launch, params, memory), ...);
}

template <typename Run>
MmcStatus guarded(MmcError* error, Run&& run) {
  const std::lock_guard lock(one_at_a_time);
  try {
    run();
    return MMC_OK;
  } catch (const std::exception& problem) {
    return fail(error, MMC_CUDA_ERROR, "%s", problem.what());
  }
}

}  // namespace

MmcStatus open_device(int ordinal, MmcDevice& device, MmcError* error) {
  constexpr int architectures[] = {120, 90, 80};
  if (ordinal < 0 || ordinal > 2)
    return fail(error, MMC_UNSUPPORTED,
                "the emulator has devices 0 (sm_120), 1 (sm_90) and 2 (sm_80), not %d", ordinal);
  device = {ordinal, architectures[ordinal], settings.multiprocessors};
  return MMC_OK;
}

MmcStatus launch_quantize(const QuantizeLaunch& launch, MmcType x_type,
                          const QuantizeParams& params, const MmcDevice& device, void*,
                          MmcError* error) {
  return guarded(error, [&] {
    emulator::Memory memory;
    memory.add(params.x, size(params.rows, params.in_channels) * type_bytes(x_type), false, "x");
    memory.add(params.order, size(params.padded_channels, 4), false, "order");
    memory.add(params.codes, size(params.rows, params.row_bytes), true, "codes");
    memory.add(params.scales, scale_words(params.segments) * size(params.rows, 4), true, "scales");
    memory.add(params.counters, size(params.counter_count, 4), true, "counters");
    const auto run = [&](const std::function<void()>& kernel) {
      emulator::launch(launch.grid_x, launch.grid_y, launch.threads,
                       static_cast<std::size_t>(launch.shared_bytes), settings.options, memory,
                       kernel);
    };
    with_quantize(launch, x_type, [&](auto variant) {
      using Variant = decltype(variant);
      if (device.architecture == 120)
        run([&] { Variant::template run<Conversions::kE2M1AndE4M3>(params); });
      else if (device.architecture == 90)
        run([&] { Variant::template run<Conversions::kE4M3>(params); });
      else
        run([&] { Variant::template run<Conversions::kNone>(params); });
    });
  });
}

MmcStatus launch_gemm(const GemmLaunch& launch, const GemmParams& params, const MmcDevice& device,
                      void*, MmcError* error) {
  return guarded(error, [&] {
    emulator::Memory memory;
    const std::size_t words = scale_words(params.segments);
    const std::size_t y_bytes =
        size(params.rows, params.out_channels) * type_bytes(params.y_type);
    memory.add(params.act_codes, size(params.rows, params.act_row_bytes), false, "act_codes", true);
    memory.add(params.act_scales, words * size(params.rows, 4), false, "act_scales", true);
    memory.add(params.weight, size(params.out_channels, params.weight_row_bytes), false, "weight");
    memory.add(params.weight_scales, words * size(params.out_channels, 4), false, "weight_scales");
    memory.add(params.y, y_bytes, true, "y");
    if (params.bias != nullptr) memory.add(params.bias, size(params.out_channels, 4), false, "bias");
    if (params.residual != nullptr) memory.add(params.residual, y_bytes, false, "residual");
    if (params.splits > 1) {
      memory.add(params.counters, size(launch.tiles, 4), true, "counters", true);
      memory.add(params.partials,
                 size(launch.tiles, launch.splits, kTiles[launch.tile].tile_floats() * 4), true,
                 "partials");
    }
    constexpr std::make_integer_sequence<int, kTileCount> tiles;
    if (device.architecture == 120)
      run_gemm_of<NativeAtoms>(launch, params, memory, tiles);
    else
      run_gemm_of<PortableAtoms>(launch, params, memory, tiles);
  });
}

}  // namespace mmcompile::backend

extern "C" {

// Seed of all scheduling, when asynchronous copies land (0 early, 1 late, 2 at random), and the
// number of multiprocessors of devices that are opened from now on.
void mmc_emulator_configure(std::uint64_t seed, int copies, int multiprocessors) {
  mmcompile::backend::settings = {
      {.seed = seed, .copies = static_cast<mmcompile::emulator::Completion>(copies)},
      multiprocessors};
}

const char* mmc_architectures() { return "emulated 120 90 80"; }
}
