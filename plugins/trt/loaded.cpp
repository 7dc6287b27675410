/* Looks for TensorRT among the loaded libraries. */
#include "loaded.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <string>
#include <string_view>

namespace mmcompile::trt {
namespace {

LibraryReference reference(const char* path) {
  void* handle = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
  if (handle == nullptr) return nullptr;
  return LibraryReference(handle, [](void* library) { dlclose(library); });
}

template <class Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

/* getInferLibVersion is major * 10000 + minor * 100 + patch from 10.0 on, and was major * 1000
 * before. */
int32_t major_version(void* library) {
  const auto version = symbol<int32_t (*)()>(library, "getInferLibVersion");
  if (version == nullptr) return 0;
  const int32_t number = version();
  return number >= 100000 ? number / 10000 : number / 1000;
}

int collect_name(dl_phdr_info* info, size_t, void* names) {
  const std::string_view path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  const std::string_view file = path.substr(path.rfind('/') + 1);
  if (file.starts_with("libnvinfer")) {
    static_cast<std::vector<std::string>*>(names)->emplace_back(path);
  }
  return 0;
}

void add_tensorrt(std::vector<LoadedTensorRt>& found, LibraryReference library) {
  void* handle = library.get();
  const auto get_registry = symbol<void* (*)()>(handle, "getPluginRegistry");
  if (get_registry == nullptr) return;
  LoadedTensorRt tensorrt{std::move(library), major_version(handle), get_registry(),
                          symbol<void* (*)()>(handle, "getLogger")};
  /* libnvinfer_plugin and the like answer with the symbols of the libnvinfer that they need. */
  const bool known = std::ranges::any_of(
      found, [&](const LoadedTensorRt& other) { return other.registry == tensorrt.registry; });
  if (tensorrt.registry != nullptr && !known) found.push_back(std::move(tensorrt));
}

}  // namespace

std::vector<LoadedTensorRt> loaded_tensorrts() {
  /* Names first: dl_iterate_phdr holds the loader's lock, under which dlopen must not be called. */
  std::vector<std::string> names;
  dl_iterate_phdr(collect_name, &names);
  std::vector<LoadedTensorRt> found;
  for (const std::string& name : names) {
    if (LibraryReference library = reference(name.c_str())) add_tensorrt(found, std::move(library));
  }
  /* A program that has TensorRT linked in and exports its symbols. */
  if (LibraryReference program = reference(nullptr)) add_tensorrt(found, std::move(program));
  return found;
}

int32_t tensorrt_major_of(const void* object) {
  const void* vtable = *static_cast<const void* const*>(object);
  Dl_info owner;
  if (dladdr(vtable, &owner) != 0 && owner.dli_fname != nullptr) {
    if (const LibraryReference library = reference(owner.dli_fname)) {
      if (const int32_t major = major_version(library.get()); major != 0) return major;
    }
  }
  int32_t major = 0;
  for (const LoadedTensorRt& tensorrt : loaded_tensorrts()) {
    if (major != 0 && tensorrt.major != major) return 0;
    major = tensorrt.major;
  }
  return major;
}

}  // namespace mmcompile::trt
