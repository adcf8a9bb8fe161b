// stream.cc - the bytes of a stream socket: application memory <-> rings. The shim's half of the
// data path.
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "shim/calls/loopback_order.h"
#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"
#include "shim/socket/news.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// Walks an application's iovec.
class IovCursor {
 public:
  IovCursor(const iovec* iov, size_t count) : iov_(iov), left_(count) { skip_empty(); }
  bool done() const { return left_ == 0; }
  // The current piece, at most `limit` bytes of it.
  iovec piece(uint32_t limit) const {
    return {static_cast<char*>(iov_->iov_base) + at_, std::min<size_t>(iov_->iov_len - at_, limit)};
  }
  void advance(size_t n) {
    at_ += n;
    skip_empty();
  }

 private:
  void skip_empty() {
    while (left_ != 0 && at_ == iov_->iov_len) {
      at_ = 0;
      ++iov_;
      --left_;
    }
  }
  const iovec* iov_;
  size_t left_;
  size_t at_ = 0;
};

// How many of the next n bytes of the application's memory can be copied: all of them, or whole
// units of what the kernel copies at a time.
template <class Check>
uint32_t good_bytes(IovCursor at, uint32_t n, Check&& check) {
  uint32_t units = 0;
  for (uint32_t seen = 0; seen < n;) {
    const iovec piece = at.piece(std::min(n - seen, units + kCopyUnit - seen));
    if (!check(piece.iov_base, piece.iov_len)) return units;
    seen += static_cast<uint32_t>(piece.iov_len);
    if (seen - units == kCopyUnit) units = seen;
    at.advance(piece.iov_len);
  }
  return n;
}

// What the kernel would refuse without touching anything. -errno, or the number of bytes.
ssize_t iov_bytes(const iovec* iov, size_t count) {
  if (count > IOV_MAX) return -EMSGSIZE;
  if (!is_buffer(iov, count * sizeof *iov)) return -EFAULT;
  size_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    if (iov[i].iov_len > SSIZE_MAX - total) return -EINVAL;
    total += iov[i].iov_len;
  }
  return static_cast<ssize_t>(total);
}

// Under rx_lock: copies what is there, up to `room`, to the cursor. Returns the count or -errno.
ssize_t take_bytes(const Sock& s, IovCursor& to, size_t room, bool peek, bool truncate,
                   uint32_t peeked) {
  const uint32_t capacity = s.stack.geometry().rx_ring;
  const uint32_t head = s.mine.rx_head + peeked;
  auto ready = ring_ready(capacity, s.mine.rx_head, s.slot.rx_tail);
  if (!ready) return broken_window(s, ready.error().where);
  auto n = static_cast<uint32_t>(std::min<size_t>(*ready - std::min(*ready, peeked), room));
  if ((A::load_relaxed(s.slot.state) & MW_ST_AT_MARK) != 0) [[unlikely]] {
    // Reading stops at the mark of urgent data, as in the kernel.
    const uint32_t to_mark = A::load_relaxed(s.slot.oob_mark) - head;
    if (to_mark != 0 && to_mark < n) n = to_mark;
  }
  if (n == 0) return 0;
  const RingBytes ring = s.stack.rx(s.index);
  if (!ring.is_there()) [[unlikely]]
    return -ENOMEM;
  if (!truncate) {
    n = good_bytes(to, n, is_room);
    if (n == 0) return -EFAULT;
    for (uint32_t done = 0; done < n;) {
      const iovec piece = to.piece(n - done);
      ring.copy_out(head + done, piece.iov_base, static_cast<uint32_t>(piece.iov_len));
      done += static_cast<uint32_t>(piece.iov_len);
      to.advance(piece.iov_len);
    }
  }
  if (!peek) {
    A::store_relaxed(s.mine.rx_head, head + n);
    A::store_release(s.slot.rx_head, head + n);
  }
  return n;
}

