// What a kernel may ask of the machine that runs it: a GPU, or the block emulator of the tests.
//
// Kernels are written against these functions alone, so that one source runs on both. Here they
// are PTX; plugins/testing/emulator.h implements the same list on the CPU, where every access is
// checked. Blocks are one-dimensional. Shared memory is addressed by byte offsets from its start.
#pragma once

#include <cstdint>

#if defined(MMCOMPILE_EMULATE)
#define MMCOMPILE_DEVICE inline
#else
#define MMCOMPILE_DEVICE __device__ __forceinline__
#endif

#include "mmcompile/formats.h"

namespace mmcompile {

inline constexpr int kWarp = 32;

// Bytes from the start of the block's shared memory.
using SharedOffset = std::uint32_t;

struct alignas(8) Words2 {
  std::uint32_t word[2];
};
struct alignas(16) Words4 {
  std::uint32_t word[4];
};

}  // namespace mmcompile

#if defined(MMCOMPILE_EMULATE)
#include "emulator.h"
#else

// The native block-scaled instructions need the family target 120f (or 120a).
#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) || defined(__CUDA_ARCH_SPECIFIC__)
#if __CUDA_ARCH__ >= 1200 && __CUDA_ARCH__ < 1300
#define MMCOMPILE_NATIVE_BLOCK_SCALED 1
#endif
#endif

namespace mmcompile::device {

MMCOMPILE_DEVICE int thread_index() {
  return static_cast<int>(threadIdx.x);
}
MMCOMPILE_DEVICE int block_index_x() {
  return static_cast<int>(blockIdx.x);
}
MMCOMPILE_DEVICE int block_index_y() {
  return static_cast<int>(blockIdx.y);
}
MMCOMPILE_DEVICE int grid_size_x() {
  return static_cast<int>(gridDim.x);
}
MMCOMPILE_DEVICE int grid_size_y() {
  return static_cast<int>(gridDim.y);
}

// All threads of the block.
MMCOMPILE_DEVICE void sync_threads() {
  __syncthreads();
}
// All threads of the warp; also orders their accesses to shared memory.
MMCOMPILE_DEVICE void sync_warp() {
  __syncwarp();
}
template <typename T>
MMCOMPILE_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, lane_mask);
}

// --- memory. T is trivially copyable, of 1, 2, 4, 8 or 16 bytes, and aligned to its size. ---

extern __shared__ __align__(128) unsigned char shared_memory[];

MMCOMPILE_DEVICE std::uint32_t shared_address(SharedOffset offset) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_memory)) + offset;
}

template <typename T>
MMCOMPILE_DEVICE T load_shared(SharedOffset offset) {
  return *reinterpret_cast<const T*>(shared_memory + offset);
}
template <typename T>
MMCOMPILE_DEVICE void store_shared(SharedOffset offset, T value) {
  *reinterpret_cast<T*>(shared_memory + offset) = value;
}
// Ordinary global memory.
template <typename T>
MMCOMPILE_DEVICE T load_global(const T* pointer) {
  return *pointer;
}
// Global memory that nobody writes while the kernel runs.
template <typename T>
MMCOMPILE_DEVICE T load_constant(const T* pointer) {
  return __ldg(pointer);
}
template <>
MMCOMPILE_DEVICE Words2 load_constant(const Words2* pointer) {
  const uint2 value = __ldg(reinterpret_cast<const uint2*>(pointer));
  return {{value.x, value.y}};
}
template <>
MMCOMPILE_DEVICE Words4 load_constant(const Words4* pointer) {
  const uint4 value = __ldg(reinterpret_cast<const uint4*>(pointer));
  return {{value.x, value.y, value.z, value.w}};
}
template <typename T>
MMCOMPILE_DEVICE void store_global(T* pointer, T value) {
  *pointer = value;
}

