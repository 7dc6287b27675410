// Prints, as bytes, what CUDA's own headers make of the floats on standard input.
//
//   cuda_oracle < floats > bytes
//
// First the values of all codes as fp32: e2m1, e2m3, e3m2, e4m3, e8m0 (256 floats each; the upper
// codes repeat for the narrower formats). Then for every fp32 of the input, format after format:
// e2m1, e2m3, e3m2, e4m3 (to nearest even, saturating), then e8m0 of the magnitude rounded down,
// and e8m0 of the magnitude divided by 6, 7.5, 28 and 448 and rounded up.
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

template <class Format, int bits>
void print_values() {
  for (int code = 0; code < 256; ++code) {
    Format format;
    format.__x = static_cast<unsigned char>(code & ((1 << bits) - 1));
    const float value = static_cast<float>(format);
    std::fwrite(&value, sizeof value, 1, stdout);
  }
}

template <class Convert>
void print_codes(const std::vector<float>& floats, const Convert& convert) {
  for (const float value : floats) std::putchar(convert(value));
}

}  // namespace

int main() {
  std::vector<float> floats;
  for (float value; std::fread(&value, sizeof value, 1, stdin) == 1;) floats.push_back(value);

  print_values<__nv_fp4_e2m1, 4>();
  print_values<__nv_fp6_e2m3, 6>();
  print_values<__nv_fp6_e3m2, 6>();
  print_values<__nv_fp8_e4m3, 8>();
  print_values<__nv_fp8_e8m0, 8>();

  print_codes(floats,
              [](float x) { return __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest); });
  print_codes(floats,
              [](float x) { return __nv_cvt_float_to_fp6(x, __NV_E2M3, cudaRoundNearest); });
  print_codes(floats,
              [](float x) { return __nv_cvt_float_to_fp6(x, __NV_E3M2, cudaRoundNearest); });
  print_codes(floats, [](float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); });
  print_codes(floats, [](float x) {
    return __nv_cvt_float_to_e8m0(std::fabs(x), __NV_SATFINITE, cudaRoundZero);
  });
  for (const double max : {6.0, 7.5, 28.0, 448.0})
    print_codes(floats, [max](float x) {
      return __nv_cvt_double_to_e8m0(std::fabs(x) / max, __NV_SATFINITE, cudaRoundPosInf);
    });
  return std::ferror(stdout) ? 1 : 0;
}
