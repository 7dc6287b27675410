// The kernels as CUDA compiles them, and how they are launched.
#include <cuda_runtime.h>

#include "backend.h"
#include "gemm.h"
#include "quantize.h"

namespace mmcompile {
namespace {

#if defined(MMCOMPILE_NATIVE_BLOCK_SCALED)
using Atoms = NativeAtoms;
#else
using Atoms = PortableAtoms;
#endif

template <int tile>
__global__ void __launch_bounds__(kTiles[tile].threads(), 1)
    gemm_kernel(const __grid_constant__ GemmParams params) {
#if !defined(MMCOMPILE_NATIVE_BLOCK_SCALED)
  if constexpr (tile >= kPortableTileCount) return;
  else
#endif
    mixed_gemm<kTiles[tile], Atoms>(params);
}

using GemmKernel = void (*)(GemmParams);
constexpr GemmKernel kGemmKernels[] = {gemm_kernel<0>, gemm_kernel<1>, gemm_kernel<2>,
                                       gemm_kernel<3>, gemm_kernel<4>, gemm_kernel<5>};
static_assert(sizeof(kGemmKernels) / sizeof(kGemmKernels[0]) == kTileCount);

}  // namespace
}  // namespace mmcompile
