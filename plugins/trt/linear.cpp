/* Checks input shapes and types, and makes the kernel library's layer from them. */
#include "linear.h"

#include <initializer_list>
#include <string>
#include <vector>

namespace mmcompile::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;

constexpr const char* kInputNames[kMaxInputs] = {"x",      "order", "weight",
                                                 "scales", "bias",  "residual"};

std::string text(std::span<const int64_t> dims) {
  std::string result = "[";
  for (const int64_t dim : dims) result += (result.size() > 1 ? ", " : "") + std::to_string(dim);
  return result + "]";
}

std::span<const int64_t> extents(const PluginTensorDesc& tensor, int32_t input) {
  const Dims& dims = tensor.dims;
  if (dims.nbDims < 0 || dims.nbDims > Dims::MAX_DIMS) {
    throw PluginError(std::string("input '") + kInputNames[input] + "' has no valid shape");
  }
  return {dims.d, static_cast<size_t>(dims.nbDims)};
}

void expect_shape(std::span<const PluginTensorDesc> inputs, int32_t input,
                  const std::vector<int64_t>& expected) {
  const std::span<const int64_t> dims = extents(inputs[input], input);
  if (std::vector<int64_t>(dims.begin(), dims.end()) != expected) {
    throw PluginError(std::string("input '") + kInputNames[input] + "' has the shape " +
                      text(dims) + ", expected " + text(expected) +
                      "; the model's constants and the node's attributes do not belong together");
  }
}

MmcType kernel_type(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return MMC_FLOAT32;
    case DataType::kHALF:
      return MMC_FLOAT16;
    case DataType::kBF16:
      return MMC_BFLOAT16;
    default:
      throw PluginError("input 'x' has data type " + std::to_string(static_cast<int>(type)) +
                        ", expected float, half or bfloat16");
  }
}

int64_t row_count(std::span<const int64_t> leading) {
  int64_t rows = 1;
  for (const int64_t dim : leading) {
    if (dim == 0) return 0;
    if (rows > MMC_MAX_ROWS / dim) {
      throw PluginError("input 'x' has more than " + std::to_string(MMC_MAX_ROWS) +
                        " rows; split the batch");
    }
    rows *= dim;
  }
  return rows;
}

}  // namespace

bool type_is_supported(int32_t input, DataType type, DataType x_type) {
  switch (input) {
    case kX:
      return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
    case kOrder:
      return type == DataType::kINT32;
    case kWeight:
    case kScales:
      return type == DataType::kINT8;
    case kBias:
      return type == DataType::kFLOAT;
    default:
      return type == x_type;
  }
}

Linear::Linear(const LayerFields& fields, int64_t in_channels, int64_t out_channels)
    : in_channels_(in_channels), out_channels_(out_channels) {
  std::vector<MmcSegment> segments;
  for (size_t i = 0; i < fields.segment_channels.size(); ++i) {
    segments.push_back({fields.segment_channels[i], fields.segment_act_formats[i],
                        fields.segment_weight_formats[i], fields.segment_act_thresholds[i]});
  }
  const MmcLayer layer{in_channels,
                       out_channels,
                       segments.data(),
                       static_cast<int32_t>(segments.size()),
                       fields.act_tensor_scale,
                       fields.weight_tensor_scale};
  MmcError error{};
  if (mmc_linear_create(&layer, &handle_, &error) != MMC_OK) throw PluginError(error.text);
}

Linear::~Linear() {
  mmc_linear_destroy(handle_);
}

void Linear::check_inputs(std::span<const PluginTensorDesc> inputs) const {
  MmcLinearInfo info{};
  mmc_linear_info(handle_, &info);
  expect_shape(inputs, kOrder, {info.padded_channels});
  expect_shape(inputs, kWeight, {out_channels_, info.weight_row_bytes});
  expect_shape(inputs, kScales, {info.weight_scale_words, out_channels_, 4});
  expect_shape(inputs, kBias, {out_channels_});
  if (inputs.size() == kMaxInputs) {
    const std::span<const int64_t> x = extents(inputs[kX], kX);
    std::vector<int64_t> output(x.begin(), x.end());
    output.back() = out_channels_;
    expect_shape(inputs, kResidual, output);
  }
}

CallShape call_shape(std::span<const PluginTensorDesc> inputs) {
  if (inputs.size() != kMinInputs && inputs.size() != kMaxInputs) {
    throw PluginError("the node has " + std::to_string(inputs.size()) +
                      " inputs, expected x, order, weight, scales, bias and at most a residual");
  }
  for (int32_t input = 0; input < static_cast<int32_t>(inputs.size()); ++input) {
    for (const int64_t dim : extents(inputs[input], input)) {
      if (dim < 0) {
        throw PluginError(std::string("input '") + kInputNames[input] +
                          "' has an unknown dimension where its shape must be known");
      }
    }
    const DataType type = inputs[input].type;
    if (!type_is_supported(input, type, inputs[kX].type)) {
      throw PluginError(std::string("input '") + kInputNames[input] + "' has the data type " +
                        std::to_string(static_cast<int>(type)) + ", which the plugin cannot take");
    }
  }
  const std::span<const int64_t> x = extents(inputs[kX], kX);
  const std::span<const int64_t> weight = extents(inputs[kWeight], kWeight);
  if (x.empty()) throw PluginError("input 'x' is a scalar, expected [..., K]");
  if (weight.size() != 2)
    throw PluginError("input 'weight' is " + text(weight) + ", expected [N, row_bytes]");
  return {x.back(), weight.front(), row_count(x.first(x.size() - 1)), kernel_type(inputs[kX].type),
          inputs.size() == kMaxInputs};
}

}  // namespace mmcompile::trt
