// Runs kernels that are right and kernels with one fault each in the emulator.
//
//     emulator_test SEED...     for each seed, policy of copies and case a line
//                               "SEED<tab>POLICY<tab>CASE<tab>OUTCOME", where the outcome is "ok",
//                               "wrong result" or the emulator's sentence
//
// What each case should say is in tests/kernels/test_emulator.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "emulator_test_kernels.h"

namespace mmcompile::test_kernels {
namespace {

// What a case that is right leaves behind.
enum class Result { kAnything, kIndices, kProduct, kEither, kOrder };

struct Case {
  const char* name;
  void (*kernel)();
  Result result = Result::kAnything;
  int blocks = 1;
  int threads = kThreads;
  std::size_t shared_bytes = 1024;
};

const Case kCases[] = {
    {"exchange in a block", exchange<Fault::kNone, 33>, Result::kIndices},
    {"exchange in a block: no first barrier", exchange<Fault::kFirst, 33>},
    {"exchange in a block: no second barrier", exchange<Fault::kSecond, 33>},
    {"exchange in a block: barrier of the warp only", exchange<Fault::kThird, 33>},
    {"exchange in a warp", exchange<Fault::kNone, 5>, Result::kIndices},
    {"exchange in a warp: no first barrier", exchange<Fault::kFirst, 5>},
    {"exchange in a warp: no second barrier", exchange<Fault::kSecond, 5>},
    {"warps apart", warps_apart},
    {"one of two readers writes, one warp", reader_writes<1, false>},
    {"one of two readers writes, two warps", reader_writes<33, false>},
    {"one of two readers writes, global", reader_writes<33, true>},
    {"matrices", matrices<Fault::kNone>, Result::kIndices, 1, kWarp},
    {"matrices: no first barrier", matrices<Fault::kFirst>, Result::kAnything, 1, kWarp},
    {"matrices: no second barrier", matrices<Fault::kSecond>, Result::kAnything, 1, kWarp},
    {"poison", poison, Result::kIndices},
    {"copies", copies<Fault::kNone>, Result::kIndices},
    {"copies: no barrier after the wait", copies<Fault::kFirst>},
    {"copies: wait off by one", copies<Fault::kSecond>},
    {"copies: barrier before the wait", copies<Fault::kThird>},
    {"copies: no commit", copies<Fault::kFourth>},
    {"late source", late_source, Result::kEither},
    {"own copy", read_own_copy<true>, Result::kIndices},
    {"own copy: no wait", read_own_copy<false>},
    {"pipeline", pipeline<Fault::kNone>, Result::kProduct, 1, kThreads, 6144},
    {"pipeline: wait off by one", pipeline<Fault::kFirst>, Result::kProduct, 1, kThreads, 6144},
    {"pipeline: no barrier before reading", pipeline<Fault::kSecond>, Result::kProduct, 1, kThreads,
     6144},
    {"pipeline: no barrier before overwriting", pipeline<Fault::kThird>, Result::kProduct, 1,
     kThreads, 6144},
    {"pipeline: output shifted", pipeline<Fault::kFourth>, Result::kProduct, 1, kThreads, 6144},
    {"global read past the end", read_past_end},
    {"global read before the start", read_before_start},
    {"global write past the end", write_past_end},
    {"global read across the end", read_across_end},
    {"global read misaligned", read_misaligned},
    {"global write misaligned", write_misaligned},
    {"write to a constant", write_constant},
    {"constant load of an output", constant_of_output},
    {"shared read outside", shared_read_outside},
    {"shared write outside", shared_write_outside},
    {"shared offset wraps", shared_wraps},
    {"shared read misaligned", shared_misaligned},
    {"matrix outside", matrix_outside},
    {"matrix misaligned", matrix_misaligned},
    {"copy to outside", copy_to_outside},
    {"copy misaligned", copy_misaligned},
    {"copy from outside", copy_from_outside},
    {"shuffles", shuffles, Result::kIndices},
    {"shuffle masks differ", shuffle_masks_differ},
    {"warp diverges", warp_diverges},
    {"lanes end", lanes_end},
    {"warp skips a barrier", warp_skips_barrier},
    {"lane skips a barrier", lane_skips_barrier},
    {"barrier and warp", barrier_and_warp},
    {"bad selector", bad_selector},
    {"kernel throws", throws},
    {"two threads write", two_writers},
    {"two blocks write", two_blocks_write, Result::kAnything, 2},
    {"reads another block's", reads_other_block, Result::kAnything, 2},
    {"writes what another block read", writes_what_another_read, Result::kAnything, 2},
    {"split, all fence", split<Fault::kNone, false>, Result::kIndices, 2},
    {"split, all fence: no release", split<Fault::kFirst, false>, Result::kAnything, 2},
    {"split, all fence: no barrier", split<Fault::kSecond, false>, Result::kAnything, 2},
    {"split, all fence: no acquire", split<Fault::kThird, false>, Result::kAnything, 2},
    {"split, one fences", split<Fault::kNone, true>, Result::kIndices, 2},
    {"split, one fences: no release", split<Fault::kFirst, true>, Result::kAnything, 2},
    {"split, one fences: no barrier", split<Fault::kSecond, true>, Result::kAnything, 2},
    {"split, one fences: no acquire", split<Fault::kThird, true>, Result::kAnything, 2},
    {"earlier kernel", reads_earlier<true>, Result::kIndices},
    {"earlier kernel: one thread does not wait", reads_earlier<false>},
    {"earlier kernel: copy without waiting", copies_earlier},
    {"earlier kernel: as a constant", constant_of_earlier},
    {"order of blocks", note_block, Result::kOrder, 6},
};

// "ok", or what is wrong with what a kernel left behind.
std::string outcome(const Case& test) {
  const auto index = [](std::uint32_t i) { return data.output[i] == i; };
  const auto next = [](std::uint32_t i) { return data.output[i] == i + 1; };
  std::string text = "ok";
  if (test.result == Result::kOrder) {
    for (const int each : blocks_in_order) text += " " + std::to_string(each);
  } else if (test.result == Result::kProduct) {
    if (!std::equal(std::begin(product.c), std::end(product.c), product.expected))
      text = "wrong result";
  } else if (test.result != Result::kAnything) {
    int indices = 0;
    for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(test.threads); ++i) {
      if (index(i)) ++indices;
      if (!index(i) && !(test.result == Result::kEither && next(i))) return "wrong result";
    }
    if (indices < test.threads) text += ", later";
  }
  return text;
}

std::string run(const Case& test, const emulator::Options& options) {
  data.counter = 0;
  for (std::uint32_t i = 0; i < 256; ++i) data.input[i] = data.earlier[i] = i;
  std::fill(std::begin(data.output), std::end(data.output), ~0u);
  std::fill(std::begin(product.c), std::end(product.c), -1.0f);
  blocks_in_order.clear();
  emulator::Memory memory;
  memory.add(data.input, sizeof(data.input), false, "input");
  memory.add(data.earlier, sizeof(data.earlier), false, "earlier", true);
  memory.add(data.output, sizeof(data.output), true, "output");
  memory.add(data.scratch, sizeof(data.scratch), true, "scratch");
  memory.add(&data.counter, sizeof(data.counter), true, "counter");
  memory.add(product.a, sizeof(product.a), false, "a");
  memory.add(product.b, sizeof(product.b), false, "b");
  memory.add(product.c, sizeof(product.c), true, "c");
  try {
    emulator::launch(test.blocks, 1, test.threads, test.shared_bytes, options, memory, test.kernel);
  } catch (const std::exception& error) {
    return error.what();
  }
  return outcome(test);
}

}  // namespace
}  // namespace mmcompile::test_kernels

int main(int count, char** arguments) {
  using namespace mmcompile::test_kernels;
  using mmcompile::emulator::Completion;
  const std::pair<const char*, Completion> policies[] = {
      {"early", Completion::kEarly}, {"late", Completion::kLate}, {"random", Completion::kRandom}};
  for (int i = 1; i < count; ++i) {
    const std::uint64_t seed = std::strtoull(arguments[i], nullptr, 10);
    make_product(seed);
    for (const auto& [policy, completion] : policies)
      for (const Case& test : kCases)
        std::printf("%s\t%s\t%s\t%s\n", arguments[i], policy, test.name,
                    run(test, {seed, completion}).c_str());
  }
}
