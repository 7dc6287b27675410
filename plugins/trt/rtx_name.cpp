/* Writes an ELF file (System V ABI, "Object Files" and "Dynamic Linking") and loads it. */
#include "rtx_name.h"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

#include "loaded.h"
#include "log.h"

/* The header of the library that this file is linked into; the linker defines it. */
extern "C" __attribute__((visibility("hidden"))) const Elf64_Ehdr __ehdr_start;

namespace mmcompile::trt {
namespace {

constexpr char kName[] = "libtensorrt_rtx.so";

/* What stands before the strings. It is mapped as it is, addresses are offsets, and it may be
 * written: the loader puts real addresses into the dynamic section. */
struct Image {
  Elf64_Ehdr header;
  Elf64_Phdr segments[3];
  Elf64_Sym no_symbol; /* every table starts with it */
  Elf64_Word hash_table[4];
  Elf64_Dyn dynamic[8];
};

/* A library named kName that needs the library at `path`, for the processor of this one. */
std::string named_library(const std::string& path) {
  const std::string strings = std::string(1, '\0') + kName + '\0' + path + '\0';
  constexpr Elf64_Xword name = 1;
  constexpr Elf64_Xword needed = name + sizeof(kName);
  const Elf64_Xword bytes = sizeof(Image) + strings.size();
  constexpr Elf64_Xword largest_page = 1 << 16;
  constexpr Elf64_Addr dynamic = offsetof(Image, dynamic);
  constexpr Elf64_Xword dynamic_bytes = sizeof(Image::dynamic);

  Image image{};
  std::memcpy(image.header.e_ident, ELFMAG, SELFMAG);
  image.header.e_ident[EI_CLASS] = ELFCLASS64;
  image.header.e_ident[EI_DATA] = __ehdr_start.e_ident[EI_DATA];
  image.header.e_ident[EI_VERSION] = EV_CURRENT;
  image.header.e_type = ET_DYN;
  image.header.e_machine = __ehdr_start.e_machine;
  image.header.e_version = EV_CURRENT;
  image.header.e_flags = __ehdr_start.e_flags;
  image.header.e_phoff = offsetof(Image, segments);
  image.header.e_ehsize = sizeof(Elf64_Ehdr);
  image.header.e_phentsize = sizeof(Elf64_Phdr);
  image.header.e_phnum = 3;
  image.segments[0] = {PT_LOAD, PF_R | PF_W, 0, 0, 0, bytes, bytes, largest_page};
  image.segments[1] = {PT_DYNAMIC, PF_R | PF_W,   dynamic,       dynamic,
                       dynamic,    dynamic_bytes, dynamic_bytes, 8};
  image.segments[2] = {PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16};
  image.hash_table[0] = 1; /* bucket, */
  image.hash_table[1] = 1; /* symbol */
  image.dynamic[0] = {DT_SONAME, {name}};
  image.dynamic[1] = {DT_NEEDED, {needed}};
  image.dynamic[2] = {DT_STRTAB, {sizeof(Image)}};
  image.dynamic[3] = {DT_STRSZ, {strings.size()}};
  image.dynamic[4] = {DT_SYMTAB, {offsetof(Image, no_symbol)}};
  image.dynamic[5] = {DT_SYMENT, {sizeof(Elf64_Sym)}};
  image.dynamic[6] = {DT_HASH, {offsetof(Image, hash_table)}};
  image.dynamic[7] = {DT_NULL, {0}};
  return std::string(reinterpret_cast<const char*>(&image), sizeof(image)) + strings;
}

bool is_loaded(const char* name) {
  void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
  if (library != nullptr) dlclose(library);
  return library != nullptr;
}

bool write_all(int file, const std::string& bytes) {
  return write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
}

/* Loads a library from its bytes, for good. Returns what went wrong, or nothing. */
std::string load(const std::string& bytes) {
  std::error_code no_folder; /* mkstemp says so */
  std::string path = std::filesystem::temp_directory_path(no_folder) / "mmcompile-rtx-name.XXXXXX";
  const int file = mkstemp(path.data());
  if (file < 0) return path + ": " + std::strerror(errno);
  std::string problem;
  if (!write_all(file, bytes)) {
    problem = path + ": " + std::strerror(errno);
  } else if (dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL) == nullptr) {
    problem = dlerror();
  }
  close(file);
  unlink(path.c_str());
  return problem;
}

}  // namespace

void provide_rtx_name() noexcept {
  try {
    const std::string rtx = tensorrt_rtx_file();
    if (rtx.empty() || is_loaded(kName)) return;
    const std::string problem = load(named_library(rtx));
    if (problem.empty()) return;
    log_error("TensorRT-RTX's parser will not find " + std::string(kName) + " (" + problem +
              "); make a link of that name to " + rtx + " in a folder of LD_LIBRARY_PATH");
  } catch (...) { /* no memory: as without this function */
  }
}

}  // namespace mmcompile::trt
