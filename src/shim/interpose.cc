// interpose.cc - the exported functions: each decides whether a call is ours and hands it on.
//
// INVARIANTS  errno is preserved on success. A call about an ordinary descriptor is one table
// look-up and
//             the C library's own function. Nothing here knows how sockets work.
// THREADS     Any; async-signal-safe where the C library's function is.
//
// The file is long because the C library is: it is a list.
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>

#include "base/received_fds.h"
#include "shim/copy.h"
#include "shim/epoll.h"
#include "shim/exec.h"
#include "shim/poll.h"
#include "shim/resolve.h"
#include "shim/socket.h"
#include "shim/stdio.h"

#define MW_EXPORT extern "C" [[gnu::visibility("default")]]

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {

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
  release_held();  // this may wait
  return theirs();
}

bool is_inet(int domain) {
  return domain == AF_INET || domain == AF_INET6;
}

int64_t to_ns(const timespec* t) {
  return t == nullptr ? -1 : t->tv_sec * 1'000'000'000 + t->tv_nsec;
}

// What the kernel says to a time limit: 0 or the errno.
int fault_of(const timespec* t) {
  if (t == nullptr) return 0;
  if (!is_buffer(t, sizeof *t)) return EFAULT;
  return t->tv_sec < 0 || t->tv_nsec < 0 || t->tv_nsec >= 1'000'000'000 ? EINVAL : 0;
}

msghdr message_of(void* data, size_t n, iovec& iov, void* name, socklen_t name_len) {
  iov = {data, n};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_name = name;
  m.msg_namelen = name_len;
  return m;
}

ssize_t receive_from(const Sock& s, void* data, size_t n, int flags, sockaddr* from,
                     socklen_t* len) {
  iovec iov;
  if (from != nullptr && !is_room(len, sizeof *len)) return -EFAULT;
  msghdr m = message_of(data, n, iov, from, from != nullptr ? *len : 0);
  const ssize_t got = sock_recvmsg(s, &m, flags);
  if (got >= 0 && from != nullptr) *len = m.msg_namelen;
  return got;
}

ssize_t send_to(const Sock& s, const void* data, size_t n, int flags, const sockaddr* to,
                socklen_t len) {
  iovec iov;
  const msghdr m = message_of(const_cast<void*>(data), n, iov, const_cast<sockaddr*>(to),
                              to != nullptr ? len : 0);
  return sock_sendmsg(s, &m, flags);
}

ssize_t read_socket(const Sock& s, void* data, size_t n) {
  if (n == 0) return 0;
  return receive_from(s, data, n, 0, nullptr, nullptr);
}

ssize_t vector_call(const Sock& s, const iovec* iov, int count, bool sending) {
  if (count < 0 || count > IOV_MAX) return -EINVAL;
  if (!is_buffer(iov, static_cast<size_t>(count) * sizeof *iov)) return -EFAULT;
  size_t total = 0;
  for (int i = 0; i < count; ++i) {
    if (iov[i].iov_len > static_cast<size_t>(SSIZE_MAX) - total) return -EINVAL;
    total += iov[i].iov_len;
  }
  msghdr m{};
  m.msg_iov = const_cast<iovec*>(iov);
  m.msg_iovlen = static_cast<size_t>(count);
  if (!sending && total == 0) return 0;
  return sending ? sock_sendmsg(s, &m, 0) : sock_recvmsg(s, &m, 0);
}

// Sockets that came in by SCM_RIGHTS are looked at when they are used.
void forget_received(const msghdr* m) {
  mw::each_passed_fd(*m, [](int fd) { set_entry(fd, Entry{}); });
}

int close_one(int fd) {
  // The last close of a socket ends its registrations, also in instances that came from elsewhere.
  const Entry e = process.found_instance ? look_up(fd) : peek(fd);
  if (e.kind == Kind::hidden) {
    errno = EBADF;
    return -1;
  }
  if ((e.kind == Kind::socket || e.kind == Kind::epoll) && !in_vfork_child()) forget(fd);
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
  // Something of ours sits where the program wants its copy: move it away.
  if (is_hidden(fresh)) {
    errno = EBUSY;
    return -1;
  }
  if (old != fresh && !in_vfork_child() && libc.fcntl(old, F_GETFD) >= 0) forget(fresh);
  const int rc = three ? libc.dup3(old, fresh, flags) : libc.dup2(old, fresh);
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
    } else if (closing && mine && e.kind != Kind::unknown && e.kind != Kind::kernel) {
      forget(static_cast<int>(fd));
    }
  }
  if (from > last) return 0;
  return static_cast<int>(libc.syscall(SYS_close_range, from, last, flags));
}

}  // namespace

