// The shared memory of an emulated block, with a race detector.
//
// Two accesses to a byte, one of them a write, need a barrier between them: sync_threads, or
// sync_warp within a warp, unless one thread makes both. Time counts barriers. Every byte remembers
// when it was last written and read, and by whom; who comes later asks whether a barrier that both
// took part in lies in between. That finds a missing barrier whatever order the threads ran in.
//
// An asynchronous copy writes from its issue to the wait for it: until then nobody may touch its
// bytes, not even its thread, and it counts as that thread's write at the time of the wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "access.h"

namespace mmcompile::emulator {

class SharedMemory {
 public:
  // NaN in every format of a byte or more, and no valid index.
  static constexpr unsigned char kPoison = 0xFF;

  // New, poisoned memory for a block.
  void begin_block(std::size_t bytes, int threads);

  void sync_block();
  void sync_warp(int warp);

  // Check an access, record it and hand out its bytes.
  const std::byte* read(const Access& access, std::uint32_t offset, std::uint32_t bytes);
  std::byte* write(const Access& access, std::uint32_t offset, std::uint32_t bytes);

  // The bytes that a copy from begin_copy to end_copy may write.
  std::byte* begin_copy(const Access& access, std::uint32_t offset, std::uint32_t bytes);
  void end_copy(int thread, std::uint32_t offset, std::uint32_t bytes);

 private:
  // A thread, a warp (kWarps + its index) or several warps.
  using Actor = std::uint16_t;
  static constexpr Actor kWarps = 0x4000;
  static constexpr Actor kSeveralWarps = 0x7FFF;
  static constexpr Actor kCopying = 0x8000;  // flag of a writer: a copy of it is under way

  // Where in the source: index into files_, shifted, and the line.
  using Place = std::uint32_t;

  struct Shadow {
    std::uint32_t write_time;
    std::uint32_t read_time;
    Actor writer;
    Actor reader;
    Place write_place;
    Place read_place;
  };

  static bool is_thread(Actor actor) { return actor < kWarps; }
  static int warp_of(Actor actor) { return is_thread(actor) ? actor / 32 : actor - kWarps; }
  static Actor actor_of(const Access& access);

  bool ordered(Actor before, std::uint32_t time, Actor now) const;
  bool same_warp(Actor a, Actor b) const;
  void check_range(const Access& access, std::uint32_t offset, std::uint32_t bytes) const;
  void check_write(const Access& access, Actor actor, std::uint32_t offset, std::uint32_t bytes);
  [[noreturn]] void fail_race(const Access& access, std::uint32_t byte, bool with_write) const;
  Place place_of(const std::source_location& at);
  std::string name(Place place) const;
  static std::string name_of_actor(Actor actor);

  std::size_t bytes_ = 0;
  std::vector<std::byte> data_;
  std::vector<Shadow> shadow_;
  std::uint32_t now_ = 1;
  std::uint32_t block_time_ = 1;          // of the last sync_block
  std::vector<std::uint32_t> warp_time_;  // of the last sync_block or sync_warp
  std::vector<const char*> files_;
};

}  // namespace mmcompile::emulator
