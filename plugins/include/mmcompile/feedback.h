// Quantizing weights with error feedback, a panel of channels at a time.
//
// With H[K, K] = U·diag(D)·Uᵀ, U unit upper triangular, channels are quantized in the order 0..K-1,
// each after the errors of those before it were added (LDLQ of QuIP, Chee et al. 2023, appendix on
// the equivalence with GPTQ):
//   u_k = w_k + Σ_{i<k} e_i·U[i, k],   ŵ_k = Q(u_k),   e_i = w_i - ŵ_i.
// The output's error is then Σ_k D_k·(ŵ_k - u_k)². A panel is what one call quantizes; the caller
// adds the feedback of all earlier panels, a matrix product.
#pragma once

#include <cstdint>
#include <string>

#include "mmcompile/pack.h"

namespace mmcompile {

// The most channels of a panel; every panel has a multiple of kSegmentStep.
inline constexpr int kPanelChannels = 128;

// Rows of values in memory, element (row, column) at row·stride + column.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;  // in elements

  T* operator[](std::int64_t row) const { return data + row * stride; }
};

// How a panel's channels, of one segment, are quantized.
struct PanelFormat {
  int format;           // index into kBlockFormats
  std::uint32_t carry;  // threshold_carry of an MX format
  bool searched;        // the scale of less loss, of two per block; the carry has no effect
  float tensor_scale;   // NVFP4's, a power of two in 2^-100..2^100
};

// All values are finite.
struct Panel {
  std::int64_t rows;
  int channels;
  Rows<const float> target;  // w plus the feedback of earlier panels
  Rows<const float> weight;  // w
  Rows<const float> factor;  // U of the panel's channels; only what is strictly upper is read
  const float* loss;         // D of the panel's channels
};

// Where a panel's results go. Only the panel's own codes and scale bytes are written: neither the
// padding of its segment nor that of its last scale word.
struct PanelOut {
  Rows<std::uint8_t> codes;  // the panel's first code byte of every row
  ScalesOut scales;          // from the segment's first word on
  std::int64_t first_block;  // the panel's first block, counted in the segment
  Rows<float> error;         // e
};

// Quantizes a panel, block after block. A block's amax is that of u when the block begins, without
// the feedback of its own channels. Of two candidates, for MX floor(log2 amax) - emax and one more,
// for NVFP4 the scales that map amax onto 6 and onto 4, the first stays unless the second has less
// loss. One more is not taken where it could give values beyond fp32. Blocks of zeros get the scale
// byte 0 and zeros. Results do not depend on the number of threads or the instruction set (the best
// one, unless named).
void feedback_panel(const Panel& panel, const PanelFormat& format, const PanelOut& out, int threads,
                    const std::string& instruction_set = "");

}  // namespace mmcompile
