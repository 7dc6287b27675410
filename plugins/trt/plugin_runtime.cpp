/* MicroMixLinear while an engine runs. Everything that can be known before is found out in
 * onShapeChange; enqueue only hands pointers to the kernel library. */
#include <span>

#include "current_device.h"
#include "log.h"
#include "plugin.h"

namespace mmcompile::trt {

int32_t MicroMixLinear::setTactic(int32_t tactic) noexcept {
  return guarded(name_.c_str(), -1, [&] {
    check_tactic(tactic);
    tactic_ = tactic;
    return 0;
  });
}

/* How many tiles there are depends on the GPU, which is not known before the first shape. */
void MicroMixLinear::check_tactic(int32_t tactic) const {
  const int32_t tile = tactic % kManyRows;
  const int32_t tiles = device_ ? mmc_tactic_count(&*device_) : kManyRows - 1;
  const bool valid = tactic == 0 || (tile >= 1 && tile <= tiles && tactic < 2 * kManyRows);
  if (!valid) {
    throw PluginError("the plugin has no tactic " + std::to_string(tactic) +
                      " here; build the engine again on this GPU with this version of mmcompile");
  }
}

int32_t MicroMixLinear::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs,
                                      const nvinfer1::PluginTensorDesc* out,
                                      int32_t outputs) noexcept {
  call_.reset(); /* a refused shape must not leave the last one in place */
  return guarded(name_.c_str(), -1, [&] {
    const std::span tensors(in, static_cast<size_t>(inputs));
    const CallShape shape = call_shape(tensors);
    if (outputs != 1 || out[0].type != in[kX].type) {
      throw PluginError("expected one output of the type of x");
    }
    const std::shared_ptr<const Linear> linear = linear_for(shape);
    linear->check_inputs(tensors);
    if (!device_) device_ = open_current_device();
    check_tactic(tactic_);
    const size_t needed = mmc_workspace_bytes(linear->handle(), &*device_, shape.rows);
    if (workspace_bytes_ > 0 && needed > static_cast<size_t>(workspace_bytes_)) {
      throw PluginError("the engine reserves " + std::to_string(workspace_bytes_) +
                        " bytes of workspace, this GPU needs " + std::to_string(needed) +
                        "; build the engine on this GPU");
    }
    call_workspace_bytes_ = workspace_bytes_ > 0 ? static_cast<size_t>(workspace_bytes_) : needed;
    linear_ = linear;
    call_ = shape;
    return 0;
  });
}

int32_t MicroMixLinear::enqueue(const nvinfer1::PluginTensorDesc*,
                                const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                                void* const* outputs, void* workspace,
                                cudaStream_t stream) noexcept {
  return guarded(name_.c_str(), -1, [&] {
    if (!call_) throw PluginError("enqueue before a shape was accepted");
    if (call_->rows == 0) return 0;
    bool complete = inputs != nullptr && outputs != nullptr && outputs[0] != nullptr;
    for (int32_t input = 0; complete && input < kMinInputs + (call_->has_residual ? 1 : 0);
         ++input) {
      complete = inputs[input] != nullptr;
    }
    if (!complete) throw PluginError("enqueue got a NULL tensor");
    if (workspace == nullptr && call_workspace_bytes_ > 0) {
      throw PluginError("enqueue got no workspace");
    }
    const bool few_rows = call_->rows <= kFewRows;
    const bool measured_for_few = tactic_ < kManyRows;
    const MmcArguments arguments{
        .rows = call_->rows,
        .x_type = call_->type,
        .y_type = call_->type,
        .x = inputs[kX],
        .order = static_cast<const int32_t*>(inputs[kOrder]),
        .weight = inputs[kWeight],
        .scales = inputs[kScales],
        .bias = static_cast<const float*>(inputs[kBias]),
        .residual = call_->has_residual ? inputs[kResidual] : nullptr,
        .y = outputs[0],
        .workspace = workspace,
        .workspace_bytes = call_workspace_bytes_,
        .stream = stream,
        .tactic = few_rows == measured_for_few ? tactic_ % kManyRows : 0,
    };
    MmcError error{};
    if (mmc_linear_run(linear_->handle(), &*device_, &arguments, &error) != MMC_OK) {
      throw PluginError(error.text);
    }
    return 0;
  });
}

nvinfer1::IPluginV3* MicroMixLinear::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name_.c_str(), nullptr, [&] {
    auto* attached = new MicroMixLinear(*this);
    /* The context may be on another GPU than the builder: its first onShapeChange opens it. */
    attached->device_.reset();
    attached->call_.reset();
    return attached;
  });
}

const nvinfer1::PluginFieldCollection* MicroMixLinear::getFieldsToSerialize() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(name_.c_str(), nullptr, [&] {
    serialized_ = serialized_fields(*fields_, workspace_bytes_);
    collection_.nbFields = static_cast<int32_t>(serialized_.size());
    collection_.fields = serialized_.data();
    return &collection_;
  });
}

}  // namespace mmcompile::trt
