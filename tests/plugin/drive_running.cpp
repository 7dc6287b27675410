/* Cases of drive_plugin that build and run a layer.
 *
 * All but the last need the recording kernel library (recording_kernels.cpp), which leaves its
 * arguments at the start of the workspace.
 */
#include <thread>

#include "driven_layer.h"

namespace {

constexpr int32_t kManyRows = 1000; /* plugins/trt/plugin.h */

/* On the recording library's own GPU, and on the largest of its kind. */
size_t recorded_workspace(int64_t rows, size_t multiprocessors = 4) {
  return 128 * multiprocessors + static_cast<size_t>(rows * kPadded);
}
constexpr size_t kLargest = 192;

void building() {
  IPluginV3* plugin = create(good_fields());
  IPluginV3OneBuild& build = build_of(plugin);
  CHECK(build.getNbTactics() == 0);                /* before it is configured */
  const auto few = ranges(8, 10, DataType::kHALF); /* 16 rows: the last of the few */
  CHECK(configure(plugin, few) == 0);
  CHECK(build.getWorkspaceSize(few.data(), 5, few.data() + 5, 1) == recorded_workspace(20));
  std::array<int32_t, 3> tactics{};
  CHECK(build.getNbTactics() == 3 && build.getValidTactics(tactics.data(), 3) == 0);
  CHECK((tactics == std::array<int32_t, 3>{1, 2, 3}));
  CHECK(build.getValidTactics(tactics.data(), 2) != 0);
  CHECK(std::string(build.getTimingCacheID()) ==
        "mmcompile layout 2 K=150 N=48 half: 96 mxfp4, 64 mxfp6_e3m2 x mxfp8; tiles small medium "
        "large");
  CHECK(std::string(build.getMetadataString()) == "K=150 N=48: 96 mxfp4, 64 mxfp6_e3m2 x mxfp8");
  const auto many = ranges(9, 10, DataType::kBF16, true);
  CHECK(configure(plugin, many) == 0);
  CHECK(build.getValidTactics(tactics.data(), 3) == 0);
  CHECK((tactics == std::array<int32_t, 3>{1001, 1002, 1003}));
  CHECK(std::string(build.getTimingCacheID()).find("bfloat16 residual: ") != std::string::npos);
  /* An engine remembers the workspace, and an engine only. */
  const PluginFieldCollection* stored = runtime_of(plugin).getFieldsToSerialize();
  expect_same(stored, 8);
  CHECK(std::string(stored->fields[7].name) == "workspace_bytes");
  CHECK(*static_cast<const int64_t*>(stored->fields[7].data) ==
        static_cast<int64_t>(recorded_workspace(20)));
  CHECK(creator->createPlugin("x", stored, TensorRTPhase::kBUILD) == nullptr);
  IPluginV3* restored = creator->createPlugin("x", stored, TensorRTPhase::kRUNTIME);
  CHECK(restored != nullptr);
  CHECK(change_shape(restored, tensors(10, DataType::kHALF, false)) == 0);
  CHECK(change_shape(restored, tensors(11, DataType::kHALF, false)) != 0); /* not reserved */
  delete restored;
  delete plugin;
}

void refused_shapes() {
  IPluginV3* plugin = create(good_fields());
  const auto good = tensors(4, DataType::kHALF, true);
  Buffers buffers;
  for (size_t input = 0; input + 1 < good.size(); ++input) {
    for (int32_t axis = 0; axis < good[input].dims.nbDims; ++axis) {
      for (const int64_t extent : {int64_t{-1}, int64_t{7}, INT64_MAX}) {
        CHECK(change_shape(plugin, good) == 0);
        auto bad = good;
        bad[input].dims.d[axis] = extent;
        CHECK(change_shape(plugin, bad) != 0 || (input == 0 && axis == 2 && extent == 7));
        if (input == 0 && axis == 2 && extent == 7) continue; /* K = 7 is a layer, if an odd one */
        CHECK(buffers.enqueue(plugin) != 0);                  /* the good shape is not left over */
      }
    }
    auto bad = good;
    bad[input].dims.nbDims = 9;
    CHECK(change_shape(plugin, bad) != 0);
    bad = good;
    bad[input].type = DataType::kBOOL;
    CHECK(change_shape(plugin, bad) != 0);
  }
  auto wrong_output = good;
  wrong_output.back().type = DataType::kFLOAT;
  CHECK(change_shape(plugin, wrong_output) != 0);
  CHECK(runtime_of(plugin).onShapeChange(good.data(), 4, good.data() + 4, 1) != 0);
  delete plugin;
}

void running() {
  IPluginV3* plugin = create(good_fields());
  Buffers buffers;
  CHECK(buffers.enqueue(plugin) != 0); /* no shape yet */
  for (const auto& [type, kernel_type] : {std::pair{DataType::kFLOAT, MMC_FLOAT32},
                                          {DataType::kHALF, MMC_FLOAT16},
                                          {DataType::kBF16, MMC_BFLOAT16}}) {
    for (const bool residual : {false, true}) {
      CHECK(change_shape(plugin, tensors(5, type, residual)) == 0);
      CHECK(buffers.enqueue(plugin, &buffers) == 0);
      const MmcArguments seen = buffers.seen();
      CHECK(seen.rows == 10 && seen.x_type == kernel_type && seen.y_type == kernel_type);
      CHECK(seen.x == buffers.inputs[0] && seen.order == buffers.inputs[1]);
      CHECK(seen.weight == buffers.inputs[2] && seen.scales == buffers.inputs[3]);
      CHECK(seen.bias == buffers.inputs[4]);
      CHECK(seen.residual == (residual ? buffers.inputs[5] : nullptr));
      CHECK(seen.y == buffers.outputs[0] && seen.workspace == buffers.workspace.data());
      CHECK(seen.workspace_bytes == recorded_workspace(10) && seen.stream == &buffers);
      CHECK(seen.tactic == 0);
    }
  }
  /* No pointer may be NULL, and the failure is said; with no rows, nothing runs. */
  for (size_t input = 0; input < 6; ++input) {
    Buffers bad;
    bad.inputs[input] = nullptr;
    CHECK(bad.enqueue(plugin) != 0);
  }
  Buffers bad;
  bad.outputs[0] = nullptr;
  CHECK(bad.enqueue(plugin) != 0);
  IPluginV3OneRuntime& runtime = runtime_of(plugin);
  CHECK(runtime.enqueue(nullptr, nullptr, buffers.inputs.data(), buffers.outputs.data(), nullptr,
                        nullptr) != 0);
  CHECK(runtime.enqueue(nullptr, nullptr, nullptr, nullptr, bad.workspace.data(), nullptr) != 0);
  CHECK(change_shape(plugin, tensors(0, DataType::kHALF, false)) == 0);
  CHECK(runtime.enqueue(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) == 0);
  /* An error of the kernel library comes back; 13 rows are planted there. */
  auto thirteen = tensors(13, DataType::kHALF, false);
  thirteen[0].dims = dims({13, kK});
  CHECK(change_shape(plugin, thirteen) == 0);
  CHECK(buffers.enqueue(plugin) != 0);
  delete plugin;
}

void tactics() {
  IPluginV3* plugin = create(good_fields());
  IPluginV3OneRuntime& runtime = runtime_of(plugin);
  Buffers buffers;
  const auto tile_used = [&](int64_t batch, int32_t tactic) {
    CHECK(runtime.setTactic(tactic) == 0);
    CHECK(change_shape(plugin, tensors(batch, DataType::kHALF, false)) == 0);
    CHECK(buffers.enqueue(plugin) == 0);
    return buffers.seen().tactic;
  };
  CHECK(tile_used(1, 0) == 0 && tile_used(9, 0) == 0);
  CHECK(tile_used(1, 2) == 2 && tile_used(8, 2) == 2); /* 2 and 16 rows */
  CHECK(tile_used(9, 2) == 0);                         /* 18 rows: measured for few */
  CHECK(tile_used(9, kManyRows + 3) == 3 && tile_used(8, kManyRows + 3) == 0);
  for (const int32_t tactic : {-1, 4, 1000, 1004, 2001, INT32_MAX, INT32_MIN}) {
    CHECK(runtime.setTactic(tactic) != 0);
  }
  CHECK(tile_used(1, 1) == 1); /* a refused tactic changes nothing */
  delete plugin;
}

/* Contexts run their own clones at the same time, and share what is immutable. */
void threads() {
  IPluginV3* plugin = create(good_fields());
  CHECK(configure(plugin, ranges(4, 20, DataType::kHALF)) == 0);
  const auto work = [&](int64_t batch, DataType type) {
    IPluginV3* attached = runtime_of(plugin).attachToContext(nullptr);
    Buffers buffers;
    for (int round = 0; round < 2000; ++round) {
      const int64_t now = batch + round % 3;
      CHECK(change_shape(attached, tensors(now, type, false)) == 0);
      CHECK(buffers.enqueue(attached) == 0);
      CHECK(buffers.seen().rows == 2 * now);
    }
    delete attached;
  };
  std::thread first(work, 1, DataType::kHALF);
  std::thread second(work, 10, DataType::kFLOAT);
  first.join();
  second.join();
  delete plugin;
}

/* Builds for a GPU that is not here: no tactic is offered, none is cached, and the workspace is
 * that of the largest GPU. Returns the workspace. */
size_t build_ahead_of_time(IPluginV3* plugin) {
  IPluginV3OneBuild& build = build_of(plugin);
  const auto all = ranges(9, 10, DataType::kHALF);
  CHECK(configure(plugin, all) == 0);
  CHECK(build.getNbTactics() == 0 && build.getValidTactics(nullptr, 0) == 0);
  CHECK(build.getTimingCacheID() == nullptr);
  CHECK(std::string(build.getMetadataString()) == "K=150 N=48: 96 mxfp4, 64 mxfp6_e3m2 x mxfp8");
  const size_t workspace = build.getWorkspaceSize(all.data(), 5, all.data() + 5, 1);
  const PluginFieldCollection* stored = runtime_of(plugin).getFieldsToSerialize();
  expect_same(stored, 8);
  CHECK(*static_cast<const int64_t*>(stored->fields[7].data) == static_cast<int64_t>(workspace));
  return workspace;
}

/* In a process of TensorRT-RTX, though there is a GPU: its engine runs on that one, too. */
void ahead_of_time() {
  IPluginV3* plugin = create(good_fields());
  const auto all = ranges(9, 10, DataType::kHALF);
  CHECK(build_of(plugin).getWorkspaceSize(all.data(), 5, all.data() + 5, 1) ==
        recorded_workspace(20, kLargest)); /* before it is configured, too */
  CHECK(build_ahead_of_time(plugin) == recorded_workspace(20, kLargest));
  const PluginFieldCollection* stored = runtime_of(plugin).getFieldsToSerialize();
  IPluginV3* restored = creator->createPlugin("x", stored, TensorRTPhase::kRUNTIME);
  delete plugin;
  CHECK(change_shape(restored, tensors(10, DataType::kHALF, false)) == 0);
  Buffers buffers;
  CHECK(buffers.enqueue(restored) == 0);
  CHECK(buffers.seen().tactic == 0);
  CHECK(buffers.seen().workspace_bytes == recorded_workspace(20, kLargest));
  delete restored;
}

/* On a machine without a GPU: what builds works, what runs says a sentence. */
void without_gpu() {
  IPluginV3* plugin = create(good_fields());
  CHECK(build_ahead_of_time(plugin) > 0);
  CHECK(change_shape(plugin, tensors(4, DataType::kHALF, false)) != 0);
  Buffers buffers;
  CHECK(buffers.enqueue(plugin) != 0);
  delete plugin;
}

/* A GPU whose driver does not work is no reason to build for another one. */
void refused_driver() {
  IPluginV3* plugin = create(good_fields());
  CHECK(configure(plugin, ranges(4, 8, DataType::kHALF)) != 0);
  CHECK(build_of(plugin).getNbTactics() == 0);
  delete plugin;
}

}  // namespace

std::map<std::string, void (*)()> running_cases() {
  return {{"building", building},       {"refused-shapes", refused_shapes},
          {"running", running},         {"tactics", tactics},
          {"threads", threads},         {"ahead-of-time", ahead_of_time},
          {"without-gpu", without_gpu}, {"refused-driver", refused_driver}};
}
