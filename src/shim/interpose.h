// interpose.h - what the exported functions have in common. They stand in interpose*.cc, which are
// long because the C library is: they are lists.
//
// INVARIANTS  errno is preserved on success. A call about an ordinary descriptor is one table
//             look-up and the C library's own function. Nothing there knows how sockets work.
// THREADS     Any; async-signal-safe where the C library's function is.
#pragma once

#include <errno.h>

#include "shim/memory.h"
#include "shim/process.h"
#include "shim/socket.h"

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

inline int64_t to_ns(const timespec* t) {
  return t == nullptr ? -1 : t->tv_sec * 1'000'000'000 + t->tv_nsec;
}

// What the kernel says to a time limit: 0 or the errno.
inline int fault_of(const timespec* t) {
  if (t == nullptr) return 0;
  if (!is_buffer(t, sizeof *t)) return EFAULT;
  return t->tv_sec < 0 || t->tv_nsec < 0 || t->tv_nsec >= 1'000'000'000 ? EINVAL : 0;
}

}  // namespace mw::shim
