// interpose_memory.cc - the exported functions that change what is mapped: what the data path knows
// about pages ends there (user_memory.h), before the change, and once more after it for what another
// thread has looked at meanwhile.
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "shim/libc/interpose.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

MW_EXPORT void* mmap(void* at, size_t n, int protection, int flags, int fd, off_t offset) noexcept {
  // One that fails may have unmapped what was there.
  if ((flags & MAP_FIXED) != 0) forget_pages(at, n);
  const long rc = libc.syscall(SYS_mmap, at, n, protection, flags, fd, offset);
  void* const p = reinterpret_cast<void*>(rc);
  if (p != MAP_FAILED) note_mapping(p, n, protection, flags);
  return p;
}
MW_EXPORT void* mmap64(void* at, size_t n, int protection, int flags, int fd,
                       off64_t offset) noexcept {
  return mmap(at, n, protection, flags, fd, offset);
}
MW_EXPORT void* mremap(void* at, size_t n, size_t wanted, int flags, ...) noexcept {
  va_list ap;
  va_start(ap, flags);
  void* const where = va_arg(ap, void*);
  va_end(ap);
  forget_pages(at, n);
  if ((flags & MREMAP_FIXED) != 0) forget_pages(where, wanted);
  const long rc = libc.syscall(SYS_mremap, at, n, wanted, flags, where);
  void* const p = reinterpret_cast<void*>(rc);
  forget_pages(at, n);
  if (p != MAP_FAILED) forget_pages(p, wanted);
  return p;
}
MW_EXPORT int munmap(void* at, size_t n) noexcept {
  forget_pages(at, n);
  const long rc = libc.syscall(SYS_munmap, at, n);
  forget_pages(at, n);
  return static_cast<int>(rc);
}
MW_EXPORT int mprotect(void* at, size_t n, int protection) noexcept {
  forget_pages(at, n);
  const long rc = libc.syscall(SYS_mprotect, at, n, protection);
  forget_pages(at, n);
  return static_cast<int>(rc);
}
MW_EXPORT int mlockall(int flags) noexcept {
  attach();  // what is locked from now on must not be the session's
  return lock_all(flags);
}
