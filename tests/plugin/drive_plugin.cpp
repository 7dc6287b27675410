/* Calls the plugin's own virtual functions as TensorRT would, knowing only abi.h.
 *
 * usage: drive_plugin PLUGIN CASE
 *
 * Exit status: 0 passed, 1 failed, 2 usage.
 */
#include <dlfcn.h>

#include "driven_layer.h"

namespace {

void identity() {
  CHECK(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
  IPluginV3* plugin = create(good_fields());
  CHECK(plugin != nullptr);
  CHECK(std::string(plugin->getInterfaceInfo().kind) == "PLUGIN");
  auto* core =
      static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  CHECK(std::string(core->getInterfaceInfo().kind) == "PLUGIN_V3ONE_CORE");
  CHECK(std::string(core->getPluginName()) == "MicroMixLinear");
  CHECK(std::string(core->getPluginVersion()) == "1");
  CHECK(std::string(core->getPluginNamespace()) == "mmcompile");
  CHECK(std::string(build_of(plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD");
  CHECK(std::string(runtime_of(plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
  CHECK(plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(9)) == nullptr);
  CHECK(build_of(plugin).getTimingCacheID() == nullptr);
  CHECK(std::string(build_of(plugin).getMetadataString()) == "96 mxfp4, 64 mxfp6_e3m2 x mxfp8");
  delete plugin;
}

/* What Python's bindings cannot pass. */
void broken_fields() {
  CHECK(creator->createPlugin("x", nullptr, TensorRTPhase::kBUILD) == nullptr);
  CHECK(creator->createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD) == nullptr);
  const std::vector<PluginField> fields = good_fields();
  for (const int32_t count : {-1, 65, INT32_MAX, INT32_MIN}) {
    const PluginFieldCollection collection{count, fields.data()};
    CHECK(creator->createPlugin("x", &collection, TensorRTPhase::kBUILD) == nullptr);
  }
  const PluginFieldCollection nowhere{7, nullptr};
  CHECK(creator->createPlugin("x", &nowhere, TensorRTPhase::kBUILD) == nullptr);
  for (size_t i = 0; i < fields.size(); ++i) {
    for (const int32_t length : {0, -1, 33, INT32_MAX, INT32_MIN}) {
      auto changed = fields;
      changed[i].length = length;
      CHECK(create(changed) == nullptr);
    }
    auto changed = fields;
    changed[i].data = nullptr;
    CHECK(create(changed) == nullptr);
    changed = fields;
    changed[i].name = nullptr;
    CHECK(create(changed) == nullptr);
    changed = fields;
    changed[i].type = static_cast<PluginFieldType>(-7);
    CHECK(create(changed) == nullptr);
  }
}

void unaligned_fields() {
  std::vector<PluginField> fields = good_fields();
  std::array<char, 16> bytes{};
  std::memcpy(bytes.data() + 1, kThresholds.data(), 8);
  fields[3].data = bytes.data() + 1;
  IPluginV3* plugin = create(fields);
  CHECK(plugin != nullptr);
  delete plugin;
}

void round_trip() {
  IPluginV3* plugin = create(good_fields());
  expect_same(runtime_of(plugin).getFieldsToSerialize(), 7);
  IPluginV3* copy = plugin->clone();
  IPluginV3* attached = runtime_of(plugin).attachToContext(nullptr);
  delete plugin; /* clones must not lean on it */
  expect_same(runtime_of(copy).getFieldsToSerialize(), 7);
  expect_same(runtime_of(attached).getFieldsToSerialize(), 7);
  IPluginV3* restored = creator->createPlugin("driven", runtime_of(copy).getFieldsToSerialize(),
                                              TensorRTPhase::kRUNTIME);
  delete copy;
  expect_same(runtime_of(restored).getFieldsToSerialize(), 7);
  delete restored;
  delete attached;
}

void formats() {
  IPluginV3* plugin = create(good_fields());
  IPluginV3OneBuild& build = build_of(plugin);
  const std::map<int32_t, std::vector<DataType>> fixed{{1, {DataType::kINT32}},
                                                       {2, {DataType::kINT8}},
                                                       {3, {DataType::kINT8}},
                                                       {4, {DataType::kFLOAT}}};
  int accepted = 0;
  for (const DataType x : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    for (const bool residual : {false, true}) {
      const int32_t inputs = residual ? 6 : 5;
      for (int32_t position = 0; position <= inputs; ++position) {
        for (int32_t type = 0; type <= 10; ++type) {
          auto all = ranges(4, 8, x, residual);
          all[position].desc.type = static_cast<DataType>(type);
          const bool good = build.supportsFormatCombination(position, all.data(), inputs, 1);
          accepted += good ? 1 : 0;
          const bool any_float = type == 0 || type == 1 || type == 7;
          const bool same = static_cast<DataType>(type) == x;
          const bool expected = position == 0 ? any_float
                                : fixed.contains(position)
                                    ? fixed.at(position)[0] == static_cast<DataType>(type)
                                    : same;
          CHECK(good == expected);
          all[position].desc.format = TensorFormat::kCHW32;
          CHECK(!build.supportsFormatCombination(position, all.data(), inputs, 1));
        }
      }
      const auto all = ranges(4, 8, x, residual);
      CHECK(!build.supportsFormatCombination(-1, all.data(), inputs, 1));
      CHECK(!build.supportsFormatCombination(inputs + 1, all.data(), inputs, 1));
      CHECK(!build.supportsFormatCombination(0, all.data(), 4, 1));
      CHECK(!build.supportsFormatCombination(0, all.data(), inputs, 2));
    }
  }
  CHECK(accepted == 3 * (3 + 4 + 1) + 3 * (3 + 4 + 2));
  CHECK(build.getFormatCombinationLimit() == 3);
  delete plugin;
}

class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Dimension(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return value_ >= 0; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class NoBuilder final : public IExprBuilder {};

void shapes() {
  IPluginV3* plugin = create(good_fields());
  IPluginV3OneBuild& build = build_of(plugin);
  const Dimension batch(-1), two(2), k(kK), n(kN), bytes(kRowBytes), padded(kPadded),
      words(kScaleWords), four(4);
  const std::array<DimsExprs, 5> inputs{{{3, {&batch, &two, &k}},
                                         {1, {&padded}},
                                         {2, {&n, &bytes}},
                                         {3, {&words, &n, &four}},
                                         {1, {&n}}}};
  DimsExprs output{};
  NoBuilder builder; /* the plugin needs no new expressions; using this one would crash */
  CHECK(build.getNbOutputs() == 1);
  CHECK(build.getOutputShapes(inputs.data(), 5, nullptr, 0, &output, 1, builder) == 0);
  CHECK(output.nbDims == 3 && output.d[0] == &batch && output.d[1] == &two && output.d[2] == &n);
  CHECK(build.getOutputShapes(inputs.data(), 4, nullptr, 0, &output, 1, builder) != 0);
  CHECK(build.getOutputShapes(inputs.data(), 5, nullptr, 0, &output, 2, builder) != 0);
  auto bad = inputs;
  bad[2].d[0] = &batch;
  CHECK(build.getOutputShapes(bad.data(), 5, nullptr, 0, &output, 1, builder) != 0);
  for (const auto& [input, rank] : {std::pair{0, 0}, {0, 9}, {0, -1}, {2, 1}, {2, 3}}) {
    bad = inputs;
    bad[input].nbDims = rank;
    CHECK(build.getOutputShapes(bad.data(), 5, nullptr, 0, &output, 1, builder) != 0);
  }
  DataType type = DataType::kBOOL;
  const std::array<DataType, 5> types{DataType::kBF16, DataType::kINT32, DataType::kINT8,
                                      DataType::kINT8, DataType::kFLOAT};
  CHECK(build.getOutputDataTypes(&type, 1, types.data(), 5) == 0 && type == DataType::kBF16);
  CHECK(build.getOutputDataTypes(&type, 1, types.data(), 3) != 0);
  delete plugin;
}

std::map<std::string, void (*)()> all_cases() {
  std::map<std::string, void (*)()> cases = running_cases();
  cases.insert({{"identity", identity},
                {"broken-fields", broken_fields},
                {"unaligned-fields", unaligned_fields},
                {"round-trip", round_trip},
                {"formats", formats},
                {"shapes", shapes}});
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  const auto cases = all_cases();
  if (argc != 3 || !cases.contains(argv[2])) {
    std::fprintf(stderr, "usage: drive_plugin PLUGIN CASE\n");
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  int32_t count = 0;
  auto* const* creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
  CHECK(count == 1);
  creator = static_cast<IPluginCreatorV3One*>(creators[0]);
  cases.at(argv[2])();
  return 0;
}
