#include "emulator.h"

#include <algorithm>
#include <bit>
#include <exception>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace mmcompile::emulator {

thread_local const Identity* running = nullptr;

namespace {

constexpr std::uint32_t kAllLanes = 0xFFFFFFFFu;

// splitmix64 (Steele, Lea, Flood 2014): any seed will do, and equal ones give equal runs
// everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint32_t below(std::uint32_t bound) {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<std::uint32_t>(((z ^ (z >> 31)) >> 32) * bound >> 32);
  }

 private:
  std::uint64_t state_;
};

struct Copy {
  std::uint32_t destination;
  std::uint32_t bytes;
  std::byte* target;
  const void* source;  // where it reads at the wait, or null
  std::byte data[16];  // otherwise, what it read
  bool landed;
};

// What a thread has copied: groups in the order of their commits, the open one last.
struct Copies {
  std::vector<Copy> queue;
  std::size_t first = 0;          // of those under way
  std::vector<std::size_t> ends;  // of the committed groups
  std::size_t first_end = 0;

  void clear() {
    queue.clear();
    ends.clear();
    first = first_end = 0;
  }
};

struct Thread {
  bool prerequisites_ended = false;
  Copies copies;
};

struct Warp {
  // Each lane is in one of four states; those in none of these masks wait for the warp.
  std::uint32_t runnable;
  std::uint32_t at_barrier;
  std::uint32_t ended;
  std::uint32_t arrived;  // at `operation`
  WarpOperation operation;
  void* operands[kLanes];
  At where[kLanes];
};

// The block that runs, and what is kept between blocks for reuse.
class Block {
 public:
  void run(const Identity& identity, int threads, std::size_t shared_bytes, Completion completion,
           Random& random, Memory& memory, const std::function<void()>& kernel);

  Access access(const char* operation, const At& at) const {
    return {operation, at, identity_.thread};
  }
  Thread& thread() { return threads_[static_cast<std::size_t>(identity_.thread)]; }

  void synchronize_block(const At& at);
  void synchronize_warp(const WarpOperation& operation, void* operands, const At& at);
  void begin_copy(std::uint32_t destination, const void* source, std::uint32_t bytes, bool valid,
                  const At& at);
  void wait_for_copies(std::size_t pending);

  SharedMemory shared;
  Memory* memory = nullptr;

 private:
  static void thread_main(int index);
  void schedule();
  void run_lanes(int warp);
  [[noreturn]] void fail_deadlock() const;
  Warp& warp_of(int thread) { return warps_[static_cast<std::size_t>(thread / kLanes)]; }

  Fibers fibers_;
  Identity identity_{};
  int thread_count_ = 0;
  int ended_ = 0;
  int at_barrier_ = 0;
  Completion completion_ = Completion::kRandom;
  Random* random_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
};

thread_local Block* block = nullptr;

void Block::run(const Identity& identity, int threads, std::size_t shared_bytes,
                Completion completion, Random& random, Memory& global,
                const std::function<void()>& kernel) {
  identity_ = identity;
  thread_count_ = threads;
  ended_ = at_barrier_ = 0;
  completion_ = completion;
  random_ = &random;
  memory = &global;
  kernel_ = &kernel;
  error_ = nullptr;
  threads_.resize(static_cast<std::size_t>(threads));
  for (Thread& state : threads_) {
    state.prerequisites_ended = false;
    state.copies.clear();
  }
  warps_.assign(static_cast<std::size_t>(threads / kLanes), Warp{kAllLanes, 0, 0, 0, {}, {}, {}});
  shared.begin_block(shared_bytes, threads);
  memory->begin_block(identity.block_y * identity.grid_x + identity.block_x);
  fibers_.prepare(threads, &Block::thread_main);
  running = &identity_;
  try {
    schedule();
  } catch (const KernelError& error) {
    running = nullptr;
    throw KernelError("block (" + std::to_string(identity.block_x) + ", " +
                      std::to_string(identity.block_y) + "): " + error.what());
  } catch (...) {
    running = nullptr;
    throw;
  }
  running = nullptr;
}

