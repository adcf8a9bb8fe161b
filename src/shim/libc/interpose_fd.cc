// interpose_fd.cc - the exported functions that copy, change and close descriptors.
#include <fcntl.h>
#include <linux/close_range.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "shim/libc/interpose.h"
#include "shim/process/stdio.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {

int close_one(int fd) {
  // The last close of a socket ends its registrations, also in instances that came from elsewhere.
  const Entry e = process.found_instance ? look_up(fd) : peek(fd);
  if (e.kind == Kind::hidden) {
    errno = EBADF;
    return -1;
  }
  if (in_vfork_child()) return libc.close(fd);
  if (e.kind == Kind::socket) return sock_close(fd, e);
  if (e.kind == Kind::epoll || e.kind == Kind::lost) forget(fd);
  return libc.close(fd);
}

// After a kernel call that made `fresh` a copy of `old`.
int after_dup(int old, int fresh) {
  if (fresh < 0 || in_vfork_child()) return fresh;
  const int saved = errno;
  copy_entry(old, fresh);
  if (fresh <= 2) adopt_standard_stream(fresh);
  errno = saved;
  return fresh;
}

int dup_onto(int old, int fresh, int flags, bool three) {
  if (is_hidden(old)) {
    errno = EBADF;
    return -1;
  }
  // Something of ours sits where the program wants its copy. The kernel may say so too, to a program
  // whose threads open descriptors meanwhile.
  if (is_hidden(fresh)) {
    errno = EBUSY;
    return -1;
  }
  const Entry replaced = peek(fresh);
  AwaitedClose awaited;
  if (old != fresh && !in_vfork_child() && libc.fcntl(old, F_GETFD) >= 0) {
    if (replaced.kind == Kind::socket) awaited = prepare_close(sock_of(fresh, replaced));
    forget(fresh);
  }
  const int rc = three ? libc.dup3(old, fresh, flags) : libc.dup2(old, fresh);
  if (awaited.is_due && rc >= 0) await_close(sock_of(fresh, replaced), awaited);
  return old == fresh ? rc : after_dup(old, rc);
}

int close_many(unsigned first, unsigned last, int flags) {
  if (first > last || (flags & ~(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC)) != 0) {
    errno = EINVAL;
    return -1;
  }
  // In pieces around the hidden ones.
  const unsigned end = std::min<unsigned>(last, kTableSize - 1);
  const bool closing = (flags & CLOSE_RANGE_CLOEXEC) == 0;
  unsigned from = first;
  const bool mine = !in_vfork_child();
  for (unsigned fd = first; fd <= end; ++fd) {
    const Entry e = peek(static_cast<int>(fd));
    if (e.kind == Kind::hidden) {
      if (fd > from && libc.syscall(SYS_close_range, from, fd - 1, flags) < 0) return -1;
      from = fd + 1;
    } else if (flags == 0 && mine && e.kind == Kind::socket &&
               prepare_close(sock_of(static_cast<int>(fd), e)).is_due) {
      sock_close(static_cast<int>(fd), e);
    } else if (closing && mine && e.kind != Kind::unknown && e.kind != Kind::kernel) {
      forget(static_cast<int>(fd));
    }
  }
  if (from > last) return 0;
  return static_cast<int>(libc.syscall(SYS_close_range, from, last, flags));
}

}  // namespace

MW_EXPORT int close(int fd) {
  return close_one(fd);
}
MW_EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept {
  return close_many(first, last, flags);
}
MW_EXPORT void closefrom(int first) noexcept {
  close_many(static_cast<unsigned>(std::max(first, 0)), ~0u, 0);
}
MW_EXPORT int dup(int fd) noexcept {
  if (is_hidden(fd)) {
    errno = EBADF;
    return -1;
  }
  return after_dup(fd, libc.dup(fd));
}
MW_EXPORT int dup2(int old, int fresh) noexcept {
  return dup_onto(old, fresh, 0, false);
}
MW_EXPORT int dup3(int old, int fresh, int flags) noexcept {
  return dup_onto(old, fresh, flags, true);
}
MW_EXPORT int fcntl(int fd, int command, ...) {
  va_list ap;
  va_start(ap, command);
  const long arg = va_arg(ap, long);
  va_end(ap);
  const auto theirs = [&] {
    const int rc = libc.fcntl(fd, command, arg);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? after_dup(fd, rc) : rc;
  };
  if (look_up(fd).kind == Kind::lost) return theirs();
  return dispatch(fd, theirs, [&](const Sock& s) { return sock_fcntl(s, command, arg); });
}
MW_EXPORT int fcntl64(int fd, int command, ...) {
  va_list ap;
  va_start(ap, command);
  const long arg = va_arg(ap, long);
  va_end(ap);
  return fcntl(fd, command, arg);
}
MW_EXPORT int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list ap;
  va_start(ap, request);
  void* arg = va_arg(ap, void*);
  va_end(ap);
  return dispatch(
      fd, [&] { return libc.ioctl(fd, request, arg); },
      [&](const Sock& s) { return sock_ioctl(s, request, arg); });
}
MW_EXPORT FILE* fdopen(int fd, const char* mode) noexcept {
  return is_protected(look_up(fd)) ? open_stream(fd, mode) : libc.fdopen(fd, mode);
}

// Formatted output to a descriptor writes by an internal call, so sockets get theirs here.
MW_EXPORT int vdprintf(int fd, const char* format, va_list ap) {
  char* text = nullptr;
  const int n = ::vasprintf(&text, format, ap);
  if (n < 0) return n;
  int done = 0;
  while (done < n) {
    const ssize_t put = write(fd, text + done, static_cast<size_t>(n - done));
    if (put < 0) break;
    done += static_cast<int>(put);
  }
  ::free(text);
  return done == n ? n : -1;
}
MW_EXPORT int dprintf(int fd, const char* format, ...) {
  va_list ap;
  va_start(ap, format);
  const int n = vdprintf(fd, format, ap);
  va_end(ap);
  return n;
}
MW_EXPORT int __vdprintf_chk(int fd, int, const char* format, va_list ap) {
  return vdprintf(fd, format, ap);
}
MW_EXPORT int __dprintf_chk(int fd, int, const char* format, ...) {
  va_list ap;
  va_start(ap, format);
  const int n = vdprintf(fd, format, ap);
  va_end(ap);
  return n;
}
