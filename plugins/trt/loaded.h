/* Which TensorRT libraries this process has loaded, and which of them a pointer belongs to.
 *
 * The plugin is linked against no TensorRT, so that one binary serves every release. Python's
 * wheels load theirs with RTLD_LOCAL, where a plain dlsym(RTLD_DEFAULT) finds nothing.
 */
#ifndef MMCOMPILE_TRT_LOADED_H
#define MMCOMPILE_TRT_LOADED_H

#include <cstdint>
#include <memory>
#include <vector>

namespace mmcompile::trt {

/* A reference to a loaded library, which cannot be unloaded while it is held. */
using LibraryReference = std::shared_ptr<void>;

struct LoadedTensorRt {
  LibraryReference library;
  int32_t major = 0;
  void* registry = nullptr; /* its IPluginRegistry, of the shape of `major` (versions.h) */
  void* (*get_logger)() = nullptr;
};

/* Every TensorRT in the process, each registry once: full, lean and dispatch runtimes. */
std::vector<LoadedTensorRt> loaded_tensorrts();

/* Major release of the TensorRT whose library implements the object (found by its vtable), else
 * that of the only TensorRT in the process; 0 where that is unknown. */
int32_t tensorrt_major_of(const void* object);

}  // namespace mmcompile::trt

#endif