void Block::thread_main(int index) {
  try {
    (*block->kernel_)();
  } catch (...) {
    block->error_ = std::current_exception();
  }
  Warp& warp = block->warp_of(index);
  const std::uint32_t lane = 1u << (index % kLanes);
  warp.runnable &= ~lane;
  warp.ended |= lane;
  ++block->ended_;
}

void Block::schedule() {
  std::vector<int> ready;
  while (ended_ < thread_count_) {
    ready.clear();
    for (std::size_t i = 0; i < warps_.size(); ++i)
      if (warps_[i].runnable != 0) ready.push_back(static_cast<int>(i));
    if (ready.empty()) fail_deadlock();
    run_lanes(ready[random_->below(static_cast<std::uint32_t>(ready.size()))]);
  }
}

// Runs each lane that can until it waits.
void Block::run_lanes(int warp) {
  const std::uint32_t first = random_->below(kLanes);
  const std::uint32_t step = 2 * random_->below(kLanes / 2) + 1;  // odd: visits all
  for (std::uint32_t i = 0; i < kLanes; ++i) {
    const std::uint32_t lane = (first + i * step) % kLanes;
    if ((warps_[static_cast<std::size_t>(warp)].runnable >> lane & 1u) == 0) continue;
    identity_.thread = warp * kLanes + static_cast<int>(lane);
    fibers_.resume(identity_.thread);
    if (error_) std::rethrow_exception(error_);
  }
}

void Block::synchronize_block(const At& at) {
  const int index = identity_.thread;
  Warp& warp = warp_of(index);
  const std::uint32_t lane = 1u << (index % kLanes);
  warp.where[index % kLanes] = at;
  if (++at_barrier_ == thread_count_) {
    at_barrier_ = 0;
    shared.sync_block();
    memory->sync_block();
    for (Warp& each : warps_) {
      each.at_barrier = 0;
      each.runnable = kAllLanes;
    }
    return;
  }
  warp.runnable &= ~lane;
  warp.at_barrier |= lane;
  fibers_.suspend();
}

void Block::synchronize_warp(const WarpOperation& operation, void* operands, const At& at) {
  const int index = identity_.thread;
  Warp& warp = warp_of(index);
  const int lane = index % kLanes;
  if (warp.arrived == 0) {
    warp.operation = operation;
  } else if (warp.operation.execute != operation.execute) {
    const int other = std::countr_zero(warp.arrived);
    const At& there = warp.where[other];
    fail(access(operation.name, at), "its warp diverges: lane " + std::to_string(other) +
                                         " is at " + warp.operation.name + " (" +
                                         name_of_place(there.file_name(), there.line()) + ")");
  }
  warp.operands[lane] = operands;
  warp.where[lane] = at;
  warp.arrived |= 1u << lane;
  if (warp.arrived == kAllLanes) {
    warp.arrived = 0;
    warp.runnable = kAllLanes;
    operation.execute(index / kLanes, warp.operands, at);
    return;
  }
  warp.runnable &= ~(1u << lane);
  fibers_.suspend();
}

std::string lanes_text(std::uint32_t lanes) {
  if (lanes == kAllLanes) return "all lanes";
  std::string text = std::popcount(lanes) == 1 ? "lane" : "lanes";
  for (int first = 0; first < kLanes; ++first) {
    if ((lanes >> first & 1u) == 0) continue;
    int last = first;
    while (last + 1 < kLanes && (lanes >> (last + 1) & 1u) != 0) ++last;
    text += (text.back() == 's' || text.back() == 'e' ? " " : ", ") + std::to_string(first);
    if (last > first) text += "-" + std::to_string(last);
    first = last;
  }
  return text;
}

