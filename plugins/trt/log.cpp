/* Calls TensorRT's logger in the shape of the release that it comes from. */
#include "log.h"

#include <cstdio>
#include <mutex>

#include "loaded.h"

namespace mmcompile::trt {
namespace {

struct Finder {
  void* object = nullptr;
  Shape shape = Shape::kUnknown;
};

std::mutex finder_mutex;
Finder current_finder;

/* The finder from setLoggerFinder; a library that was loaded by a plain dlopen has none and asks
 * the TensorRT in the process. A NULL logger is legal: no builder or runtime has been made. */
struct FoundLogger {
  void* object = nullptr;
  Shape shape = Shape::kUnknown;
};

FoundLogger find_logger() {
  Finder finder;
  {
    const std::lock_guard lock(finder_mutex);
    finder = current_finder;
  }
  if (finder.object != nullptr && finder.shape == Shape::k10) {
    return {static_cast<v10::LoggerFinder*>(finder.object)->findLogger(), Shape::k10};
  }
  if (finder.object != nullptr && finder.shape == Shape::k11) {
    return {static_cast<v11::LoggerFinder*>(finder.object)->findLogger(), Shape::k11};
  }
  for (const LoadedTensorRt& tensorrt : loaded_tensorrts()) {
    if (tensorrt.get_logger == nullptr) continue;
    if (void* logger = tensorrt.get_logger()) return {logger, tensorrt.shape};
  }
  return {};
}

}  // namespace

void use_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  try {
    Finder next{finder, finder == nullptr ? Shape::kUnknown : shape_of(finder)};
    const std::lock_guard lock(finder_mutex);
    current_finder = next;
  } catch (...) { /* without memory: the sentences go to stderr */
  }
}

void log_error(const std::string& sentence) noexcept {
  try {
    const FoundLogger logger = find_logger();
    if (logger.object != nullptr && logger.shape == Shape::k10) {
      return static_cast<v10::Logger*>(logger.object)->log(Severity::kError, sentence.c_str());
    }
    if (logger.object != nullptr && logger.shape == Shape::k11) {
      return static_cast<v11::Logger*>(logger.object)->log(Severity::kError, sentence.c_str());
    }
  } catch (...) { /* the application's finder threw: stderr remains */
  }
  std::fprintf(stderr, "mmcompile: %s\n", sentence.c_str());
}

}  // namespace mmcompile::trt