// Adds one to a counter in global memory; returns what it was.
MMCOMPILE_DEVICE std::uint32_t increment_global(std::uint32_t* counter) {
  return atomicAdd(counter, 1u);
}
// What this thread wrote to global memory before is seen by whoever sees what it writes after.
MMCOMPILE_DEVICE void fence_global() {
  __threadfence();
}

// Asynchronous copy of `bytes` (4, 8 or 16) from global to shared memory; where not `valid`,
// nothing is read, whatever the source, and zeros are written. Where not `active`, nothing happens.
template <int bytes>
MMCOMPILE_DEVICE void copy_async(SharedOffset destination, const void* source, bool valid,
                                 bool active = true) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  const std::uint32_t address = shared_address(destination);
  if constexpr (bytes == 16)
    asm volatile(
        "{\n.reg .pred ignore, active;\nsetp.eq.u32 ignore, %2, 0;\nsetp.ne.u32 active, %3, 0;\n"
        "@active cp.async.cg.shared.global.L2::128B [%0], [%1], 16, ignore;\n}" ::"r"(address),
        "l"(__cvta_generic_to_global(source)), "r"(static_cast<int>(valid)),
        "r"(static_cast<int>(active))
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred ignore, active;\nsetp.eq.u32 ignore, %2, 0;\nsetp.ne.u32 active, %3, 0;\n"
        "@active cp.async.ca.shared.global [%0], [%1], %4, ignore;\n}" ::"r"(address),
        "l"(__cvta_generic_to_global(source)), "r"(static_cast<int>(valid)),
        "r"(static_cast<int>(active)), "n"(bytes)
        : "memory");
}
MMCOMPILE_DEVICE void commit_async() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most `pending` of this thread's latest groups are under way.
template <int pending>
MMCOMPILE_DEVICE void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Programmatic dependent launch: the kernel after this one may start, and: wait until the kernel
// before this one has ended and its writes are visible. Nothing where the architecture lacks it.
MMCOMPILE_DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
MMCOMPILE_DEVICE void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- matrices. Fragments are those of the PTX ISA, "Matrix fragments for mma". ---

// Four 8x8 matrices of 16-bit elements: lane l passes the address of row l % 8 of matrix l / 8,
// 16 bytes, and receives in word i the bytes 4·(l % 4)..+3 of row l / 4 of matrix i.
MMCOMPILE_DEVICE Words4 load_matrices(SharedOffset row) {
  Words4 out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3])
               : "r"(shared_address(row))
               : "memory");
  return out;
}
// Two of them; lanes 0..15 pass the addresses, those of the others are ignored.
MMCOMPILE_DEVICE Words2 load_matrices_2(SharedOffset row) {
  Words2 out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(out.word[0]), "=r"(out.word[1])
               : "r"(shared_address(row))
               : "memory");
  return out;
}

// c += a·b, m16n8k16, fp16 with fp32 accumulation.
MMCOMPILE_DEVICE void mma_f16(float (&c)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Block-scaled products, c += (scale_a · a) (scale_b · b). `byte` and `thread` of an operand name
// the byte(s) of the scale register and the lanes of a quad that the instruction reads scales
// from (PTX ISA, "Block scaling for mma.sync"):
//   A: thread 0 reads lanes 4g (row g) and 4g+1 (row g+8), thread 1 lanes 4g+2 and 4g+3;
//   B: thread t reads lane 4g+t (column g).
#if defined(MMCOMPILE_NATIVE_BLOCK_SCALED)
#define MMCOMPILE_BLOCK_SCALED(instruction)                                                      \
  asm volatile(instruction                                                                       \
               " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {%11,%12}, "       \
               "{%13}, {%14,%15};"                                                               \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale_a), \
                 "n"(byte_a), "n"(thread_a), "r"(scale_b), "n"(byte_b), "n"(thread_b))
#else  // never called: a GPU without these instructions runs the portable atoms
#define MMCOMPILE_BLOCK_SCALED(instruction) __trap()
#endif

