/* Which TensorRT libraries this process has loaded, and which of them a pointer belongs to.
 *
 * The plugin is linked against no TensorRT, so that one binary serves every release. Python's
 * wheels load theirs with RTLD_LOCAL, where a plain dlsym(RTLD_DEFAULT) finds nothing.
 */
#ifndef MMCOMPILE_TRT_LOADED_H
#define MMCOMPILE_TRT_LOADED_H

#include <memory>
#include <string>
#include <vector>

#include "versions.h"

namespace mmcompile::trt {

/* A reference to a loaded library, which cannot be unloaded while it is held. */
using LibraryReference = std::shared_ptr<void>;

struct LoadedTensorRt {
  LibraryReference library;
  Shape shape = Shape::kUnknown;
  void* registry = nullptr; /* its IPluginRegistry, of that shape */
  void* (*get_logger)() = nullptr;
};

/* Every TensorRT in the process, each registry once: full, lean and dispatch runtimes, RTX. */
std::vector<LoadedTensorRt> loaded_tensorrts();

/* The shape of the TensorRT whose library implements the object (found by its vtable), else that
 * of all TensorRTs in the process; unknown where they differ. */
Shape shape_of(const void* object);

/* The file of the TensorRT-RTX in the process; empty where there is none. */
std::string tensorrt_rtx_file();

}  // namespace mmcompile::trt

#endif
