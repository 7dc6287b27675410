// Quantizes panels with error feedback, 16 rows at a time: include/mmcompile/feedback.h.
//
// The rows lie in the lanes of vectors, array[channel][lane]. Feedback is summed for kChunk
// channels at once, so that the sums stay in registers: first that of the panel's earlier blocks,
// then, for every candidate of the block's scale, that of the block's earlier chunks; inside a
// chunk, channel after channel. Whatever the split, a channel's terms are added in the order of the
// channels that they come from.
#include "mmcompile/feedback.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "encode.h"
#include "load.h"
#include "threads.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MMCOMPILE_X86_DISPATCH 1
#endif

namespace mmcompile {
namespace {

constexpr int kChunk = 8;

using Lanes = float[kLanes];
using Codes = std::uint32_t[kLanes];

// The upper triangle of U, chunk after chunk of columns: of each, kChunk entries of every row down
// to the chunk's last.
class PackedFactor {
 public:
  explicit PackedFactor(const Panel& panel) : entries_(start(panel.channels)) {
    for (int first = 0; first < panel.channels; first += kChunk)
      for (int row = 0; row < first + kChunk; ++row)
        for (int column = std::max(first, row + 1); column < first + kChunk; ++column)
          entries_[start(first) + row * kChunk + column - first] = panel.factor[row][column];
  }

  // The rows from `row` on of the chunk of columns that begins with `column`.
  const float* at(int row, int column) const {
    return entries_.data() + start(column) + row * kChunk;
  }

 private:
  static constexpr int start(int column) { return column * (column + kChunk) / 2; }

  std::vector<float> entries_;
};

// What all rows of a panel share.
struct Work {
  const Panel& panel;
  const PanelFormat& format;
  const PanelOut& out;
  const PackedFactor& factor;
};

// A panel's values of 16 rows.
struct Group16 {
  alignas(64) Lanes values[kPanelChannels];  // u, as far as feedback was added
  alignas(64) Lanes weight[kPanelChannels];
  alignas(64) Lanes errors[kPanelChannels];
};

template <int width>
struct VectorOf {
  using Type [[gnu::vector_size(width * sizeof(float))]] = float;
};

// to[c] = from[c] + Σ_i errors[i]·factor[i][c] for a chunk, added in the order of i.
template <int width>
[[gnu::always_inline]] inline void add_feedback(const Lanes* errors, int count, const float* factor,
                                                const Lanes* from, Lanes* to) {
  using Vector = typename VectorOf<width>::Type;
  for (int lane = 0; lane < kLanes; lane += width) {
    Vector sums[kChunk];
    unrolled<kChunk>([&](auto c) __attribute__((always_inline)) {
      std::memcpy(&sums[c], &from[c][lane], sizeof(Vector));
    });
    for (int i = 0; i < count; ++i) {
      Vector error;
      std::memcpy(&error, &errors[i][lane], sizeof(Vector));
      unrolled<kChunk>([&](auto c) __attribute__((always_inline)) {
        sums[c] += error * factor[i * kChunk + c];
      });
    }
    unrolled<kChunk>([&](auto c) __attribute__((always_inline)) {
      std::memcpy(&to[c][lane], &sums[c], sizeof(Vector));
    });
  }
}

// One candidate for the scales of a block of 16 rows. Losses of all candidates are in the unit of
// the first MX scale or of amax's power of two: no square leaves the range of fp32.
struct Candidate {
  alignas(64) Codes bytes;
  alignas(64) Lanes multiplier;  // values to elements
  alignas(64) Lanes value;       // elements to values
  alignas(64) Lanes unit;        // values to losses' unit; NVFP4
  alignas(64) Lanes step;        // elements to losses' unit
};

// What quantizing a block under a candidate gives.
template <int format>
struct Outcome {
  static constexpr int kBlock = kBlockFormats[format].block;
  alignas(64) Codes codes[kBlock];
  alignas(64) Lanes errors[kBlock];
  alignas(64) Lanes losses = {};
};

template <int format>
[[gnu::always_inline]] inline void find_finite_amax(const Lanes* values, Codes& amax) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    std::uint32_t bits = 0;
    unrolled<kBlockFormats[format].block>([&](auto c) __attribute__((always_inline)) {
      bits = std::max(bits, float_bits(values[c][lane]) & kMagnitudeBits);
    });
    amax[lane] = std::min(bits, kExponentField - 1);  // feedback may overflow
  }
}

