#include "ins/worker/stream_pump.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>

#include "ins/policy/options.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

// No socket moves more than this in one turn while others wait.
constexpr uint32_t kBytesPerTurn = 512 * 1024;
constexpr size_t kEnoughForOnePiece = 4096;
// One send() takes no more than this, so that the application can fill one half of its ring while
// we empty the other. Receiving has no such limit: waking a reader costs more than it waits.
constexpr uint32_t kChunk = 256 * 1024;

// The kernel says EPIPE of a reset that came after the peer's end.
bool is_reset(int err) {
  return err == ECONNRESET || err == EPIPE;
}

constexpr uint32_t kHangs = MW_ST_CLOSED | MW_ST_SND_SHUT;

// Reads into the free part of the ring. `asked`: how much may be read; becomes how much was asked
// for, as most requests are small, and recv() is cheaper than readv().
ssize_t read_into(const RingBytes& ring, SlotRef s, uint32_t& asked) {
  iovec iov[2];
  int pieces = ring.pieces(s->rx_tail, asked, iov);
  if (pieces == 2 && iov[0].iov_len >= kEnoughForOnePiece) {
    pieces = 1;
    asked = static_cast<uint32_t>(iov[0].iov_len);
  }
  return pieces == 1 ? ::recv(s->fd, iov[0].iov_base, iov[0].iov_len, MSG_DONTWAIT)
                     : ::readv(s->fd, iov, pieces);
}

}  // namespace

void StreamPump::on_event(SlotRef s, uint32_t events) {
  uint32_t news = 0;
  if ((s->state & MW_ST_CONNECTING) != 0) {
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0) return;
    finish_connect(s);
    if ((s->state & MW_ST_CONNECTED) == 0) return news_.announce(s, kNewsAll);
    news |= kNewsAll;
  } else if ((s->state & MW_ST_CONNECTED) == 0) {
    return;
  }
  if ((events & EPOLLPRI) != 0) on_urgent(s);
  if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) s->flags |= kToEnd;
  if ((events & EPOLLRDHUP) != 0) s->untold |= MW_ST_RCV_SHUT;
  const bool hangs = (events & EPOLLHUP) != 0;
  if (hangs && (events & EPOLLERR) == 0) s->untold |= kHangs;
  if ((events & (EPOLLIN | EPOLLPRI)) != 0 || (s->flags & kToEnd) != 0 || events == 0)
    news |= receive(s);
  if ((events & EPOLLERR) != 0 && s->fd >= 0) news |= on_error(s, hangs);
  if ((events & EPOLLOUT) != 0) s->flags &= ~kTxBlocked;
  if ((events & EPOLLOUT) != 0 || events == 0) news |= send(s);
  if (news != 0) news_.announce(s, news);
}

// recv() tells most errors; what it left is either pending or in the error queue. Returns the news
// of it.
uint32_t StreamPump::on_error(SlotRef s, bool hangs) {
  uint32_t news = 0;
  const uint8_t before = s->conn;
  const int err = take_reset(*s);
  if (hangs) s->untold |= kHangs;
  if (err != 0) {
    if (s->conn != before) telemetry_.changed(s);
    publish_last_error(s, err, hangs);
    news |= kNewsAll;
  } else {
    pollfd p{s->fd, 0, 0};
    if (::poll(&p, 1, 0) > 0 && (p.revents & POLLERR) != 0 && (s->state & MW_ST_ERRQ) == 0) {
      news_.set_state(s, s->state | MW_ST_ERRQ);
      news |= kNewsAll;
    }
  }
  if (hangs) news |= tell_end(s);
  return news;
}

// The state in which what the kernel said of the connection's end, or of urgent data, is told, as far
// as every byte that came before it is in the receive ring: a program takes the end for the end of
// the bytes that it finds there.
uint32_t StreamPump::end_state(Sock& s) {
  uint32_t told = s.untold;
  if ((s.flags & kToEnd) != 0)
    told = (s.flags & kMarkAhead) == 0 ? s.untold & MW_ST_PRI : 0;  // the mark is in the ring
  s.untold &= ~told;
  uint32_t state = s.state | told;
  if ((s.flags & kToEnd) == 0) state &= ~MW_ST_BEHIND;
  return state;
}

