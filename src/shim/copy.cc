#include "shim/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include <algorithm>

namespace mw::shim {
namespace {

constexpr size_t kMostAtOnce = 0x7ffff000;  // as the kernel limits one call
constexpr size_t kSpliceChunk = 16384;

bool is_pipe(int fd) {
  struct stat st {};
  return ::fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

ssize_t socket_to_pipe(const Sock& s, int pipe, size_t count, unsigned flags) {
  char buffer[kSpliceChunk];
  const bool pipe_blocks = (libc.fcntl(pipe, F_GETFL) & O_NONBLOCK) == 0;
  size_t moved = 0;
  while (moved < count) {
    // What comes after the bytes, an error or the end, is the next call's to tell.
    if (moved > 0 && (readable_bytes(s) == 0 || error_pending(s))) break;
    const bool wait = moved == 0 && (flags & SPLICE_F_NONBLOCK) == 0;
    const auto so_far = [&](ssize_t rc) { return moved > 0 ? static_cast<ssize_t>(moved) : rc; };
    // A pipe that poll() calls writable takes PIPE_BUF bytes without blocking, and perhaps no more:
    // the program that we would block in write() may be the pipe's reader.
    const size_t most = std::min(count - moved, pipe_blocks ? size_t{PIPE_BUF} : sizeof buffer);
    const iovec look{buffer, most};
    const ssize_t there = stream_recv(s, &look, 1, wait ? MSG_PEEK : MSG_PEEK | MSG_DONTWAIT);
    if (there <= 0) return so_far(there);
    pollfd p{pipe, POLLOUT, 0};
    if (pipe_blocks && !wait && libc.poll(&p, 1, 0) == 0) return so_far(-EAGAIN);
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

ssize_t pipe_to_socket(int pipe, const Sock& s, size_t count, unsigned flags) {
  char buffer[kSpliceChunk];
  const bool blocking = !s.nonblocking() && (flags & SPLICE_F_NONBLOCK) == 0;
  Timeout timeout(s.mine.sndtimeo_us);
  size_t moved = 0;
  while (moved < count) {
    if (moved > 0 && error_pending(s)) break;  // the next call's to tell
    // Room first: what was read from a pipe cannot go back.
    const int rc = stream_await_room(s, blocking, timeout);
    if (rc < 0) return moved > 0 ? static_cast<ssize_t>(moved) : rc;
    const size_t n = std::min({count - moved, sizeof buffer, size_t{send_room(s)}});
    if (n == 0) continue;  // another thread has filled it
    pollfd p{pipe, POLLIN, 0};
    if ((moved > 0 || (flags & SPLICE_F_NONBLOCK) != 0) && libc.poll(&p, 1, 0) == 0)
      return moved > 0 ? static_cast<ssize_t>(moved) : -EAGAIN;
    const ssize_t got = libc.read(pipe, buffer, n);
    if (got <= 0) return moved > 0 ? static_cast<ssize_t>(moved) : (got < 0 ? -errno : 0);
    const iovec give{buffer, static_cast<size_t>(got)};
    const ssize_t sent = stream_send(s, &give, 1, MSG_NOSIGNAL);
    if (sent < 0) return moved > 0 ? static_cast<ssize_t>(moved) : sent;
    moved += static_cast<size_t>(sent);
  }
  return static_cast<ssize_t>(moved);
}

}  // namespace

ssize_t shim_sendfile(int out, int in, off_t* offset, size_t count) {
  const Entry to = look_up(out);
  if (look_up(in).kind == Kind::socket) return -EINVAL;
  const Sock s = sock_of(out, to);
  if (s.datagram()) return -EINVAL;
  if (offset != nullptr && *offset < 0) return -EINVAL;
  return stream_send_file(s, in, offset, std::min(count, kMostAtOnce));
}

ssize_t shim_splice(int in, loff_t* in_off, int out, loff_t* out_off, size_t count,
                    unsigned flags) {
  const Entry from = look_up(in);
  const Entry to = look_up(out);
  const int other = from.kind == Kind::socket ? out : in;
  if (from.kind == to.kind || !is_pipe(other)) return -EINVAL;
  if (in_off != nullptr || out_off != nullptr) return -ESPIPE;
  const Sock s = from.kind == Kind::socket ? sock_of(in, from) : sock_of(out, to);
  if (s.datagram()) return -EINVAL;
  if (count == 0) return 0;
  return from.kind == Kind::socket ? socket_to_pipe(s, out, count, flags)
                                   : pipe_to_socket(in, s, count, flags);
}

}  // namespace mw::shim
