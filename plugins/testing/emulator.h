// The functions of plugins/kernels/device.h on the CPU, where a thread block is emulated.
//
// Every thread is a fiber; they run in an order drawn from a seed. Warp-wide operations wait for
// all lanes, barriers for all threads, and whoever can't arrive is reported. Every access to memory
// is checked: memory.h, shared_memory.h. Asynchronous copies land when they are issued or when they
// are waited for. Compile with -DMMCOMPILE_EMULATE -ffp-contract=off, this folder, plugins/kernels
// and plugins/include among the include paths, and link the .cpp files of this folder.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "device.h"  // which includes this file
#include "instructions.h"
#include "memory.h"
#include "mmcompile/formats.h"

namespace mmcompile::emulator {

// When asynchronous copies write what they copy: at their issue, at the wait for them (never
// without one), or each of them the one or the other.
enum class Completion { kEarly, kLate, kRandom };

struct Options {
  std::uint64_t seed = 0;
  Completion copies = Completion::kRandom;
};

// Runs all blocks of a grid, one after another in an order drawn from the seed. Throws KernelError,
// a runtime_error, which names the block and the thread, at the first thing that is wrong; what
// the kernel wrote until then stays. `threads` must be a multiple of 32, at most 1024. Kernels that
// fail are dropped where they are: no destructor of theirs runs.
void launch(int grid_x, int grid_y, int threads, std::size_t shared_bytes, const Options& options,
            Memory& memory, const std::function<void()>& kernel);

// --- for the functions below: the thread that runs, and what it asks of its block ---

struct Identity {
  int thread;
  int block_x;
  int block_y;
  int grid_x;
  int grid_y;
};
extern thread_local const Identity* running;

// A warp-wide operation is executed once, when all lanes have brought their operands.
struct WarpOperation {
  const char* name;
  void (*execute)(int warp, void* const (&operands)[kLanes], const std::source_location& at);
};
using At = std::source_location;

void synchronize_block(const At& at);
void synchronize_warp(const WarpOperation& operation, void* operands, const At& at);

const void* check_shared_read(const char* operation, std::uint32_t offset, std::uint32_t bytes,
                              const At& at);
void* check_shared_write(const char* operation, std::uint32_t offset, std::uint32_t bytes,
                         const At& at);
void check_global_read(const char* operation, const void* pointer, std::uint32_t bytes,
                       const At& at);
void check_constant_read(const char* operation, const void* pointer, std::uint32_t bytes,
                         const At& at);
void check_global_write(const char* operation, void* pointer, std::uint32_t bytes, const At& at);
std::uint32_t increment(std::uint32_t* counter, const At& at);
void fence();
void begin_copy(std::uint32_t destination, const void* source, std::uint32_t bytes, bool valid,
                const At& at);
void commit_copies();
void wait_for_copies(int pending);
void wait_for_kernels();
[[noreturn]] void fail_here(const char* operation, const char* what, const At& at);

void sync_warp_operation(int warp, void* const (&)[kLanes], const At& at);
void load_matrices_operation(int warp, void* const (&operands)[kLanes], const At& at);
void load_matrices_2_operation(int warp, void* const (&operands)[kLanes], const At& at);

struct MatrixOperands {
  std::uint32_t row;
  std::uint32_t* words;
};

template <typename T>
struct ShuffleOperands {
  T value;
  int lane_mask;
};
template <typename T>
void shuffle_operation(int, void* const (&operands)[kLanes], const At& at) {
  ShuffleOperands<T>* lanes[kLanes];
  T values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    lanes[lane] = static_cast<ShuffleOperands<T>*>(operands[lane]);
    values[lane] = lanes[lane]->value;
  }
  const int mask = lanes[0]->lane_mask;
  if (mask < 0 || mask >= kLanes) fail_here("shuffle_xor", "the lane mask is not in 0..31", at);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane]->lane_mask != mask)
      fail_here("shuffle_xor", "lanes of a warp disagree on the lane mask", at);
    lanes[lane]->value = values[lane ^ mask];
  }
}

template <typename Execute>
void mma_operation(int, void* const (&operands)[kLanes], const At&) {
  const MmaOperands* lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    lanes[lane] = static_cast<const MmaOperands*>(operands[lane]);
  Execute::execute(lanes);
}
struct ExecuteF16 {
  static void execute(WarpOperands lanes) { mma_f16_warp(lanes); }
};
template <typename Decode, int blocks, ScaleFormat format, int byte_a, int thread_a, int byte_b,
          int thread_b>