// The candidates for blocks with these amax: one by rule, two if searched.
template <int format, int candidates>
[[gnu::always_inline]] inline void find_scales(const PanelFormat& panel_format, const Codes& amax,
                                               Candidate (&scales)[candidates]) {
  constexpr BlockFormat block = kBlockFormats[format];
  const float tensor_scale = panel_format.tensor_scale;
  const std::uint32_t carry = candidates == 1 ? panel_format.carry : 0;
  const float factors[2] = {nvfp4_factor(tensor_scale), 0.25f * (1.0f / tensor_scale)};
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    if constexpr (block.scale == ScaleFormat::kE8M0) {
      // Above this, the largest element is beyond fp32.
      constexpr std::uint32_t highest = 254 - block.element.emax;
      const std::uint32_t first = e8m0_scale<block.element>(amax[lane], carry);
      const std::uint32_t all_if_used = 0u - (amax[lane] != 0);
      unrolled<candidates>([&](auto k) __attribute__((always_inline)) {
        const std::uint32_t byte = k == 0 ? first : std::min(first + 1, highest);
        scales[k].bytes[lane] = byte & all_if_used;
        scales[k].multiplier[lane] = bits_float(float_bits(e8m0_reciprocal(byte)) & all_if_used);
        scales[k].value[lane] = e8m0_value(byte);
        scales[k].step[lane] = bits_float(power_bits(static_cast<int>(byte - first)));
      });
    } else {
      const std::uint32_t field = amax[lane] >> kFloatMantissaBits;
      const std::uint32_t unit_field = std::clamp(254 - static_cast<int>(field), 1, 253);
      const float unit = bits_float(unit_field << kFloatMantissaBits);
      unrolled<candidates>([&](auto k) __attribute__((always_inline)) {
        const std::uint32_t byte = nvfp4_scale(amax[lane], factors[k]);
        const float value = decode<kE4M3>(byte) * tensor_scale;
        scales[k].bytes[lane] = byte;
        scales[k].multiplier[lane] = value > 0 ? 1.0f / value : 0.0f;
        scales[k].value[lane] = value;
        scales[k].unit[lane] = unit;
        scales[k].step[lane] = value * unit;
      });
    }
  }
}

// Quantizes a chunk's channels one after the other under all candidates. `values` hold the feedback
// of all earlier chunks, `factor` and `loss` are those of the chunk, `first` is its place in the
// block.
template <int format, int candidates>
[[gnu::always_inline]] inline void quantize_chunk(const Lanes (&values)[candidates][kChunk],
                                                  const Lanes* weight, const float* factor,
                                                  const float* loss,
                                                  const Candidate (&scales)[candidates], int first,
                                                  Outcome<format> (&outcomes)[candidates]) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int bits = block.element.bits;
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    float value[candidates][kChunk];
    float sum[candidates];
    unrolled<candidates>([&](auto k) __attribute__((always_inline)) {
      sum[k] = outcomes[k].losses[lane];
      unrolled<kChunk>([&](auto c)
                           __attribute__((always_inline)) { value[k][c] = values[k][c][lane]; });
    });
    unrolled<kChunk>([&](auto c) __attribute__((always_inline)) {
      unrolled<candidates>([&](auto k) __attribute__((always_inline)) {
        const std::uint32_t scaled = float_bits(value[k][c] * scales[k].multiplier[lane]);
        const std::uint32_t sign = scaled & kSignBit;
        const Rounded rounded = round_magnitude<block.element>(scaled & kMagnitudeBits);
        const float magnitude = rounded.magnitude * scales[k].value[lane];
        const float error = weight[c][lane] - bits_float(float_bits(magnitude) | sign);
        float difference;
        if constexpr (block.scale == ScaleFormat::kE8M0) {
          difference = bits_float(scaled & kMagnitudeBits) - rounded.magnitude;
          difference *= scales[k].step[lane];
        } else {
          difference = bits_float(float_bits(value[k][c]) & kMagnitudeBits) * scales[k].unit[lane] -
                       rounded.magnitude * scales[k].step[lane];
        }
        sum[k] += loss[c] * (difference * difference);
        outcomes[k].codes[first + c][lane] = rounded.code | sign >> (32 - bits);
        outcomes[k].errors[first + c][lane] = error;
        unrolled<kChunk - 1 - c>([&](auto d) __attribute__((always_inline)) {
          constexpr int later = c + 1 + d;
          value[k][later] += error * factor[c * kChunk + later];
        });
      });
    });
    unrolled<candidates>([&](auto k)
                             __attribute__((always_inline)) { outcomes[k].losses[lane] = sum[k]; });
  }
}

