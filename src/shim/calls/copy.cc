#include "shim/calls/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

constexpr size_t kMostAtOnce = 0x7ffff000;  // as the kernel limits one call
constexpr size_t kSpliceChunk = 16384;

bool is_pipe(int fd) {
  struct stat st {};
  return ::fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

// Waits until the pipe takes bytes. 0, or what splice() would say instead.
int await_pipe_room(int pipe, bool wait) {
  pollfd p{pipe, POLLOUT, 0};
  const int n = libc.poll(&p, 1, wait ? -1 : 0);
  if (n < 0) return -errno;
  if ((p.revents & POLLERR) != 0) return raise_sigpipe(0);  // nobody reads it
  return n > 0 ? 0 : -EAGAIN;
}

// SPLICE_F_NONBLOCK is about the pipe only: whether to wait for the socket its own flag says.
ssize_t socket_to_pipe(const Sock& s, int pipe, size_t count, unsigned flags) {
  char buffer[kSpliceChunk];
  const bool pipe_blocks = (libc.fcntl(pipe, F_GETFL) & O_NONBLOCK) == 0;
  const bool pipe_waits = pipe_blocks && (flags & SPLICE_F_NONBLOCK) == 0;
  size_t moved = 0;
  while (moved < count) {
    // What comes after the bytes, an error or the end, is the next call's to tell.
    if (moved > 0 && (readable_bytes(s) == 0 || error_pending(s))) break;
    const auto so_far = [&](ssize_t rc) { return moved > 0 ? static_cast<ssize_t>(moved) : rc; };
    if (const int rc = await_pipe_room(pipe, pipe_waits && moved == 0); rc < 0) return so_far(rc);
    // A pipe that poll() calls writable takes PIPE_BUF bytes without blocking, and perhaps no more:
    // the program that we would block in write() may be the pipe's reader.
    const size_t most = std::min(count - moved, pipe_blocks ? size_t{PIPE_BUF} : sizeof buffer);
    const iovec look{buffer, most};
    const ssize_t there = stream_recv(s, &look, 1, moved == 0 ? MSG_PEEK : MSG_PEEK | MSG_DONTWAIT);
    if (there <= 0) return so_far(there);
    // Only what the pipe took leaves the socket.
    const ssize_t put = libc.write(pipe, buffer, static_cast<size_t>(there));
    if (put < 0) return so_far(-errno);
    const iovec take{buffer, static_cast<size_t>(put)};
    const ssize_t taken = stream_recv(s, &take, 1, MSG_DONTWAIT);
    if (taken < 0) return so_far(taken);
    moved += static_cast<size_t>(taken);
  }
  return static_cast<ssize_t>(moved);
}

// Waits until the pipe has bytes. 1, 0 if nobody writes it any more, or -errno.
int await_pipe_bytes(int pipe, bool wait) {
  pollfd p{pipe, POLLIN, 0};
  const int n = libc.poll(&p, 1, wait ? -1 : 0);
  if (n < 0) return -errno;
  if ((p.revents & POLLIN) != 0) return 1;
  return n > 0 ? 0 : -EAGAIN;
}

ssize_t pipe_to_socket(int pipe, const Sock& s, size_t count, unsigned flags) {
  char buffer[kSpliceChunk];
  const bool pipe_blocks = (libc.fcntl(pipe, F_GETFL) & O_NONBLOCK) == 0;
  const bool pipe_waits = pipe_blocks && (flags & SPLICE_F_NONBLOCK) == 0;
  Timeout timeout(s.mine.sndtimeo_us);
  size_t moved = 0;
  while (moved < count) {
    if (moved > 0 && error_pending(s)) break;  // the next call's to tell
    const auto so_far = [&](ssize_t rc) { return moved > 0 ? static_cast<ssize_t>(moved) : rc; };
    if (const int rc = await_pipe_bytes(pipe, pipe_waits && moved == 0); rc <= 0) return so_far(rc);
    // Room first: what was read from a pipe cannot go back.
    if (const int rc = stream_await_room(s, !s.nonblocking(), timeout); rc < 0)
      return so_far(rc == -EPIPE ? raise_sigpipe(moved > 0 ? MSG_NOSIGNAL : 0) : rc);
    const size_t n = std::min({count - moved, sizeof buffer, size_t{send_room(s)}});
    if (n == 0) continue;  // another thread has filled it
    const ssize_t got = libc.read(pipe, buffer, n);
    if (got <= 0) return so_far(got < 0 ? -errno : 0);
    const iovec give{buffer, static_cast<size_t>(got)};
    const ssize_t sent = stream_send(s, &give, 1, MSG_NOSIGNAL);
    if (sent < 0) return so_far(sent);
    moved += static_cast<size_t>(sent);
  }
  return static_cast<ssize_t>(moved);
}

// The flags of an open file as the kernel's calls that move bytes see it: none of O_PATH, nor of a
// descriptor that the program has not. -1: EBADF.
int open_flags(int fd) {
  if (is_hidden(fd)) return -1;
  const int saved = errno;
  const int flags = libc.fcntl(fd, F_GETFL);
  errno = saved;
  return flags >= 0 && (flags & O_PATH) != 0 ? -1 : flags;
}
bool is_readable_end(int flags) {
  return flags >= 0 && (flags & O_ACCMODE) != O_WRONLY;
}
bool is_writable_end(int flags) {
  return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
}

bool appends(const Sock& s) {
  return (StdAtomics::load_relaxed(s.mine.flags) & kSlotOdd) != 0 &&
         (libc.fcntl(s.fd, F_GETFL) & O_APPEND) != 0;
}

// Why sendfile() cannot read from `in`, in the kernel's order: -errno or 0.
int fault_of_source(int in, const off_t* offset, size_t count) {
  if (!is_readable_end(open_flags(in))) return -EBADF;
  const bool seeks = libc.syscall(SYS_lseek, in, 0l, SEEK_CUR) >= 0;
  if (offset != nullptr && !seeks) return -ESPIPE;
  if ((offset != nullptr && *offset < 0) || static_cast<ssize_t>(count) < 0) return -EINVAL;
  struct stat st {};
  return seeks && ::fstat(in, &st) == 0 && !S_ISDIR(st.st_mode) ? 0 : -EINVAL;
}

// True if the file has nothing (more) to send: then the state of the socket is nobody's concern.
bool is_at_end(int in, const off_t* offset) {
  char byte = 0;
  const long at = offset != nullptr ? *offset : libc.syscall(SYS_lseek, in, 0l, SEEK_CUR);
  return libc.syscall(SYS_pread64, in, &byte, sizeof byte, at) == 0;
}

// Memory for the bytes of one datagram.
class DatagramBytes {
 public:
  explicit DatagramBytes(size_t n) : p_(static_cast<char*>(::malloc(n != 0 ? n : 1))) {}
  ~DatagramBytes() { ::free(p_); }
  DatagramBytes(const DatagramBytes&) = delete;
  DatagramBytes& operator=(const DatagramBytes&) = delete;
  char* get() const { return p_; }

 private:
  char* p_;
};

// More than any datagram, but no more than that: the kernel refuses it.
constexpr size_t kOverlong = 65536;

ssize_t send_datagram(const Sock& s, char* bytes, size_t n, int flags) {
  iovec iov{bytes, n};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  return message_send(s, &m, flags);
}

// sendfile(): what it is asked for is one datagram. The file's position moves if that has left.
ssize_t file_to_datagram(const Sock& s, int file, off_t* offset, size_t count) {
  const int mode = libc.fcntl(file, F_GETFL);
  if (mode < 0 || (mode & O_ACCMODE) == O_WRONLY || (mode & O_PATH) != 0) return -EBADF;
  struct stat st {};
  if (::fstat(file, &st) < 0) return -errno;
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
    return offset != nullptr && S_ISFIFO(st.st_mode) ? -ESPIPE : -EINVAL;
  const off_t at = offset != nullptr ? *offset : ::lseek(file, 0, SEEK_CUR);
  const size_t most = std::min(count, kOverlong);
  const DatagramBytes bytes(most);
  if (bytes.get() == nullptr) return -ENOMEM;
  const ssize_t got = ::pread(file, bytes.get(), most, at);
  if (got <= 0) return got < 0 ? -errno : 0;
  const ssize_t sent = send_datagram(s, bytes.get(), static_cast<size_t>(got), 0);
  if (sent < 0) return sent;
  if (offset != nullptr)
    *offset = at + sent;
  else
    ::lseek(file, at + sent, SEEK_SET);
  return sent;
}

// Waits for a pipe's end. 0 or -errno.
int await_pipe(int pipe, short what, bool wait) {
  pollfd p{pipe, what, 0};
  const int k = libc.poll(&p, 1, wait ? -1 : 0);
  if (k < 0) return -errno;
  return k == 0 ? -EAGAIN : 0;
}

bool pipe_waits(int pipe, unsigned flags) {
  return (flags & SPLICE_F_NONBLOCK) == 0 && (libc.fcntl(pipe, F_GETFL) & O_NONBLOCK) == 0;
}

// What the pipe holds, up to `count`, is one datagram.
ssize_t pipe_to_datagram(int pipe, const Sock& s, size_t count, unsigned flags) {
  if (const int rc = await_pipe(pipe, POLLIN, pipe_waits(pipe, flags)); rc < 0) return rc;
  int there = 0;
  if (libc.ioctl(pipe, FIONREAD, &there) < 0) return -errno;
  const size_t n = std::min(count, static_cast<size_t>(there));
  if (n == 0) return 0;  // no writer is left
  // What was read from the pipe cannot go back: first what the kernel would refuse.
  if (const int error = take_error(s); error != 0) return -error;
  if ((state_of(s) & MW_ST_CONNECTED) == 0) return -EDESTADDRREQ;
  if ((A::load_relaxed(s.mine.flags) & kSlotShutWr) != 0) return -EPIPE;
  if (n > most_data(s)) return -EMSGSIZE;
  const DatagramBytes bytes(n);
  if (bytes.get() == nullptr) return -ENOMEM;
  const ssize_t got = libc.read(pipe, bytes.get(), n);
  if (got <= 0) return got < 0 ? -errno : 0;
  return send_datagram(s, bytes.get(), static_cast<size_t>(got),
                       (flags & SPLICE_F_MORE) != 0 ? MSG_MORE : 0);
}

// One datagram, as much of it as was asked for and fits. SPLICE_F_NONBLOCK is about the pipe only.
ssize_t datagram_to_pipe(const Sock& s, int pipe, size_t count, unsigned flags) {
  if (const int rc = await_pipe(pipe, POLLOUT, pipe_waits(pipe, flags)); rc < 0) return rc;
  int there = 0;
  const int capacity = libc.fcntl(pipe, F_GETPIPE_SZ);
  if (capacity < 0 || libc.ioctl(pipe, FIONREAD, &there) < 0) return -errno;
  const size_t free = static_cast<size_t>(std::max(capacity - there, PIPE_BUF));
  const size_t most = std::min({count, free, kOverlong});
  const DatagramBytes bytes(most);
  if (bytes.get() == nullptr) return -ENOMEM;
  iovec iov{bytes.get(), most};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  const ssize_t got = dgram_recv(s, &m, 0);
  if (got <= 0) return got;
  const ssize_t put = libc.write(pipe, bytes.get(), static_cast<size_t>(got));
  return put < 0 ? -errno : put;
}

}  // namespace