// ---- bytes ----
MW_EXPORT ssize_t read(int fd, void* p, size_t n) {
  return dispatch(
      fd, [&] { return libc.read(fd, p, n); }, [&](const Sock& s) { return read_socket(s, p, n); });
}
MW_EXPORT ssize_t __read_chk(int fd, void* p, size_t n, size_t room) {
  if (n > room) ::abort();
  return read(fd, p, n);
}
MW_EXPORT ssize_t write(int fd, const void* p, size_t n) {
  return dispatch(
      fd, [&] { return libc.write(fd, p, n); },
      [&](const Sock& s) { return send_to(s, p, n, 0, nullptr, 0); });
}
MW_EXPORT ssize_t readv(int fd, const iovec* iov, int count) {
  return dispatch(
      fd, [&] { return libc.readv(fd, iov, count); },
      [&](const Sock& s) { return vector_call(s, iov, count, false); });
}
MW_EXPORT ssize_t writev(int fd, const iovec* iov, int count) {
  return dispatch(
      fd, [&] { return libc.writev(fd, iov, count); },
      [&](const Sock& s) { return vector_call(s, iov, count, true); });
}
MW_EXPORT ssize_t recv(int fd, void* p, size_t n, int flags) {
  return dispatch(
      fd, [&] { return libc.recv(fd, p, n, flags); },
      [&](const Sock& s) { return receive_from(s, p, n, flags, nullptr, nullptr); });
}
MW_EXPORT ssize_t __recv_chk(int fd, void* p, size_t n, size_t room, int flags) {
  if (n > room) ::abort();
  return recv(fd, p, n, flags);
}
MW_EXPORT ssize_t recvfrom(int fd, void* p, size_t n, int flags, sockaddr* from, socklen_t* len) {
  return dispatch(
      fd, [&] { return libc.recvfrom(fd, p, n, flags, from, len); },
      [&](const Sock& s) { return receive_from(s, p, n, flags, from, len); });
}
MW_EXPORT ssize_t __recvfrom_chk(int fd, void* p, size_t n, size_t room, int flags, sockaddr* from,
                                 socklen_t* len) {
  if (n > room) ::abort();
  return recvfrom(fd, p, n, flags, from, len);
}
MW_EXPORT ssize_t recvmsg(int fd, msghdr* m, int flags) {
  return dispatch(
      fd,
      [&] {
        const ssize_t n = libc.recvmsg(fd, m, flags);
        if (n >= 0 && m->msg_controllen != 0) forget_received(m);
        return n;
      },
      [&](const Sock& s) -> ssize_t {
        if (!is_room(m, sizeof *m)) return -EFAULT;
        return sock_recvmsg(s, m, flags);
      });
}
MW_EXPORT int recvmmsg(int fd, mmsghdr* v, unsigned n, int flags, timespec* timeout) {
  return dispatch(
      fd,
      [&] {
        const int got = libc.recvmmsg(fd, v, n, flags, timeout);
        for (int i = 0; i < got; ++i)
          if (v[i].msg_hdr.msg_controllen != 0) forget_received(&v[i].msg_hdr);
        return got;
      },
      [&](const Sock& s) -> int {
        if (const int error = fault_of(timeout); error != 0) return -error;
        const int64_t deadline = timeout != nullptr ? mw::monotonic_ns() + to_ns(timeout) : 0;
        unsigned got = 0;
        while (got < n) {
          int f = flags & ~MSG_WAITFORONE;
          if (got > 0 && (flags & MSG_WAITFORONE) != 0) f |= MSG_DONTWAIT;
          if (!is_room(v + got, sizeof *v)) return got > 0 ? static_cast<int>(got) : -EFAULT;
          const ssize_t k = sock_recvmsg(s, &v[got].msg_hdr, f);
          if (k < 0) return got > 0 ? static_cast<int>(got) : static_cast<int>(k);
          v[got++].msg_len = static_cast<unsigned>(k);
          // As in the kernel the time is looked at after each message only.
          if (deadline != 0 && mw::monotonic_ns() >= deadline) break;
        }
        return static_cast<int>(got);
      });
}
MW_EXPORT ssize_t send(int fd, const void* p, size_t n, int flags) {
  return dispatch(
      fd, [&] { return libc.send(fd, p, n, flags); },
      [&](const Sock& s) { return send_to(s, p, n, flags, nullptr, 0); });
}
MW_EXPORT ssize_t sendto(int fd, const void* p, size_t n, int flags, const sockaddr* to,
                         socklen_t len) {
  return dispatch(
      fd, [&] { return libc.sendto(fd, p, n, flags, to, len); },
      [&](const Sock& s) { return send_to(s, p, n, flags, to, len); });
}
MW_EXPORT ssize_t sendmsg(int fd, const msghdr* m, int flags) {
  return dispatch(
      fd,
      [&] {
        note_passed(m);
        return libc.sendmsg(fd, m, flags);
      },
      [&](const Sock& s) -> ssize_t {
        if (!is_buffer(m, sizeof *m)) return -EFAULT;
        return sock_sendmsg(s, m, flags);
      });
}
MW_EXPORT int sendmmsg(int fd, mmsghdr* v, unsigned n, int flags) {
  return dispatch(
      fd,
      [&] {
        for (unsigned i = 0; i < std::min(n, 1024u) && is_buffer(v + i, sizeof *v); ++i)
          note_passed(&v[i].msg_hdr);
        return libc.sendmmsg(fd, v, n, flags);
      },
      [&](const Sock& s) -> int {
        unsigned sent = 0;
        for (; sent < n; ++sent) {
          if (!is_room(v + sent, sizeof *v)) return sent > 0 ? static_cast<int>(sent) : -EFAULT;
          const ssize_t k = sock_sendmsg(s, &v[sent].msg_hdr, flags);
          if (k < 0) return sent > 0 ? static_cast<int>(sent) : static_cast<int>(k);
          v[sent].msg_len = static_cast<unsigned>(k);
        }
        return static_cast<int>(sent);
      });
}
MW_EXPORT ssize_t sendfile(int out, int in, off_t* offset, size_t n) {
  return dispatch(
      out, [&] { return libc.sendfile(out, in, offset, n); },
      [&](const Sock&) { return shim_sendfile(out, in, offset, n); });
}
MW_EXPORT ssize_t sendfile64(int out, int in, off64_t* offset, size_t n) {
  return sendfile(out, in, offset, n);
}
MW_EXPORT ssize_t splice(int in, off64_t* in_off, int out, off64_t* out_off, size_t n,
                         unsigned flags) {
  if (look_up(in).kind != Kind::socket && look_up(out).kind != Kind::socket)
    return libc.splice(in, in_off, out, out_off, n, flags);
  const int saved = errno;
  return finish(shim_splice(in, in_off, out, out_off, n, flags), saved);
}

