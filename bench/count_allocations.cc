// count_allocations.cc - preloaded into the programs that bench.py measures: counts their calls of
// malloc().
//
// Each process counts in a file of its own, $MWBENCH_ALLOCATIONS/PID: one 64-bit number, mapped
// before the program starts, so that a process in a sandbox counts like any other.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constinit std::atomic<uint64_t> nowhere{0};  // until the file is mapped, or without one
constinit std::atomic<uint64_t>* counter = &nowhere;

// The allocator that the program would have without us, which need not be the C library's.
template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

void count() {
  counter->fetch_add(1, std::memory_order_relaxed);
}

[[gnu::constructor]] void start() {
  const char* folder = ::getenv("MWBENCH_ALLOCATIONS");
  if (folder == nullptr) return;
  char path[4096];
  std::snprintf(path, sizeof path, "%s/%d", folder, static_cast<int>(::getpid()));
  const int fd = ::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return;
  void* p = ::ftruncate(fd, sizeof(uint64_t)) < 0
                ? MAP_FAILED
                : ::mmap(nullptr, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  if (p != MAP_FAILED) counter = static_cast<std::atomic<uint64_t>*>(p);
}

}  // namespace

extern "C" {

void* malloc(size_t size) {
  static const auto real = next<void* (*)(size_t)>("malloc");
  count();
  return real(size);
}
void* realloc(void* old, size_t size) {
  static const auto real = next<void* (*)(void*, size_t)>("realloc");
  count();
  return real(old, size);
}
void* calloc(size_t n, size_t size) {
  static const auto real = next<void* (*)(size_t, size_t)>("calloc");
  count();
  return real(n, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  static const auto real = next<void* (*)(size_t, size_t)>("aligned_alloc");
  count();
  return real(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
  static const auto real = next<int (*)(void**, size_t, size_t)>("posix_memalign");
  count();
  return real(out, alignment, size);
}
}
