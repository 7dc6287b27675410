// Kernels that are right and kernels with one fault each, for emulator_test.cpp.
//
// A kernel with a `fault` is right for Fault::kNone; its other faults are in the order of its
// lines.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "emulator.h"

namespace mmcompile::test_kernels {

using namespace device;

constexpr int kThreads = 64;  // of a block, unless a case says otherwise

// The global memory of all cases. `input` is constant, `earlier` of the kernel before.
struct Data {
  std::uint32_t before[4];
  alignas(16) std::uint32_t input[256];
  alignas(16) std::uint32_t earlier[256];
  alignas(16) std::uint32_t output[256];
  alignas(16) std::uint32_t scratch[256];
  std::uint32_t counter;
};
inline Data data;

inline std::uint32_t own() {
  return static_cast<std::uint32_t>(thread_index());
}
inline SharedOffset slot(std::uint32_t thread) {
  return 4 * thread;
}
inline std::uint32_t neighbour(std::uint32_t distance) {
  return own() ^ distance;
}
inline void finish(std::uint32_t value) {
  store_global(data.output + own(), value);
}

enum class Fault { kNone, kFirst, kSecond, kThird, kFourth };

// --- shared memory ---

// Every thread hands a value to one that is `distance` away and back.
template <Fault fault, int distance>
void exchange() {
  const auto barrier = [] {
    if constexpr (distance < kWarp)
      sync_warp();
    else
      sync_threads();
  };
  store_shared(slot(own()), own());
  if constexpr (fault != Fault::kFirst) barrier();
  const auto value = load_shared<std::uint32_t>(slot(neighbour(distance)));
  if constexpr (fault != Fault::kSecond) barrier();
  store_shared(slot(own()), value);
  if constexpr (fault == Fault::kThird)
    sync_warp();
  else
    barrier();
  finish(load_shared<std::uint32_t>(slot(neighbour(distance))));
}

// Barriers of their own warps, however many, do not order two warps.
inline void warps_apart() {
  const auto wait = [] {
    for (int i = 0; i < 16; ++i) sync_warp();
  };
  wait();
  if (own() < kWarp)
    store_shared(slot(own()), own());
  else
    load_shared<std::uint32_t>(slot(neighbour(kWarp)));
  wait();
}

// Two threads read, and one of them writes, with nothing in between: it may be the last reader.
template <int reader, bool global>
void reader_writes() {
  sync_threads();
  if (own() != 0 && own() != reader) return;
  if constexpr (global) {
    const auto value = load_global(data.scratch);
    if (own() == 0) store_global(data.scratch, value);
  } else {
    const auto value = load_shared<std::uint32_t>(0);
    if (own() == 0) store_shared(0, value);
  }
}

// Rows of 16 bytes by 32 lanes, read by ldmatrix, overwritten.
template <Fault fault>
void matrices() {
  if (own() >= kWarp) return;
  store_shared(16 * own(), Words4{{own(), own(), own(), own()}});
  if constexpr (fault != Fault::kFirst) sync_warp();
  const Words4 words = load_matrices(16 * own());
  if constexpr (fault != Fault::kSecond) sync_warp();
  store_shared(16 * own(), words);
  // Word i comes from row lane / 4 of matrix i.
  const bool right = words.word[1] == 8 + own() / 4 && words.word[3] == 24 + own() / 4;
  finish(right ? own() : ~0u);
}

inline void poison() {
  const auto value = load_shared<float>(slot(own()));
  finish(std::isnan(value) ? own() : ~0u);
}

// --- asynchronous copies ---

// Two copies in two groups; the values of other threads of both are summed.
template <Fault fault>
void copies() {
  copy_async<4>(slot(own()), data.input + own(), true);
  if constexpr (fault != Fault::kFourth) commit_async();
  copy_async<4>(256 + slot(own()), data.input + own(), own() % 2 == 0);
  commit_async();
  if constexpr (fault == Fault::kThird) {
    sync_threads();
    wait_async<0>();
  } else {
    wait_async<1>();
    if constexpr (fault != Fault::kFirst) sync_threads();
  }
  const auto first = load_shared<std::uint32_t>(slot(neighbour(33)));
  if constexpr (fault != Fault::kSecond) wait_async<0>();
  sync_threads();
  const auto second = load_shared<std::uint32_t>(256 + slot(neighbour(32)));
  finish(first == neighbour(33) && second == (own() % 2 == 0 ? neighbour(32) : 0) ? own() : ~0u);
}

template <bool waits>
void read_own_copy() {
  copy_async<4>(slot(own()), data.input + own(), true);
  commit_async();
  if constexpr (waits) wait_async<0>();
  finish(load_shared<std::uint32_t>(slot(own())));
}

// The source changes between the issue and the wait: which value arrives is the policy's choice.
inline void late_source() {
  store_global(data.scratch + own(), own());
  copy_async<4>(slot(own()), data.scratch + own(), true);
  commit_async();
  store_global(data.scratch + own(), own() + 1);
  wait_async<0>();
  finish(load_shared<std::uint32_t>(slot(own())));
}

// --- a small matrix product: 32 x 16 = 32 x 256 · (16 x 256)ᵀ in E4M3, two stages, two warps ---

constexpr int kK = 256;
struct Product {
  alignas(16) std::uint8_t a[32 * kK];
  alignas(16) std::uint8_t b[16 * kK];
  float c[32 * 16];
  float expected[32 * 16];
};
inline Product product;

template <Fault fault>
void pipeline() {
  constexpr int kStages = 2, kChunk = 64, kStageBytes = 48 * kChunk;
  const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
  const auto load = [&](int chunk) {
    for (int i = thread; i < 48 * 4; i += kThreads) {
      const int row = i / 4;
      const std::uint8_t* source = row < 32 ? product.a + row * kK : product.b + (row - 32) * kK;
      copy_async<16>(static_cast<SharedOffset>(chunk % kStages * kStageBytes + 16 * i),
                     source + chunk * kChunk + 16 * (i % 4), true);
    }
  };
  float c[2][4] = {};
  load(0);
  commit_async();
  for (int chunk = 0; chunk < kK / kChunk; ++chunk) {
    if (chunk + 1 < kK / kChunk) load(chunk + 1);
    commit_async();
    if constexpr (fault == Fault::kFirst)
      wait_async<2>();
    else
      wait_async<1>();
    if constexpr (fault != Fault::kSecond) sync_threads();
    const int stage = chunk % kStages * kStageBytes;
    for (int step = 0; step < 2; ++step) {
      const auto address = [&](int row, int piece) {
        return static_cast<SharedOffset>(stage + kChunk * row + 32 * step + 16 * piece);
      };
      const Words4 a = load_matrices(address(16 * warp + lane % 16, lane / 16));
      const Words4 b = load_matrices(address(32 + lane % 8 + 8 * (lane / 16), lane / 8 % 2));
      mma_mxf8<0, 0, 0, 0>(c[0], a.word, {b.word[0], b.word[1]}, 0x7F, 0x7F);
      mma_mxf8<0, 0, 0, 0>(c[1], a.word, {b.word[2], b.word[3]}, 0x7F, 0x7F);
    }
    if constexpr (fault != Fault::kThird) sync_threads();
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + lane / 4 + 8 * (i / 2);
      const int column = 8 * j + 2 * (lane % 4) + i % 2;
      store_global(product.c + row * 16 + column + (fault == Fault::kFourth), c[j][i]);
    }
}

inline void make_product(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  // No NaN: magnitudes below 0x7F.
  const auto code = [&] { return static_cast<std::uint8_t>(random() % 0x7F | random() % 2 << 7); };
  std::generate(std::begin(product.a), std::end(product.a), code);
  std::generate(std::begin(product.b), std::end(product.b), code);
  for (int row = 0; row < 32; ++row)
    for (int column = 0; column < 16; ++column) {
      float sum = 0;
      for (int step = 0; step < kK / 32; ++step) {
        double part = 0;
        for (int k = 32 * step; k < 32 * step + 32; ++k)
          part += static_cast<double>(decode<kE4M3>(product.a[row * kK + k])) *
                  static_cast<double>(decode<kE4M3>(product.b[column * kK + k]));
        sum = static_cast<float>(sum + part);
      }
      product.expected[16 * row + column] = sum;
    }
}

// --- bounds, alignment, rights ---

template <typename T>
const T* at_byte(const void* start, int offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(start) + offset);
}
template <typename T>
T* at_byte(void* start, int offset) {
  return reinterpret_cast<T*>(static_cast<char*>(start) + offset);
}
constexpr int kEnd = sizeof(data.input);