// Returns the news of it.
uint32_t StreamPump::tell_end(SlotRef s) {
  const uint32_t state = end_state(*s);
  if (state == s->state) return 0;
  news_.set_state(s, state);
  return kNewsAll;
}

// Publishes an error that may have left bytes in the kernel. Who writes is told at once, who reads
// after those bytes.
void StreamPump::publish_last_error(SlotRef s, int err, bool closed) {
  uint32_t state = end_state(*s);
  if ((s->flags & kToEnd) != 0) state |= MW_ST_BEHIND;
  if (closed) state |= MW_ST_SND_SHUT;
  news_.publish_failure(s, err, state);
}

int StreamPump::take_reset(Sock& s) {
  int err = 0;
  socklen_t len = sizeof err;
  if (::getsockopt(s.fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0) return 0;
  if (is_reset(err)) s.conn |= MW_CONN_PEER_RST;
  if (err != 0 && err != EPIPE) s.flags |= kErrorTaken;
  return err;
}

uint32_t StreamPump::receive(SlotRef s) {
  if ((s->flags & kReadDone) != 0 || s->fd < 0) {
    s->flags &= ~(kRxWait | kToEnd);
    return tell_end(s);
  }
  if (LimitClock::is_paused(*s, kPauseIn) || !memory_.acquire_rx(s)) return 0;
  const RingBytes ring = ch_.rx(s.index);
  const uint32_t capacity = ring.capacity();
  const uint32_t limit = room_.limit(s);
  const uint32_t beyond = capacity - limit;
  mw_slot& shared = ch_.slot(s.index);
  uint32_t moved = 0;
  uint32_t news = 0;
  const bool waited = (s->flags & kRxWait) != 0;
  const uint8_t conn = s->conn;
  for (;;) {
    auto room = ring_room(capacity, s->rx_tail, shared.rx_head);
    if (!room) {
      scope_.fault(room.error());
      return 0;
    }
    if (*room <= beyond || ((s->flags & kRxWait) != 0 && *room < capacity - limit / 2)) {
      // Half, and not a byte: a slow reader must not cost a system call for every byte it takes.
      if (!room_.wait_for(s, capacity - limit / 2)) break;
      continue;
    }
    s->flags &= ~kRxWait;
    if (moved >= kBytesPerTurn) {
      work_.add(s);
      break;
    }
    uint32_t asked = *room - beyond;
    const ssize_t n = read_into(ring, s, asked);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      news |= n == 0 ? on_read_end(s) : on_read_error(s, errno);
      break;
    }
    const auto got = static_cast<uint32_t>(n);
    s->rx_tail += got;
    s->bytes_in += got;
    moved += got;
    A::store_release(shared.rx_tail, s->rx_tail);
    news |= kNewsIn;
    if ((s->flags & kMarkAhead) != 0) {
      look_for_mark(s);
      continue;  // a short read ended at the mark, perhaps
    }
    // Less than we asked for: the kernel holds no more, and what comes is a new edge.
    if (got < asked && (s->flags & kToEnd) == 0) break;
  }
  if (s->untold != 0 || (s->state & MW_ST_BEHIND) != 0) news |= tell_end(s);
  if (moved != 0)
    count_received(s, moved, waited);
  else if (s->conn != conn)
    telemetry_.changed(s);
  return news;
}

void StreamPump::count_received(SlotRef s, uint32_t moved, bool waited) {
  if (s->bytes_in == moved) s->sampled.first_in_ms = coarse_monotonic_ms();
  s->flags &= ~kSentLast;
  if ((s->flags & kLimited) != 0) limits_.received(*s, moved, waited);
  telemetry_.event(MW_TEL_RECV, s);
  s->last_tick = scope_.tick;
  s->rx_touched = 1;
  stats_.received(moved);
}

// Returns the news of it.
uint32_t StreamPump::on_read_error(SlotRef s, int err) {
  if (err == EAGAIN) {
    s->flags &= ~kToEnd;
    return 0;
  }
  if (is_reset(err)) s->conn |= MW_CONN_PEER_RST;
  s->untold |= end_bits(*s);
  s->flags &= ~kToEnd;
  if (((s->state | s->untold) & MW_ST_CLOSED) != 0) {  // else ICMP: the connection lives
    s->untold |= MW_ST_EOF | MW_ST_RCV_SHUT;
    s->flags |= kReadDone;
  }
  news_.publish_failure(s, err, end_state(*s));
  return kNewsAll;
}

