/* A kernel library for tests of the plugin: it computes layouts like the real one, but its "kernel"
 * writes down the arguments it was called with, at the start of the workspace. */
#include <cstdio>
#include <cstring>
#include <vector>

#include "mmcompile/kernels.h"

struct MmcLinear {
  int64_t in_channels;
  MmcLinearInfo info;
};

namespace {

constexpr int32_t kBits[] = {4, 6, 6, 8, 4};
constexpr int32_t kBlock[] = {32, 32, 32, 32, 16};
constexpr int64_t kFailingRows = 13; /* a number of rows that the "GPU" cannot do */

MmcStatus fail(MmcError* error, MmcStatus status, const char* text) {
  if (error != nullptr) std::snprintf(error->text, sizeof(error->text), "%s", text);
  return status;
}

}  // namespace

extern "C" {

MmcStatus mmc_linear_create(const MmcLayer* layer, MmcLinear** linear, MmcError* error) {
  MmcLinearInfo info{};
  for (int32_t i = 0; i < layer->segment_count; ++i) {
    const MmcSegment& segment = layer->segments[i];
    const int64_t blocks = segment.channels / kBlock[segment.weight_format];
    info.padded_channels += segment.channels;
    info.weight_row_bytes += (segment.channels * kBits[segment.weight_format] / 8 + 15) / 16 * 16;
    info.weight_scale_words += (blocks + 3) / 4;
  }
  if (layer->in_channels > info.padded_channels) {
    return fail(error, MMC_INVALID_ARGUMENT, "x has more channels than the segments");
  }
  *linear = new MmcLinear{layer->in_channels, info};
  return MMC_OK;
}

void mmc_linear_destroy(MmcLinear* linear) {
  delete linear;
}

void mmc_linear_info(const MmcLinear* linear, MmcLinearInfo* info) {
  *info = linear->info;
}

MmcStatus mmc_device_open(int32_t ordinal, MmcDevice* device, MmcError*) {
  *device = {ordinal, 120, 4};
  return MMC_OK;
}

void mmc_largest_device(MmcDevice* device) {
  *device = {-1, 120, 192};
}

size_t mmc_workspace_bytes(const MmcLinear* linear, const MmcDevice* device, int64_t rows) {
  return 128 * static_cast<size_t>(device->multiprocessors) +
         static_cast<size_t>(rows * linear->info.padded_channels);
}

int32_t mmc_tactic_count(const MmcDevice*) {
  return 3;
}

const char* mmc_tactic_name(int32_t tactic) {
  static const char* const names[] = {"auto", "small", "medium", "large"};
  return names[tactic];
}

MmcStatus mmc_linear_run(const MmcLinear* linear, const MmcDevice* device,
                         const MmcArguments* arguments, MmcError* error) {
  if (arguments->rows == kFailingRows) {
    return fail(error, MMC_CUDA_ERROR, "this GPU fears thirteen rows");
  }
  if (arguments->workspace_bytes < mmc_workspace_bytes(linear, device, arguments->rows)) {
    return fail(error, MMC_WORKSPACE_TOO_SMALL, "the workspace is too small");
  }
  std::memcpy(arguments->workspace, arguments, sizeof(*arguments));
  return MMC_OK;
}

}  // extern "C"