inline void read_past_end() {
  load_global(product.expected);
}
inline void read_before_start() {
  load_constant(data.before + 3);
}
inline void write_past_end() {
  store_global(product.expected, 0.0f);
}
inline void read_across_end() {
  load_global(at_byte<Words4>(&data.counter, 0));
}
inline void read_misaligned() {
  load_global(at_byte<std::uint32_t>(data.input, 2));
}
inline void write_misaligned() {
  store_global(at_byte<Words2>(data.output, 4), Words2{});
}
inline void write_constant() {
  store_global(data.input, 0u);
}
inline void constant_of_output() {
  load_constant(data.output);
}
inline void shared_read_outside() {
  load_shared<std::uint32_t>(1024);
}
inline void shared_write_outside() {
  store_shared<std::uint16_t>(1024, 0);
}
inline void shared_wraps() {
  load_shared<std::uint32_t>(0xFFFFFFFCu);
}
inline void shared_misaligned() {
  load_shared<std::uint32_t>(2);
}
inline void matrix_outside() {
  load_matrices(16 * own() + 16 * 48);
}
inline void matrix_misaligned() {
  load_matrices(8 * own());
}
inline void copy_to_outside() {
  copy_async<16>(1024, data.input, true);
}
inline void copy_misaligned() {
  copy_async<16>(0, data.input + 1, true);
}
inline void copy_from_outside() {
  copy_async<16>(0, at_byte<Words4>(data.input, kEnd - 8), true);
}

