#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

// MMCOMPILE_UCONTEXT chooses the fallback where there is a choice, for the tests.
#if !defined(__x86_64__) && !defined(MMCOMPILE_UCONTEXT)
#define MMCOMPILE_UCONTEXT
#endif
#if defined(MMCOMPILE_UCONTEXT)
#include <ucontext.h>
#endif

namespace mmcompile::emulator {
namespace {

// Room for an unoptimized kernel and, where it fails, for the unwinder. Pages that are never
// touched cost nothing.
constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 4096;
// Stacks that all start at the same place of a page would share the same few cache sets.
constexpr std::size_t kColourBytes = 192;
constexpr std::size_t kColours = 64;

class Stacks {
 public:
  Stacks() = default;
  ~Stacks() { release(); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  void reserve(int count) {
    if (count <= count_) return;
    release();
    const std::size_t bytes = static_cast<std::size_t>(count) * (kStackBytes + kGuardBytes);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    count_ = count;
    for (int i = 0; i < count; ++i) mprotect(bottom(i) - kGuardBytes, kGuardBytes, PROT_NONE);
  }

  char* bottom(int index) const {
    return memory_ + static_cast<std::size_t>(index) * (kStackBytes + kGuardBytes) + kGuardBytes;
  }

  static constexpr std::size_t usable(int index) {
    return kStackBytes - static_cast<std::size_t>(index) % kColours * kColourBytes;
  }

 private:
  void release() {
    if (memory_ != nullptr)
      munmap(memory_, static_cast<std::size_t>(count_) * (kStackBytes + kGuardBytes));
    memory_ = nullptr;
    count_ = 0;
  }

  char* memory_ = nullptr;
  int count_ = 0;
};

}  // namespace

#if !defined(MMCOMPILE_UCONTEXT)

namespace {

// Saves the registers that a call must preserve on this stack and its top in *from; continues
// where the stack `to` was left the same way.
[[gnu::naked]] void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

// Where a new stack "returns" to: calls r12(r13).
[[gnu::naked]] void begin_fiber() {
  asm volatile("movq %r13, %rdi\n\tcallq *%r12\n\tud2");
}

}  // namespace

struct Fibers::State {
  Stacks stacks;
  std::vector<void*> tops;
  Entry entry = nullptr;
  void* owner = nullptr;
  int running = 0;

  static void run(State* state) {
    state->entry(state->running);
    for (;;) switch_stack(&state->tops[static_cast<std::size_t>(state->running)], state->owner);
  }
};

void Fibers::prepare(int count, Entry entry) {
  State& state = *state_;
  state.stacks.reserve(count);
  state.tops.resize(static_cast<std::size_t>(count));
  state.entry = entry;
  for (int i = 0; i < count; ++i) {
    // At the call in begin_fiber the ABI wants a multiple of 16, hence two words of padding.
    const auto end = reinterpret_cast<std::uintptr_t>(state.stacks.bottom(i) + Stacks::usable(i));
    auto* top = reinterpret_cast<void**>(end & ~std::uintptr_t{15});
    *--top = nullptr;
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&begin_fiber);
    *--top = nullptr;                               // rbp
    *--top = nullptr;                               // rbx
    *--top = reinterpret_cast<void*>(&State::run);  // r12
    *--top = &state;                                // r13
    *--top = nullptr;                               // r14
    *--top = nullptr;                               // r15
    state.tops[static_cast<std::size_t>(i)] = top;
  }
}

void Fibers::resume(int index) {
  State& state = *state_;
  state.running = index;
  switch_stack(&state.owner, state.tops[static_cast<std::size_t>(index)]);
}

void Fibers::suspend() {
  State& state = *state_;
  switch_stack(&state.tops[static_cast<std::size_t>(state.running)], state.owner);
}

#else

struct Fibers::State {
  Stacks stacks;
  std::vector<ucontext_t> contexts;
  Entry entry = nullptr;
  ucontext_t owner{};
  int running = 0;
  static thread_local State* starting;

  static void run() {
    State* state = starting;
    state->entry(state->running);
    for (;;) swapcontext(&state->contexts[static_cast<std::size_t>(state->running)], &state->owner);
  }
};
thread_local Fibers::State* Fibers::State::starting = nullptr;

void Fibers::prepare(int count, Entry entry) {
  State& state = *state_;
  state.stacks.reserve(count);
  state.contexts.resize(static_cast<std::size_t>(count));
  state.entry = entry;
  for (int i = 0; i < count; ++i) {
    ucontext_t& context = state.contexts[static_cast<std::size_t>(i)];
    getcontext(&context);
    context.uc_stack.ss_sp = state.stacks.bottom(i);
    context.uc_stack.ss_size = Stacks::usable(i);
    context.uc_link = nullptr;
    makecontext(&context, &State::run, 0);
  }
}

void Fibers::resume(int index) {
  State& state = *state_;
  state.running = index;
  State::starting = &state;
  swapcontext(&state.owner, &state.contexts[static_cast<std::size_t>(index)]);
}

void Fibers::suspend() {
  State& state = *state_;
  swapcontext(&state.contexts[static_cast<std::size_t>(state.running)], &state.owner);
}

#endif

Fibers::Fibers() : state_(std::make_unique<State>()) {}
Fibers::~Fibers() = default;

}  // namespace mmcompile::emulator
