// interpose_wait.cc - the exported functions that wait for several descriptors.
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "base/clock.h"
#include "shim/calls/epoll.h"
#include "shim/calls/poll.h"
#include "shim/libc/interpose.h"
#include "shim/socket/epoll_group.h"

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

// ---- as the kernel's own ----
namespace {

long failed(int error) {
  errno = error;
  return -1;
}

constexpr size_t kKernelMask = 8;  // bytes of the kernel's signal mask

// 0 or the errno.
int fault_of_mask(const sigset_t* mask, size_t size) {
  if (mask == nullptr) return 0;
  if (size != kKernelMask) return EINVAL;
  return is_buffer(mask, kKernelMask) ? 0 : EFAULT;
}

// A time limit: read before anything else, and what is left of it written back at the end, whatever
// the call's result; where that cannot be written it is not told.
template <class T>
class Limit {
 public:
  // 0 or the errno.
  int read(T* at) {
    if (at == nullptr) return 0;
    if (!is_buffer(at, sizeof *at)) return EFAULT;
    T given;
    std::memcpy(&given, at, sizeof given);
    if constexpr (std::is_same_v<T, timeval>)
      total_ = {given.tv_sec + given.tv_usec / 1'000'000, given.tv_usec % 1'000'000 * 1000};
    else
      total_ = given;
    if (const int error = fault_of(&total_); error != 0) return error;
    at_ = at;
    start_ = mw::monotonic_ns();
    return 0;
  }
  int64_t ns() const { return to_ns(at_ != nullptr ? &total_ : nullptr); }
  void give_back() const {
    if (at_ == nullptr || (total_.tv_sec == 0 && total_.tv_nsec == 0)) return;
    const int64_t slept = mw::monotonic_ns() - start_;
    timespec left{total_.tv_sec - slept / 1'000'000'000, total_.tv_nsec - slept % 1'000'000'000};
    if (left.tv_nsec < 0) left = {left.tv_sec - 1, left.tv_nsec + 1'000'000'000};
    if (left.tv_sec < 0) left = {};
    if (!is_room(at_, sizeof *at_)) return;
    T out{left.tv_sec, left.tv_nsec};
    if constexpr (std::is_same_v<T, timeval>) out.tv_usec = left.tv_nsec / 1000;
    std::memcpy(at_, &out, sizeof out);
  }

 private:
  T* at_ = nullptr;
  timespec total_{};
  int64_t start_ = 0;
};

template <class T>
long limited_select(int n, fd_set* r, fd_set* w, fd_set* x, T* timeout, const sigset_t* mask,
                    size_t mask_size) {
  Limit<T> limit;
  if (const int error = limit.read(timeout); error != 0) return failed(error);
  if (const int error = fault_of_mask(mask, mask_size); error != 0) return failed(error);
  const int saved = errno;
  const long rc = finish(shim_select(n, r, w, x, limit.ns(), mask), saved);
  limit.give_back();
  return rc;
}

}  // namespace

long mw::shim::raw_ppoll(pollfd* fds, nfds_t n, timespec* timeout, const sigset_t* mask,
                         size_t mask_size) {
  release_held();
  if (!concerns_us(fds, n)) return libc.syscall(SYS_ppoll, fds, n, timeout, mask, mask_size);
  Limit<timespec> limit;
  if (const int error = limit.read(timeout); error != 0) return failed(error);
  if (const int error = fault_of_mask(mask, mask_size); error != 0) return failed(error);
  const int saved = errno;
  const long rc = finish(shim_poll(fds, n, limit.ns(), mask), saved);
  limit.give_back();
  return rc;
}

long mw::shim::raw_select(int n, fd_set* r, fd_set* w, fd_set* x, timeval* timeout) {
  release_held();
  if (!select_concerns_us(n, r, w, x)) return libc.syscall(SYS_select, n, r, w, x, timeout);
  return limited_select(n, r, w, x, timeout, nullptr, 0);
}

long mw::shim::raw_pselect6(int n, fd_set* r, fd_set* w, fd_set* x, timespec* timeout,
                            const void* pair) {
  release_held();
  if (!select_concerns_us(n, r, w, x)) return libc.syscall(SYS_pselect6, n, r, w, x, timeout, pair);
  struct {
    const sigset_t* mask;
    size_t size;
  } given{};
  if (pair != nullptr) {
    if (!is_buffer(pair, sizeof given)) return failed(EFAULT);
    std::memcpy(&given, pair, sizeof given);
  }
  return limited_select(n, r, w, x, timeout, given.mask, given.size);
}

long mw::shim::raw_epoll_pwait(int epfd, epoll_event* out, int max, int timeout,
                               const sigset_t* mask, size_t mask_size) {
  if (const int error = fault_of_mask(mask, mask_size); error != 0) return failed(error);
  return epoll_pwait(epfd, out, max, timeout, mask);
}

long mw::shim::raw_epoll_pwait2(int epfd, epoll_event* out, int max, const timespec* timeout,
                                const sigset_t* mask, size_t mask_size) {
  if (const int error = fault_of(timeout); error != 0) return failed(error);
  if (const int error = fault_of_mask(mask, mask_size); error != 0) return failed(error);
  return epoll_pwait2(epfd, out, max, timeout, mask);
}