struct ExecuteBlockScaled {
  static_assert(thread_a >= 0 && thread_a < 2 && thread_b >= 0 && thread_b < 4);
  static_assert(byte_a >= 0 && byte_a % blocks == 0 && byte_a + blocks <= 4);
  static_assert(byte_b >= 0 && byte_b % blocks == 0 && byte_b + blocks <= 4);
  static void execute(WarpOperands lanes) {
    mma_block_scaled_warp<Decode, blocks, format>(lanes, byte_a, thread_a, byte_b, thread_b);
  }
};

template <typename Execute>
void run_mma(const char* name, float (&c)[4], const std::uint32_t (&a)[4],
             const std::uint32_t (&b)[2], std::uint32_t scale_a, std::uint32_t scale_b,
             const At& at) {
  MmaOperands operands{c, a, b, scale_a, scale_b};
  synchronize_warp({name, &mma_operation<Execute>}, &operands, at);
}

// The bits of the narrow float nearest to an fp32: IEEE fp16 and bfloat16, NaN as CUDA has it.
constexpr std::uint16_t kNarrowNan = 0x7FFF;
std::uint16_t round_to_half(float value);
std::uint16_t round_to_bfloat16(float value);

}  // namespace mmcompile::emulator

namespace mmcompile::device {

using emulator::At;

inline int thread_index() {
  return emulator::running->thread;
}
inline int block_index_x() {
  return emulator::running->block_x;
}
inline int block_index_y() {
  return emulator::running->block_y;
}
inline int grid_size_x() {
  return emulator::running->grid_x;
}
inline int grid_size_y() {
  return emulator::running->grid_y;
}

inline void sync_threads(At at = At::current()) {
  emulator::synchronize_block(at);
}
inline void sync_warp(At at = At::current()) {
  emulator::synchronize_warp({"sync_warp", &emulator::sync_warp_operation}, nullptr, at);
}
template <typename T>
T shuffle_xor(T value, int lane_mask, At at = At::current()) {
  emulator::ShuffleOperands<T> operands{value, lane_mask};
  emulator::synchronize_warp({"shuffle_xor", &emulator::shuffle_operation<T>}, &operands, at);
  return operands.value;
}

template <typename T>
inline constexpr bool kAccessible = std::is_trivially_copyable_v<T> && sizeof(T) <= 16 &&
                                    (sizeof(T) & (sizeof(T) - 1)) == 0 && alignof(T) == sizeof(T);

template <typename T>
T load_shared(SharedOffset offset, At at = At::current()) {
  static_assert(kAccessible<T>);
  T value;
  std::memcpy(&value, emulator::check_shared_read("load_shared", offset, sizeof(T), at), sizeof(T));
  return value;
}
template <typename T>
void store_shared(SharedOffset offset, T value, At at = At::current()) {
  static_assert(kAccessible<T>);
  std::memcpy(emulator::check_shared_write("store_shared", offset, sizeof(T), at), &value,
              sizeof(T));
}
template <typename T>
T load_global(const T* pointer, At at = At::current()) {
  static_assert(kAccessible<T>);
  emulator::check_global_read("load_global", pointer, sizeof(T), at);
  T value;
  std::memcpy(&value, static_cast<const void*>(pointer), sizeof(T));
  return value;
}
template <typename T>
T load_constant(const T* pointer, At at = At::current()) {
  static_assert(kAccessible<T>);
  emulator::check_constant_read("load_constant", pointer, sizeof(T), at);
  T value;
  std::memcpy(&value, static_cast<const void*>(pointer), sizeof(T));
  return value;
}
template <typename T>
void store_global(T* pointer, T value, At at = At::current()) {
  static_assert(kAccessible<T>);
  emulator::check_global_write("store_global", pointer, sizeof(T), at);
  std::memcpy(static_cast<void*>(pointer), &value, sizeof(T));
}
inline std::uint32_t increment_global(std::uint32_t* counter, At at = At::current()) {
  return emulator::increment(counter, at);
}
inline void fence_global() {
  emulator::fence();
}

template <int bytes>
void copy_async(SharedOffset destination, const void* source, bool valid, bool active = true,
                At at = At::current()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  if (active) emulator::begin_copy(destination, source, bytes, valid, at);
}
inline void commit_async() {
  emulator::commit_copies();
}
template <int pending>
void wait_async() {
  static_assert(pending >= 0);
  emulator::wait_for_copies(pending);
}

inline void launch_dependents() {}
inline void wait_for_prerequisites() {
  emulator::wait_for_kernels();
}

inline Words4 load_matrices(SharedOffset row, At at = At::current()) {
  Words4 out;
  emulator::MatrixOperands operands{row, out.word};
  emulator::synchronize_warp({"load_matrices", &emulator::load_matrices_operation}, &operands, at);
  return out;
}
inline Words2 load_matrices_2(SharedOffset row, At at = At::current()) {
  Words2 out;
  emulator::MatrixOperands operands{row, out.word};
  emulator::synchronize_warp({"load_matrices_2", &emulator::load_matrices_2_operation}, &operands,
                             at);
  return out;
}

inline void mma_f16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                    At at = At::current()) {
  emulator::run_mma<emulator::ExecuteF16>("mma_f16", c, a, b, 0, 0, at);
}
template <int byte_a, int thread_a, int byte_b, int thread_b>
void mma_mxf4(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              std::uint32_t scale_a, std::uint32_t scale_b, At at = At::current()) {
  using Execute = emulator::ExecuteBlockScaled<emulator::DecodeE2M1, 2, ScaleFormat::kE8M0, byte_a,
                                               thread_a, byte_b, thread_b>;
  emulator::run_mma<Execute>("mma_mxf4", c, a, b, scale_a, scale_b, at);
}
template <int byte_a, int thread_a, int byte_b, int thread_b>
void mma_nvf4(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              std::uint32_t scale_a, std::uint32_t scale_b, At at = At::current()) {
  using Execute = emulator::ExecuteBlockScaled<emulator::DecodeE2M1, 4, ScaleFormat::kE4M3, byte_a,
                                               thread_a, byte_b, thread_b>;
  emulator::run_mma<Execute>("mma_nvf4", c, a, b, scale_a, scale_b, at);
}
template <int byte_a, int thread_a, int byte_b, int thread_b>
void mma_mxf8(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              std::uint32_t scale_a, std::uint32_t scale_b, At at = At::current()) {
  using Execute = emulator::ExecuteBlockScaled<emulator::DecodeE4M3, 1, ScaleFormat::kE8M0, byte_a,
                                               thread_a, byte_b, thread_b>;
  emulator::run_mma<Execute>("mma_mxf8", c, a, b, scale_a, scale_b, at);
}

