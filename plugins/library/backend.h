// What the library needs of a machine: CUDA's (cuda.cu), or the emulator's (plugins/testing).
#pragma once

#include "choice.h"
#include "quantize_launch.h"

namespace mmcompile::backend {

MmcStatus open_device(int ordinal, MmcDevice& device, MmcError* error);

MmcStatus launch_quantize(const QuantizeLaunch& launch, MmcType x_type,
                          const QuantizeParams& params, const MmcDevice& device, void* stream,
                          MmcError* error);

MmcStatus launch_gemm(const GemmLaunch& launch, const GemmParams& params, const MmcDevice& device,
                      void* stream, MmcError* error);

}  // namespace mmcompile::backend
