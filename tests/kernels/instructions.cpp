// The emulated instructions behind a C ABI: fragments, products and conversions, for
// test_instructions.py.
#include <cstdint>
#include <utility>

#include "emulator.h"

namespace {

using namespace mmcompile;

enum Kind { kF16, kMxf4, kNvf4, kMxf8 };

struct Fragments {
  float c[32][4];
  std::uint32_t a[32][4];
  std::uint32_t b[32][2];
  std::uint32_t scale_a[32];
  std::uint32_t scale_b[32];
};

// Selectors are part of an instruction; variant i has these. Together they cover all values.
template <int kind, int i>
void multiply(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              std::uint32_t scale_a, std::uint32_t scale_b) {
  if constexpr (kind == kF16)
    device::mma_f16(c, a, b);
  else if constexpr (kind == kMxf4)
    device::mma_mxf4<i % 2 * 2, i / 2 % 2, i / 4 % 2 * 2, i % 4>(c, a, b, scale_a, scale_b);
  else if constexpr (kind == kNvf4)
    device::mma_nvf4<0, i % 2, 0, i % 4>(c, a, b, scale_a, scale_b);
  else
    device::mma_mxf8<i % 4, i / 4 % 2, i / 4, (i + 1) % 4>(c, a, b, scale_a, scale_b);
}

template <int kind, int i>
void run(Fragments& fragments) {
  emulator::Memory memory;
  emulator::launch(1, 1, 32, 0, {}, memory, [&] {
    const int lane = device::thread_index();
    multiply<kind, i>(fragments.c[lane], fragments.a[lane], fragments.b[lane],
                      fragments.scale_a[lane], fragments.scale_b[lane]);
  });
}

template <int kind, int... i>
void run_variant(Fragments& fragments, int variant, std::integer_sequence<int, i...>) {
  ((variant == i ? run<kind, i>(fragments) : void()), ...);
}

}  // namespace

extern "C" {

void mma(int kind, int variant, Fragments* fragments) {
  const std::make_integer_sequence<int, 16> variants;
  if (kind == kF16) run<kF16, 0>(*fragments);
  if (kind == kMxf4) run_variant<kMxf4>(*fragments, variant, variants);
  if (kind == kNvf4) run_variant<kNvf4>(*fragments, variant, variants);
  if (kind == kMxf8) run_variant<kMxf8>(*fragments, variant, variants);
}

// (line, k) of every lane and value: [32][4 * per_word][2], [32][2 * per_word][2], [32][4][2].
void places_in_a(int per_word, int* out) {
  for (int lane = 0; lane < 32; ++lane)
    for (int value = 0; value < 4 * per_word; ++value) {
      const auto place = emulator::place_in_a(per_word, lane, value / per_word, value % per_word);
      *out++ = place.line;
      *out++ = place.k;
    }
}
void places_in_b(int per_word, int* out) {
  for (int lane = 0; lane < 32; ++lane)
    for (int value = 0; value < 2 * per_word; ++value) {
      const auto place = emulator::place_in_b(per_word, lane, value / per_word, value % per_word);
      *out++ = place.line;
      *out++ = place.k;
    }
}
void places_in_c(int* out) {
  for (int lane = 0; lane < 32; ++lane)
    for (int index = 0; index < 4; ++index) {
      const auto place = emulator::place_in_c(lane, index);
      *out++ = place.row;
      *out++ = place.column;
    }
}
// (lane, byte) of a line's scale of a block.
void place_of_scale(int is_b, int byte, int thread, int line, int block, int* out) {
  const auto place = is_b != 0 ? emulator::scale_of_b(byte, thread, line, block)
                               : emulator::scale_of_a(byte, thread, line, block);
  out[0] = place.lane;
  out[1] = place.byte;
}

void to_half(const float* in, std::uint16_t* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = device::float_to_half(in[i]);
}
void to_bfloat16(const float* in, std::uint16_t* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = device::float_to_bfloat16(in[i]);
}
void from_half(const std::uint16_t* in, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = device::half_to_float_native(in[i]);
}
// Pairs of the value and its successor.
void to_e2m1x2(const float* in, std::uint16_t* out, int n) {
  for (int i = 0; i < n; ++i)
    out[i] = static_cast<std::uint16_t>(device::convert_e2m1x2(in[i], in[(i + 1) % n]));
}
void to_e4m3x2(const float* in, std::uint16_t* out, int n) {
  for (int i = 0; i < n; ++i)
    out[i] = static_cast<std::uint16_t>(device::convert_e4m3x2(in[i], in[(i + 1) % n]));
}
std::uint32_t multiply_half2(std::uint32_t a, std::uint32_t b) {
  return device::multiply_half2(a, b);
}
std::uint32_t add_bytes_saturating(std::uint32_t a, std::uint32_t b) {
  return device::add_bytes_saturating(a, b);
}
// -1 where the selector is refused.
std::int64_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  std::int64_t out = 0;
  emulator::Memory memory;
  try {
    emulator::launch(1, 1, 32, 0, {}, memory,
                     [&] { out = device::permute_bytes(low, high, selector); });
  } catch (const emulator::KernelError&) {
    return -1;
  }
  return out;
}
}