// The peer's FIN, which tell_end() tells. Returns no news.
uint32_t StreamPump::on_read_end(SlotRef s) {
  s->flags &= ~kToEnd;
  if (((s->state | s->untold) & MW_ST_EOF) == 0) {
    s->conn |= MW_CONN_PEER_FIN;
    s->untold |= MW_ST_EOF | MW_ST_RCV_SHUT | ((s->flags & kErrorTaken) != 0 ? 0 : MW_ST_FIN);
  }
  return 0;
}

void StreamPump::option_set(SlotRef s, int level, int name) {
  if (level != SOL_SOCKET) return;
  if (name == SO_RCVLOWAT) {
    // The mark was set on the real socket, but it is the application's; our reading must see every
    // byte.
    int value = 1;
    socklen_t len = sizeof value;
    ::getsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &value, &len);
    s->rcvlowat = static_cast<uint32_t>(value);
    const int every = 1;
    ::setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &every, sizeof every);
  } else if (name == SO_RCVBUF || name == SO_RCVBUFFORCE) {
    // A window that was made small on purpose is not to be undone by what we read ahead.
    s->rx_limit = granted_rcvbuf(s->fd);
    room_.publish_limit(s);
    if ((s->flags & kRxWait) == 0) return;
    if (const uint32_t news = receive(s); news != 0) news_.announce(s, news);
  }
}

bool StreamPump::has_unsent(SlotRef s) const {
  return A::load_acquire(ch_.slot(s.index).tx_tail) != s->tx_head;
}

