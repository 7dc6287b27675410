/* Says a sentence through TensorRT's logger, or on stderr where there is none yet. */
#ifndef MMCOMPILE_TRT_LOG_H
#define MMCOMPILE_TRT_LOG_H

#include <exception>
#include <string>

#include "tensorrt.h"

namespace mmcompile::trt {

/* TensorRT gives its finder to the library once, right after loading it; NULL takes it back. */
void use_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

void log_error(const std::string& sentence) noexcept;

/* Runs `body` on our side of the ABI, which no exception may cross: what it throws is logged, and
 * `failure` is returned. */
template <class Result, class Body>
Result guarded(const char* layer, Result failure, Body&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    try {
      log_error("MicroMixLinear layer '" + std::string(layer) + "': " + error.what());
    } catch (...) { /* no memory for the sentence */
    }
  } catch (...) {
    log_error("MicroMixLinear: unknown internal error");
  }
  return failure;
}

}  // namespace mmcompile::trt

#endif
