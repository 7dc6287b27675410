/* Writes layers as text. */
#include "description.h"

namespace mmcompile::trt {
namespace {

/* By format id, docs/spec.md section 2. */
constexpr const char* kFormatNames[] = {"mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8", "nvfp4"};
constexpr const char* kTypeNames[] = {"float", "half", "bfloat16"};

std::string segments(const LayerFields& fields) {
  std::string text;
  for (size_t i = 0; i < fields.segment_channels.size(); ++i) {
    const int32_t act = fields.segment_act_formats[i];
    const int32_t weight = fields.segment_weight_formats[i];
    text +=
        (i == 0 ? "" : ", ") + std::to_string(fields.segment_channels[i]) + " " + kFormatNames[act];
    if (weight != act) text += std::string(" x ") + kFormatNames[weight];
  }
  return text;
}

std::string sizes(const CallShape& shape) {
  return "K=" + std::to_string(shape.in_channels) + " N=" + std::to_string(shape.out_channels);
}

}  // namespace

std::string timing_cache_id(const LayerFields& fields, const CallShape& shape,
                            const MmcDevice& device) {
  std::string text = "mmcompile layout " + std::to_string(fields.layout_version) + " " +
                     sizes(shape) + " " + kTypeNames[shape.type] +
                     (shape.has_residual ? " residual: " : ": ") + segments(fields) + "; tiles";
  for (int32_t tile = 1; tile <= mmc_tactic_count(&device); ++tile) {
    text += std::string(" ") + mmc_tactic_name(tile);
  }
  return text;
}

std::string metadata(const LayerFields& fields, const CallShape* shape) {
  return (shape == nullptr ? "" : sizes(*shape) + ": ") + segments(fields);
}

}  // namespace mmcompile::trt
