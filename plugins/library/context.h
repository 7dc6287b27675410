// Work on a GPU, in a context that the calling program may have made itself.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace mmcompile::backend {

// A driver function of CUDA 12.0, or null. The library is linked against no driver.
template <typename Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t result =
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
  const bool usable = result == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return usable ? reinterpret_cast<Function>(function) : nullptr;
}

// work() where GPU `ordinal` is current; the thread's context and device are as before.
//
// cudaSetDevice makes the primary context current. A program whose thread works in a context of
// its own on this GPU (cuCtxCreate, a green context) would lose it, and its pointers and streams
// would belong to another context than the kernels: there, nothing is switched. CUDA must be
// initialized.
template <typename Work>
cudaError_t on_device(int ordinal, Work work) {
  const auto current = driver_function<CUresult (*)(CUcontext*)>("cuCtxGetCurrent");
  const auto make_current = driver_function<CUresult (*)(CUcontext)>("cuCtxSetCurrent");
  if (current == nullptr || make_current == nullptr) return cudaErrorInsufficientDriver;
  CUcontext own = nullptr;
  if (current(&own) != CUDA_SUCCESS) return cudaErrorDeviceUninitialized;
  int before = 0;
  if (const cudaError_t result = cudaGetDevice(&before); result != cudaSuccess) return result;
  if (own != nullptr && before == ordinal) return work();

  cudaError_t result = cudaSetDevice(ordinal);
  if (result == cudaSuccess) result = work();
  cudaError_t restored = cudaSuccess;
  if (own == nullptr)
    restored = cudaSetDevice(before);
  else if (make_current(own) != CUDA_SUCCESS)
    restored = cudaErrorDeviceUninitialized;
  return result == cudaSuccess ? restored : result;
}

}  // namespace mmcompile::backend
