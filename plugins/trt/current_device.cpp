/* Asks CUDA for the current device; MMCOMPILE_EMULATED links against the CPU's kernel library,
 * whose only device is 0. */
#include "current_device.h"

#include <string>

#include "fields.h"

#if !defined(MMCOMPILE_EMULATED) || !MMCOMPILE_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace mmcompile::trt {
namespace {

#if defined(MMCOMPILE_EMULATED) && MMCOMPILE_EMULATED
int current_ordinal() {
  return 0;
}
#else
int current_ordinal() {
  int ordinal = 0;
  const cudaError_t status = cudaGetDevice(&ordinal);
  if (status != cudaSuccess) {
    throw PluginError(std::string("no current GPU: ") + cudaGetErrorString(status) +
                      "; check the driver with nvidia-smi");
  }
  return ordinal;
}
#endif

}  // namespace

MmcDevice open_current_device() {
  MmcDevice device{};
  MmcError error{};
  if (mmc_device_open(current_ordinal(), &device, &error) != MMC_OK) throw PluginError(error.text);
  return device;
}

}  // namespace mmcompile::trt