ssize_t shim_sendfile(int out, int in, off_t* offset, size_t count) {
  if (offset != nullptr && !is_buffer(offset, sizeof *offset)) return -EFAULT;
  const Sock s = sock_of(out, look_up(out));
  // A connection that can send and a file that is read by its offset tell all that can be wrong by
  // themselves.
  constexpr uint32_t kStands = MW_ST_CONNECTED | MW_ST_SND_SHUT | MW_ST_CLOSED;
  const bool plain = offset != nullptr && *offset >= 0 && count != 0 &&
                     static_cast<ssize_t>(count) > 0 && !s.datagram() && !error_pending(s) &&
                     (state_of(s) & kStands) == MW_ST_CONNECTED && !appends(s) &&
                     peek(in).kind != Kind::hidden;
  const int saved = errno;
  if (!plain) {
    if (const int error = fault_of_source(in, offset, count); error < 0) return error;
    if (appends(s)) return -EINVAL;
    if (count == 0) return 0;
    if (s.datagram()) return file_to_datagram(s, in, offset, count);
    if (is_at_end(in, offset)) return 0;
  }
  const ssize_t n = stream_send_file(s, in, offset, std::min(count, kMostAtOnce));
  if (n < 0 && plain && (n == -EISDIR || n == -EBADF))
    if (const int error = fault_of_source(in, offset, count); error < 0) return error;
  errno = saved;
  return n;
}

