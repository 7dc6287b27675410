// Prints what CUTLASS's CuTe says about the fragments of the tensor-core instructions: for every
// lane and value a line "ATOM OPERAND LANE VALUE LINE K", where a line is a row of A or C or a
// column of B, and of C, K is the column. Compiled for the host alone.
#include <cstdio>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm120.hpp>
#include <cute/atom/mma_traits_sm80.hpp>

namespace {

template <int lines, typename Layout>
void print(const char* atom, const char* operand, const Layout& layout) {
  for (int lane = 0; lane < 32; ++lane)
    for (int value = 0; value < int(cute::size<1>(layout)); ++value) {
      const int index = int(layout(lane, value));
      std::printf("%s %s %d %d %d %d\n", atom, operand, lane, value, index % lines, index / lines);
    }
}

template <typename Atom>
void print_operands(const char* name) {
  using Traits = cute::MMA_Traits<Atom>;
  print<16>(name, "a", typename Traits::ALayout{});
  print<8>(name, "b", typename Traits::BLayout{});
  print<16>(name, "c", typename Traits::CLayout{});
}

template <typename Atom>
void print_scaled(const char* name) {
  using Traits = cute::MMA_Traits<Atom>;
  print_operands<Atom>(name);
  print<16>(name, "scale_a", typename Traits::SFALayout{});
  print<8>(name, "scale_b", typename Traits::SFBLayout{});
}

}  // namespace

int main() {
  using namespace cute::SM120::BLOCKSCALED;
  using cute::float_e2m1_t, cute::float_e4m3_t, cute::float_ue4m3_t, cute::float_ue8m0_t;
  print_operands<cute::SM80_16x8x16_F32F16F16F32_TN>("f16");
  print_scaled<SM120_16x8x64_TN_VS<float_e2m1_t, float_e2m1_t, float, float_ue8m0_t, 32>>("mxf4");
  print_scaled<SM120_16x8x64_TN_VS<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, 16>>("nvf4");
  print_scaled<SM120_16x8x32_TN_VS<float_e4m3_t, float_e4m3_t, float, float_ue8m0_t, 32>>("mxf8");
}
