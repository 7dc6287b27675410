// From a launch, which is known at run time, to the kernel template that it asks for.
#pragma once

#include "quantize.h"
#include "quantize_launch.h"

namespace mmcompile {

// The quantize kernel for one type of x; staged for `rows` rows at a time, or (0) direct.
template <MmcType type, int rows>
struct QuantizeVariant {
  static constexpr int kThreads = rows == 0 ? kDirectThreads : kStagedThreads;
  static constexpr int kSharedBytes = rows == 0 ? 0 : kMaxStagedBytes;

  template <Conversions conversions>
  MMCOMPILE_DEVICE static void run(const QuantizeParams& params) {
    if constexpr (rows == 0)
      quantize_direct<type, 1, conversions>(params);
    else
      quantize_staged<type, rows, conversions>(params);
  }
};

template <MmcType type, typename F>
auto with_quantize_of(const QuantizeLaunch& launch, F&& f) {
  if (!launch.staged) return f(QuantizeVariant<type, 0>{});
  if (launch.rows_per_block == 1) return f(QuantizeVariant<type, 1>{});
  // Four rows of fp32 would spill registers, and are never chosen.
  if (launch.rows_per_block == 2 || type == MMC_FLOAT32) return f(QuantizeVariant<type, 2>{});
  return f(QuantizeVariant<type, type == MMC_FLOAT32 ? 2 : 4>{});
}

// f(the variant that `launch` asks for).
template <typename F>
auto with_quantize(const QuantizeLaunch& launch, MmcType type, F&& f) {
  if (type == MMC_FLOAT32) return with_quantize_of<MMC_FLOAT32>(launch, f);
  if (type == MMC_FLOAT16) return with_quantize_of<MMC_FLOAT16>(launch, f);
  return with_quantize_of<MMC_BFLOAT16>(launch, f);
}

}  // namespace mmcompile
