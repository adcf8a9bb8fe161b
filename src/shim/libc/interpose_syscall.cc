// interpose_syscall.cc - syscall(): programs that avoid the library's names, and language
// run-times, come this way.
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "shim/libc/interpose.h"
#include "shim/socket/confinement.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

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
    // The second half of the offset is nothing here.
    case SYS_preadv2:
      return preadv2(fd, static_cast<iovec*>(pointer(1)), static_cast<int>(a[2]), a[3],
                     static_cast<int>(a[5]));
    case SYS_pwritev2:
      return pwritev2(fd, static_cast<iovec*>(pointer(1)), static_cast<int>(a[2]), a[3],
                      static_cast<int>(a[5]));
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
      return poll(reinterpret_cast<pollfd*>(a[0]), static_cast<nfds_t>(static_cast<unsigned>(a[1])),
                  static_cast<int>(a[2]));
    case SYS_ppoll:
      return raw_ppoll(reinterpret_cast<pollfd*>(a[0]),
                       static_cast<nfds_t>(static_cast<unsigned>(a[1])),
                       static_cast<timespec*>(pointer(2)), static_cast<sigset_t*>(pointer(3)),
                       static_cast<size_t>(a[4]));
    case SYS_select:
      return raw_select(fd, static_cast<fd_set*>(pointer(1)), static_cast<fd_set*>(pointer(2)),
                        static_cast<fd_set*>(pointer(3)), static_cast<timeval*>(pointer(4)));
    case SYS_pselect6:
      return raw_pselect6(fd, static_cast<fd_set*>(pointer(1)), static_cast<fd_set*>(pointer(2)),
                          static_cast<fd_set*>(pointer(3)), static_cast<timespec*>(pointer(4)),
                          pointer(5));
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
      return raw_epoll_pwait(fd, static_cast<epoll_event*>(pointer(1)), static_cast<int>(a[2]),
                             static_cast<int>(a[3]), static_cast<sigset_t*>(pointer(4)),
                             static_cast<size_t>(a[5]));
    case SYS_epoll_pwait2:
      return raw_epoll_pwait2(fd, static_cast<epoll_event*>(pointer(1)), static_cast<int>(a[2]),
                              static_cast<timespec*>(pointer(3)),
                              static_cast<sigset_t*>(pointer(4)), static_cast<size_t>(a[5]));
    case SYS_sendfile:
      return sendfile(fd, static_cast<int>(a[1]), static_cast<off_t*>(pointer(2)),
                      static_cast<size_t>(a[3]));
    case SYS_splice:
      return splice(fd, static_cast<off64_t*>(pointer(1)), static_cast<int>(a[2]),
                    static_cast<off64_t*>(pointer(3)), static_cast<size_t>(a[4]),
                    static_cast<unsigned>(a[5]));
    case SYS_seccomp:
      become_confined();
      return libc.syscall(number, a[0], a[1], a[2]);
    case SYS_prctl:
      return prctl(fd, a[1], a[2], a[3], a[4]);
    case SYS_mmap:
      return reinterpret_cast<long>(mmap(pointer(0), static_cast<size_t>(a[1]),
                                         static_cast<int>(a[2]), static_cast<int>(a[3]),
                                         static_cast<int>(a[4]), a[5]));
    case SYS_mremap:
      return reinterpret_cast<long>(mremap(pointer(0), static_cast<size_t>(a[1]),
                                           static_cast<size_t>(a[2]), static_cast<int>(a[3]),
                                           pointer(4)));
    case SYS_munmap:
      return munmap(pointer(0), static_cast<size_t>(a[1]));
    case SYS_mprotect:
      return mprotect(pointer(0), static_cast<size_t>(a[1]), static_cast<int>(a[2]));
    case SYS_mlockall:
      return mlockall(fd);
    case SYS_execve:
      return execve(reinterpret_cast<const char*>(a[0]), static_cast<char* const*>(pointer(1)),
                    static_cast<char* const*>(pointer(2)));
    case SYS_execveat:
      return execveat(fd, static_cast<const char*>(pointer(1)),
                      static_cast<char* const*>(pointer(2)), static_cast<char* const*>(pointer(3)),
                      static_cast<int>(a[4]));
    case SYS_fork:
      return _Fork();
    case SYS_clone:
    case SYS_clone3: {
      uint64_t flags = static_cast<uint64_t>(a[0]);
      // clone3() has them in the first word of a structure; without one the kernel refuses.
      if (number == SYS_clone3) {
        if (!is_memory(pointer(0), sizeof flags)) return libc.syscall(number, a[0], a[1]);
        std::memcpy(&flags, pointer(0), sizeof flags);
      }
      begin_copying();
      const long rc = libc.syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
      if (rc != 0)
        end_copying();
      else if ((flags & (CLONE_VM | CLONE_FILES)) == 0)
        after_fork_in_child();
      return rc;
    }
    default:
      return libc.syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  }
}
