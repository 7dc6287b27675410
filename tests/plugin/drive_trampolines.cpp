/* Calls a plugin that was written in Python, through NVIDIA's bindings, with this project's abi.h.
 *
 * What stands behind every virtual function here was compiled by NVIDIA, so that a slot, an
 * enumerator or an offset that abi.h has wrong shows as a wrong value on one of the two sides.
 * Both sides use numbers that are all different. The report is lines of "key value".
 */
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>

#include "versions.h"

namespace {

using namespace nvinfer1;

constexpr int32_t kInputs = 2;
constexpr int32_t kOutputs = 1;

class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Dimension(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return value_ >= 0; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  explicit Builder(std::ostringstream& report) : report_(report) { mImpl = this; }
  const IDimensionExpr* constant(int64_t value) override { return new Dimension(value); }
  const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                  const IDimensionExpr& second) override {
    report_ << "operation " << (operation == DimensionOperation::kPROD ? "product " : "other ")
            << first.getConstantValue() << " " << second.getConstantValue() << "\n";
    return new Dimension(first.getConstantValue() * second.getConstantValue());
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                          const IDimensionExpr&) override {
    report_ << "declareSizeTensor called\n";
    return nullptr;
  }

 private:
  std::ostringstream& report_;
};

class Context final : public IPluginResourceContext {
 public:
  IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

Dims dims(int64_t first, int64_t second) {
  Dims result{};
  result.nbDims = 2;
  result.d[0] = first;
  result.d[1] = second;
  return result;
}

/* Tensor number i has the dimensions [100i + 1, 100i + 2] and so on for min, max and opt. */
DynamicPluginTensorDesc tensor(int64_t i, DataType type) {
  const int64_t base = 100 * i;
  DynamicPluginTensorDesc result{};
  result.desc.dims = dims(base + 1, base + 2);
  result.desc.type = type;
  result.desc.scale = 0.5F * static_cast<float>(i);
  result.min = dims(base + 3, base + 4);
  result.max = dims(base + 5, base + 6);
  result.opt = dims(base + 7, base + 8);
  return result;
}

void report_fields(std::ostringstream& report, const char* key,
                   const PluginFieldCollection* fields) {
  report << key << " " << (fields == nullptr ? -1 : fields->nbFields);
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const bool integers = field.type == PluginFieldType::kINT32;
    report << " " << field.name << ":" << (integers ? "int32" : "other") << ":" << field.length;
    for (int32_t j = 0; integers && j < field.length; ++j) {
      if (field.data != nullptr) report << ":" << static_cast<const int32_t*>(field.data)[j];
    }
  }
  report << "\n";
}

void report_interface(std::ostringstream& report, const char* key,
                      const IVersionedInterface& interface) {
  const InterfaceInfo info = interface.getInterfaceInfo();
  report << key << " " << info.kind << "/" << info.major << "." << info.minor << "/"
         << static_cast<int>(interface.getAPILanguage()) << "\n";
}

void drive_build(std::ostringstream& report, IPluginV3OneBuild& build) {
  report_interface(report, "build", build);
  report << "outputs " << build.getNbOutputs() << "\n";
  const DataType input_types[kInputs] = {DataType::kBF16, DataType::kINT8};
  DataType output_type = DataType::kBOOL;
  report << "types " << build.getOutputDataTypes(&output_type, kOutputs, input_types, kInputs);
  report << (output_type == DataType::kHALF ? " half" : " other") << "\n";

  const Dimension extents[] = {Dimension(11), Dimension(-1), Dimension(13), Dimension(14)};
  DimsExprs inputs[kInputs]{{2, {&extents[0], &extents[1]}}, {2, {&extents[2], &extents[3]}}};
  DimsExprs output{};
  Builder builder(report);
  const int32_t status =
      build.getOutputShapes(inputs, kInputs, nullptr, 0, &output, kOutputs, builder);
  report << "shapes " << status << " " << output.nbDims;
  for (int32_t i = 0; i < output.nbDims; ++i) report << " " << output.d[i]->getConstantValue();
  report << "\n";

  DynamicPluginTensorDesc all[] = {tensor(1, DataType::kHALF), tensor(2, DataType::kINT32),
                                   tensor(3, DataType::kFLOAT)};
  report << "formats";
  for (int32_t position = 0; position < kInputs + kOutputs; ++position) {
    report << " " << build.supportsFormatCombination(position, all, kInputs, kOutputs);
  }
  report << "\nconfigure " << build.configurePlugin(all, kInputs, all + kInputs, kOutputs) << "\n";
  report << "workspace " << build.getWorkspaceSize(all, kInputs, all + kInputs, kOutputs) << "\n";
  const int32_t count = build.getNbTactics();
  int32_t tactics[16] = {};
  report << "tactics " << count << " " << build.getValidTactics(tactics, count);
  for (int32_t i = 0; i < count && i < 16; ++i) report << " " << tactics[i];
  report << "\ntiming " << build.getTimingCacheID() << "\n";
  report << "limit " << build.getFormatCombinationLimit() << "\n";
  report << "metadata " << build.getMetadataString() << "\n";
}