// Puts the second candidate's outcome in place of the first's in the lanes where it has less loss.
template <int format>
[[gnu::always_inline]] inline void keep_less_loss(const Outcome<format>& second,
                                                  const Codes& second_bytes, Outcome<format>& first,
                                                  Codes& bytes) {
  alignas(64) std::int32_t better[kLanes];
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    better[lane] = second.losses[lane] < first.losses[lane];
    bytes[lane] = better[lane] ? second_bytes[lane] : bytes[lane];
  }
  for (int c = 0; c < Outcome<format>::kBlock; ++c) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      first.codes[c][lane] = better[lane] ? second.codes[c][lane] : first.codes[c][lane];
      first.errors[c][lane] = better[lane] ? second.errors[c][lane] : first.errors[c][lane];
    }
  }
}

// Writes a block's codes into the packed rows from `codes` on, `stride` bytes apart.
template <int format>
[[gnu::always_inline]] inline void write_codes(const Codes* block_codes, int rows,
                                               std::uint8_t* codes, std::int64_t stride) {
  using Words = CodeWords<format>;
  alignas(64) Codes words[Words::block];
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    std::uint32_t word[Words::block] = {};
    unrolled<kBlockFormats[format].block>([&](auto c) __attribute__((always_inline)) {
      constexpr int position = c * Words::bits;
      constexpr int shift = position % kWordBits;
      word[position / kWordBits] |= block_codes[c][lane] << shift;
      if constexpr (shift + Words::bits > kWordBits)
        word[position / kWordBits + 1] |= block_codes[c][lane] >> (kWordBits - shift);
    });
    unrolled<Words::block>([&](auto w)
                               __attribute__((always_inline)) { words[w][lane] = word[w]; });
  }
  for (int lane = 0; lane < rows; ++lane, codes += stride) {
    std::uint32_t row[Words::block];
    for (int w = 0; w < Words::block; ++w) row[w] = words[w][lane];
    std::memcpy(codes, row, sizeof row);
  }
}

// Quantizes the block that begins with channel `first` of the panel.
template <int format, bool searched, int width>
[[gnu::always_inline]] inline void quantize_block(const Work& work, Group16& group, int first,
                                                  std::int64_t row, int rows) {
  constexpr BlockFormat block = kBlockFormats[format];
  constexpr int candidates = searched ? 2 : 1;
  for (int c = first; c < first + block.block; c += kChunk)
    add_feedback<width>(group.errors, first, work.factor.at(0, c), group.values + c,
                        group.values + c);
  alignas(64) Codes amax;
  Candidate scales[candidates];
  Outcome<format> outcomes[candidates];
  find_finite_amax<format>(group.values + first, amax);
  find_scales<format>(work.format, amax, scales);
  for (int done = 0; done < block.block; done += kChunk) {
    const int c = first + done;
    alignas(64) Lanes values[candidates][kChunk];
    for (int k = 0; k < candidates; ++k)
      add_feedback<width>(outcomes[k].errors, done, work.factor.at(first, c), group.values + c,
                          values[k]);
    quantize_chunk<format, candidates>(values, group.weight + c, work.factor.at(c, c),
                                       work.panel.loss + c, scales, done, outcomes);
  }
  if constexpr (searched)
    keep_less_loss<format>(outcomes[1], scales[1].bytes, outcomes[0], scales[0].bytes);
  std::memcpy(group.errors + first, outcomes[0].errors, sizeof outcomes[0].errors);
  const std::int64_t number = work.out.first_block + first / block.block;
  std::uint8_t* byte = work.out.scales.from(number / kScaleWord, row).data + number % kScaleWord;
  for (int lane = 0; lane < rows; ++lane)
    byte[lane * kScaleWord] = static_cast<std::uint8_t>(scales[0].bytes[lane]);
  write_codes<format>(outcomes[0].codes, rows, work.out.codes[row] + first * block.element.bits / 8,
                      work.out.codes.stride);
}