void Block::fail_deadlock() const {
  std::string text = "deadlock";
  const char* separator = ": ";
  for (std::size_t i = 0; i < warps_.size(); ++i) {
    const Warp& warp = warps_[i];
    const auto add = [&](std::uint32_t lanes, const std::string& what, bool place) {
      if (lanes == 0) return;
      text += separator + ("warp " + std::to_string(i)) + ", " + lanes_text(lanes) + " " + what;
      separator = "; ";
      if (!place) return;
      const At& at = warp.where[std::countr_zero(lanes)];
      text += " at " + name_of_place(at.file_name(), at.line());
    };
    if (warp.arrived != 0) add(warp.arrived, std::string("wait in ") + warp.operation.name, true);
    add(warp.at_barrier, "wait in sync_threads", true);
    add(warp.ended, "ended", false);
  }
  throw KernelError(text);
}

void Block::begin_copy(std::uint32_t destination, const void* source, std::uint32_t bytes,
                       bool valid, const At& at) {
  const Access who = access("copy_async", at);
  if (valid) memory->read(who, source, bytes, thread().prerequisites_ended);
  Copy copy{destination, bytes, shared.begin_copy(who, destination, bytes), nullptr, {}, false};
  copy.landed = completion_ == Completion::kEarly ||
                (completion_ == Completion::kRandom && random_->below(2) == 0);
  if (valid && !copy.landed && random_->below(2) == 0)
    copy.source = source;
  else if (valid)
    std::memcpy(copy.data, source, bytes);
  if (copy.landed) std::memcpy(copy.target, copy.data, bytes);
  thread().copies.queue.push_back(copy);
}

void Block::wait_for_copies(std::size_t pending) {
  Copies& copies = thread().copies;
  while (copies.ends.size() - copies.first_end > pending) {
    for (const std::size_t end = copies.ends[copies.first_end++]; copies.first < end;
         ++copies.first) {
      const Copy& copy = copies.queue[copies.first];
      if (!copy.landed)
        std::memcpy(copy.target, copy.source != nullptr ? copy.source : copy.data, copy.bytes);
      shared.end_copy(identity_.thread, copy.destination, copy.bytes);
    }
  }
  if (copies.first == copies.queue.size() && copies.first_end == copies.ends.size()) copies.clear();
}

}  // namespace

void launch(int grid_x, int grid_y, int threads, std::size_t shared_bytes, const Options& options,
            Memory& memory, const std::function<void()>& kernel) {
  if (grid_x < 1 || grid_y < 1)
    throw KernelError("a grid of " + std::to_string(grid_x) + "x" + std::to_string(grid_y) +
                      " blocks");
  if (threads < kLanes || threads > 1024 || threads % kLanes != 0)
    throw KernelError("blocks of " + std::to_string(threads) + " threads");
  if (running != nullptr) throw KernelError("a kernel can't launch another");
  static thread_local Block reused;
  block = &reused;
  Random random(options.seed);
  memory.begin_launch(grid_x * grid_y, threads);
  std::vector<int> order(static_cast<std::size_t>(grid_x) * static_cast<std::size_t>(grid_y));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
  for (const int index : order)
    reused.run({0, index % grid_x, index / grid_x, grid_x, grid_y}, threads, shared_bytes,
               options.copies, random, memory, kernel);
}

void synchronize_block(const At& at) {
  block->synchronize_block(at);
}

void synchronize_warp(const WarpOperation& operation, void* operands, const At& at) {
  block->synchronize_warp(operation, operands, at);
}

const void* check_shared_read(const char* operation, std::uint32_t offset, std::uint32_t bytes,
                              const At& at) {
  return block->shared.read(block->access(operation, at), offset, bytes);
}

void* check_shared_write(const char* operation, std::uint32_t offset, std::uint32_t bytes,
                         const At& at) {
  return block->shared.write(block->access(operation, at), offset, bytes);
}

