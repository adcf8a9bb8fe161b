// interpose.h - what the exported functions have in common. They stand in interpose*.cc, which are
// long because the C library is: they are lists.
//
// INVARIANTS  errno is preserved on success. A call about an ordinary descriptor is one table
//             look-up and the C library's own function. Nothing there knows how sockets work.
// THREADS     Any; async-signal-safe where the C library's function is.
#pragma once

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>

#include "shim/calls/socket_calls.h"
#include "shim/process/process.h"
#include "shim/process/user_memory.h"

#define MW_EXPORT extern "C" [[gnu::visibility("default")]]

namespace mw::shim {

// -errno to the C convention; errno is left alone on success.
template <class T>
T finish(T rc, int saved) {
  if (rc < 0) {
    errno = static_cast<int>(-rc);
    return -1;
  }
  errno = saved;
  return rc;
}

// Runs `ours(Sock)` if fd is a protected socket, else `theirs()`.
template <class Theirs, class Ours>
auto dispatch(int fd, Theirs&& theirs, Ours&& ours) -> decltype(theirs()) {
  const Entry e = look_up(fd);
  if (e.kind == Kind::socket) [[unlikely]] {
    const int saved = errno;
    return static_cast<decltype(theirs())>(finish(ours(sock_of(fd, e)), saved));
  }
  if (e.kind == Kind::hidden) [[unlikely]] {
    errno = EBADF;
    return -1;
  }
  if (e.kind == Kind::lost) [[unlikely]]
    return lost_call();
  release_held();  // this may wait
  return theirs();
}

// -1: no limit, as good as one of many years.
inline int64_t to_ns(const timespec* t) {
  constexpr time_t kForever = 4'000'000'000;
  return t == nullptr || t->tv_sec >= kForever ? -1 : t->tv_sec * 1'000'000'000 + t->tv_nsec;
}

// What the kernel says to a time limit: 0 or the errno.
inline int fault_of(const timespec* t) {
  if (t == nullptr) return 0;
  if (!is_buffer(t, sizeof *t)) return EFAULT;
  return t->tv_sec < 0 || t->tv_nsec < 0 || t->tv_nsec >= 1'000'000'000 ? EINVAL : 0;
}

// What syscall() calls: as the kernel's own, with the size of the signal mask, bad pointers told as
// EFAULT, and (all but epoll's) the time that is left written back. As syscall() they return -1 and
// errno. interpose_wait.cc
long raw_ppoll(pollfd* fds, nfds_t n, timespec* timeout, const sigset_t* mask, size_t mask_size);
long raw_select(int n, fd_set* r, fd_set* w, fd_set* x, timeval* timeout);
// `pair`: the mask's address and its size.
long raw_pselect6(int n, fd_set* r, fd_set* w, fd_set* x, timespec* timeout, const void* pair);
long raw_epoll_pwait(int epfd, epoll_event* out, int max, int timeout, const sigset_t* mask,
                     size_t mask_size);
long raw_epoll_pwait2(int epfd, epoll_event* out, int max, const timespec* timeout,
                      const sigset_t* mask, size_t mask_size);

}  // namespace mw::shim
