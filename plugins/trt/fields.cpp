/* Reads and writes plugin fields. Whatever a model file can hold may arrive here: nothing is
 * believed before it was checked. */
#include "fields.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>

namespace mmcompile::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr const char* kRemedy = "; compile the model again with this version of mmcompile";
constexpr const char* kWorkspaceField = "workspace_bytes";
constexpr int32_t kFormats = 5; /* docs/spec.md, section 2 */
constexpr int32_t kNvfp4 = 4;
constexpr int32_t kMaxFields = 64; /* a larger count is not a collection but garbage */

enum Id {
  kChannels,
  kActFormats,
  kWeightFormats,
  kActThresholds,
  kActTensorScale,
  kWeightTensorScale,
  kLayoutVersion,
  kCreatorFields,
  kWorkspaceBytes = kCreatorFields,
  kAllFields
};

[[noreturn]] void refuse(const std::string& what) {
  throw PluginError(what + kRemedy);
}

std::string quoted(const char* name) {
  return "field '" + std::string(name) + "'";
}

Id field_id(const char* name, nvinfer1::TensorRTPhase phase) {
  for (int id = 0; id < kCreatorFields; ++id) {
    if (std::string_view(name) == creator_fields()[id].name) return static_cast<Id>(id);
  }
  const bool runtime = phase == nvinfer1::TensorRTPhase::kRUNTIME;
  if (runtime && std::string_view(name) == kWorkspaceField) return kWorkspaceBytes;
  refuse("unknown field '" + printable(name) + "'");
}

void check_length(const PluginField& field, int32_t at_most) {
  if (field.length < 1 || field.length > at_most) {
    refuse(quoted(field.name) + " has " + std::to_string(field.length) + " entries, expected " +
           (at_most == 1 ? "1" : "1 to " + std::to_string(at_most)));
  }
  if (field.data == nullptr) refuse(quoted(field.name) + " has no data");
}

/* By memcpy: nothing promises that the data of a field is aligned. */
template <class Value>
Value entry(const PluginField& field, int32_t index) {
  Value value;
  std::memcpy(&value, static_cast<const char*>(field.data) + sizeof(Value) * index, sizeof(Value));
  return value;
}

std::vector<int64_t> integers(const PluginField& field, int32_t at_most) {
  const bool wide = field.type == PluginFieldType::kINT64;
  if (!wide && field.type != PluginFieldType::kINT32) {
    refuse(quoted(field.name) + " has type " + std::to_string(static_cast<int>(field.type)) +
           ", expected INT32 or INT64");
  }
  check_length(field, at_most);
  std::vector<int64_t> values(field.length);
  for (int32_t i = 0; i < field.length; ++i) {
    values[i] = wide ? entry<int64_t>(field, i) : entry<int32_t>(field, i);
  }
  return values;
}

std::vector<int32_t> narrow(const PluginField& field, int32_t at_most) {
  std::vector<int32_t> values;
  for (const int64_t value : integers(field, at_most)) {
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
      refuse(quoted(field.name) + " holds " + std::to_string(value) +
             ", which is outside the range of the field");
    }
    values.push_back(static_cast<int32_t>(value));
  }
  return values;
}

std::vector<float> floats(const PluginField& field, int32_t at_most) {
  if (field.type != PluginFieldType::kFLOAT32) {
    refuse(quoted(field.name) + " has type " + std::to_string(static_cast<int>(field.type)) +
           ", expected FLOAT32");
  }
  check_length(field, at_most);
  std::vector<float> values(field.length);
  for (int32_t i = 0; i < field.length; ++i) values[i] = entry<float>(field, i);
  return values;
}

void read_field(const PluginField& field, Id id, ParsedFields& parsed) {
  LayerFields& layer = parsed.layer;
  switch (id) {
    case kChannels:
      layer.segment_channels = narrow(field, MMC_MAX_SEGMENTS);
      break;
    case kActFormats:
      layer.segment_act_formats = narrow(field, MMC_MAX_SEGMENTS);
      break;
    case kWeightFormats:
      layer.segment_weight_formats = narrow(field, MMC_MAX_SEGMENTS);
      break;
    case kActThresholds:
      layer.segment_act_thresholds = floats(field, MMC_MAX_SEGMENTS);
      break;
    case kActTensorScale:
      layer.act_tensor_scale = floats(field, 1)[0];
      break;
    case kWeightTensorScale:
      layer.weight_tensor_scale = floats(field, 1)[0];
      break;
    case kLayoutVersion:
      layer.layout_version = narrow(field, 1)[0];
      break;
    case kWorkspaceBytes:
      parsed.workspace_bytes = integers(field, 1)[0];
      if (parsed.workspace_bytes <= 0) refuse("field 'workspace_bytes' is not positive");
      break;
    case kAllFields:
      break;
  }
}

void check_segment(const LayerFields& layer, size_t i) {
  const std::string where = "segment " + std::to_string(i) + " ";
  const int32_t channels = layer.segment_channels[i];
  if (channels <= 0 || channels % 32 != 0) {
    refuse(where + "has " + std::to_string(channels) + " channels, expected a multiple of 32");
  }
  const int32_t act = layer.segment_act_formats[i];
  const int32_t weight = layer.segment_weight_formats[i];
  for (const int32_t format : {act, weight}) {
    if (format >= kFormats) {
      refuse(where + "has the unknown format id " + std::to_string(format));
    }
  }
  if ((act == kNvfp4) != (weight == kNvfp4)) {
    refuse(where + "pairs NVFP4 with an MX format, which no tensor core multiplies");
  }
  const float threshold = layer.segment_act_thresholds[i];
  if (!(threshold >= 1.0F && threshold <= 2.0F)) {
    refuse(where + "has the threshold " + std::to_string(threshold) + ", expected 1 to 2");
  }
}

