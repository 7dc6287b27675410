#include <functional>

#include "dispatch.h"
#include "emulated_backend.h"

namespace mmcompile::backend {

MmcStatus launch_quantize(const QuantizeLaunch& launch, MmcType x_type,
                          const QuantizeParams& params, const MmcDevice& device, void*,
                          MmcError* error) {
  return guarded(error, [&] {
    emulator::Memory memory;
    memory.add(params.x, bytes(params.rows, params.in_channels, type_bytes(x_type)), false, "x");
    memory.add(params.order, bytes(params.padded_channels, 4), false, "order");
    memory.add(params.codes, bytes(params.rows, params.row_bytes), true, "codes");
    memory.add(params.scales, bytes(scale_words(params.segments), params.rows, 4), true, "scales");
    memory.add(params.counters, bytes(params.counter_count, 4), true, "counters");
    const auto run = [&](const std::function<void()>& kernel) {
      emulator::launch(launch.grid_x, launch.grid_y, launch.threads, bytes(launch.shared_bytes),
                       settings.options, memory, kernel);
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

}  // namespace mmcompile::backend