// What the socket had to say besides bytes, at one moment: looked at before the ring, so that bytes
// that came before the end are seen before the end.
struct ReceivingEnd {
  explicit ReceivingEnd(const Sock& s)
      : state(state_of(s)),
        error(error_told(s)),
        shut((A::load_relaxed(s.mine.flags) & kSlotShutRd) != 0) {
    // An error comes before the state that follows from it, and after the FIN before it.
    if (error) state = state_of(s);
  }
  bool connected() const { return (state & (MW_ST_CONNECTED | MW_ST_CONNECTING)) != 0; }
  // The INS still has bytes of before. They come as soon as there is room.
  bool behind() const { return (state & MW_ST_BEHIND) != 0; }
  // True if recv() has something else to say than "wait" once there are no bytes. Not because of
  // MW_ST_CLOSED: both directions may be shut while the INS still has bytes for a full ring.
  bool ended() const {
    return error || (!behind() && ((state & MW_ST_EOF) != 0 || !connected() || shut));
  }
  uint32_t state;
  bool error;
  bool shut;
};

bool receiving_ended(const Sock& s) {
  return ReceivingEnd(s).ended();
}

// What recv() says then: -errno, 0 (end), or 1 (wait after all).
int no_bytes(const Sock& s, const ReceivingEnd& end) {
  // The peer said its last word before the error came, which stays for SO_ERROR and for send().
  if ((end.state & MW_ST_FIN) != 0) return 0;
  if (end.error)
    if (const int error = take_error(s); error != 0) return -error;
  if ((end.state & MW_ST_EOF) != 0 || end.shut) return 0;
  // A connect that failed leaves the socket closed, and recv() then tells the end, as the kernel
  // does.
  if (!end.connected()) return (end.state & MW_ST_CLOSED) != 0 ? 0 : -ENOTCONN;
  return 1;
}

// Whether waiting awake for a peer's answer to shutdown() has paid lately, in all threads. Races
// lose a count, no more.
int32_t awake_credit = 0;

// A program that has said its last word and looks for the peer's: natively a peer on the same
// machine has often closed by then, since shutdown() itself hands it the end. Here the INS and the
// peer need a moment to run, and to sleep for it costs the program two wake-ups
// (docs/decisions/0014). So the processor is offered to them, briefly, while that pays; peers far
// away are given it once in a while. True: look again.
bool is_answered_at_once(const Sock& s) {
  constexpr int64_t kMostNs = 20'000;
  constexpr int64_t kTooLongNs = 1'000'000;
  constexpr int32_t kFull = 32;
  constexpr int32_t kHit = 3;      // what a hit saves is as much as some misses cost
  constexpr int32_t kPause = 256;  // misses of credit to be made up for before the next try
  if ((A::load_relaxed(s.mine.flags) & kSlotShutWr) == 0 || process.confined) return false;
  const int32_t credit = A::load_relaxed(awake_credit);
  if (credit < 0) {
    A::store_relaxed(awake_credit, credit + 1);
    return false;
  }
  const int64_t begun = monotonic_ns();
  int64_t took = 0;
  bool answered = false;
  while (!answered && took < kMostNs) {
    ::sched_yield();
    // Another thread may have closed it, and then the slot is another connection's.
    if (!is_still_there(s)) return false;
    answered = readable_bytes(s) != 0 || receiving_ended(s);
    took = monotonic_ns() - begun;
  }
  // Whoever was given the processor may have kept it for long: then it did not pay either.
  if (answered && took < kTooLongNs)
    A::store_relaxed(awake_credit, std::min(kFull, credit + kHit));
  else
    A::store_relaxed(awake_credit, credit == 0 ? -kPause : credit - 1);
  return answered;
}

}  // namespace