// ---- sockets ----
MW_EXPORT int socket(int domain, int type, int protocol) noexcept {
  if (!is_inet(domain)) {
    const int fd = libc.socket(domain, type, protocol);
    if (fd >= 0 && !in_vfork_child()) set_entry(fd, {Kind::kernel, 0, 0});
    return fd;
  }
  const int saved = errno;
  return finish(sock_create(domain, type, protocol), saved);
}
MW_EXPORT int bind(int fd, const sockaddr* a, socklen_t len) noexcept {
  return dispatch(
      fd, [&] { return libc.bind(fd, a, len); },
      [&](const Sock& s) { return sock_bind(s, a, len); });
}
MW_EXPORT int listen(int fd, int backlog) noexcept {
  return dispatch(
      fd, [&] { return libc.listen(fd, backlog); },
      [&](const Sock& s) { return sock_listen(s, backlog); });
}
MW_EXPORT int accept4(int fd, sockaddr* a, socklen_t* len, int flags) {
  return dispatch(
      fd, [&] { return libc.accept4(fd, a, len, flags); },
      [&](const Sock& s) { return sock_accept(s, a, len, flags); });
}
MW_EXPORT int accept(int fd, sockaddr* a, socklen_t* len) {
  return accept4(fd, a, len, 0);
}
MW_EXPORT int connect(int fd, const sockaddr* a, socklen_t len) {
  return dispatch(
      fd, [&] { return libc.connect(fd, a, len); },
      [&](const Sock& s) { return sock_connect(s, a, len); });
}
MW_EXPORT int shutdown(int fd, int how) noexcept {
  return dispatch(
      fd, [&] { return libc.shutdown(fd, how); },
      [&](const Sock& s) { return sock_shutdown(s, how); });
}
MW_EXPORT int getsockopt(int fd, int level, int name, void* value, socklen_t* len) noexcept {
  return dispatch(
      fd, [&] { return libc.getsockopt(fd, level, name, value, len); },
      [&](const Sock& s) { return sock_getsockopt(s, level, name, value, len); });
}
MW_EXPORT int setsockopt(int fd, int level, int name, const void* value, socklen_t len) noexcept {
  return dispatch(
      fd, [&] { return libc.setsockopt(fd, level, name, value, len); },
      [&](const Sock& s) { return sock_setsockopt(s, level, name, value, len); });
}
MW_EXPORT int getsockname(int fd, sockaddr* a, socklen_t* len) noexcept {
  return dispatch(
      fd, [&] { return libc.getsockname(fd, a, len); },
      [&](const Sock& s) { return sock_name(s, false, a, len); });
}
MW_EXPORT int getpeername(int fd, sockaddr* a, socklen_t* len) noexcept {
  return dispatch(
      fd, [&] { return libc.getpeername(fd, a, len); },
      [&](const Sock& s) { return sock_name(s, true, a, len); });
}
MW_EXPORT int sockatmark(int fd) noexcept {
  int at = 0;
  return ::ioctl(fd, SIOCATMARK, &at) < 0 ? -1 : at;
}

