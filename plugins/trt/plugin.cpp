/* MicroMixLinear: identity, capabilities, copies. Building is in plugin_build.cpp, running in
 * plugin_runtime.cpp. */
#include "plugin.h"

#include <utility>

#include "log.h"

namespace mmcompile::trt {

MicroMixLinear::MicroMixLinear(std::string name, ParsedFields fields)
    : name_(std::move(name)),
      fields_(std::make_shared<const LayerFields>(std::move(fields.layer))),
      workspace_bytes_(fields.workspace_bytes) {}

nvinfer1::IPluginCapability* MicroMixLinear::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* MicroMixLinear::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(name_.c_str(), nullptr,
                                       [&] { return new MicroMixLinear(*this); });
}

const char* MicroMixLinear::getPluginName() const noexcept {
  return kPluginName;
}
const char* MicroMixLinear::getPluginVersion() const noexcept {
  return kPluginVersion;
}
const char* MicroMixLinear::getPluginNamespace() const noexcept {
  return kPluginNamespace;
}

std::shared_ptr<const Linear> MicroMixLinear::linear_for(const CallShape& shape) const {
  if (linear_ != nullptr && linear_->in_channels() == shape.in_channels &&
      linear_->out_channels() == shape.out_channels) {
    return linear_;
  }
  return std::make_shared<const Linear>(*fields_, shape.in_channels, shape.out_channels);
}

}  // namespace mmcompile::trt
