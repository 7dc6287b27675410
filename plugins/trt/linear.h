/* A layer with known sizes: what the kernel library computes, and the inputs that it expects. */
#ifndef MMCOMPILE_TRT_LINEAR_H
#define MMCOMPILE_TRT_LINEAR_H

#include <cstdint>
#include <memory>
#include <span>

#include "fields.h"
#include "mmcompile/kernels.h"
#include "tensorrt.h"

namespace mmcompile::trt {

/* Positions of the node's inputs: those of mmcompile/ops/schema.py, and a residual, which is
   optional and which compiled models do not use yet. */
enum Input { kX, kOrder, kWeight, kScales, kBias, kResidual, kMaxInputs };
constexpr int32_t kMinInputs = kResidual;

/* Whether the tensor at `input` may have `type` where x has `x_type`. */
bool type_is_supported(int32_t input, nvinfer1::DataType type, nvinfer1::DataType x_type);

/* An immutable MmcLinear; plugins, their clones and threads share it. */
class Linear {
 public:
  /* K and N are those of the input shapes. Throws PluginError. */
  Linear(const LayerFields& fields, int64_t in_channels, int64_t out_channels);
  ~Linear();
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  const MmcLinear* handle() const { return handle_; }
  int64_t in_channels() const { return in_channels_; }
  int64_t out_channels() const { return out_channels_; }

  /* Throws PluginError unless the constants and the residual have the layer's shapes. */
  void check_inputs(std::span<const nvinfer1::PluginTensorDesc> inputs) const;

 private:
  int64_t in_channels_;
  int64_t out_channels_;
  MmcLinear* handle_ = nullptr;
};

/* What one call computes. */
struct CallShape {
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  int64_t rows = 0; /* the product of x's leading dimensions */
  MmcType type = MMC_FLOAT32;
  bool has_residual = false;
};

/* Reads the shapes and types of the inputs, which must be known. Throws PluginError. */
CallShape call_shape(std::span<const nvinfer1::PluginTensorDesc> inputs);

}  // namespace mmcompile::trt

#endif