ssize_t shim_sendfile_from(int out, int in, off_t* offset, size_t count) {
  // The placeholder is as little a file as the socket: all that fails, fails for both.
  if (offset != nullptr || static_cast<ssize_t>(count) < 0 || !is_writable_end(open_flags(out)) ||
      !is_pipe(out)) {
    const ssize_t n = libc.sendfile(out, in, offset, count);
    return n < 0 ? -errno : n;
  }
  const Sock s = sock_of(in, look_up(in));
  if (s.datagram()) return datagram_to_pipe(s, out, count, 0);
  return socket_to_pipe(s, out, std::min(count, kMostAtOnce), 0);
}

ssize_t shim_splice(int in, loff_t* in_off, int out, loff_t* out_off, size_t count,
                    unsigned flags) {
  constexpr unsigned kKnown = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT;
  if (count == 0) return 0;
  if ((flags & ~kKnown) != 0) return -EINVAL;
  const Entry from = look_up(in);
  const Entry to = look_up(out);
  const bool reads = from.kind == Kind::socket;
  const int other = reads ? out : in;
  const int mode = open_flags(other);
  if (mode < 0) return -EBADF;
  const bool pipe = is_pipe(other);
  if (pipe && (reads ? out_off : in_off) != nullptr) return -ESPIPE;
  for (const loff_t* offset : {out_off, in_off})
    if (offset != nullptr && !is_buffer(offset, sizeof *offset)) return -EFAULT;
  if (reads ? !is_writable_end(mode) : !is_readable_end(mode)) return -EBADF;
  if (!pipe || in_off != nullptr || out_off != nullptr) return -EINVAL;
  const Sock s = reads ? sock_of(in, from) : sock_of(out, to);
  if (!reads && appends(s)) return -EINVAL;
  if (s.datagram())
    return reads ? datagram_to_pipe(s, out, count, flags) : pipe_to_datagram(in, s, count, flags);
  return reads ? socket_to_pipe(s, out, count, flags) : pipe_to_socket(in, s, count, flags);
}

}  // namespace mw::shim
