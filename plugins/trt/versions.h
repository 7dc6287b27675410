/* The interfaces whose vtables TensorRT 11.0 changed, in both shapes.
 *
 * One binary of the plugin serves both, so it asks at run time which library a pointer comes from
 * (loaded.h) and calls through the shape of that library. In 11.0 loggers became versioned
 * interfaces, which puts four slots before `log`, and the registry lost its IPluginV2 functions.
 * Within a major release nothing moved: 10.8 to 10.16, and 11.0 to 11.4, have one order each.
 * TensorRT-RTX counts its own releases; 1.7 has the shape of TensorRT 11.
 *
 * Visibility is default, and none of these is in an unnamed namespace, because the compiler could
 * otherwise conclude from the absence of derived classes that the calls cannot happen.
 */
#ifndef MMCOMPILE_TRT_VERSIONS_H
#define MMCOMPILE_TRT_VERSIONS_H

#include <cstdint>

#include "tensorrt.h"

#define MMCOMPILE_FOREIGN __attribute__((visibility("default")))

namespace mmcompile::trt {

/* Which of the two; unknown ones are never called. */
enum class Shape : int32_t { kUnknown = 0, k10 = 10, k11 = 11 };

enum class Severity : int32_t { kError = 1, kWarning = 2 };

namespace v10 {

class MMCOMPILE_FOREIGN Logger {
 public:
  virtual void log(Severity severity, const char* text) noexcept = 0;

 protected:
  virtual ~Logger() = default;
};

class MMCOMPILE_FOREIGN LoggerFinder {
 public:
  virtual Logger* findLogger() = 0;

 protected:
  virtual ~LoggerFinder() = default;
};

class MMCOMPILE_FOREIGN PluginRegistry {
 public:
  virtual bool registerCreatorV2(void* creator, const char* name_space) noexcept = 0;
  virtual void* const* getPluginCreatorList(int32_t* count) const noexcept = 0;
  virtual void* getPluginCreator(const char* name, const char* version,
                                 const char* name_space) noexcept = 0;

 protected:
  virtual ~PluginRegistry() noexcept = default;

 public:
  virtual void setErrorRecorder(void* recorder) noexcept = 0;
  virtual void* getErrorRecorder() const noexcept = 0;
  virtual bool deregisterCreatorV2(const void* creator) noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool enabled) = 0;
  virtual void* loadLibrary(const char* path) noexcept = 0;
  virtual void deregisterLibrary(void* handle) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator,
                               const char* name_space) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(
      int32_t* count) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                                        const char* name_space) noexcept = 0;
  virtual bool deregisterCreator(const nvinfer1::IPluginCreatorInterface& creator) noexcept = 0;
};

}  // namespace v10

namespace v11 {

class MMCOMPILE_FOREIGN Logger : public nvinfer1::IVersionedInterface {
 public:
  virtual void log(Severity severity, const char* text) noexcept = 0;
};

class MMCOMPILE_FOREIGN LoggerFinder : public nvinfer1::IVersionedInterface {
 public:
  virtual Logger* findLogger() = 0;
};

class MMCOMPILE_FOREIGN PluginRegistry {
 protected:
  virtual ~PluginRegistry() noexcept = default;

 public:
  virtual void setErrorRecorder(void* recorder) noexcept = 0;
  virtual void* getErrorRecorder() const noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool enabled) = 0;
  virtual void* loadLibrary(const char* path) noexcept = 0;
  virtual void deregisterLibrary(void* handle) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator,
                               const char* name_space) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(
      int32_t* count) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                                        const char* name_space) noexcept = 0;
  virtual bool deregisterCreator(const nvinfer1::IPluginCreatorInterface& creator) noexcept = 0;
};

}  // namespace v11

}  // namespace mmcompile::trt

#endif
