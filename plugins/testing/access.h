// What the emulator's checks know of an access, and the error they raise.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace mmcompile::emulator {

// A kernel did something that is wrong on a GPU, or wrong there some of the time.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Access {
  const char* operation;
  std::source_location at;
  int thread;              // of the block
  bool warp_wide = false;  // done by the thread's warp as a whole
};

inline std::string name_of_thread(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / 32) + ", lane " +
         std::to_string(thread % 32) + ")";
}

inline std::string name_of_place(const char* file, unsigned line) {
  const std::string path = file;
  return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(line);
}

inline std::string name_of_access(const Access& access) {
  return std::string(access.operation) + " at " +
         name_of_place(access.at.file_name(), access.at.line());
}

[[noreturn]] inline void fail(const Access& access, const std::string& what) {
  throw KernelError(name_of_thread(access.thread) + ", " + name_of_access(access) + ": " + what);
}

}  // namespace mmcompile::emulator
