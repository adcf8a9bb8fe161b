// interpose_wait.cc - the exported functions that wait for several descriptors.
#include <stdlib.h>
#include <sys/time.h>

#include <algorithm>

#include "base/clock.h"
#include "shim/epoll.h"
#include "shim/epoll_group.h"
#include "shim/interpose.h"
#include "shim/poll.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {
// The C library declares poll's array as written only; the compiler then thinks that we may not
// look. What the kernel refuses anyway is left to it.
bool concerns_us(pollfd* fds, nfds_t n) {
  asm("" : "+r"(fds) : : "memory");
  return n <= static_cast<nfds_t>(kTableSize) && is_room(fds, n * sizeof *fds) &&
         poll_concerns_us(fds, n);
}
}  // namespace
MW_EXPORT int ppoll(pollfd* fds, nfds_t n, const timespec* timeout, const sigset_t* mask) {
  release_held();
  if (!concerns_us(fds, n)) return libc.ppoll(fds, n, timeout, mask);
  if (const int error = fault_of(timeout); error != 0) {
    errno = error;
    return -1;
  }
  const int saved = errno;
  return finish(shim_poll(fds, n, to_ns(timeout), mask), saved);
}
MW_EXPORT int poll(pollfd* fds, nfds_t n, int timeout) {
  release_held();
  if (!concerns_us(fds, n)) return libc.poll(fds, n, timeout);
  const int saved = errno;
  return finish(shim_poll(fds, n, timeout < 0 ? -1 : timeout * 1'000'000ll, nullptr), saved);
}
MW_EXPORT int __poll_chk(pollfd* fds, nfds_t n, int timeout, size_t room) {
  if (n > room / sizeof(pollfd)) ::abort();
  return poll(fds, n, timeout);
}
MW_EXPORT int __ppoll_chk(pollfd* fds, nfds_t n, const timespec* timeout, const sigset_t* mask,
                          size_t room) {
  if (n > room / sizeof(pollfd)) ::abort();
  return ppoll(fds, n, timeout, mask);
}
MW_EXPORT int pselect(int n, fd_set* r, fd_set* w, fd_set* x, const timespec* timeout,
                      const sigset_t* mask) {
  release_held();
  if (!select_concerns_us(n, r, w, x)) return libc.pselect(n, r, w, x, timeout, mask);
  if (const int error = fault_of(timeout); error != 0) {
    errno = error;
    return -1;
  }
  const int saved = errno;
  return finish(shim_select(n, r, w, x, to_ns(timeout), mask), saved);
}
MW_EXPORT int select(int n, fd_set* r, fd_set* w, fd_set* x, timeval* timeout) {
  release_held();
  if (!select_concerns_us(n, r, w, x)) return libc.select(n, r, w, x, timeout);
  int64_t ns = -1;
  if (timeout != nullptr) {
    if (!is_room(timeout, sizeof *timeout)) {
      errno = EFAULT;
      return -1;
    }
    if (timeout->tv_sec < 0 || timeout->tv_usec < 0) {
      errno = EINVAL;
      return -1;
    }
    ns = timeout->tv_sec * 1'000'000'000 + timeout->tv_usec * 1000;
  }
  const int saved = errno;
  const int64_t start = mw::monotonic_ns();
  const int rc = shim_select(n, r, w, x, ns, nullptr);
  if (timeout != nullptr) {  // Linux leaves the time that was not slept
    const int64_t left = std::max<int64_t>(0, ns - (mw::monotonic_ns() - start));
    timeout->tv_sec = left / 1'000'000'000;
    timeout->tv_usec = left % 1'000'000'000 / 1000;
  }
  return finish(rc, saved);
}
MW_EXPORT int epoll_create1(int flags) noexcept {
  const int fd = libc.epoll_create1(flags);
  if (fd >= 0 && !in_vfork_child()) epoll_created(fd);
  return fd;
}
MW_EXPORT int epoll_create(int size) noexcept {
  if (size <= 0) {
    errno = EINVAL;
    return -1;
  }
  return epoll_create1(0);
}
MW_EXPORT int epoll_ctl(int epfd, int op, int fd, epoll_event* event) noexcept {
  const int saved = errno;
  return finish(shim_epoll_ctl(epfd, op, fd, event), saved);
}
MW_EXPORT int epoll_pwait(int epfd, epoll_event* out, int max, int timeout, const sigset_t* mask) {
  const int saved = errno;
  return finish(shim_epoll_wait(epfd, out, max, timeout < 0 ? -1 : timeout * 1'000'000ll, mask),
                saved);
}
MW_EXPORT int epoll_wait(int epfd, epoll_event* out, int max, int timeout) {
  return epoll_pwait(epfd, out, max, timeout, nullptr);
}
MW_EXPORT int epoll_pwait2(int epfd, epoll_event* out, int max, const timespec* timeout,
                           const sigset_t* mask) {
  if (const int error = fault_of(timeout); error != 0) {
    errno = error;
    return -1;
  }
  const int saved = errno;
  return finish(shim_epoll_wait(epfd, out, max, to_ns(timeout), mask), saved);
}