void drive_runtime(std::ostringstream& report, IPluginV3OneRuntime& runtime) {
  report_interface(report, "runtime", runtime);
  report << "tactic " << runtime.setTactic(1002) << "\n";
  const PluginTensorDesc in[] = {tensor(4, DataType::kHALF).desc, tensor(5, DataType::kINT8).desc};
  const PluginTensorDesc out[] = {tensor(6, DataType::kBF16).desc};
  report << "shape " << runtime.onShapeChange(in, kInputs, out, kOutputs) << "\n";
  const auto address = [](uintptr_t value) { return reinterpret_cast<void*>(value); };
  const void* const inputs[] = {address(0x1100), address(0x1200)};
  void* const outputs[] = {address(0x2100)};
  report << "enqueue "
         << runtime.enqueue(in, out, inputs, outputs, address(0x3100),
                            static_cast<cudaStream_t>(address(0x4100)))
         << "\n";
  report_fields(report, "serialize", runtime.getFieldsToSerialize());
  Context context;
  IPluginV3* attached = runtime.attachToContext(&context);
  report << "attached " << (attached != nullptr) << "\n";
}

template <class Registry>
IPluginCreatorInterface* find_creator(void* registry) {
  return static_cast<Registry*>(registry)->getCreator("PythonPlugin", "7", "probe");
}

void drive_all(std::ostringstream& report, void* registry, int32_t major) {
  IPluginCreatorInterface* found =
      major == 10 ? find_creator<mmcompile::trt::v10::PluginRegistry>(registry)
                  : find_creator<mmcompile::trt::v11::PluginRegistry>(registry);
  report << "found " << (found != nullptr) << "\n";
  if (found == nullptr) return;
  auto& creator = static_cast<IPluginCreatorV3One&>(*found);
  report_interface(report, "creator", creator);
  report << "names " << creator.getPluginName() << " " << creator.getPluginVersion() << " "
         << creator.getPluginNamespace() << "\n";
  report_fields(report, "fields", creator.getFieldNames());

  const int32_t integers[] = {3, 5, 7};
  const float scale = 0.25F;
  const PluginField fields[] = {{"integers", integers, PluginFieldType::kINT32, 3},
                                {"scale", &scale, PluginFieldType::kFLOAT32, 1}};
  const PluginFieldCollection collection{2, fields};
  IPluginV3* plugin = creator.createPlugin("some layer", &collection, TensorRTPhase::kRUNTIME);
  report << "created " << (plugin != nullptr) << "\n";
  if (plugin == nullptr) return;
  report_interface(report, "plugin", *plugin);
  auto* core =
      static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  report_interface(report, "core", *core);
  report << "identity " << core->getPluginName() << " " << core->getPluginVersion() << " "
         << core->getPluginNamespace() << "\n";
  drive_build(report, *static_cast<IPluginV3OneBuild*>(
                          plugin->getCapabilityInterface(PluginCapabilityType::kBUILD)));
  drive_runtime(report, *static_cast<IPluginV3OneRuntime*>(
                            plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME)));
  IPluginV3* copy = plugin->clone();
  report << "cloned " << (copy != nullptr && copy != plugin) << "\n";
}

/* A finder in the shape of each release, which hands out a logger that NVIDIA's bindings made. */
class Finder10 {
 public:
  explicit Finder10(void* logger) : logger_(logger) {}
  virtual void* findLogger() { return logger_; }
  virtual ~Finder10() = default;

 private:
  void* logger_;
};

class Finder11 : public IVersionedInterface {
 public:
  explicit Finder11(void* logger) : logger_(logger) {}
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  virtual void* findLogger() { return logger_; }

 private:
  void* logger_;
};

ILoggerFinder* given_finder = nullptr;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t drive(void* registry, int32_t major, char* text, size_t bytes) {
  std::ostringstream report;
  drive_all(report, registry, major);
  std::snprintf(text, bytes, "%s", report.str().c_str());
  return 0;
}

EXPORT void* make_finder(int32_t major, void* logger) {
  if (major == 10) return new Finder10(logger);
  return static_cast<IVersionedInterface*>(new Finder11(logger));
}

/* As a plugin library without plugins, to get hold of the finder that TensorRT gives out. */
EXPORT void setLoggerFinder(ILoggerFinder* finder) {
  given_finder = finder;
}

EXPORT IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = 0;
  return nullptr;
}

/* From 11.0 on the finder says what it is; before that only findLogger can be called. */
EXPORT int32_t describe_finder(int32_t major, char* text, size_t bytes) {
  if (given_finder == nullptr) return -1;
  if (major == 10) {
    reinterpret_cast<mmcompile::trt::v10::LoggerFinder*>(given_finder)->findLogger();
    return std::snprintf(text, bytes, "findLogger returns");
  }
  auto* finder = reinterpret_cast<mmcompile::trt::v11::LoggerFinder*>(given_finder);
  finder->findLogger();
  return std::snprintf(text, bytes, "%s", finder->getInterfaceInfo().kind);
}