uint32_t StreamPump::send(SlotRef s, int flags, bool even_held) {
  const RingBytes ring = ch_.tx(s.index);
  const uint32_t capacity = ring.capacity();
  mw_slot& shared = ch_.slot(s.index);
  uint32_t moved = 0;
  auto ready = ring_ready(capacity, s->tx_head, shared.tx_tail);
  if (!ready) {
    scope_.fault(ready.error());
    return 0;
  }
  uint32_t left = *ready;
  // Bytes that the program still holds back, until it says its last word.
  if ((A::load_relaxed(shared.want) & MW_WANT_HOLD) != 0 && !even_held &&
      (s->flags & (kFinPending | kLingering)) == 0)
    return 0;
  if (left == 0 || s->fd < 0 || (s->state & MW_ST_CONNECTING) != 0 ||
      LimitClock::is_paused(*s, kPauseOut))
    return 0;
  if ((s->flags & kLimited) != 0) limits_.before_send(*s);
  uint32_t news = 0;
  const uint32_t tail = s->tx_head + left;
  while (left != 0) {
    iovec iov[2];
    const uint32_t offered = std::min(left, kChunk);
    const int pieces = ring.pieces(s->tx_head, offered, iov);
    ssize_t n = 0;
    if (pieces == 1) {
      n = ::send(s->fd, iov[0].iov_base, iov[0].iov_len, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    } else {
      msghdr m{};
      m.msg_iov = iov;
      m.msg_iovlen = 2;
      n = ::sendmsg(s->fd, &m, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        s->flags |= kTxBlocked;
        break;
      }
      send_failed(s, errno, tail);
      return kNewsAll;
    }
    const auto sent = static_cast<uint32_t>(n);
    s->tx_head += sent;
    s->bytes_out += sent;
    moved += sent;
    left -= sent;
    A::store_release(shared.tx_head, s->tx_head);
    if (sent < offered) {
      s->flags |= kTxBlocked;  // the kernel's buffer is full, and EPOLLOUT will say when it is not
      break;
    }
    if (left != 0 && ring_writable(capacity, capacity - left)) news_.announce(s, kNewsOut);
  }
  if (moved != 0) {
    if (s->bytes_out == moved) s->sampled.first_out_ms = coarse_monotonic_ms();
    s->flags |= kSentLast;
    if ((s->flags & kLimited) != 0) s->limits->in.stop();
    telemetry_.event(MW_TEL_SEND, s);
    s->last_tick = scope_.tick;
    stats_.sent(moved);
    if (ring_writable(capacity, capacity - left)) news |= kNewsOut;
  }
  if (left == 0 && (s->flags & kFinPending) != 0) {
    s->flags &= ~kFinPending;
    ::shutdown(s->fd, SHUT_WR);
    note_end(*s, MW_CONN_OUR_FIN);
    telemetry_.changed(s);
  }
  return news;
}

uint32_t StreamPump::end_bits(const Sock& s) {
  pollfd p{s.fd, POLLIN | POLLRDHUP, 0};
  if (::poll(&p, 1, 0) <= 0) return 0;
  uint32_t bits = 0;
  if ((p.revents & POLLHUP) != 0) bits |= MW_ST_CLOSED | MW_ST_SND_SHUT;
  if ((p.revents & POLLRDHUP) != 0) bits |= MW_ST_RCV_SHUT;
  return bits;
}

void StreamPump::send_failed(SlotRef s, int err, uint32_t tail) {
  const uint32_t bits = end_bits(*s);
  if (is_reset(err) && (s->state & MW_ST_CLOSED) == 0 && (s->conn & MW_CONN_OUR_FIN) == 0) {
    s->conn |= MW_CONN_PEER_RST;
    telemetry_.changed(s);
  }
  if (err != EPIPE && (bits & MW_ST_CLOSED) == 0 && (s->state & MW_ST_CONNECTED) != 0) {
    // A passing error (ICMP, no memory): the kernel reports it once and the bytes stay to be sent.
    news_.publish_error(s, err);
    work_.add(s);
    return;
  }
  s->tx_head = tail;
  A::store_release(ch_.slot(s.index).tx_head, tail);
  s->flags &= ~(kFinPending | kTxBlocked);
  s->flags |= kToEnd;
  if (err != EPIPE) s->flags |= kErrorTaken;
  s->untold |= bits;
  // EPIPE is a state and no event: the application's next send fails by MW_ST_SND_SHUT.
  if (err == EPIPE)
    news_.set_state(s, s->state | MW_ST_SND_SHUT);
  else
    publish_last_error(s, err, true);
  receive(s);
}

void StreamPump::finish_connect(SlotRef s) {
  int err = 0;
  socklen_t len = sizeof err;
  if (::getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0) err = errno;
  const uint32_t rest = s->state & ~MW_ST_CONNECTING;
  if (err == 0) {
    if ((s->flags & kBlockingConnect) != 0) {
      // Collects the outcome that a connect() which waited would have had: the next one says
      // EISCONN.
      sockaddr_in any{};
      any.sin_family = AF_INET;
      (void)::connect(s->fd, reinterpret_cast<const sockaddr*>(&any), sizeof any);
    }
    s->flags &= ~kBlockingConnect;
    s->conn |= MW_CONN_ESTABLISHED;
    telemetry_.changed(s);
    news_.set_state(s, rest | MW_ST_CONNECTED);
    return;
  }
  if (err == ECONNREFUSED) {
    loopback_hint_.refused(false, s->loopback);
    s->conn |= MW_CONN_PEER_RST;
    telemetry_.changed(s);
  }
  uint32_t bits = end_bits(*s) | MW_ST_CLOSED;
  if ((s->flags & kBlockingConnect) != 0) {
    // A connect() that waits leaves the socket as new; ours did not wait, so the kernel still
    // expects somebody to come back for the outcome.
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    if (::connect(s->fd, &none, sizeof none) == 0) bits = 0;
    s->flags &= ~kBlockingConnect;
  }
  news_.publish_failure(s, err, rest | bits);
}

void StreamPump::on_urgent(SlotRef s) {
  // Fetched at once: reading on past the mark would lose it.
  char byte = 0;
  if (::recv(s->fd, &byte, 1, MSG_OOB | MSG_DONTWAIT) == 1) {
    s->oob = static_cast<uint8_t>(byte);
    s->flags |= kOobHeld;
  }
  s->flags |= kMarkAhead | kToEnd;
  s->untold |= MW_ST_PRI;
  news_.set_state(s, s->state & ~(MW_ST_AT_MARK | MW_ST_PRI));
  look_for_mark(s);
}

// Urgent data is ahead: is it what comes next?
void StreamPump::look_for_mark(SlotRef s) {
  int at_mark = 0;
  if (::ioctl(s->fd, SIOCATMARK, &at_mark) == 0 && at_mark != 0) {
    s->flags &= ~kMarkAhead;
    s->oob_mark = s->rx_tail;
    A::store_relaxed(ch_.slot(s.index).oob_mark, s->rx_tail);
    news_.set_state(s, s->state | MW_ST_AT_MARK);
  }
}

}  // namespace mw
