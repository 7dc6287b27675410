/* The fields of a MicroMixLinear plugin: what the node's attributes and an engine's bytes carry.
 *
 * The names, types and order are those of the attributes in mmcompile/ops/schema.py, but for
 * plugin_version and plugin_namespace: the ONNX parser reads these two itself to find the creator,
 * and TensorRT stores them itself with an engine, so that a second copy here could only disagree.
 */
#ifndef MMCOMPILE_TRT_FIELDS_H
#define MMCOMPILE_TRT_FIELDS_H

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "mmcompile/kernels.h"
#include "tensorrt.h"

namespace mmcompile::trt {

/* A sentence for the log: what is wrong, where, and what to do. */
class PluginError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/* One segment per entry of the four lists. */
struct LayerFields {
  std::vector<int32_t> segment_channels;
  std::vector<int32_t> segment_act_formats;
  std::vector<int32_t> segment_weight_formats;
  std::vector<float> segment_act_thresholds;
  float act_tensor_scale = 1.0F;
  float weight_tensor_scale = 1.0F;
  int32_t layout_version = MMC_LAYOUT_VERSION;

  bool operator==(const LayerFields&) const = default;
};

/* An engine holds one field more: the workspace that the builder reserved. A GPU that is not the
 * builder's own may need another size, and enqueue is not told how much there is. */
struct ParsedFields {
  LayerFields layer;
  int64_t workspace_bytes = 0; /* 0: unknown */
};

/* At most 200 printable characters of a text from outside, for the log. */
std::string printable(const char* text);

/* Name and type of every creator field; data is NULL. */
std::span<const nvinfer1::PluginField> creator_fields();

/* Throws PluginError for anything but one valid layer. INTS may be int32 or int64: releases of the
 * parser differ. */
ParsedFields parse_fields(const nvinfer1::PluginFieldCollection* collection,
                          nvinfer1::TensorRTPhase phase);

/* What parse_fields reads back. The fields point into both arguments. */
std::vector<nvinfer1::PluginField> serialized_fields(const LayerFields& layer,
                                                     const int64_t& workspace_bytes);

}  // namespace mmcompile::trt

#endif
