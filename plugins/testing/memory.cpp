#include "memory.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace mmcompile::emulator {
namespace {

std::string bytes_text(std::size_t bytes) {
  return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

}  // namespace

void Memory::add(const void* pointer, std::size_t bytes, bool writable, std::string name,
                 bool prerequisite) {
  if (bytes == 0) return;
  if (pointer == nullptr) throw std::invalid_argument("buffer '" + name + "' is null");
  const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
  const std::uintptr_t end = begin + bytes;
  for (Buffer& buffer : buffers_) {
    if (begin == buffer.begin && end == buffer.end) {
      buffer.name += "/" + name;
      buffer.writable |= writable;
      buffer.prerequisite |= prerequisite;
      return;
    }
    if (begin < buffer.end && buffer.begin < end)
      throw std::invalid_argument("buffers '" + buffer.name + "' and '" + name + "' overlap");
  }
  buffers_.push_back({begin, end, writable, prerequisite, std::move(name), {}});
}

void Memory::begin_launch(int blocks, int threads) {
  for (Buffer& buffer : buffers_) buffer.shadow.clear();
  threads_ = threads;
  released_.assign(static_cast<std::size_t>(blocks) * static_cast<std::size_t>(threads), 0);
  now_ = 0;
}

void Memory::begin_block(int block) {
  block_ = block;
  barrier_ = ++now_;
  incremented_ = incremented_before_barrier_ = acquired_ = acquired_before_barrier_ = false;
  order_.assign(static_cast<std::size_t>(threads_), Order{});
}

void Memory::sync_block() {
  barrier_ = ++now_;
  incremented_before_barrier_ = incremented_;
  acquired_before_barrier_ = acquired_;
  for (Order& each : order_) each.fence_before_barrier = each.fence;
}

void Memory::fence(int thread) {
  Order& mine = order(thread);
  mine.fence = ++now_;
  mine.barrier_before_fence = barrier_;
  if (mine.incremented || incremented_before_barrier_) mine.acquired = acquired_ = true;
}

void Memory::increment(const Access& access, const void* pointer, std::size_t bytes, bool waited) {
  const Buffer& buffer = find_writable(access, pointer, bytes, waited);
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(pointer) - buffer.begin;
  for (std::size_t byte = offset; byte < offset + bytes && !buffer.shadow.empty(); ++byte)
    check_read_of(access, buffer, byte);
  Order& mine = order(access.thread);
  mine.incremented = incremented_ = true;
  for (int thread = 0; thread < threads_; ++thread) {
    std::uint32_t& released = released_[actor(thread) - 1];
    released = std::max({released, order(thread).fence_before_barrier, mine.barrier_before_fence});
  }
  std::uint32_t& released = released_[actor(access.thread) - 1];
  released = std::max(released, mine.fence);
}

Memory::Buffer& Memory::find(const Access& access, const void* pointer, std::size_t bytes,
                             std::size_t alignment) {
  const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
  const auto holds = [begin](const Buffer& buffer) {
    return begin >= buffer.begin && begin < buffer.end;
  };
  if (latest_ >= buffers_.size() || !holds(buffers_[latest_])) {
    latest_ = 0;
    while (latest_ < buffers_.size() && !holds(buffers_[latest_])) ++latest_;
  }
  if (latest_ == buffers_.size()) {
    // The nearest buffer is most likely the one that was meant.
    std::string nearest = "; there are none";
    std::uintptr_t distance = UINTPTR_MAX;
    for (const Buffer& buffer : buffers_) {
      const bool before = begin < buffer.begin;
      const std::uintptr_t gap = before ? buffer.begin - begin : begin - buffer.end;
      if (gap >= distance) continue;
      distance = gap;
      nearest = ": " + bytes_text(gap) + (before ? " before '" : " past the end of '") +
                buffer.name + "' of " + bytes_text(buffer.end - buffer.begin);
    }
    fail(access, bytes_text(bytes) + " outside of every buffer" + nearest);
  }
  Buffer& buffer = buffers_[latest_];
  const std::uintptr_t offset = begin - buffer.begin;
  if (bytes > buffer.end - begin)
    fail(access, bytes_text(bytes) + " at offset " + std::to_string(offset) + " of '" +
                     buffer.name + "' reach past its " + bytes_text(buffer.end - buffer.begin));
  if (begin % alignment != 0)
    fail(access, "offset " + std::to_string(offset) + " of '" + buffer.name +
                     "' is misaligned for " + bytes_text(alignment));
  return buffer;
}

Memory::Buffer& Memory::find_writable(const Access& access, const void* pointer, std::size_t bytes,
                                      bool waited) {
  Buffer& buffer = find(access, pointer, bytes, bytes);
  if (!buffer.writable)
    fail(access, "write to '" + buffer.name + "', which is read-only, at offset " +
                     std::to_string(reinterpret_cast<std::uintptr_t>(pointer) - buffer.begin));
  check_prerequisite(access, buffer, waited);
  return buffer;
}

void Memory::check_prerequisite(const Access& access, const Buffer& buffer, bool waited) const {
  if (buffer.prerequisite && !waited)
    fail(access, "'" + buffer.name +
                     "' belongs to the kernel before this one, and this thread has not called "
                     "wait_for_prerequisites");
}

void Memory::read(const Access& access, const void* pointer, std::size_t bytes, bool waited) {
  Buffer& buffer = find(access, pointer, bytes, bytes);
  check_prerequisite(access, buffer, waited);
  if (!buffer.writable) return;
  // Reads count from the first one on: a later write may be of another block.
  if (buffer.shadow.empty()) buffer.shadow.resize(buffer.end - buffer.begin);
  const Actor me = actor(access.thread);
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(pointer) - buffer.begin;
  for (std::size_t byte = offset; byte < offset + bytes; ++byte) {
    check_read_of(access, buffer, byte);
    Shadow& shadow = buffer.shadow[byte];
    if (shadow.reader == 0)
      shadow.reader = me;
    else if (shadow.reader != me)
      shadow.reader =
          block_of(shadow.reader) == block_ ? kBlock | static_cast<Actor>(block_) : kSeveralBlocks;
    shadow.read_time = now_;
  }
}

void Memory::read_constant(const Access& access, const void* pointer, std::size_t bytes) {
  const Buffer& buffer = find(access, pointer, bytes, bytes);
  // Compilers may move a load of a constant over a wait, and its cache is not kept coherent.
  if (buffer.writable || buffer.prerequisite)
    fail(access, "'" + buffer.name + "' is written while this kernel runs, it is no constant");
}

void Memory::write(const Access& access, const void* pointer, std::size_t bytes, bool waited) {
  Buffer& buffer = find_writable(access, pointer, bytes, waited);
  if (buffer.shadow.empty()) buffer.shadow.resize(buffer.end - buffer.begin);
  const Actor me = actor(access.thread);
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(pointer) - buffer.begin;
  for (std::size_t byte = offset; byte < offset + bytes; ++byte) {
    Shadow& shadow = buffer.shadow[byte];
    if (shadow.writer != 0 && shadow.writer != me)
      fail(access, "byte " + std::to_string(byte) + " of '" + buffer.name +
                       "' was written before, by " + name_of(shadow.writer));
    check_write_after_read(access, buffer, byte);
    shadow.writer = me;
    shadow.write_time = now_;
  }
}

void Memory::check_read_of(const Access& access, const Buffer& buffer, std::size_t byte) const {
  const Shadow& shadow = buffer.shadow[byte];
  if (shadow.writer == 0 || shadow.writer == actor(access.thread)) return;
  const auto text = [&](const char* why) {
    return "race: byte " + std::to_string(byte) + " of '" + buffer.name + "' was written by " +
           name_of(shadow.writer) + ", " + why;
  };
  if (block_of(shadow.writer) == block_) {
    if (shadow.write_time >= barrier_) fail(access, text("with no barrier since"));
    return;
  }
  if (shadow.write_time >= released_[shadow.writer - 1])
    fail(access, text("which has not released it: a fence, then a counter"));
  if (!acquired_before_barrier_ && !order_[static_cast<std::size_t>(access.thread)].acquired)
    fail(access, text("and this block has not acquired it: a counter, then a fence"));
}

void Memory::check_write_after_read(const Access& access, const Buffer& buffer,
                                    std::size_t byte) const {
  const Shadow& shadow = buffer.shadow[byte];
  if (shadow.reader == 0 || shadow.reader == actor(access.thread)) return;
  if (block_of(shadow.reader) == block_ && shadow.read_time < barrier_) return;
  fail(access, "race: byte " + std::to_string(byte) + " of '" + buffer.name + "' was read by " +
                   name_of(shadow.reader) + ", with no barrier since");
}

int Memory::block_of(Actor who) const {
  if (who == kSeveralBlocks) return -1;
  if ((who & kBlock) != 0) return static_cast<int>(who & ~kBlock);
  return static_cast<int>(who - 1) / threads_;
}

std::string Memory::name_of(Actor who) const {
  if (who == kSeveralBlocks) return "several blocks";
  const std::string block = "block number " + std::to_string(block_of(who));
  if ((who & kBlock) != 0) return "threads of " + block;
  return name_of_thread(static_cast<int>(who - 1) % threads_) + " of " + block;
}

}  // namespace mmcompile::emulator
