#include "shim/process/libc_calls.h"

#include <dlfcn.h>
#include <stdarg.h>

#include "base/raw_syscall.h"

namespace mw::shim {
namespace {

// A system call as an ordinary function: what stands in the table before the constructor ran.
template <long N, class Signature>
struct Raw;
template <long N, class R, class... A>
struct Raw<N, R (*)(A...)> {
  static R call(A... a) { return static_cast<R>(raw_syscall(N, a...)); }
};

int raw_fcntl(int fd, int command, ...) {
  va_list ap;
  va_start(ap, command);
  const long arg = va_arg(ap, long);
  va_end(ap);
  return static_cast<int>(raw_syscall(SYS_fcntl, fd, command, arg));
}
int raw_ioctl(int fd, unsigned long request, ...) {
  va_list ap;
  va_start(ap, request);
  const long arg = va_arg(ap, long);
  va_end(ap);
  return static_cast<int>(raw_syscall(SYS_ioctl, fd, request, arg));
}
// The kernel takes the offset in two halves, of which this one holds all of it.
ssize_t raw_preadv2(int fd, const iovec* iov, int count, off_t offset, int flags) {
  return raw_syscall(SYS_preadv2, fd, iov, count, offset, 0, flags);
}
ssize_t raw_pwritev2(int fd, const iovec* iov, int count, off_t offset, int flags) {
  return raw_syscall(SYS_pwritev2, fd, iov, count, offset, 0, flags);
}
ssize_t raw_recv(int fd, void* p, size_t n, int f) {
  return raw_syscall(SYS_recvfrom, fd, p, n, f);
}
ssize_t raw_send(int fd, const void* p, size_t n, int f) {
  return raw_syscall(SYS_sendto, fd, p, n, f);
}
long variadic_syscall(long n, ...) {
  va_list ap;
  va_start(ap, n);
  long a[6];
  for (long& x : a) x = va_arg(ap, long);
  va_end(ap);
  return raw_syscall6(n, a[0], a[1], a[2], a[3], a[4], a[5]);
}

template <class F>
void find(F& slot, const char* name) {
  if (void* p = ::dlsym(RTLD_NEXT, name)) slot = reinterpret_cast<F>(p);
}

}  // namespace

#define MW_RAW(field, number) .field = Raw<number, decltype(LibcCalls::field)>::call
constinit LibcCalls libc = {
    MW_RAW(read, SYS_read),
    MW_RAW(write, SYS_write),
    MW_RAW(readv, SYS_readv),
    MW_RAW(writev, SYS_writev),
    .preadv2 = raw_preadv2,
    .pwritev2 = raw_pwritev2,
    .recv = raw_recv,
    MW_RAW(recvfrom, SYS_recvfrom),
    MW_RAW(recvmsg, SYS_recvmsg),
    MW_RAW(recvmmsg, SYS_recvmmsg),
    .send = raw_send,
    MW_RAW(sendto, SYS_sendto),
    MW_RAW(sendmsg, SYS_sendmsg),
    MW_RAW(sendmmsg, SYS_sendmmsg),
    MW_RAW(socket, SYS_socket),
    MW_RAW(bind, SYS_bind),
    MW_RAW(listen, SYS_listen),
    MW_RAW(accept4, SYS_accept4),
    MW_RAW(connect, SYS_connect),
    MW_RAW(shutdown, SYS_shutdown),
    MW_RAW(getsockopt, SYS_getsockopt),
    MW_RAW(setsockopt, SYS_setsockopt),
    MW_RAW(getsockname, SYS_getsockname),
    MW_RAW(getpeername, SYS_getpeername),
    MW_RAW(close, SYS_close),
    MW_RAW(close_range, SYS_close_range),
    MW_RAW(dup, SYS_dup),
    MW_RAW(dup2, SYS_dup2),
    MW_RAW(dup3, SYS_dup3),
    .fcntl = raw_fcntl,
    .ioctl = raw_ioctl,
    MW_RAW(poll, SYS_poll),
    // The signal mask of these needs its size too: found before anything can call them.
    .ppoll = nullptr,
    MW_RAW(select, SYS_select),
    .pselect = nullptr,
    MW_RAW(epoll_create1, SYS_epoll_create1),
    MW_RAW(epoll_ctl, SYS_epoll_ctl),
    MW_RAW(epoll_wait, SYS_epoll_wait),
    .epoll_pwait = nullptr,
    .epoll_pwait2 = nullptr,
    MW_RAW(sendfile, SYS_sendfile),
    MW_RAW(splice, SYS_splice),
    .fdopen = nullptr,
    MW_RAW(execve, SYS_execve),
    .execvpe = nullptr,
    .fexecve = nullptr,
    .execveat = nullptr,
    .posix_spawn = nullptr,
    .posix_spawnp = nullptr,
    .system = nullptr,
    .popen = nullptr,
    ._Fork = nullptr,
    .clone = nullptr,
    .getaddrinfo = nullptr,
    .freeaddrinfo = nullptr,
    .getnameinfo = nullptr,
    .res_nsend = nullptr,
    .syscall = variadic_syscall,
};

void resolve_libc_calls() {
#define MW_FIND(field) find(libc.field, #field)
  MW_FIND(read);
  MW_FIND(write);
  MW_FIND(readv);
  MW_FIND(writev);
  MW_FIND(preadv2);
  MW_FIND(pwritev2);
  MW_FIND(recv);
  MW_FIND(recvfrom);
  MW_FIND(recvmsg);
  MW_FIND(recvmmsg);
  MW_FIND(send);
  MW_FIND(sendto);
  MW_FIND(sendmsg);
  MW_FIND(sendmmsg);
  MW_FIND(socket);
  MW_FIND(bind);
  MW_FIND(listen);
  MW_FIND(accept4);
  MW_FIND(connect);
  MW_FIND(shutdown);
  MW_FIND(getsockopt);
  MW_FIND(setsockopt);
  MW_FIND(getsockname);
  MW_FIND(getpeername);
  MW_FIND(close);
  MW_FIND(close_range);
  MW_FIND(dup);
  MW_FIND(dup2);
  MW_FIND(dup3);
  MW_FIND(fcntl);
  MW_FIND(ioctl);
  MW_FIND(poll);
  MW_FIND(ppoll);
  MW_FIND(select);
  MW_FIND(pselect);
  MW_FIND(epoll_create1);
  MW_FIND(epoll_ctl);
  MW_FIND(epoll_wait);
  MW_FIND(epoll_pwait);
  MW_FIND(epoll_pwait2);
  MW_FIND(sendfile);
  MW_FIND(splice);
  MW_FIND(fdopen);
  MW_FIND(execve);
  MW_FIND(execvpe);
  MW_FIND(fexecve);
  MW_FIND(execveat);
  MW_FIND(posix_spawn);
  MW_FIND(posix_spawnp);
  MW_FIND(system);
  MW_FIND(popen);
  MW_FIND(_Fork);
  MW_FIND(clone);
  MW_FIND(getaddrinfo);
  MW_FIND(freeaddrinfo);
  MW_FIND(getnameinfo);
  MW_FIND(res_nsend);
  MW_FIND(syscall);
#undef MW_FIND
}

}  // namespace mw::shim
