/* MicroMixLinear while an engine is built. Dimensions may be unknown (-1) or ranges, and the values
 * of constant inputs are never visible. */
#include <algorithm>
#include <span>

#include "current_device.h"
#include "description.h"
#include "log.h"
#include "plugin.h"

namespace mmcompile::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

bool count_is_supported(int32_t inputs, int32_t outputs) {
  return (inputs == kMinInputs || inputs == kMaxInputs) && outputs == 1;
}

void check_count(int32_t inputs, int32_t outputs) {
  if (!count_is_supported(inputs, outputs)) {
    throw PluginError("the node has " + std::to_string(inputs) + " inputs and " +
                      std::to_string(outputs) +
                      " outputs, expected 5 or 6 inputs and 1 output; compile the model again "
                      "with this version of mmcompile");
  }
}

/* The inputs with every unknown dimension at a bound of the profile: its `max` or `opt`. */
std::vector<PluginTensorDesc> inputs_at(const DynamicPluginTensorDesc* in, int32_t inputs,
                                        nvinfer1::Dims DynamicPluginTensorDesc::* bound) {
  std::vector<PluginTensorDesc> result;
  for (int32_t input = 0; input < inputs; ++input) {
    PluginTensorDesc tensor = in[input].desc;
    const nvinfer1::Dims& limit = in[input].*bound;
    const int32_t rank = std::clamp(tensor.dims.nbDims, 0, int32_t{nvinfer1::Dims::MAX_DIMS});
    for (int32_t axis = 0; axis < rank && limit.nbDims == rank; ++axis) {
      if (tensor.dims.d[axis] < 0) tensor.dims.d[axis] = limit.d[axis];
    }
    result.push_back(tensor);
  }
  return result;
}

MmcDevice largest_device() {
  MmcDevice device{};
  mmc_largest_device(&device);
  return device;
}

}  // namespace

int32_t MicroMixLinear::configurePlugin(const DynamicPluginTensorDesc* in, int32_t inputs,
                                        const DynamicPluginTensorDesc*, int32_t outputs) noexcept {
  return guarded(name_.c_str(), -1, [&] {
    check_count(inputs, outputs);
    const auto largest = inputs_at(in, inputs, &DynamicPluginTensorDesc::max);
    const CallShape shape = call_shape(largest);
    const std::shared_ptr<const Linear> linear = linear_for(shape);
    linear->check_inputs(largest);
    const int64_t opt_rows = call_shape(inputs_at(in, inputs, &DynamicPluginTensorDesc::opt)).rows;
    if (!device_) device_ = open_builders_device();
    const MmcDevice planned = device_ ? *device_ : largest_device();
    workspace_bytes_ =
        static_cast<int64_t>(mmc_workspace_bytes(linear->handle(), &planned, shape.rows));
    timing_cache_id_ = device_ ? timing_cache_id(*fields_, shape, *device_) : "";
    metadata_ = metadata(*fields_, &shape);
    opt_rows_ = opt_rows;
    linear_ = linear;
    return 0;
  });
}

int32_t MicroMixLinear::getOutputDataTypes(DataType* output_types, int32_t outputs,
                                           const DataType* input_types,
                                           int32_t inputs) const noexcept {
  return guarded(name_.c_str(), -1, [&] {
    check_count(inputs, outputs);
    output_types[0] = input_types[kX];
    return 0;
  });
}

int32_t MicroMixLinear::getOutputShapes(const DimsExprs* in, int32_t inputs, const DimsExprs*,
                                        int32_t, DimsExprs* out, int32_t outputs,
                                        nvinfer1::IExprBuilder&) noexcept {
  return guarded(name_.c_str(), -1, [&] {
    check_count(inputs, outputs);
    const DimsExprs& x = in[kX];
    const DimsExprs& weight = in[kWeight];
    if (x.nbDims < 1 || x.nbDims > nvinfer1::Dims::MAX_DIMS || weight.nbDims != 2) {
      throw PluginError("x has rank " + std::to_string(x.nbDims) + " and weight rank " +
                        std::to_string(weight.nbDims) +
                        ", expected x[..., K] and weight[N, bytes]");
    }
    if (!weight.d[0]->isConstant()) {
      throw PluginError("the first dimension of weight is not known, expected a constant tensor");
    }
    out[0] = x;
    out[0].d[x.nbDims - 1] = weight.d[0];
    return 0;
  });
}

bool MicroMixLinear::supportsFormatCombination(int32_t position,
                                               const DynamicPluginTensorDesc* in_out,
                                               int32_t inputs, int32_t outputs) noexcept {
  if (!count_is_supported(inputs, outputs) || position < 0 || position >= inputs + outputs) {
    return false;
  }
  const PluginTensorDesc& tensor = in_out[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  /* The output obeys the residual's rule: the type of x. */
  const int32_t input = position == inputs ? static_cast<int32_t>(kResidual) : position;
  return type_is_supported(input, tensor.type, in_out[kX].desc.type);
}

int32_t MicroMixLinear::getNbOutputs() const noexcept {
  return 1;
}

size_t MicroMixLinear::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t inputs,
                                        const DynamicPluginTensorDesc*,
                                        int32_t outputs) const noexcept {
  /* 0 after an error: enqueue then refuses to run in a workspace that is too small. */
  return guarded<size_t>(name_.c_str(), 0, [&] {
    check_count(inputs, outputs);
    const CallShape shape = call_shape(inputs_at(in, inputs, &DynamicPluginTensorDesc::max));
    const std::shared_ptr<const Linear> linear = linear_for(shape);
    const std::optional<MmcDevice> device = device_ ? device_ : open_builders_device();
    const MmcDevice planned = device ? *device : largest_device();
    return std::max(mmc_workspace_bytes(linear->handle(), &planned, shape.rows),
                    static_cast<size_t>(workspace_bytes_));
  });
}

/* TensorRT promises to configure the plugin first; without that there is no class of row counts to
 * measure for. Nor is there anything to measure on where an engine is built ahead of time. Then
 * only tactic 0 remains, the automatic choice by the number of rows. */
int32_t MicroMixLinear::getNbTactics() noexcept {
  return opt_rows_ && device_ ? mmc_tactic_count(&*device_) : 0;
}

int32_t MicroMixLinear::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  return guarded(name_.c_str(), -1, [&] {
    if (count != getNbTactics()) {
      throw PluginError("asked for " + std::to_string(count) + " tactics, there are " +
                        std::to_string(getNbTactics()));
    }
    for (int32_t i = 0; i < count; ++i) {
      tactics[i] = i + 1 + (*opt_rows_ > kFewRows ? kManyRows : 0);
    }
    return 0;
  });
}

const char* MicroMixLinear::getTimingCacheID() noexcept {
  return timing_cache_id_.empty() ? nullptr : timing_cache_id_.c_str();
}

/* One combination per type of x. */
int32_t MicroMixLinear::getFormatCombinationLimit() noexcept {
  return 3;
}

const char* MicroMixLinear::getMetadataString() noexcept {
  return guarded<const char*>(name_.c_str(), nullptr, [&] {
    if (metadata_.empty()) metadata_ = metadata(*fields_, nullptr);
    return metadata_.c_str();
  });
}

}  // namespace mmcompile::trt
