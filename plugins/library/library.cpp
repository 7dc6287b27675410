// The C ABI of mmcompile/kernels.h: checks arguments, plans launches, hands them to the machine.
#include <cmath>
#include <cstdio>
#include <new>

#include "backend.h"

namespace mmcompile {
namespace {

struct Plan {
  GemmLaunch gemm;
  MmcWorkspaceLayout workspace;
};

bool is_type(std::int32_t type) {
  return type >= MMC_FLOAT32 && type <= MMC_BFLOAT16;
}

std::uintptr_t type_bytes(std::int32_t type) {
  return type == MMC_FLOAT32 ? 4 : 2;
}

bool is_aligned(const void* pointer, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

GemmLaunch launch_of(const MmcLinear& linear, const MmcDevice& device, std::int64_t rows,
                     std::int32_t tactic) {
  return tactic == 0 ? choose_launch(linear, device, rows)
                     : plan_launch(linear, device, rows, tactic - 1);
}

MmcStatus check_rows(std::int64_t rows, MmcError* error) {
  if (rows < 0 || rows > MMC_MAX_ROWS)
    return fail(error, MMC_INVALID_ARGUMENT, "rows is %lld, needed is 0..%lld",
                static_cast<long long>(rows), MMC_MAX_ROWS);
  return MMC_OK;
}

MmcStatus check(const MmcLinear* linear, const MmcDevice* device, const MmcArguments* arguments,
                Plan& plan, MmcError* error) {
  if (linear == nullptr || device == nullptr || arguments == nullptr)
    return fail(error, MMC_INVALID_ARGUMENT, "linear, device or arguments is null");
  const MmcArguments& a = *arguments;
  if (const MmcStatus status = check_rows(a.rows, error); status != MMC_OK) return status;
  if (!is_type(a.x_type) || !is_type(a.y_type))
    return fail(error, MMC_INVALID_ARGUMENT, "x_type %d or y_type %d is no MmcType", a.x_type,
                a.y_type);
  if (a.tactic < 0 || a.tactic > tile_count(*device))
    return fail(error, MMC_INVALID_ARGUMENT, "tactic %d is not in 0..%d", a.tactic,
                tile_count(*device));
  if (a.rows == 0) return MMC_OK;
  if (a.x == nullptr || a.order == nullptr || a.weight == nullptr || a.scales == nullptr ||
      a.y == nullptr || a.workspace == nullptr)
    return fail(error, MMC_INVALID_ARGUMENT, "x, order, weight, scales, y or workspace is null");
  if (!is_aligned(a.weight, 16) || !is_aligned(a.order, 16) || !is_aligned(a.scales, 4) ||
      !is_aligned(a.x, type_bytes(a.x_type)) || !is_aligned(a.bias, 4) ||
      !is_aligned(a.residual, type_bytes(a.y_type)) || !is_aligned(a.y, type_bytes(a.y_type)) ||
      !is_aligned(a.workspace, 256))
    return fail(error, MMC_INVALID_ARGUMENT,
                "a pointer is not aligned: needed are 16 bytes for weight and order, 4 for scales "
                "and bias, an element for x, residual and y, 256 for workspace");
  plan.workspace = workspace_layout(*linear, *device, a.rows);
  if (plan.workspace.bytes > a.workspace_bytes)
    return fail(error, MMC_WORKSPACE_TOO_SMALL, "%lld rows need a workspace of %zu bytes, not %zu",
                static_cast<long long>(a.rows), plan.workspace.bytes, a.workspace_bytes);
  plan.gemm = launch_of(*linear, *device, a.rows, a.tactic);
  if (plan.gemm.tiles > INT32_MAX)
    return fail(error, MMC_UNSUPPORTED, "y has %lld tiles, more than a grid takes",
                static_cast<long long>(plan.gemm.tiles));
  return MMC_OK;
}

template <typename T>
T* place(const MmcArguments& arguments, std::size_t offset) {
  return reinterpret_cast<T*>(static_cast<std::uint8_t*>(arguments.workspace) + offset);
}

MmcStatus quantize(const MmcLinear& linear, const MmcDevice& device, const MmcArguments& arguments,
                   const Plan& plan, MmcError* error) {
  const QuantizeParams params{
      .x = arguments.x,
      .order = arguments.order,
      .codes = place<std::uint8_t>(arguments, plan.workspace.codes),
      .scales = place<std::uint32_t>(arguments, plan.workspace.scales),
      .counters = place<std::uint32_t>(arguments, plan.workspace.counters),
      .counter_count = plan.gemm.splits > 1 ? static_cast<std::int32_t>(plan.gemm.tiles) : 0,
      .rows = static_cast<std::int32_t>(arguments.rows),
      .in_channels = static_cast<std::int32_t>(linear.in_channels),
      .padded_channels = static_cast<std::int32_t>(linear.info.padded_channels),
      .row_bytes = static_cast<std::int32_t>(linear.info.act_row_bytes),
      .act_tensor_scale = linear.act_tensor_scale,
      .segments = linear.segments,
  };
  const auto type = static_cast<MmcType>(arguments.x_type);
  const QuantizeLaunch launch = choose_quantize(type, params.rows, params.in_channels,
                                                params.segments, device.multiprocessors);
  return backend::launch_quantize(launch, type, params, device, arguments.stream, error);
}

MmcStatus gemm(const MmcLinear& linear, const MmcDevice& device, const MmcArguments& arguments,
               const Plan& plan, MmcError* error) {
  // The product of the tensor scales, as two factors that do not overflow.
  const int exponent = std::ilogb(linear.act_tensor_scale) + std::ilogb(linear.weight_tensor_scale);
  const GemmParams params{
      .act_codes = place<std::uint8_t>(arguments, plan.workspace.codes),
      .act_scales = place<std::uint32_t>(arguments, plan.workspace.scales),
      .weight = static_cast<const std::uint8_t*>(arguments.weight),
      .weight_scales = static_cast<const std::uint32_t*>(arguments.scales),
      .bias = arguments.bias,
      .residual = arguments.residual,
      .y = arguments.y,
      .counters = place<std::uint32_t>(arguments, plan.workspace.counters),
      .partials = place<float>(arguments, plan.workspace.partials),
      .rows = static_cast<std::int32_t>(arguments.rows),
      .out_channels = static_cast<std::int32_t>(linear.out_channels),
      .act_row_bytes = linear.info.act_row_bytes,
      .weight_row_bytes = linear.info.weight_row_bytes,
      .y_type = arguments.y_type,
      .y_pairs =
          linear.out_channels % 2 == 0 && is_aligned(arguments.y, 2 * type_bytes(arguments.y_type)),
      .splits = plan.gemm.splits,
      .chunks = plan.gemm.chunks.all,
      .nvf4_chunks = plan.gemm.chunks.nvf4,
      .nvf4_scale = {std::ldexp(1.0f, exponent / 2), std::ldexp(1.0f, exponent - exponent / 2)},
      .segments = linear.segments,
  };
  return backend::launch_gemm(plan.gemm, params, device, arguments.stream, error);
}

}  // namespace
}  // namespace mmcompile

using namespace mmcompile;

extern "C" {

MmcStatus mmc_linear_create(const MmcLayer* layer, MmcLinear** linear, MmcError* error) {
  if (layer == nullptr || linear == nullptr)
    return fail(error, MMC_INVALID_ARGUMENT, "layer or linear is null");
  *linear = nullptr;
  MmcLinear made;
  if (const MmcStatus status = make_linear(*layer, made, error); status != MMC_OK) return status;
  *linear = new (std::nothrow) MmcLinear(made);
  return *linear != nullptr ? MMC_OK : fail(error, MMC_OUT_OF_MEMORY, "no memory for a layer");
}

void mmc_linear_destroy(MmcLinear* linear) {
  delete linear;
}

void mmc_linear_info(const MmcLinear* linear, MmcLinearInfo* info) {
  *info = linear->info;
}

MmcStatus mmc_device_open(int32_t ordinal, MmcDevice* device, MmcError* error) {
  if (device == nullptr) return fail(error, MMC_INVALID_ARGUMENT, "device is null");
  return backend::open_device(ordinal, *device, error);
}

void mmc_largest_device(MmcDevice* device) {
  *device = largest_device(mmc_architectures());
}

size_t mmc_workspace_bytes(const MmcLinear* linear, const MmcDevice* device, int64_t rows) {
  return workspace_layout(*linear, *device, rows).bytes;
}

void mmc_workspace_layout(const MmcLinear* linear, const MmcDevice* device, int64_t rows,
                          MmcWorkspaceLayout* layout) {
  *layout = workspace_layout(*linear, *device, rows);
}

int32_t mmc_tactic_count(const MmcDevice* device) {
  return tile_count(*device);
}

const char* mmc_tactic_name(int32_t tactic) {
  if (tactic == 0) return "automatic";
  return tactic > 0 && tactic <= kTileCount ? kTileNames[tactic - 1] : nullptr;
}

int32_t mmc_choose_tactic(const MmcLinear* linear, const MmcDevice* device, int64_t rows) {
  return choose_launch(*linear, *device, rows).tile + 1;
}

size_t mmc_describe_launch(const MmcLinear* linear, const MmcDevice* device, int64_t rows,
                           int32_t tactic, char* text, size_t text_bytes) {
  const GemmLaunch launch = launch_of(*linear, *device, rows, tactic);
  const Tile& tile = kTiles[launch.tile];
  const int length =
      std::snprintf(text, text_bytes,
                    "%s: %d rows x %d channels x %d bytes of K, %lld tiles, K split by %d, %d "
                    "chunks, %d threads, "
                    "%d bytes of shared memory, modelled %.0f cycles",
                    kTileNames[launch.tile], tile.rows, tile.channels, tile.chunk_bytes(),
                    static_cast<long long>(launch.tiles), launch.splits, launch.chunks.all,
                    tile.threads(), tile.shared_bytes(), launch.modelled_cycles);
  return static_cast<size_t>(length) + 1;
}

MmcStatus mmc_quantize_run(const MmcLinear* linear, const MmcDevice* device,
                           const MmcArguments* arguments, MmcError* error) {
  Plan plan;
  const MmcStatus status = check(linear, device, arguments, plan, error);
  if (status != MMC_OK || arguments->rows == 0) return status;
  return quantize(*linear, *device, *arguments, plan, error);
}

MmcStatus mmc_gemm_run(const MmcLinear* linear, const MmcDevice* device,
                       const MmcArguments* arguments, MmcError* error) {
  Plan plan;
  const MmcStatus status = check(linear, device, arguments, plan, error);
  if (status != MMC_OK || arguments->rows == 0) return status;
  return gemm(*linear, *device, *arguments, plan, error);
}

MmcStatus mmc_linear_run(const MmcLinear* linear, const MmcDevice* device,
                         const MmcArguments* arguments, MmcError* error) {
  Plan plan;
  MmcStatus status = check(linear, device, arguments, plan, error);
  if (status != MMC_OK || arguments->rows == 0) return status;
  status = quantize(*linear, *device, *arguments, plan, error);
  if (status != MMC_OK) return status;
  return gemm(*linear, *device, *arguments, plan, error);
}

}  // extern "C"
