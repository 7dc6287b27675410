/* Asks CUDA for the current device; MMCOMPILE_EMULATED links against the CPU's kernel library,
 * whose only device is 0. */
#include "current_device.h"

#include <string>

#include "fields.h"
#include "loaded.h"

#if !defined(MMCOMPILE_EMULATED) || !MMCOMPILE_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace mmcompile::trt {
namespace {

#if defined(MMCOMPILE_EMULATED) && MMCOMPILE_EMULATED
int current_ordinal() {
  return 0;
}

bool machine_has_gpu() {
  return true;
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

/* A driver that is there and does not work is an error that opening a device reports. */
bool machine_has_gpu() {
  int driver = 0; /* stays 0 where none is installed */
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return false;
  int count = 0;
  return cudaGetDeviceCount(&count) != cudaErrorNoDevice;
}
#endif

}  // namespace

MmcDevice open_current_device() {
  MmcDevice device{};
  MmcError error{};
  if (mmc_device_open(current_ordinal(), &device, &error) != MMC_OK) throw PluginError(error.text);
  return device;
}

std::optional<MmcDevice> open_builders_device() {
  if (!tensorrt_rtx_file().empty() || !machine_has_gpu()) return std::nullopt;
  return open_current_device();
}

}  // namespace mmcompile::trt