void check_tensor_scale(const char* name, float scale) {
  int exponent = 0;
  const bool power_of_two = std::isfinite(scale) && std::frexp(scale, &exponent) == 0.5F;
  /* frexp's fraction lies in [0.5, 1): 2^n has the exponent n + 1. */
  if (!power_of_two || exponent - 1 < -100 || exponent - 1 > 100) {
    refuse(quoted(name) + " is " + std::to_string(scale) +
           ", expected a power of two in 2^-100..2^100");
  }
}

void check_layer(const LayerFields& layer) {
  if (layer.layout_version != MMC_LAYOUT_VERSION) {
    refuse("field 'layout_version' is " + std::to_string(layer.layout_version) +
           ", this plugin reads layout " + std::to_string(MMC_LAYOUT_VERSION));
  }
  const size_t count = layer.segment_channels.size();
  for (const auto& [name, length] :
       {std::pair{"segment_act_formats", layer.segment_act_formats.size()},
        std::pair{"segment_weight_formats", layer.segment_weight_formats.size()},
        std::pair{"segment_act_thresholds", layer.segment_act_thresholds.size()}}) {
    if (length != count) {
      refuse(quoted(name) + " has " + std::to_string(length) + " entries, 'segment_channels' has " +
             std::to_string(count));
    }
  }
  int64_t channels = 0;
  for (size_t i = 0; i < count; ++i) {
    check_segment(layer, i);
    channels += layer.segment_channels[i];
  }
  if (channels > std::numeric_limits<int32_t>::max()) {
    refuse("field 'segment_channels' sums to " + std::to_string(channels) +
           ", more than a layer can have");
  }
  check_tensor_scale("act_tensor_scale", layer.act_tensor_scale);
  check_tensor_scale("weight_tensor_scale", layer.weight_tensor_scale);
}

}  // namespace

std::string printable(const char* text) {
  std::string result;
  for (const char* c = text; *c != '\0' && result.size() < 200; ++c) {
    result += *c >= ' ' && *c <= '~' ? *c : '?';
  }
  return result;
}

/* A local object: the constructor that registers the creator may run before those of this file. */
std::span<const PluginField> creator_fields() {
  static const std::array<PluginField, kCreatorFields> fields{{
      {"segment_channels", nullptr, PluginFieldType::kINT32, 0},
      {"segment_act_formats", nullptr, PluginFieldType::kINT32, 0},
      {"segment_weight_formats", nullptr, PluginFieldType::kINT32, 0},
      {"segment_act_thresholds", nullptr, PluginFieldType::kFLOAT32, 0},
      {"act_tensor_scale", nullptr, PluginFieldType::kFLOAT32, 0},
      {"weight_tensor_scale", nullptr, PluginFieldType::kFLOAT32, 0},
      {"layout_version", nullptr, PluginFieldType::kINT32, 0},
  }};
  return fields;
}

ParsedFields parse_fields(const nvinfer1::PluginFieldCollection* collection,
                          nvinfer1::TensorRTPhase phase) {
  if (collection == nullptr) refuse("no fields were given");
  const int32_t count = collection->nbFields;
  if (count < 0 || count > kMaxFields || (count > 0 && collection->fields == nullptr)) {
    refuse("the collection of " + std::to_string(count) + " fields is not valid");
  }
  ParsedFields parsed;
  std::array<bool, kAllFields> given{};
  for (int32_t i = 0; i < count; ++i) {
    const PluginField& field = collection->fields[i];
    if (field.name == nullptr) refuse("field number " + std::to_string(i) + " has no name");
    const Id id = field_id(field.name, phase);
    if (given[id]) refuse(quoted(field.name) + " is given twice");
    given[id] = true;
    read_field(field, id, parsed);
  }
  for (int id = 0; id < kCreatorFields; ++id) {
    if (!given[id]) refuse(quoted(creator_fields()[id].name) + " is missing");
  }
  check_layer(parsed.layer);
  return parsed;
}

std::vector<PluginField> serialized_fields(const LayerFields& layer,
                                           const int64_t& workspace_bytes) {
  const auto segments = static_cast<int32_t>(layer.segment_channels.size());
  const std::array<const void*, kCreatorFields> data{
      layer.segment_channels.data(),
      layer.segment_act_formats.data(),
      layer.segment_weight_formats.data(),
      layer.segment_act_thresholds.data(),
      &layer.act_tensor_scale,
      &layer.weight_tensor_scale,
      &layer.layout_version,
  };
  std::vector<PluginField> fields(creator_fields().begin(), creator_fields().end());
  for (int id = 0; id < kCreatorFields; ++id) {
    fields[id].data = data[id];
    fields[id].length = id <= kActThresholds ? segments : 1;
  }
  if (workspace_bytes > 0) {
    fields.emplace_back(kWorkspaceField, &workspace_bytes, PluginFieldType::kINT64, 1);
  }
  return fields;
}

}  // namespace mmcompile::trt
