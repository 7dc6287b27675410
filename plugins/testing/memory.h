// The global memory that an emulated kernel may touch: buffers that its launcher names, and a race
// detector for those that the kernel writes.
//
// No byte is written by two threads of a launch. A thread may read what another wrote, or write
// what another read, after a barrier of their block; across blocks only the former, and that takes
// a release (the writer fences, then somebody counts up a counter; where these are two threads, a
// barrier lies between) and an acquire (the reader's block counts up, then the reader fences, with
// barriers likewise). Blocks run one after another, so what is not ordered by these is found out by
// its bookkeeping alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "access.h"

namespace mmcompile::emulator {

class Memory {
 public:
  // Nothing is copied. Buffers must not overlap; one that is the same as an earlier one (an
  // operand updated in place) adds its name and its rights. Empty ones are ignored. `prerequisite`:
  // the kernel before this one writes it, until wait_for_prerequisites returns.
  void add(const void* pointer, std::size_t bytes, bool writable, std::string name,
           bool prerequisite = false);

  // --- for the emulator ---

  void begin_launch(int blocks, int threads);
  void begin_block(int block);
  void sync_block();
  void fence(int thread);

  // Check and record accesses. `waited`: wait_for_prerequisites has returned in that thread.
  void read(const Access& access, const void* pointer, std::size_t bytes, bool waited);
  void read_constant(const Access& access, const void* pointer, std::size_t bytes);
  void write(const Access& access, const void* pointer, std::size_t bytes, bool waited);
  void increment(const Access& access, const void* pointer, std::size_t bytes, bool waited);

 private:
  // A thread of the grid, plus one; all threads of a block (the flag and its index); or nobody.
  using Actor = std::uint32_t;
  static constexpr Actor kBlock = 0x80000000u;
  static constexpr Actor kSeveralBlocks = 0xFFFFFFFFu;

  struct Shadow {
    Actor writer;
    std::uint32_t write_time;
    Actor reader;
    std::uint32_t read_time;
  };
  struct Buffer {
    std::uintptr_t begin;
    std::uintptr_t end;
    bool writable;
    bool prerequisite;
    std::string name;
    std::vector<Shadow> shadow;  // per byte, from the first write on
  };
  // Times of the running block's threads.
  struct Order {
    std::uint32_t fence;                 // its last fence
    std::uint32_t barrier_before_fence;  // the block's last barrier before that
    std::uint32_t fence_before_barrier;  // its last fence before the block's last barrier
    bool incremented;
    bool acquired;
  };

  Buffer& find(const Access& access, const void* pointer, std::size_t bytes, std::size_t alignment);
  Buffer& find_writable(const Access& access, const void* pointer, std::size_t bytes, bool waited);
  void check_prerequisite(const Access& access, const Buffer& buffer, bool waited) const;
  void check_read_of(const Access& access, const Buffer& buffer, std::size_t byte) const;
  void check_write_after_read(const Access& access, const Buffer& buffer, std::size_t byte) const;
  Actor actor(int thread) const { return static_cast<Actor>(block_ * threads_ + thread) + 1; }
  int block_of(Actor who) const;
  std::string name_of(Actor who) const;
  Order& order(int thread) { return order_[static_cast<std::size_t>(thread)]; }

  std::vector<Buffer> buffers_;
  std::size_t latest_ = 0;
  int threads_ = 0;
  int block_ = 0;
  std::uint32_t now_ = 0;
  std::uint32_t barrier_ = 0;  // time of the block's last one
  bool incremented_ = false;   // by some thread of the block
  bool incremented_before_barrier_ = false;
  bool acquired_ = false;
  bool acquired_before_barrier_ = false;
  std::vector<Order> order_;
  std::vector<std::uint32_t> released_;  // per thread of the grid: its writes before that time
};

}  // namespace mmcompile::emulator
