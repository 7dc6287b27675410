/* The two functions that TensorRT looks up in a plugin library; nothing else is exported. */
#include <cstdint>

#include "creator.h"
#include "log.h"
#include "registration.h"
#include "rtx_name.h"

#define MMCOMPILE_EXPORT __attribute__((visibility("default")))

extern "C" {

MMCOMPILE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
MMCOMPILE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      &mmcompile::trt::micromix_linear_creator()};
  mmcompile::trt::withdraw_registration();
  mmcompile::trt::provide_rtx_name(); /* a TensorRT-RTX may have come after this library */
  count = 1;
  return creators;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  mmcompile::trt::use_logger_finder(finder);
}

}  // extern "C"
