/* Makes plugins from fields. */
#include "creator.h"

#include <algorithm>
#include <array>
#include <string>

#include "fields.h"
#include "log.h"
#include "plugin.h"

namespace mmcompile::trt {

MicroMixLinearCreator::MicroMixLinearCreator()
    : fields_(creator_fields().begin(), creator_fields().end()) {
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

nvinfer1::IPluginV3* MicroMixLinearCreator::createPlugin(
    const char* name, const nvinfer1::PluginFieldCollection* fields,
    nvinfer1::TensorRTPhase phase) noexcept {
  std::array<char, 256> layer{}; /* no allocation outside of guarded */
  return guarded<nvinfer1::IPluginV3*>(layer.data(), nullptr, [&]() -> nvinfer1::IPluginV3* {
    const std::string text = printable(name == nullptr ? "" : name);
    std::ranges::copy(text, layer.begin());
    return new MicroMixLinear(text, parse_fields(fields, phase));
  });
}

const nvinfer1::PluginFieldCollection* MicroMixLinearCreator::getFieldNames() noexcept {
  return &collection_;
}

const char* MicroMixLinearCreator::getPluginName() const noexcept {
  return kPluginName;
}
const char* MicroMixLinearCreator::getPluginVersion() const noexcept {
  return kPluginVersion;
}
const char* MicroMixLinearCreator::getPluginNamespace() const noexcept {
  return kPluginNamespace;
}

MicroMixLinearCreator& micromix_linear_creator() {
  /* Never destroyed: TensorRT's registry may outlive this library's static objects. */
  static auto* const creator = new MicroMixLinearCreator;
  return *creator;
}

}  // namespace mmcompile::trt
