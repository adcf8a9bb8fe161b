// raw_syscall.h - system calls that nobody can interpose: for code that is also linked into the
// shim, where the C library's names are our own.
#pragma once

#include <sys/stat.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstdint>
#include <type_traits>

namespace mw {

#ifdef MW_STAND_IN
// In a build for tests a program may answer system calls itself (tests/fuzz/kernel_in_memory.cc); one that
// does not define this has the kernel's. False: it does not answer this one.
extern "C" [[gnu::weak]] bool mw_stand_in_syscall(long n, const long* words, long* result);
#endif

inline long raw_syscall6(long n, long a, long b, long c, long d, long e, long f) {
#ifdef MW_STAND_IN
  if (mw_stand_in_syscall != nullptr) {
    const long words[] = {a, b, c, d, e, f};
    long result = 0;
    if (mw_stand_in_syscall(n, words, &result)) return result;
  }
#endif
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long ret = 0;
  asm volatile("syscall"
               : "=a"(ret)
               : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  if (ret < 0 && ret > -4096) {
    errno = static_cast<int>(-ret);
    return -1;
  }
  return ret;
}

template <class T>
long syscall_word(T v) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<long>(v);
  else
    return static_cast<long>(v);
}

// As syscall(2): -1 and errno on failure.
template <class... A>
long raw_syscall(long n, A... args) {
  static_assert(sizeof...(A) <= 6);
  long w[6] = {syscall_word(args)...};
  return raw_syscall6(n, w[0], w[1], w[2], w[3], w[4], w[5]);
}

// fstat(2) of a descriptor and nothing else: the C library's uses newfstatat, which also takes names and
// is not for a process that must not look at files.
inline int raw_fstat(int fd, struct stat& st) {
  return static_cast<int>(raw_syscall(SYS_fstat, fd, &st));
}

}  // namespace mw
