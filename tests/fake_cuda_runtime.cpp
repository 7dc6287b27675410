/* CUDA's runtime for tests on machines without a GPU: kernels are loaded and launched by name only.
 *
 * It keeps the driver's rule that a kernel must have been loaded in the context where a graph is
 * captured, and takes every launch for one that is captured. Contexts are numbers: 1 + d is the
 * primary context of GPU d, others are what a program made itself. The environment describes the
 * machine: FAKE_CUDA_DRIVER (13000; 0 where none is installed), FAKE_CUDA_DEVICES (2),
 * FAKE_CUDA_ARCHITECTURE (120).
 */
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kRuntime = 13000; /* the oldest driver that it works with */
constexpr int kSharedByDefault = 48 * 1024;

using Kernel = const void*;
using Place = std::pair<std::uintptr_t, Kernel>; /* context and kernel */

struct State {
  std::map<Kernel, std::string> names;
  std::set<Place> loaded;
  std::map<Place, int> allowed;
  std::set<Kernel> launched;
  std::map<std::uintptr_t, int> device_of_own;
};

/* Made on first use: kernels are registered before the objects of this file exist. */
State& state() {
  static State instance;
  return instance;
}

thread_local std::uintptr_t current = 0;
thread_local int chosen = 0; /* where no context is current */

int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

cudaError_t machine() {
  if (setting("FAKE_CUDA_DRIVER", kRuntime) < kRuntime) return cudaErrorInsufficientDriver;
  return setting("FAKE_CUDA_DEVICES", 2) == 0 ? cudaErrorNoDevice : cudaSuccess;
}

int current_device() {
  if (current == 0) return chosen;
  const auto own = state().device_of_own.find(current);
  return own != state().device_of_own.end() ? own->second : static_cast<int>(current) - 1;
}

std::uintptr_t context() {
  if (current == 0) current = 1 + static_cast<std::uintptr_t>(chosen);
  return current;
}

CUresult get_current(CUcontext* result) {
  *result = reinterpret_cast<CUcontext>(current);
  return CUDA_SUCCESS;
}

CUresult set_current(CUcontext wanted) {
  current = reinterpret_cast<std::uintptr_t>(wanted);
  return CUDA_SUCCESS;
}

}  // namespace

/* --- for the tests ---------------------------------------------------------------------------- */

/* Makes a context of the program's own on a GPU, and makes it current; returns it. */
EXPORT std::uintptr_t fake_create_context(int device) {
  static std::uintptr_t last = 1000;
  state().device_of_own[++last] = device;
  return current = last;
}

EXPORT void fake_leave_contexts() {
  current = 0;
  chosen = 0;
}

EXPORT std::uintptr_t fake_current_context() {
  return current;
}

EXPORT int fake_loaded_kernels(std::uintptr_t where) {
  int count = 0;
  for (const Place& place : state().loaded) count += place.first == where;
  return count;
}

/* The names of kernels that were loaded, or launched, each followed by a newline. */
EXPORT const char* fake_kernels(int were_launched) {
  static std::string text;
  std::set<std::string> found;
  if (were_launched != 0)
    for (Kernel kernel : state().launched) found.insert(state().names[kernel]);
  else
    for (const Place& place : state().loaded) found.insert(state().names[place.second]);
  text.clear();
  for (const std::string& name : found) text += name + "\n";
  return text.c_str();
}

EXPORT void fake_forget() {
  state().loaded.clear();
  state().allowed.clear();
  state().launched.clear();
}

/* --- the runtime ------------------------------------------------------------------------------ */

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  *version = setting("FAKE_CUDA_DRIVER", kRuntime);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = setting("FAKE_CUDA_DEVICES", 2);
  return machine();
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return machine();
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= setting("FAKE_CUDA_DEVICES", 2)) return cudaErrorInvalidDevice;
  chosen = device;
  current = 1 + static_cast<std::uintptr_t>(device);
  return machine();
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int architecture = setting("FAKE_CUDA_ARCHITECTURE", 120);
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? architecture / 10
           : attribute == cudaDevAttrComputeCapabilityMinor ? architecture % 10
                                                            : 4; /* multiprocessors */
  return machine();
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned int,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  const std::string name = symbol;
  *function = nullptr;
  if (name == "cuCtxGetCurrent") *function = reinterpret_cast<void*>(get_current);
  if (name == "cuCtxSetCurrent") *function = reinterpret_cast<void*>(set_current);
  *status = *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* kernel) {
  if (!state().names.contains(kernel)) return cudaErrorInvalidDeviceFunction;
  state().loaded.insert({context(), kernel});
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (!state().loaded.contains({context(), kernel})) return cudaErrorInvalidDeviceFunction;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  state().allowed[{context(), kernel}] = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  if (!state().loaded.contains({context(), kernel})) return cudaErrorStreamCaptureUnsupported;
  const auto found = state().allowed.find({context(), kernel});
  const int most = found == state().allowed.end() ? kSharedByDefault : found->second;
  if (config->dynamicSmemBytes > static_cast<std::size_t>(most)) return cudaErrorInvalidValue;
  state().launched.insert(kernel);
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorStreamCaptureUnsupported ? "cudaErrorStreamCaptureUnsupported" : "error";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorInvalidValue:
      return "more shared memory than allowed";
    default:
      return "a CUDA error";
  }
}

/* What nvcc's own code calls. Kernels are never launched through it. */
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
char __cudaInitModule(void**) {
  return 1;
}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  state().names[kernel] = name;
}
unsigned __cudaPopCallConfiguration(void*, void*, std::size_t*, void*) {
  std::abort();
}
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, std::size_t, cudaStream_t) {
  std::abort();
}
cudaError_t __cudaGetKernel(void**, const void*) {
  std::abort();
}

}  // extern "C"