// --- warps and barriers ---

inline void shuffles() {
  finish(shuffle_xor(shuffle_xor(own(), 5), 5));
  if (shuffle_xor(own(), 17) != neighbour(17)) finish(~0u);
}
inline void shuffle_masks_differ() {
  shuffle_xor(own(), own() % 2 == 0 ? 1 : 2);
}
inline void warp_diverges() {
  if (own() % 2 == 0)
    sync_warp();
  else
    shuffle_xor(own(), 1);
}
inline void lanes_end() {
  if (own() < 40) sync_warp();
}
inline void warp_skips_barrier() {
  if (own() < kWarp) sync_threads();
}
inline void lane_skips_barrier() {
  if (own() == 5) return;
  sync_threads();
}
inline void barrier_and_warp() {
  if (own() % kWarp < 16)
    sync_threads();
  else
    sync_warp();
}
inline void bad_selector() {
  permute_bytes(0, 0, 0x3218);
}
inline void throws() {
  sync_threads();
  if (own() == 7) throw std::logic_error("the kernel's own");
  sync_threads();
}

// --- global memory, two blocks ---

inline int block() {
  return block_index_x();
}

inline void two_writers() {
  store_global(data.output + own() / 2, own());
}
inline void two_blocks_write() {
  store_global(data.output + own(), own());
}
inline void reads_other_block() {
  store_global(data.scratch + 64 * block() + thread_index(), 1u);
  load_global(data.scratch + 64 * (1 - block()) + thread_index());
}
inline void writes_what_another_read() {
  load_global(data.scratch + own());
  if (block() == 0) store_global(data.scratch + neighbour(1), 1u);
}

// Each block leaves its part; the one that comes last sums up.
template <Fault fault, bool one_fences>
void split() {
  store_global(data.scratch + 64 * block() + thread_index(), own() + 1);
  if constexpr (!one_fences && fault != Fault::kFirst) fence_global();
  if constexpr (fault != Fault::kSecond) sync_threads();
  if (own() == 0) {
    if constexpr (one_fences && fault != Fault::kFirst) fence_global();
    store_shared(0, increment_global(&data.counter));
    if constexpr (one_fences && fault != Fault::kThird) fence_global();
  }
  sync_threads();
  if (load_shared<std::uint32_t>(0) + 1 != static_cast<std::uint32_t>(grid_size_x())) return;
  if constexpr (!one_fences && fault != Fault::kThird) fence_global();
  std::uint32_t sum = 0;
  for (int part = 0; part < grid_size_x(); ++part)
    sum += load_global(data.scratch + 64 * part + thread_index());
  finish(sum == 2 * (own() + 1) ? own() : ~0u);
}

inline std::vector<int> blocks_in_order;
inline void note_block() {
  if (own() == 0) blocks_in_order.push_back(block());
}

// --- the kernel before this one ---

template <bool waits>
void reads_earlier() {
  launch_dependents();
  if (waits || own() != 3) wait_for_prerequisites();
  finish(load_global(data.earlier + own()));
}
inline void copies_earlier() {
  copy_async<4>(slot(own()), data.earlier + own(), true);
}
inline void constant_of_earlier() {
  wait_for_prerequisites();
  finish(load_constant(data.earlier + own()));
}

}  // namespace mmcompile::test_kernels
