// interpose.cc - the exported functions that move bytes, make sockets and ask about them, and those
// that end what the shim knows.
#include "shim/libc/interpose.h"

#include <netdb.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/received_fds.h"
#include "shim/calls/ancillary.h"
#include "shim/calls/copy.h"
#include "shim/calls/resolve.h"
#include "shim/socket/confinement.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {

bool is_inet(int domain) {
  return domain == AF_INET || domain == AF_INET6;
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
  if (from == nullptr) {
    msghdr m = message_of(data, n, iov, nullptr, 0);
    return sock_recvmsg(s, &m, flags);
  }
  // The length is looked at when the bytes are taken, as in the kernel.
  sockaddr_in6 name{};
  msghdr m = message_of(data, n, iov, &name, sizeof name);
  const ssize_t got = sock_recvmsg(s, &m, flags);
  if (got < 0) return got;
  const int rc = give_name(&name, m.msg_namelen, from, len);
  return rc < 0 ? rc : got;
}

ssize_t send_to(const Sock& s, const void* data, size_t n, int flags, const sockaddr* to,
                socklen_t len) {
  iovec iov;
  if (to != nullptr && (len > sizeof(sockaddr_storage) || (len == 0 && s.datagram())))
    return -EINVAL;
  const msghdr m = message_of(const_cast<void*>(data), n, iov, const_cast<sockaddr*>(to),
                              to != nullptr ? len : 0);
  return sock_sendmsg(s, &m, flags);
}

ssize_t read_socket(const Sock& s, void* data, size_t n) {
  if (n == 0) return 0;
  return receive_from(s, data, n, 0, nullptr, nullptr);
}

ssize_t vector_call(const Sock& s, const iovec* iov, int count, bool sending, int flags = 0) {
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
  return sending ? sock_sendmsg(s, &m, flags) : sock_recvmsg(s, &m, flags);
}

// What preadv2() and pwritev2() say about a socket, which has no offsets: 0 or the errno.
int fault_of(off_t offset, int flags) {
  constexpr int kKnown = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT | RWF_APPEND;
  if (offset != -1) return offset < 0 ? EINVAL : ESPIPE;
  return (flags & ~kKnown) != 0 ? EOPNOTSUPP : 0;
}
int message_flags(int flags) {
  return (flags & RWF_NOWAIT) != 0 ? MSG_DONTWAIT : 0;
}

// Sockets that came in by SCM_RIGHTS are looked at when they are used.
void forget_received(const msghdr* m) {
  mw::each_passed_fd(*m, [](int fd) { set_entry(fd, Entry{}); });
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
MW_EXPORT ssize_t preadv2(int fd, const iovec* iov, int count, off_t offset, int flags) {
  return dispatch(
      fd, [&] { return libc.preadv2(fd, iov, count, offset, flags); },
      [&](const Sock& s) -> ssize_t {
        if (const int error = fault_of(offset, flags); error != 0) return -error;
        return vector_call(s, iov, count, false, message_flags(flags));
      });
}
MW_EXPORT ssize_t preadv64v2(int fd, const iovec* iov, int count, off64_t offset, int flags) {
  return preadv2(fd, iov, count, offset, flags);
}
MW_EXPORT ssize_t pwritev2(int fd, const iovec* iov, int count, off_t offset, int flags) {
  return dispatch(
      fd, [&] { return libc.pwritev2(fd, iov, count, offset, flags); },
      [&](const Sock& s) -> ssize_t {
        if (const int error = fault_of(offset, flags); error != 0) return -error;
        return vector_call(s, iov, count, true, message_flags(flags));
      });
}
MW_EXPORT ssize_t pwritev64v2(int fd, const iovec* iov, int count, off64_t offset, int flags) {
  return pwritev2(fd, iov, count, offset, flags);
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
        const int64_t limit = to_ns(timeout);
        const int64_t deadline = limit >= 0 ? mw::monotonic_ns() + limit : 0;
        if ((flags & MSG_ERRQUEUE) == 0)
          if (const int error = take_error(s); error != 0) return -error;
        unsigned got = 0;
        while (got < n) {
          int f = flags & ~MSG_WAITFORONE;
          if (got > 0 && (flags & MSG_WAITFORONE) != 0) f |= MSG_DONTWAIT;
          if (!is_room(v + got, sizeof *v)) return got > 0 ? static_cast<int>(got) : -EFAULT;
          if (got > 0 && error_pending(s)) break;  // the next call's to tell
          const ssize_t k = sock_recvmsg(s, &v[got].msg_hdr, f);
          if (k < 0) return got > 0 ? static_cast<int>(got) : static_cast<int>(k);
          v[got++].msg_len = static_cast<unsigned>(k);
          // As in the kernel the time is looked at after each message only.
          if (deadline == 0) continue;
          const int64_t left = std::max<int64_t>(0, deadline - mw::monotonic_ns());
          if (!is_room(timeout, sizeof *timeout)) return -EFAULT;
          *timeout = {left / 1'000'000'000, left % 1'000'000'000};
          if (left == 0) break;
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
        const unsigned most = std::min<unsigned>(n, UIO_MAXIOV);  // as in the kernel
        unsigned sent = 0;
        for (; sent < most; ++sent) {
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
      out,
      [&]() -> ssize_t {
        if (look_up(in).kind != Kind::socket) return libc.sendfile(out, in, offset, n);
        const int saved = errno;
        return finish(shim_sendfile_from(out, in, offset, n), saved);
      },
      [&](const Sock&) { return shim_sendfile(out, in, offset, n); });
}
MW_EXPORT ssize_t sendfile64(int out, int in, off64_t* offset, size_t n) {
  return sendfile(out, in, offset, n);
}
MW_EXPORT ssize_t splice(int in, off64_t* in_off, int out, off64_t* out_off, size_t n,
                         unsigned flags) {
  const Kind from = look_up(in).kind;
  const Kind to = look_up(out).kind;
  if (from == Kind::lost || to == Kind::lost) return lost_call();
  if (from != Kind::socket && to != Kind::socket)
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

// ---- confinement ----
MW_EXPORT int prctl(int option, ...) noexcept {
  va_list ap;
  va_start(ap, option);
  unsigned long a[4];
  for (unsigned long& x : a) x = va_arg(ap, unsigned long);
  va_end(ap);
  if (option == PR_SET_SECCOMP) become_confined();
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
