/* Looks for TensorRT among the loaded libraries. */
#include "loaded.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
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

bool is_file(const char* path, std::string_view start) {
  const std::string_view whole = path == nullptr ? "" : path;
  return whole.substr(whole.rfind('/') + 1).starts_with(start);
}

constexpr std::string_view kTensorRt = "libnvinfer";
constexpr std::string_view kTensorRtRtx = "libtensorrt_rtx";

/* The file that holds the code or the data at `address`. */
const char* owner_of(const void* address) {
  Dl_info owner{};
  return dladdr(address, &owner) != 0 ? owner.dli_fname : nullptr;
}

/* getInferLibVersion is major * 10000 + minor * 100 + patch, in both products: RTX 1.7.1 calls
 * itself 10701, so that only the file can say whose number it is. */
Shape shape_of_library(void* library) {
  const auto version = symbol<int32_t (*)()>(library, "getInferLibVersion");
  if (version == nullptr) return Shape::kUnknown;
  const int32_t release = version() / 100;
  if (is_file(owner_of(reinterpret_cast<const void*>(version)), kTensorRtRtx)) {
    /* Before 1.7 its parser refuses plugins, which nobody has tried there. */
    return release / 100 == 1 && release >= 107 ? Shape::k11 : Shape::kUnknown;
  }
  switch (release / 100) {
    case 10:
      return Shape::k10;
    case 11:
      return Shape::k11;
    default:
      return Shape::kUnknown;
  }
}

int collect_name(dl_phdr_info* info, size_t, void* names) {
  if (is_file(info->dlpi_name, kTensorRt) || is_file(info->dlpi_name, kTensorRtRtx)) {
    static_cast<std::vector<std::string>*>(names)->emplace_back(info->dlpi_name);
  }
  return 0;
}

int find_tensorrt_rtx(dl_phdr_info* info, size_t, void* file) {
  if (!is_file(info->dlpi_name, kTensorRtRtx)) return 0;
  *static_cast<std::string*>(file) = info->dlpi_name;
  return 1;
}

void add_tensorrt(std::vector<LoadedTensorRt>& found, LibraryReference library) {
  void* handle = library.get();
  const auto get_registry = symbol<void* (*)()>(handle, "getPluginRegistry");
  if (get_registry == nullptr) return;
  LoadedTensorRt tensorrt{std::move(library), shape_of_library(handle), get_registry(),
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

Shape shape_of(const void* object) {
  const void* vtable = *static_cast<const void* const*>(object);
  if (const char* owner = owner_of(vtable)) {
    if (const LibraryReference library = reference(owner)) {
      if (const Shape shape = shape_of_library(library.get()); shape != Shape::kUnknown) {
        return shape;
      }
    }
  }
  const std::vector<LoadedTensorRt> found = loaded_tensorrts();
  if (found.empty()) return Shape::kUnknown;
  const Shape shape = found.front().shape;
  const bool same = std::ranges::all_of(
      found, [&](const LoadedTensorRt& tensorrt) { return tensorrt.shape == shape; });
  return same ? shape : Shape::kUnknown;
}

std::string tensorrt_rtx_file() {
  std::string file;
  dl_iterate_phdr(find_tensorrt_rtx, &file);
  return file;
}

}  // namespace mmcompile::trt