inline std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector,
                                   At at = At::current()) {
  // The four nibbles' highest bits would ask for a sign instead of a byte.
  if ((selector & 0x8888u) != 0) emulator::fail_here("permute_bytes", "a selector above 7", at);
  const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t index = selector >> (4 * i) & 7u;
    out |= static_cast<std::uint32_t>(bytes >> (8 * index) & 0xFFu) << (8 * i);
  }
  return out;
}
inline std::uint16_t float_to_half(float value) {
  return emulator::round_to_half(value);
}
inline std::uint16_t float_to_bfloat16(float value) {
  return emulator::round_to_bfloat16(value);
}
inline float half_to_float_native(std::uint16_t half) {
  return half_to_float(half);
}

// Products of halves are exact in fp32, thus rounded once.
inline std::uint32_t multiply_half2(std::uint32_t a, std::uint32_t b) {
  const auto product = [](std::uint32_t x, std::uint32_t y) -> std::uint32_t {
    return float_to_half(half_to_float(static_cast<std::uint16_t>(x)) *
                         half_to_float(static_cast<std::uint16_t>(y)));
  };
  return product(a & 0xFFFFu, b & 0xFFFFu) | product(a >> 16, b >> 16) << 16;
}
inline std::uint32_t add_bytes_saturating(std::uint32_t a, std::uint32_t b) {
  std::uint32_t out = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const std::uint32_t sum = (a >> shift & 0xFFu) + (b >> shift & 0xFFu);
    out |= (sum < 0xFFu ? sum : 0xFFu) << shift;
  }
  return out;
}

inline float multiply(float a, float b) {
  return a * b;
}
inline float add(float a, float b) {
  return a + b;
}
inline float fused_multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}

// Kernels choose between these and portable code by a parameter of a template; tests run both.
inline std::uint32_t convert_e2m1x2(float low, float high) {
  // E2M1 has no NaN: PTX makes it the largest positive value.
  const auto code = [](float value) { return std::isnan(value) ? 0x7u : encode<kE2M1>(value); };
  return code(low) | code(high) << 4;
}
inline std::uint32_t convert_e4m3x2(float low, float high) {
  const auto code = [](float value) { return std::isnan(value) ? kE4M3Nan : encode<kE4M3>(value); };
  return code(low) | code(high) << 8;
}

}  // namespace mmcompile::device