void check_global_read(const char* operation, const void* pointer, std::uint32_t bytes,
                       const At& at) {
  block->memory->read(block->access(operation, at), pointer, bytes,
                      block->thread().prerequisites_ended);
}

void check_constant_read(const char* operation, const void* pointer, std::uint32_t bytes,
                         const At& at) {
  block->memory->read_constant(block->access(operation, at), pointer, bytes);
}

void check_global_write(const char* operation, void* pointer, std::uint32_t bytes, const At& at) {
  block->memory->write(block->access(operation, at), pointer, bytes,
                       block->thread().prerequisites_ended);
}

std::uint32_t increment(std::uint32_t* counter, const At& at) {
  block->memory->increment(block->access("increment_global", at), counter, sizeof(*counter),
                           block->thread().prerequisites_ended);
  return (*counter)++;
}

void fence() {
  block->memory->fence(running->thread);
}

void begin_copy(std::uint32_t destination, const void* source, std::uint32_t bytes, bool valid,
                const At& at) {
  block->begin_copy(destination, source, bytes, valid, at);
}

void commit_copies() {
  Copies& copies = block->thread().copies;
  copies.ends.push_back(copies.queue.size());
}

void wait_for_copies(int pending) {
  block->wait_for_copies(static_cast<std::size_t>(pending));
}

void wait_for_kernels() {
  block->thread().prerequisites_ended = true;
}

void fail_here(const char* operation, const char* what, const At& at) {
  fail(block->access(operation, at), what);
}

void sync_warp_operation(int warp, void* const (&)[kLanes], const At&) {
  block->shared.sync_warp(warp);
}

namespace {

template <int count>
void load_matrix_rows(const char* name, int warp, void* const (&operands)[kLanes], const At& at) {
  for (int matrix = 0; matrix < count; ++matrix)
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * matrix + row;
      const Access access{name, at, warp * kLanes + lane, true};
      const std::uint32_t offset = static_cast<MatrixOperands*>(operands[lane])->row;
      const std::byte* bytes = block->shared.read(access, offset, 16);
      for (int quad = 0; quad < 4; ++quad)
        std::memcpy(&static_cast<MatrixOperands*>(operands[4 * row + quad])->words[matrix],
                    bytes + 4 * quad, 4);
    }
}

// Rounds to nearest even at bit `shift`; the carry may run into the exponent, as it should.
std::uint32_t round_bits(std::uint32_t bits, int shift) {
  const std::uint32_t odd = bits >> shift & 1u;
  return (bits + (1u << (shift - 1)) - 1 + odd) >> shift;
}

}  // namespace

void load_matrices_operation(int warp, void* const (&operands)[kLanes], const At& at) {
  load_matrix_rows<4>("load_matrices", warp, operands, at);
}

void load_matrices_2_operation(int warp, void* const (&operands)[kLanes], const At& at) {
  load_matrix_rows<2>("load_matrices_2", warp, operands, at);
}

std::uint16_t round_to_half(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t sign = bits >> 31 << 15;
  const std::uint32_t magnitude = bits & kMagnitudeBits;
  if (magnitude > kExponentField) return kNarrowNan;
  // From 65520, half a step above the largest half, everything is infinite.
  if (magnitude >= float_bits(65520.0f)) return static_cast<std::uint16_t>(sign | 0x7C00u);
  // Below 2^-14 the step is 2^-24, which is the last place of fp32 from 0.5 on.
  if (magnitude < power_bits(-14))
    return static_cast<std::uint16_t>(
        sign | (float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f)));
  return static_cast<std::uint16_t>(sign | round_bits(magnitude - power_bits(-15), 13));
}

std::uint16_t round_to_bfloat16(float value) {
  const std::uint32_t bits = float_bits(value);
  if ((bits & kMagnitudeBits) > kExponentField) return kNarrowNan;
  return static_cast<std::uint16_t>(round_bits(bits, 16));
}

}  // namespace mmcompile::emulator
