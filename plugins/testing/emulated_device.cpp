#include "emulated_backend.h"

namespace mmcompile::backend {

MmcStatus open_device(int ordinal, MmcDevice& device, MmcError* error) {
  constexpr int architectures[] = {120, 90, 80};
  if (ordinal < 0 || ordinal > 2)
    return fail(error, MMC_UNSUPPORTED,
                "the emulator has devices 0 (sm_120), 1 (sm_90) and 2 (sm_80), not %d", ordinal);
  device = {ordinal, architectures[ordinal], settings.multiprocessors};
  return MMC_OK;
}

}  // namespace mmcompile::backend

extern "C" {

const char* mmc_architectures() {
  return "emulated 120 90 80";
}

// Seed of all scheduling, when asynchronous copies land (0 early, 1 late, 2 at random), and the
// number of multiprocessors of devices that are opened from now on.
__attribute__((visibility("default"))) void mmc_emulator_configure(std::uint64_t seed, int copies,
                                                                   int multiprocessors) {
  mmcompile::backend::settings = {
      {.seed = seed, .copies = static_cast<mmcompile::emulator::Completion>(copies)},
      multiprocessors};
}
}
