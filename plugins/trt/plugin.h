/* MicroMixLinear as a TensorRT plugin: y = x · Wᵀ + bias [+ residual], see docs/spec.md.
 *
 * The class only translates between TensorRT and the kernel library. A plugin owns what belongs to
 * one network layer or one execution context; what clones share (the fields, the layer) is
 * immutable, so that contexts may work in several threads without locks.
 */
#ifndef MMCOMPILE_TRT_PLUGIN_H
#define MMCOMPILE_TRT_PLUGIN_H

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fields.h"
#include "linear.h"
#include "tensorrt.h"

namespace mmcompile::trt {

inline constexpr const char* kPluginName = "MicroMixLinear";
inline constexpr const char* kPluginVersion = "1";
inline constexpr const char* kPluginNamespace = "mmcompile";

/* TensorRT measures tactics at the profile's optimal shape and uses the winner for all others. A
 * tile that is best for 4 rows is bad for 4096, so a tactic also says for which class of row counts
 * it was measured; in the other class the kernel library chooses by itself (tile 0).
 * A tactic is `tile` for few rows and `kManyRows + tile` for more. */
inline constexpr int64_t kFewRows = 16;
inline constexpr int32_t kManyRows = 1000;

class MicroMixLinear final : public nvinfer1::IPluginV3,
                             public nvinfer1::IPluginV3OneCore,
                             public nvinfer1::IPluginV3OneBuild,
                             public nvinfer1::IPluginV3OneRuntime {
 public:
  MicroMixLinear(std::string name, ParsedFields fields);

  /* IPluginV3 */
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  /* IPluginV3OneCore */
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  /* IPluginV3OneBuild */
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs,
                             const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t inputs,
                          const nvinfer1::DimsExprs* shape_in, int32_t shape_inputs,
                          nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* in_out,
                                 int32_t inputs, int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t outputs) const noexcept override;
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  int32_t getNbTactics() noexcept override;
  const char* getTimingCacheID() noexcept override;
  int32_t getFormatCombinationLimit() noexcept override;
  const char* getMetadataString() noexcept override;

  /* IPluginV3OneRuntime */
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs,
                        const nvinfer1::PluginTensorDesc* out, int32_t outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  MicroMixLinear(const MicroMixLinear&) = default;

  void check_tactic(int32_t tactic) const;
  std::shared_ptr<const Linear> linear_for(const CallShape& shape) const;

  const std::string name_;
  const std::shared_ptr<const LayerFields> fields_;
  std::shared_ptr<const Linear> linear_; /* from the first known shapes on */
  std::optional<MmcDevice> device_;      /* opened; empty where an engine is built ahead of time */
  int64_t workspace_bytes_ = 0;          /* what the builder reserved; 0 where that is unknown */
  std::optional<int64_t> opt_rows_;
  int32_t tactic_ = 0;

  /* The call that onShapeChange prepared. */
  std::optional<CallShape> call_;
  size_t call_workspace_bytes_ = 0;

  /* Strings and fields that TensorRT reads after the function that returns them. */
  std::string timing_cache_id_;
  std::string metadata_;
  std::vector<nvinfer1::PluginField> serialized_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace mmcompile::trt

#endif
