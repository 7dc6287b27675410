// Fibers: functions with stacks of their own that hand the processor to each other by hand.
//
// One fiber per thread of an emulated block. Switching is a handful of instructions on x86-64
// (swapcontext, the fallback elsewhere, makes a system call each time).
#pragma once

#include <cstddef>
#include <memory>

namespace mmcompile::emulator {

// A set of fibers of the calling thread; they and their owner take turns. A fiber that has not
// ended may be dropped by starting it anew or by destroying the set: its stack is not unwound.
class Fibers {
 public:
  using Entry = void (*)(int index);

  Fibers();
  ~Fibers();
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Prepares `count` fibers, all at the start of `entry`, which must not throw.
  void prepare(int count, Entry entry);
  // Runs a fiber until it suspends itself or ends. For the owner.
  void resume(int index);
  // Back to the owner. For the fiber that runs.
  void suspend();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mmcompile::emulator
