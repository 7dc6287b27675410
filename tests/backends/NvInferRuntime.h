/* What examples/deploy/run_engine.cpp uses of TensorRT's runtime, for a check of its syntax and
 * types where NVIDIA's headers are absent. Signatures are those of TensorRT 10.13 to 11.1; nothing
 * here is an ABI, and nothing is ever linked against it. */
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64 };
enum class TensorIOMode : int32_t { kNONE, kINPUT, kOUTPUT };

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity severity, const char* text) noexcept = 0;
  virtual ~ILogger() = default;
};

class IPluginRegistry {
 public:
  using PluginLibraryHandle = void*;
  PluginLibraryHandle loadLibrary(const char* path) noexcept;
};

class IExecutionContext {
 public:
  bool setInputShape(const char* name, const Dims& shape) noexcept;
  Dims getTensorShape(const char* name) const noexcept;
  bool setTensorAddress(const char* name, void* data) noexcept;
  bool enqueueV3(cudaStream_t stream) noexcept;
};

class ICudaEngine {
 public:
  IExecutionContext* createExecutionContext() noexcept;
  int32_t getNbIOTensors() const noexcept;
  const char* getIOTensorName(int32_t index) const noexcept;
  TensorIOMode getTensorIOMode(const char* name) const noexcept;
  DataType getTensorDataType(const char* name) const noexcept;
};

class IRuntime {
 public:
  IPluginRegistry& getPluginRegistry() noexcept;
  ICudaEngine* deserializeCudaEngine(const void* plan, size_t bytes) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