ssize_t stream_recv(const Sock& s, const iovec* iov, size_t count, int flags) {
  const ssize_t total = iov_bytes(iov, count);
  if (total < 0) return total;
  const bool peek = (flags & MSG_PEEK) != 0;
  const bool truncate = (flags & MSG_TRUNC) != 0;
  const bool blocking = (flags & MSG_DONTWAIT) == 0 && !s.nonblocking();
  if (is_dead(s)) return -take_error(s);
  if (!blocking) settle();
  IovCursor to(iov, count);
  Timeout timeout(s.mine.rcvtimeo_us);
  bool looked_longer = false;
  ssize_t got = 0;
  for (;;) {
    // May be changed while we wait.
    const uint32_t lowat = low_water(s);
    const size_t whole = std::max<size_t>(1, static_cast<size_t>(total));
    const size_t target = (flags & MSG_WAITALL) != 0 ? whole : std::min<size_t>(lowat, whole);
    const ReceivingEnd end(s);
    ssize_t n = 0;
    {
      SharedLock lock(s.mine.rx_lock);
      n = take_bytes(s, to, static_cast<size_t>(total - got), peek, truncate,
                     peek ? static_cast<uint32_t>(got) : 0);
    }
    if (n < 0) return got > 0 ? got : n;
    if (n > 0 && !peek) offer_room(s);
    got += n;
    if (total == 0 && readable_bytes(s) != 0) return 0;
    if (static_cast<size_t>(got) >= target || (got == total && total != 0)) return got;
    if (n > 0) continue;
    if (end.ended()) {
      if (blocking && timeout.deadline() != 0 && is_closed_under(s)) {
        const int rc = wait_out(timeout.deadline());
        return got > 0 ? got : rc;
      }
      if (got > 0) return got;
      if (const int rc = no_bytes(s, end); rc <= 0) return rc;
    }
    if (!blocking && !(end.shut && end.behind())) {
      if (got > 0) return got;
      if (std::exchange(looked_longer, true) || !is_answered_at_once(s)) return -EAGAIN;
      continue;
    }
    const auto seen = static_cast<uint32_t>(peek ? got : 0);
    // What is behind comes as soon as the stack runs, unless somebody has paused it.
    constexpr int64_t kMomentNs = 20'000'000;
    const int64_t deadline = blocking ? timeout.deadline() : monotonic_ns() + kMomentNs;
    const int rc = wait_for(s, POLLIN, deadline, [&] {
      return readable_bytes(s) != seen || receiving_ended(s) || timeout.changed() ||
             low_water(s) != lowat;
    });
    if (rc < 0) return got > 0 ? got : rc;
  }
}

void forget_unread(const Sock& s) {
  SharedLock lock(s.mine.rx_lock);
  if (is_dead(s)) return;
  const uint32_t head = s.mine.rx_head + readable_bytes(s);
  A::store_relaxed(s.mine.rx_head, head);
  A::store_release(s.slot.rx_head, head);
}

int raise_sigpipe(int flags) {
  if ((flags & MSG_NOSIGNAL) == 0) {
    const int saved = errno;
    libc.syscall(SYS_tkill, ::gettid(), SIGPIPE);
    errno = saved;
  }
  return -EPIPE;
}

