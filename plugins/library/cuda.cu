// The library's machine on NVIDIA GPUs: the kernels as CUDA compiles them, and their launches.
#include <cuda_runtime.h>

#include <cstring>

#include "backend.h"
#include "context.h"
#include "dispatch.h"
#include "gemm.h"

// What the library is compiled for, as the build names it: "80 90 120f".
#ifndef MMCOMPILE_ARCHITECTURES
#define MMCOMPILE_ARCHITECTURES "80 90 120f"
#endif

namespace mmcompile::backend {
namespace {

#if defined(MMCOMPILE_NATIVE_BLOCK_SCALED)
using Atoms = NativeAtoms;
constexpr Conversions kConversions = Conversions::kE2M1AndE4M3;
#else
using Atoms = PortableAtoms;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
constexpr Conversions kConversions = Conversions::kE4M3;
#else
constexpr Conversions kConversions = Conversions::kNone;
#endif
#endif

template <typename Variant>
__global__ void __launch_bounds__(Variant::kThreads)
    quantize_kernel(const __grid_constant__ QuantizeParams params) {
  Variant::template run<kConversions>(params);
}

template <int tile>
__global__ void __launch_bounds__(kTiles[tile].threads(), 1)
    gemm_kernel(const __grid_constant__ GemmParams params) {
#if defined(MMCOMPILE_NATIVE_BLOCK_SCALED)
  mixed_gemm<kTiles[tile], Atoms>(params);
#else
  if constexpr (tile < kPortableTileCount) mixed_gemm<kTiles[tile], Atoms>(params);
#endif
}

using GemmKernel = void (*)(GemmParams);
constexpr GemmKernel kGemmKernels[] = {gemm_kernel<0>, gemm_kernel<1>, gemm_kernel<2>,
                                       gemm_kernel<3>, gemm_kernel<4>, gemm_kernel<5>};
static_assert(sizeof(kGemmKernels) / sizeof(kGemmKernels[0]) == kTileCount);

MmcStatus failed(MmcError* error, const char* what, cudaError_t result) {
  return fail(error, MMC_CUDA_ERROR, "%s: %s (%s)", what, cudaGetErrorString(result),
              cudaGetErrorName(result));
}

// Loads a kernel: CUDA does so no earlier than it must, and cannot do it while a graph is captured.
// Blocks may use more than 48 KiB of shared memory only where that was allowed before.
cudaError_t prepare(const void* kernel, int shared_bytes) {
  cudaFuncAttributes unused;
  const cudaError_t result = cudaFuncGetAttributes(&unused, kernel);
  if (result != cudaSuccess) return result;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
}

cudaError_t prepare_kernels(const MmcDevice& device) {
  for (int tile = 0; tile < tile_count(device); ++tile) {
    const cudaError_t result =
        prepare(reinterpret_cast<const void*>(kGemmKernels[tile]), kTiles[tile].shared_bytes());
    if (result != cudaSuccess) return result;
  }
  for (const MmcType type : {MMC_FLOAT32, MMC_FLOAT16, MMC_BFLOAT16}) {
    for (const int rows : {0, 1, 2, 4}) {  // 0 is direct; 4 is 2 again for fp32
      const QuantizeLaunch launch{rows > 0, rows, 0, 0, 0, 0};
      const cudaError_t result = with_quantize(launch, type, [](auto variant) {
        using Variant = decltype(variant);
        return prepare(reinterpret_cast<const void*>(quantize_kernel<Variant>),
                       Variant::kSharedBytes);
      });
      if (result != cudaSuccess) return result;
    }
  }
  return cudaSuccess;
}

cudaError_t describe(int ordinal, MmcDevice& device) {
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  cudaError_t result = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  if (result == cudaSuccess)
    result = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (result == cudaSuccess)
    result = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  device = {ordinal, 10 * major + minor, multiprocessors};
  return result;
}

bool was_compiled_for(const char* architecture) {
  return std::strstr(MMCOMPILE_ARCHITECTURES, architecture) != nullptr;
}

// sm_80 code runs on its desktop successors, too, sm_90 code on 9.0 alone, the family's on 12.x.
bool has_kernels(int architecture) {
  if (architecture / 10 == 12) return was_compiled_for("120f");
  if (architecture == 90) return was_compiled_for("90");
  return (architecture == 80 || architecture == 86 || architecture == 89) && was_compiled_for("80");
}

cudaLaunchConfig_t configuration(dim3 grid, int threads, int shared_bytes, void* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

}  // namespace

MmcStatus open_device(int ordinal, MmcDevice& device, MmcError* error) {
  cudaError_t result = describe(ordinal, device);
  if (result != cudaSuccess) return failed(error, "reading the properties of the GPU", result);
  if (!has_kernels(device.architecture))
    return fail(error, MMC_UNSUPPORTED,
                "GPU %d is an sm_%d; this library was compiled for " MMCOMPILE_ARCHITECTURES
                " (80 also serves sm_86 and sm_89, 120f all sm_12x)",
                ordinal, device.architecture);
  result = on_device(ordinal, [&] { return prepare_kernels(device); });
  return result == cudaSuccess ? MMC_OK : failed(error, "loading the kernels", result);
}

MmcStatus launch_quantize(const QuantizeLaunch& launch, MmcType x_type,
                          const QuantizeParams& params, const MmcDevice&, void* stream,
                          MmcError* error) {
  const cudaLaunchConfig_t config = configuration(
      dim3(static_cast<unsigned>(launch.grid_x), static_cast<unsigned>(launch.grid_y)),
      launch.threads, launch.shared_bytes, stream);
  const cudaError_t result = with_quantize(launch, x_type, [&](auto variant) {
    return cudaLaunchKernelEx(&config, quantize_kernel<decltype(variant)>, params);
  });
  return result == cudaSuccess ? MMC_OK : failed(error, "launching the quantization", result);
}

MmcStatus launch_gemm(const GemmLaunch& launch, const GemmParams& params, const MmcDevice& device,
                      void* stream, MmcError* error) {
  const Tile& tile = kTiles[launch.tile];
  cudaLaunchConfig_t config =
      configuration(dim3(static_cast<unsigned>(launch.tiles), static_cast<unsigned>(launch.splits)),
                    tile.threads(), tile.shared_bytes(), stream);
  // Starts while the quantization ends, and loads weights until it has.
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  if (device.architecture >= 90) {
    config.attrs = &overlap;
    config.numAttrs = 1;
  }
  const cudaError_t result = cudaLaunchKernelEx(&config, kGemmKernels[launch.tile], params);
  return result == cudaSuccess ? MMC_OK : failed(error, "launching the GEMM", result);
}

}  // namespace mmcompile::backend

extern "C" const char* mmc_architectures() {
  return MMCOMPILE_ARCHITECTURES;
}
