#include "shared_memory.h"

#include <algorithm>
#include <string>

namespace mmcompile::emulator {

void SharedMemory::begin_block(std::size_t bytes, int threads) {
  if (now_ > 0xF0000000u) {  // long before the clock runs over, forget everything
    shadow_.clear();
    now_ = 1;
  }
  bytes_ = bytes;
  data_.assign(bytes, std::byte{kPoison});
  if (shadow_.size() < bytes) shadow_.resize(bytes, Shadow{});
  warp_time_.resize(static_cast<std::size_t>(threads + 31) / 32);
  // What earlier blocks did lies before a barrier. Time starts at 1, thus nothing was at 0.
  sync_block();
  for (Shadow& shadow : shadow_) shadow.writer &= static_cast<Actor>(~kCopying);
}

void SharedMemory::sync_block() {
  block_time_ = ++now_;
  std::fill(warp_time_.begin(), warp_time_.end(), now_);
}

void SharedMemory::sync_warp(int warp) {
  warp_time_[static_cast<std::size_t>(warp)] = ++now_;
}

const std::byte* SharedMemory::read(const Access& access, std::uint32_t offset,
                                    std::uint32_t bytes) {
  check_range(access, offset, bytes);
  const Actor actor = actor_of(access);
  const Place place = place_of(access.at);
  for (std::uint32_t byte = offset; byte < offset + bytes; ++byte) {
    Shadow& shadow = shadow_[byte];
    if (!ordered(shadow.writer, shadow.write_time, actor)) fail_race(access, byte, true);
    if (ordered(shadow.reader, shadow.read_time, actor))
      shadow.reader = actor;
    else
      shadow.reader = same_warp(shadow.reader, actor) ? static_cast<Actor>(kWarps + warp_of(actor))
                                                      : kSeveralWarps;
    shadow.read_time = now_;
    shadow.read_place = place;
  }
  return data_.data() + offset;
}

std::byte* SharedMemory::write(const Access& access, std::uint32_t offset, std::uint32_t bytes) {
  check_range(access, offset, bytes);
  check_write(access, actor_of(access), offset, bytes);
  return data_.data() + offset;
}

std::byte* SharedMemory::begin_copy(const Access& access, std::uint32_t offset,
                                    std::uint32_t bytes) {
  check_range(access, offset, bytes);
  check_write(access, static_cast<Actor>(actor_of(access) | kCopying), offset, bytes);
  return data_.data() + offset;
}

void SharedMemory::end_copy(int thread, std::uint32_t offset, std::uint32_t bytes) {
  for (std::uint32_t byte = offset; byte < offset + bytes; ++byte) {
    shadow_[byte].writer = static_cast<Actor>(thread);
    shadow_[byte].write_time = now_;
  }
}

SharedMemory::Actor SharedMemory::actor_of(const Access& access) {
  return static_cast<Actor>(access.warp_wide ? kWarps + access.thread / 32 : access.thread);
}

// Whether a barrier, or the order of one thread, lies between an access by `before` and one now.
bool SharedMemory::ordered(Actor before, std::uint32_t time, Actor now) const {
  if ((before & kCopying) != 0) return false;
  if (time < block_time_) return true;
  if (!same_warp(before, now)) return false;
  if (time < warp_time_[static_cast<std::size_t>(warp_of(now))]) return true;
  return before == now && is_thread(now);
}

bool SharedMemory::same_warp(Actor a, Actor b) const {
  return a != kSeveralWarps && b != kSeveralWarps && warp_of(a) == warp_of(b);
}

void SharedMemory::check_range(const Access& access, std::uint32_t offset,
                               std::uint32_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset)
    fail(access, std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                     " are outside of the block's " + std::to_string(bytes_) +
                     " bytes of shared memory");
  if (offset % bytes != 0)
    fail(access, "offset " + std::to_string(offset) + " of shared memory is misaligned for " +
                     std::to_string(bytes) + " bytes");
}

void SharedMemory::check_write(const Access& access, Actor actor, std::uint32_t offset,
                               std::uint32_t bytes) {
  const Actor who = static_cast<Actor>(actor & ~kCopying);
  const Place place = place_of(access.at);
  for (std::uint32_t byte = offset; byte < offset + bytes; ++byte) {
    Shadow& shadow = shadow_[byte];
    if (!ordered(shadow.writer, shadow.write_time, who)) fail_race(access, byte, true);
    // Several lanes read a byte as one warp; a lane of it is not ordered after the others.
    if (!ordered(shadow.reader, shadow.read_time, who)) fail_race(access, byte, false);
    shadow.writer = actor;
    shadow.write_time = now_;
    shadow.write_place = place;
  }
}

void SharedMemory::fail_race(const Access& access, std::uint32_t byte, bool with_write) const {
  const Shadow& shadow = shadow_[byte];
  const std::string where = "byte " + std::to_string(byte) + " of shared memory";
  if ((shadow.writer & kCopying) != 0 && with_write)
    fail(access, where + " is being written by an asynchronous copy of " +
                     name_of_actor(static_cast<Actor>(shadow.writer & ~kCopying)) + " (" +
                     name(shadow.write_place) + ") that has not been waited for");
  const Actor other = with_write ? shadow.writer : shadow.reader;
  fail(access, "race: no barrier since " + name_of_actor(other) + " " +
                   (with_write ? "wrote " : "read ") + where + " (" +
                   name(with_write ? shadow.write_place : shadow.read_place) + ")");
}

SharedMemory::Place SharedMemory::place_of(const std::source_location& at) {
  const char* file = at.file_name();
  std::size_t index = 0;
  while (index < files_.size() && files_[index] != file) ++index;
  if (index == files_.size()) files_.push_back(file);
  return static_cast<Place>(index << 20 | at.line());
}

std::string SharedMemory::name(Place place) const {
  return name_of_place(files_[place >> 20], place & 0xFFFFFu);
}

std::string SharedMemory::name_of_actor(Actor actor) {
  if (actor == kSeveralWarps) return "several warps";
  if (is_thread(actor)) return name_of_thread(actor);
  return "warp " + std::to_string(warp_of(actor));
}

}  // namespace mmcompile::emulator