// e2m1 x e2m1, m16n8k64, E8M0 scales per 32: bytes `byte` (0 or 2) and `byte`+1 are for k 0..31
// and k 32..63.
template <int byte_a, int thread_a, int byte_b, int thread_b>
MMCOMPILE_DEVICE void mma_mxf4(float (&c)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2], std::uint32_t scale_a,
                               std::uint32_t scale_b) {
  MMCOMPILE_BLOCK_SCALED(
      "mma.sync.aligned.kind::mxf4.block_scale.scale_vec::2X.m16n8k64.row.col"
      ".f32.e2m1.e2m1.f32.ue8m0");
}

// e2m1 x e2m1, m16n8k64, E4M3 scales per 16: byte i is for k 16i..16i+15; `byte` must be 0.
template <int byte_a, int thread_a, int byte_b, int thread_b>
MMCOMPILE_DEVICE void mma_nvf4(float (&c)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2], std::uint32_t scale_a,
                               std::uint32_t scale_b) {
  MMCOMPILE_BLOCK_SCALED(
      "mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col"
      ".f32.e2m1.e2m1.f32.ue4m3");
}

// e4m3 x e4m3, m16n8k32, one E8M0 scale: byte `byte`, 0..3.
template <int byte_a, int thread_a, int byte_b, int thread_b>
MMCOMPILE_DEVICE void mma_mxf8(float (&c)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2], std::uint32_t scale_a,
                               std::uint32_t scale_b) {
  MMCOMPILE_BLOCK_SCALED(
      "mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col"
      ".f32.e4m3.e4m3.f32.ue8m0");
}
#undef MMCOMPILE_BLOCK_SCALED

// --- arithmetic on packed values ---

// Bytes selected from {low, high} by the four low nibbles of `selector` (values 0..7).
MMCOMPILE_DEVICE std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high,
                                             std::uint32_t selector) {
  return __byte_perm(low, high, selector);
}
// Products of two fp16 pairs, each rounded to nearest even.
MMCOMPILE_DEVICE std::uint32_t multiply_half2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
// Bytewise a + b, saturating at 255.
MMCOMPILE_DEVICE std::uint32_t add_bytes_saturating(std::uint32_t a, std::uint32_t b) {
  return __vaddus4(a, b);
}

// One rounding to nearest even; bits of an fp16 and of a bfloat16. Overflow gives infinity.
MMCOMPILE_DEVICE std::uint16_t float_to_half(float value) {
  std::uint16_t out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
  return out;
}
MMCOMPILE_DEVICE std::uint16_t float_to_bfloat16(float value) {
  std::uint16_t out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(value));
  return out;
}
MMCOMPILE_DEVICE float half_to_float_native(std::uint16_t half) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
  return out;
}

// Products and sums that must not be contracted into one rounding.
MMCOMPILE_DEVICE float multiply(float a, float b) {
  return __fmul_rn(a, b);
}
MMCOMPILE_DEVICE float add(float a, float b) {
  return __fadd_rn(a, b);
}
// a·b + c with one rounding.
MMCOMPILE_DEVICE float fused_multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}

// Conversions that sm_120 (sm_89 for E4M3) has in hardware; each rounds to nearest even and
// saturates. Of two values the first lands in the low part.
// Two E2M1 codes in a byte.
MMCOMPILE_DEVICE std::uint32_t convert_e2m1x2(float low, float high) {
#if defined(MMCOMPILE_NATIVE_BLOCK_SCALED)
  std::uint32_t out;
  asm("{\n.reg .b8 byte;\ncvt.rn.satfinite.e2m1x2.f32 byte, %2, %1;\n"
      "cvt.u32.u8 %0, byte;\n}"
      : "=r"(out)
      : "f"(low), "f"(high));
  return out;
#else
  __trap();
  return 0;
#endif
}
// Two E4M3 codes in 16 bits.
MMCOMPILE_DEVICE std::uint32_t convert_e4m3x2(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t out;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %2, %1;" : "=h"(out) : "f"(low), "f"(high));
  return out;
#else
  __trap();
  return 0;
#endif
}

}  // namespace mmcompile::device

#endif