namespace {

// Why nothing can be sent now: -errno, or 0 if sending is possible. A blocked connect counts as
// possible (wait); `connecting` says so.
int cannot_send(const Sock& s, int flags, bool* connecting) {
  const uint32_t state = state_of(s);
  *connecting = (state & MW_ST_CONNECTING) != 0;
  if (const int error = take_error(s); error != 0)
    return error == EPIPE ? raise_sigpipe(flags) : -error;
  if ((state & (MW_ST_SND_SHUT | MW_ST_CLOSED)) != 0 ||
      (A::load_relaxed(s.mine.flags) & kSlotShutWr) != 0)
    return raise_sigpipe(flags);
  if ((state & (MW_ST_CONNECTED | MW_ST_CONNECTING)) == 0) return raise_sigpipe(flags);
  return 0;
}

// Waits for room in the send ring or for a reason why there will be none. 0 or -errno.
int wait_for_room(const Sock& s, Timeout& timeout) {
  const int rc = wait_for(s, POLLOUT, timeout.deadline(), [&] {
    const uint32_t state = state_of(s);
    if (error_pending(s) || (state & (MW_ST_SND_SHUT | MW_ST_CLOSED)) != 0) return true;
    if (timeout.changed()) return true;
    return (state & MW_ST_CONNECTING) == 0 && is_writable(s);
  });
  const bool timed = timeout.deadline() != 0;
  return rc == 0 && timed && is_closed_under(s) ? wait_out(timeout.deadline()) : rc;
}

// A non-blocking sender that found no room is told by its epoll groups when there is some.
void want_out_event(const Sock& s) {
  A::fetch_or(s.slot.want, MW_WANT_OUT_EVENT);
  A::fence();
  // Room came before the INS saw the wish: nobody else will tell of it.
  if (is_writable(s)) epoll_add_news(s);
}

// The loop that all stream senders share. `fill(ring, tail, room)` puts in up to `room` bytes,
// under tx_lock, and returns the count, 0 at its end, or -errno.
template <class Fill>
ssize_t send_loop(const Sock& s, size_t total, bool until_end, int flags, Fill&& fill) {
  const bool blocking = (flags & MSG_DONTWAIT) == 0 && !s.nonblocking();
  const bool more = (flags & MSG_MORE) != 0;
  const uint32_t capacity = s.stack.geometry().tx_ring;
  Timeout timeout(s.mine.sndtimeo_us);
  size_t sent = 0;
  for (;;) {
    bool connecting = false;
    if (const int rc = cannot_send(s, sent > 0 ? flags | MSG_NOSIGNAL : flags, &connecting); rc < 0)
      return sent > 0 ? static_cast<ssize_t>(sent) : rc;
    if (total == 0 && !until_end && !connecting) return 0;
    ssize_t n = 0;
    bool full = connecting;
    const bool held = hold_back(s, more);
    if (!connecting) {
      SharedLock lock(s.mine.tx_lock);
      const uint32_t tail = s.mine.tx_tail;
      auto room = ring_room(capacity, tail, s.slot.tx_head);
      if (!room) return broken_window(s, room.error().where);
      const uint32_t most = std::min(*room, send_room(s));
      full = most == 0;
      if (!full) {
        const RingBytes ring = s.stack.tx(s.index);
        n = ring.is_there()
                ? fill(ring, tail, static_cast<uint32_t>(std::min<size_t>(most, total - sent)))
                : -ENOMEM;
        if (n > 0) {
          A::store_relaxed(s.mine.tx_tail, tail + static_cast<uint32_t>(n));
          A::store_release(s.slot.tx_tail, tail + static_cast<uint32_t>(n));
        }
      }
    }
    if (n > 0) {
      announce_bytes(s, held, more);
      sent += static_cast<size_t>(n);
      if (sent == total) return static_cast<ssize_t>(sent);
      continue;
    }
    if (!full) return sent > 0 ? static_cast<ssize_t>(sent) : n;  // the source ended or failed
    if (held) announce_held(s);                                   // or there will never be room
    if (!blocking) {
      want_out_event(s);
      return sent > 0 ? static_cast<ssize_t>(sent) : -EAGAIN;
    }
    if (const int rc = wait_for_room(s, timeout); rc < 0)
      return sent > 0 ? static_cast<ssize_t>(sent) : rc;
  }
}

}  // namespace

int stream_await_room(const Sock& s, bool blocking, Timeout& timeout) {
  for (;;) {
    bool connecting = false;
    if (const int rc = cannot_send(s, MSG_NOSIGNAL, &connecting); rc < 0) return rc;
    if (!connecting && send_room(s) != 0) return 0;
    if (!blocking) {
      want_out_event(s);
      return -EAGAIN;
    }
    if (const int rc = wait_for_room(s, timeout); rc < 0) return rc;
  }
}

ssize_t stream_send(const Sock& s, const iovec* iov, size_t count, int flags, size_t most) {
  const ssize_t total = iov_bytes(iov, count);
  if (total < 0) return total;
  IovCursor from(iov, count);
  return send_loop(s, std::min(static_cast<size_t>(total), most), false, flags,
                   [&](const RingBytes& ring, uint32_t tail, uint32_t room) -> ssize_t {
                     const uint32_t n = good_bytes(from, room, is_buffer);
                     if (n == 0) return -EFAULT;
                     uint32_t done = 0;
                     while (done < n) {
                       const iovec piece = from.piece(n - done);
                       ring.copy_in(tail + done, piece.iov_base,
                                    static_cast<uint32_t>(piece.iov_len));
                       done += static_cast<uint32_t>(piece.iov_len);
                       from.advance(piece.iov_len);
                     }
                     return done;
                   });
}

ssize_t stream_send_file(const Sock& s, int file, off_t* offset, size_t count) {
  off_t at = offset != nullptr ? *offset : 0;
  const ssize_t n = send_loop(
      s, count, true, 0, [&](const RingBytes& ring, uint32_t tail, uint32_t room) -> ssize_t {
        iovec pieces[2];
        const int k = ring.pieces(tail, room, pieces);
        const long got = offset != nullptr
                             ? libc.syscall(SYS_preadv, file, pieces, k, static_cast<long>(at), 0)
                             : libc.syscall(SYS_readv, file, pieces, k);
        if (got < 0) return -errno;
        at += got;
        return got;
      });
  if (n > 0 && offset != nullptr) *offset = at;
  return n;
}

}  // namespace mw::shim