// ---- descriptors ----
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
  return dispatch(
      fd,
      [&] {
        const int rc = libc.fcntl(fd, command, arg);
        return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? after_dup(fd, rc) : rc;
      },
      [&](const Sock& s) { return sock_fcntl(s, command, arg); });
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
  return look_up(fd).kind == Kind::socket ? open_stream(fd, mode) : libc.fdopen(fd, mode);
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

// ---- waiting ----
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
  if (!select_concerns_us(n, r, w, x)) return libc.pselect(n, r, w, x, timeout, mask);
  if (const int error = fault_of(timeout); error != 0) {
    errno = error;
    return -1;
  }
  const int saved = errno;
  return finish(shim_select(n, r, w, x, to_ns(timeout), mask), saved);
}
MW_EXPORT int select(int n, fd_set* r, fd_set* w, fd_set* x, timeval* timeout) {
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

// ---- memory ----
// What the data path knows about pages ends where the program changes them.
MW_EXPORT int munmap(void* at, size_t n) noexcept {
  forget_pages(at, n);
  return static_cast<int>(libc.syscall(SYS_munmap, at, n));
}
MW_EXPORT int mprotect(void* at, size_t n, int protection) noexcept {
  forget_pages(at, n);
  return static_cast<int>(libc.syscall(SYS_mprotect, at, n, protection));
}

// ---- confinement ----
MW_EXPORT int prctl(int option, ...) noexcept {
  va_list ap;
  va_start(ap, option);
  unsigned long a[4];
  for (unsigned long& x : a) x = va_arg(ap, unsigned long);
  va_end(ap);
  if (option == PR_SET_SECCOMP) process.confined = true;
  return static_cast<int>(libc.syscall(SYS_prctl, option, a[0], a[1], a[2], a[3]));
}

// ---- names ----
MW_EXPORT int getaddrinfo(const char* node, const char* service, const addrinfo* hints,
                          addrinfo** out) {
  return shim_getaddrinfo(node, service, hints, out);
}
MW_EXPORT int getnameinfo(const sockaddr* a, socklen_t len, char* host, socklen_t host_len,
                          char* serv, socklen_t serv_len, int flags) {
  return shim_getnameinfo(a, len, host, host_len, serv, serv_len, flags);
}

// ---- new programs ----
#define MW_OUR_ENVIRONMENT(env) \
  environment_with_us(env, static_cast<char**>(alloca(environment_room(env) * sizeof(char*))))

MW_EXPORT int execve(const char* path, char* const* argv, char* const* env) noexcept {
  epoll_before_exec();
  return libc.execve(path, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int execv(const char* path, char* const* argv) noexcept {
  return execve(path, argv, environ);
}
MW_EXPORT int execvpe(const char* file, char* const* argv, char* const* env) noexcept {
  epoll_before_exec();
  return libc.execvpe(file, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int execvp(const char* file, char* const* argv) noexcept {
  return execvpe(file, argv, environ);
}
MW_EXPORT int fexecve(int fd, char* const* argv, char* const* env) noexcept {
  epoll_before_exec();
  return libc.fexecve(fd, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int execveat(int fd, const char* path, char* const* argv, char* const* env,
                       int flags) noexcept {
  epoll_before_exec();
  return libc.execveat(fd, path, argv, MW_OUR_ENVIRONMENT(env), flags);
}

namespace {
size_t count_arguments(va_list ap) {
  size_t n = 1;
  while (va_arg(ap, char*) != nullptr) ++n;
  return n;
}
void collect_arguments(const char* first, size_t n, va_list ap, char** out) {
  out[0] = const_cast<char*>(first);
  for (size_t i = 1; i <= n; ++i) out[i] = va_arg(ap, char*);
}
}  // namespace

#define MW_ARGUMENTS(first)                                               \
  va_list ap;                                                             \
  va_start(ap, first);                                                    \
  const size_t count = count_arguments(ap);                               \
  va_end(ap);                                                             \
  char** argv = static_cast<char**>(alloca((count + 1) * sizeof(char*))); \
  va_start(ap, first);                                                    \
  collect_arguments(first, count, ap, argv)

MW_EXPORT int execl(const char* path, const char* first, ...) noexcept {
  MW_ARGUMENTS(first);
  va_end(ap);
  return execve(path, argv, environ);
}
MW_EXPORT int execlp(const char* file, const char* first, ...) noexcept {
  MW_ARGUMENTS(first);
  va_end(ap);
  return execvpe(file, argv, environ);
}
MW_EXPORT int execle(const char* path, const char* first, ...) noexcept {
  MW_ARGUMENTS(first);
  char* const* env = va_arg(ap, char* const*);
  va_end(ap);
  return execve(path, argv, env);
}
MW_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                          const posix_spawnattr_t* attributes, char* const* argv,
                          char* const* env) {
  epoll_before_exec();
  const int rc = libc.posix_spawn(pid, path, actions, attributes, argv, MW_OUR_ENVIRONMENT(env));
  note_copies();
  return rc;
}
MW_EXPORT int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions,
                           const posix_spawnattr_t* attributes, char* const* argv,
                           char* const* env) {
  epoll_before_exec();
  const int rc = libc.posix_spawnp(pid, file, actions, attributes, argv, MW_OUR_ENVIRONMENT(env));
  note_copies();
  return rc;
}

// ---- syscall() ----
// Programs that avoid the library's names (and language run-times) come this way.
MW_EXPORT long syscall(long number, ...) noexcept {
  va_list ap;
  va_start(ap, number);
  long a[6];
  for (long& x : a) x = va_arg(ap, long);
  va_end(ap);
  const auto fd = static_cast<int>(a[0]);
  const auto pointer = [&](int i) { return reinterpret_cast<void*>(a[i]); };
  switch (number) {
    case SYS_read:
      return read(fd, pointer(1), static_cast<size_t>(a[2]));
    case SYS_write:
      return write(fd, pointer(1), static_cast<size_t>(a[2]));
    case SYS_readv:
      return readv(fd, static_cast<iovec*>(pointer(1)), static_cast<int>(a[2]));
    case SYS_writev:
      return writev(fd, static_cast<iovec*>(pointer(1)), static_cast<int>(a[2]));
    case SYS_recvfrom:
      return recvfrom(fd, pointer(1), static_cast<size_t>(a[2]), static_cast<int>(a[3]),
                      static_cast<sockaddr*>(pointer(4)), static_cast<socklen_t*>(pointer(5)));
    case SYS_sendto:
      return sendto(fd, pointer(1), static_cast<size_t>(a[2]), static_cast<int>(a[3]),
                    static_cast<sockaddr*>(pointer(4)), static_cast<socklen_t>(a[5]));
    case SYS_recvmsg:
      return recvmsg(fd, static_cast<msghdr*>(pointer(1)), static_cast<int>(a[2]));
    case SYS_sendmsg:
      return sendmsg(fd, static_cast<msghdr*>(pointer(1)), static_cast<int>(a[2]));
    case SYS_recvmmsg:
      return recvmmsg(fd, static_cast<mmsghdr*>(pointer(1)), static_cast<unsigned>(a[2]),
                      static_cast<int>(a[3]), static_cast<timespec*>(pointer(4)));
    case SYS_sendmmsg:
      return sendmmsg(fd, static_cast<mmsghdr*>(pointer(1)), static_cast<unsigned>(a[2]),
                      static_cast<int>(a[3]));
    case SYS_socket:
      return socket(fd, static_cast<int>(a[1]), static_cast<int>(a[2]));
    case SYS_bind:
      return bind(fd, static_cast<sockaddr*>(pointer(1)), static_cast<socklen_t>(a[2]));
    case SYS_listen:
      return listen(fd, static_cast<int>(a[1]));
    case SYS_accept:
      return accept4(fd, static_cast<sockaddr*>(pointer(1)), static_cast<socklen_t*>(pointer(2)),
                     0);
    case SYS_accept4:
      return accept4(fd, static_cast<sockaddr*>(pointer(1)), static_cast<socklen_t*>(pointer(2)),
                     static_cast<int>(a[3]));
    case SYS_connect:
      return connect(fd, static_cast<sockaddr*>(pointer(1)), static_cast<socklen_t>(a[2]));
    case SYS_shutdown:
      return shutdown(fd, static_cast<int>(a[1]));
    case SYS_getsockopt:
      return getsockopt(fd, static_cast<int>(a[1]), static_cast<int>(a[2]), pointer(3),
                        static_cast<socklen_t*>(pointer(4)));
    case SYS_setsockopt:
      return setsockopt(fd, static_cast<int>(a[1]), static_cast<int>(a[2]), pointer(3),
                        static_cast<socklen_t>(a[4]));
    case SYS_getsockname:
      return getsockname(fd, static_cast<sockaddr*>(pointer(1)),
                         static_cast<socklen_t*>(pointer(2)));
    case SYS_getpeername:
      return getpeername(fd, static_cast<sockaddr*>(pointer(1)),
                         static_cast<socklen_t*>(pointer(2)));
    case SYS_close:
      return close(fd);
    case SYS_close_range:
      return close_range(static_cast<unsigned>(a[0]), static_cast<unsigned>(a[1]),
                         static_cast<int>(a[2]));
    case SYS_dup:
      return dup(fd);
    case SYS_dup2:
      return dup2(fd, static_cast<int>(a[1]));
    case SYS_dup3:
      return dup3(fd, static_cast<int>(a[1]), static_cast<int>(a[2]));
    case SYS_fcntl:
      return fcntl(fd, static_cast<int>(a[1]), a[2]);
    case SYS_ioctl:
      return ioctl(fd, static_cast<unsigned long>(a[1]), a[2]);
    case SYS_poll:
      return poll(reinterpret_cast<pollfd*>(a[0]), static_cast<nfds_t>(a[1]),
                  static_cast<int>(a[2]));
    case SYS_ppoll:
      return ppoll(reinterpret_cast<pollfd*>(a[0]), static_cast<nfds_t>(a[1]),
                   static_cast<timespec*>(pointer(2)), static_cast<sigset_t*>(pointer(3)));
    case SYS_select:
      return select(fd, static_cast<fd_set*>(pointer(1)), static_cast<fd_set*>(pointer(2)),
                    static_cast<fd_set*>(pointer(3)), static_cast<timeval*>(pointer(4)));
    case SYS_epoll_create:
      return epoll_create(fd);
    case SYS_epoll_create1:
      return epoll_create1(fd);
    case SYS_epoll_ctl:
      return epoll_ctl(fd, static_cast<int>(a[1]), static_cast<int>(a[2]),
                       static_cast<epoll_event*>(pointer(3)));
    case SYS_epoll_wait:
      return epoll_wait(fd, static_cast<epoll_event*>(pointer(1)), static_cast<int>(a[2]),
                        static_cast<int>(a[3]));
    case SYS_epoll_pwait:
      return epoll_pwait(fd, static_cast<epoll_event*>(pointer(1)), static_cast<int>(a[2]),
                         static_cast<int>(a[3]), static_cast<sigset_t*>(pointer(4)));
    case SYS_sendfile:
      return sendfile(fd, static_cast<int>(a[1]), static_cast<off_t*>(pointer(2)),
                      static_cast<size_t>(a[3]));
    case SYS_splice:
      return splice(fd, static_cast<off64_t*>(pointer(1)), static_cast<int>(a[2]),
                    static_cast<off64_t*>(pointer(3)), static_cast<size_t>(a[4]),
                    static_cast<unsigned>(a[5]));
    case SYS_seccomp:
      process.confined = true;
      return libc.syscall(number, a[0], a[1], a[2]);
    case SYS_prctl:
      return prctl(fd, a[1], a[2], a[3], a[4]);
    case SYS_execve:
      return execve(reinterpret_cast<const char*>(a[0]), static_cast<char* const*>(pointer(1)),
                    static_cast<char* const*>(pointer(2)));
    default:
      return libc.syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  }
}
