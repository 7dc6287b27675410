// Reads floats from standard input and writes what CUDA's own headers convert them to on the host:
// fp16, bfloat16, and pairs of E2M1 and of E4M3 of each float and its successor. Four arrays of
// 16-bit words.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  std::vector<float> floats;
  float value;
  while (std::fread(&value, sizeof value, 1, stdin) == 1) floats.push_back(value);
  std::vector<std::uint16_t> out[4];
  for (std::size_t i = 0; i < floats.size(); ++i) {
    const float2 pair{floats[i], floats[(i + 1) % floats.size()]};
    out[0].push_back(__half_as_ushort(__float2half_rn(pair.x)));
    out[1].push_back(__bfloat16_as_ushort(__float2bfloat16_rn(pair.x)));
    out[2].push_back(__nv_cvt_float2_to_fp4x2(pair, __NV_E2M1, cudaRoundNearest));
    out[3].push_back(__nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3));
  }
  for (const auto& words : out) std::fwrite(words.data(), 2, words.size(), stdout);
}
