/* The GPU that the calling thread works with. */
#ifndef MMCOMPILE_TRT_CURRENT_DEVICE_H
#define MMCOMPILE_TRT_CURRENT_DEVICE_H

#include <optional>

#include "mmcompile/kernels.h"

namespace mmcompile::trt {

/* Opens the thread's current GPU for the kernel library. Throws PluginError. */
MmcDevice open_current_device();

/* The same for a builder that measures on it. Empty where an engine is built ahead of time, for a
 * GPU that is not here: on a machine without GPUs, and where TensorRT-RTX is in the process, which
 * never measures and takes the first tactic that it is offered. Throws PluginError. */
std::optional<MmcDevice> open_builders_device();

}  // namespace mmcompile::trt

#endif