// Puts the panel's channels of up to 16 rows into lanes; the other lanes hold zeros.
[[gnu::always_inline]] inline void load_rows(const float* rows, std::int64_t stride, int count,
                                             int channels, Lanes* lanes) {
  alignas(64) float few[kLanes * kPanelChannels];
  if (count < kLanes) {
    std::memset(few, 0, sizeof few);
    for (int row = 0; row < count; ++row)
      std::memcpy(few + row * channels, rows + row * stride,
                  static_cast<std::size_t>(channels) * sizeof(float));
    rows = few;
    stride = channels;
  }
  for (int c = 0; c < channels; c += 4)
    for (int lane = 0; lane < kLanes; lane += 4)
      transpose_quad(rows + lane * stride + c, stride, &lanes[c][lane], kLanes);
}

// The way back.
[[gnu::always_inline]] inline void store_rows(const Lanes* lanes, int channels, int count,
                                              float* rows, std::int64_t stride) {
  alignas(64) float few[kLanes * kPanelChannels];
  float* to = count < kLanes ? few : rows;
  const std::int64_t to_stride = count < kLanes ? channels : stride;
  for (int lane = 0; lane < kLanes; lane += 4)
    for (int c = 0; c < channels; c += 4)
      transpose_quad(&lanes[c][lane], kLanes, to + lane * to_stride + c, to_stride);
  for (int row = 0; count < kLanes && row < count; ++row)
    std::memcpy(rows + row * stride, few + row * channels,
                static_cast<std::size_t>(channels) * sizeof(float));
}

template <int format, bool searched, int width>
[[gnu::always_inline]] inline void quantize_blocks(const Work& work, Group16& group,
                                                   std::int64_t row, int rows) {
  for (int first = 0; first < work.panel.channels; first += kBlockFormats[format].block)
    quantize_block<format, searched, width>(work, group, first, row, rows);
}

template <int width>
[[gnu::always_inline]] inline void quantize_group_body(const Work& work, std::int64_t row,
                                                       int rows) {
  const Panel& panel = work.panel;
  const Rows<float>& error = work.out.error;
  Group16 group;
  load_rows(panel.target[row], panel.target.stride, rows, panel.channels, group.values);
  load_rows(panel.weight[row], panel.weight.stride, rows, panel.channels, group.weight);
  unrolled<kFormatCount>([&](auto format) __attribute__((always_inline)) {
    if (format != work.format.format) return;
    if (work.format.searched)
      quantize_blocks<format, true, width>(work, group, row, rows);
    else
      quantize_blocks<format, false, width>(work, group, row, rows);
  });
  store_rows(group.errors, panel.channels, rows, error[row], error.stride);
}

void quantize_group_generic(const Work& work, std::int64_t row, int rows) {
  quantize_group_body<4>(work, row, rows);
}

#ifdef MMCOMPILE_X86_DISPATCH
[[gnu::target("avx2")]] void quantize_group_avx2(const Work& work, std::int64_t row, int rows) {
  quantize_group_body<8>(work, row, rows);
}

[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]]
void quantize_group_avx512(const Work& work, std::int64_t row, int rows) {
  quantize_group_body<16>(work, row, rows);
}
#endif

using QuantizeGroup = void (*)(const Work&, std::int64_t, int);

QuantizeGroup chosen_function(const std::string& name) {
  for (const std::string& supported : instruction_sets()) {
    if (!name.empty() && name != supported) continue;
#ifdef MMCOMPILE_X86_DISPATCH
    if (supported == "avx512") return quantize_group_avx512;
    if (supported == "avx2") return quantize_group_avx2;
#endif
    return quantize_group_generic;
  }
  throw std::invalid_argument("this processor has no instruction set " + name);
}

}  // namespace

void feedback_panel(const Panel& panel, const PanelFormat& format, const PanelOut& out, int threads,
                    const std::string& instruction_set) {
  const QuantizeGroup quantize_group = chosen_function(instruction_set);
  const PackedFactor factor(panel);
  const Work work{panel, format, out, factor};
  const std::int64_t groups = (panel.rows + kLanes - 1) / kLanes;
  parallel_ranges(groups, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = begin; g < end; ++g) {
      const std::int64_t row = g * kLanes;
      quantize_group(work, row, static_cast<int>(std::min<std::int64_t>(kLanes, panel.rows - row)));
    }
  });
}

}  // namespace mmcompile
