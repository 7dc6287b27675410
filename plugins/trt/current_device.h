/* The GPU that the calling thread works with. */
#ifndef MMCOMPILE_TRT_CURRENT_DEVICE_H
#define MMCOMPILE_TRT_CURRENT_DEVICE_H

#include "mmcompile/kernels.h"

namespace mmcompile::trt {

/* Opens the thread's current GPU for the kernel library. Throws PluginError. */
MmcDevice open_current_device();

}  // namespace mmcompile::trt

#endif
