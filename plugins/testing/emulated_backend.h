// The library's machine on the CPU: the same kernels, run by the block emulator.
//
// Device 0 stands for an sm_120 with the native atoms; 1 and 2 for an sm_90 and an sm_80 with the
// portable ones, which differ in the conversions that they have.
#pragma once

#include <exception>
#include <mutex>

#include "backend.h"
#include "emulator.h"

namespace mmcompile::backend {

struct EmulatorSettings {
  emulator::Options options;
  int multiprocessors = 4;  // of devices that are opened from now on
};
inline EmulatorSettings settings;
inline std::mutex one_launch_at_a_time;

inline std::size_t bytes(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) {
  return static_cast<std::size_t>(a * b * c);
}
inline std::int64_t type_bytes(int type) {
  return type == MMC_FLOAT32 ? 4 : 2;
}

// Words of scales in a row of either operand.
inline std::int64_t scale_words(const SegmentList& segments) {
  std::int64_t words = 0;
  for (int s = 0; s < segments.count; ++s) {
    const SegmentParams& segment = segments.segment[s];
    const int word_channels = segment.instruction == Instruction::kNvf4 ? 64 : 128;
    words += (segment.channels + word_channels - 1) / word_channels;
  }
  return words;
}

// Runs an emulated launch; what the emulator finds becomes the error.
template <typename Run>
MmcStatus guarded(MmcError* error, Run&& run) {
  const std::lock_guard lock(one_launch_at_a_time);
  try {
    run();
    return MMC_OK;
  } catch (const std::exception& problem) {
    return fail(error, MMC_CUDA_ERROR, "%s", problem.what());
  }
}

}  // namespace mmcompile::backend
