/* The creator of MicroMixLinear plugins that TensorRT's registry holds. */
#ifndef MMCOMPILE_TRT_CREATOR_H
#define MMCOMPILE_TRT_CREATOR_H

#include <vector>

#include "tensorrt.h"

namespace mmcompile::trt {

class MicroMixLinearCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  MicroMixLinearCreator();

  /* NULL, and one logged sentence, where the fields do not describe a layer. */
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

/* The one creator of this library; constructed on first use, by whoever comes first. */
MicroMixLinearCreator& micromix_linear_creator();

}  // namespace mmcompile::trt

#endif
