/* A layer for drivers of the plugin: its fields, its tensors, and memory for a call. */
#ifndef MMCOMPILE_TESTS_DRIVEN_LAYER_H
#define MMCOMPILE_TESTS_DRIVEN_LAYER_H

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "mmcompile/kernels.h"
#include "tensorrt.h"

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (false)

using namespace nvinfer1;

/* A layer of K = 150 in segments of 96 (MXFP4) and 64 (E3M2 activations, MXFP8 weights). */
constexpr int64_t kK = 150;
constexpr int64_t kN = 48;
inline const std::vector<int32_t> kChannels{96, 64};
inline const std::vector<int32_t> kActFormats{0, 2};
inline const std::vector<int32_t> kWeightFormats{0, 3};
inline const std::vector<float> kThresholds{1.75F, 1.5F};
constexpr int64_t kPadded = 160;
constexpr int64_t kRowBytes = 48 + 64;
constexpr int64_t kScaleWords = 2;
constexpr float kScale = 0.25F;
constexpr int32_t kLayout = MMC_LAYOUT_VERSION;

/* Set by main. */
inline IPluginCreatorV3One* creator = nullptr;

inline std::vector<PluginField> good_fields() {
  return {{"segment_channels", kChannels.data(), PluginFieldType::kINT32, 2},
          {"segment_act_formats", kActFormats.data(), PluginFieldType::kINT32, 2},
          {"segment_weight_formats", kWeightFormats.data(), PluginFieldType::kINT32, 2},
          {"segment_act_thresholds", kThresholds.data(), PluginFieldType::kFLOAT32, 2},
          {"act_tensor_scale", &kScale, PluginFieldType::kFLOAT32, 1},
          {"weight_tensor_scale", &kScale, PluginFieldType::kFLOAT32, 1},
          {"layout_version", &kLayout, PluginFieldType::kINT32, 1}};
}

inline IPluginV3* create(const std::vector<PluginField>& fields,
                         TensorRTPhase phase = TensorRTPhase::kBUILD) {
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("driven", &collection, phase);
}

inline IPluginV3OneBuild& build_of(IPluginV3* plugin) {
  return *static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

inline IPluginV3OneRuntime& runtime_of(IPluginV3* plugin) {
  return *static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

inline Dims dims(std::initializer_list<int64_t> extents) {
  Dims result{};
  for (const int64_t extent : extents) result.d[result.nbDims++] = extent;
  return result;
}

inline PluginTensorDesc tensor(std::initializer_list<int64_t> extents, DataType type) {
  return {dims(extents), type, TensorFormat::kLINEAR, 0.0F};
}

/* Inputs and output for x[batch, 2, K]. */
inline std::vector<PluginTensorDesc> tensors(int64_t batch, DataType type, bool residual) {
  std::vector<PluginTensorDesc> result{
      tensor({batch, 2, kK}, type), tensor({kPadded}, DataType::kINT32),
      tensor({kN, kRowBytes}, DataType::kINT8), tensor({kScaleWords, kN, 4}, DataType::kINT8),
      tensor({kN}, DataType::kFLOAT)};
  if (residual) result.push_back(tensor({batch, 2, kN}, type));
  result.push_back(tensor({batch, 2, kN}, type));
  return result;
}

/* The same while building, with the batch unknown. */
inline std::vector<DynamicPluginTensorDesc> ranges(int64_t opt, int64_t max, DataType type,
                                                   bool residual = false) {
  const auto at = [&](int64_t batch) { return tensors(batch, type, residual); };
  const auto unknown = at(-1);
  std::vector<DynamicPluginTensorDesc> result;
  for (size_t i = 0; i < unknown.size(); ++i) {
    result.push_back({unknown[i], at(1)[i].dims, at(max)[i].dims, at(opt)[i].dims});
  }
  return result;
}

inline int32_t configure(IPluginV3* plugin, const std::vector<DynamicPluginTensorDesc>& all) {
  const auto inputs = static_cast<int32_t>(all.size()) - 1;
  return build_of(plugin).configurePlugin(all.data(), inputs, all.data() + inputs, 1);
}

inline int32_t change_shape(IPluginV3* plugin, const std::vector<PluginTensorDesc>& all) {
  const auto inputs = static_cast<int32_t>(all.size()) - 1;
  return runtime_of(plugin).onShapeChange(all.data(), inputs, all.data() + inputs, 1);
}

/* Memory for one call. The addresses only have to be different. */
struct Buffers {
  alignas(256) std::array<char, 8192> workspace{};
  std::array<char, 8> memory{};
  std::array<const void*, 6> inputs{};
  std::array<void*, 1> outputs{};

  Buffers() {
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = &memory[i];
    outputs[0] = &memory[7];
  }
  int32_t enqueue(IPluginV3* plugin, void* stream = nullptr) {
    return runtime_of(plugin).enqueue(nullptr, nullptr, inputs.data(), outputs.data(),
                                      workspace.data(), static_cast<cudaStream_t>(stream));
  }
  MmcArguments seen() const {
    MmcArguments arguments;
    std::memcpy(&arguments, workspace.data(), sizeof(arguments));
    return arguments;
  }
};

/* The `count` fields that a plugin of this layer stores. */
inline void expect_same(const PluginFieldCollection* stored, size_t count) {
  const std::vector<PluginField> fields = good_fields();
  CHECK(stored != nullptr && static_cast<size_t>(stored->nbFields) == count);
  for (size_t i = 0; i < fields.size(); ++i) {
    const PluginField& field = stored->fields[i];
    CHECK(std::string(field.name) == fields[i].name);
    CHECK(field.type == fields[i].type && field.length == fields[i].length);
    CHECK(std::memcmp(field.data, fields[i].data, 4 * static_cast<size_t>(field.length)) == 0);
  }
}

/* The cases of drive_running.cpp, by name. */
std::map<std::string, void (*)()> running_cases();

#endif
