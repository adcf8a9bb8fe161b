#include "ins/worker/ending.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/futex.h"
#include "base/log.h"
#include "ins/worker/ending.h"
#include "ring/atomics.h"

namespace mw {

void reset_at_close(int fd) {
  const linger now{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

namespace {

using A = StdAtomics;

// After its last close a socket that the peer does not drain is given up by the kernel.
constexpr unsigned kLingerTimeoutMs = 60'000;

}  // namespace

Ending::Ending(const WorkerScope& scope, News& news, StreamPump& streams, AcceptSink& accepts,
               Placeholders& placeholders, LimitClock& limits, RingMemory& memory,
               StalledListeners& stalled, Telemetry& telemetry)
    : scope_(scope),
      news_(news),
      streams_(streams),
      accepts_(accepts),
      placeholders_(placeholders),
      limits_(limits),
      memory_(memory),
      stalled_(stalled),
      telemetry_(telemetry) {
  marked_.reserve(scope.most_slots());
}

void Ending::close_marked() {
  for (const uint32_t i : marked_) {
    const SlotRef s = scope_.slots.find(i);
    if (s && A::load_relaxed(scope_.ch.slot(i).closed) == s->gen) last_close(s);
  }
  marked_.clear();
}

void Ending::last_close(SlotRef s) {
  if (s->listener != nullptr) {
    scope_.tell(ControlNote::Kind::listener_down, s);
    accepts_.on_listener_end(*s->listener);
    return free_slot(s);
  }
  if (s->kind == SockKind::dgram) return free_slot(s);
  if ((s->flags & kLingering) != 0) return;
  // Still in the queue when its listener was closed: the kernel resets such a connection.
  if ((s->flags & kAccepted) != 0 && placeholders_.claim_of(s) == 0) return reset_and_free(s);
  // A pause ends with the socket: what was written leaves, and nobody reads any more.
  if ((s->flags & kLimited) != 0) s->limits->paused = 0;
  if ((s->flags & kTxBlocked) == 0) streams_.send(s, 0, true);
  const uint32_t rx_bytes = scope_.ch.rx(s.index).capacity();
  mw_slot& shared = scope_.ch.slot(s.index);
  auto room = ring_room(rx_bytes, s->rx_tail, shared.rx_head);
  auto left = ring_ready(scope_.ch.tx(s.index).capacity(), s->tx_head, shared.tx_tail);
  if (!room) return scope_.fault(room.error());
  if (!left) return scope_.fault(left.error());
  if (*room != rx_bytes) return reset_and_free(s);  // unread bytes, as in the kernel
  if (*left == 0 || (s->state & MW_ST_CONNECTED) == 0 || s->linger == LingerMode::reset)
    return finish_close(s);
  // The kernel's own unread bytes make its close() reset; with bytes of ours still to go, look.
  int unread = 0;
  if (::ioctl(s->fd, FIONREAD, &unread) == 0 && unread > 0) return reset_and_free(s);
  begin_lingering(*s);
}

void Ending::begin_lingering(Sock& s) {
  if ((s.flags & kLingering) != 0) return;
  s.flags |= kLingering;
  if ((s.flags & kUserTimeout) == 0)
    ::setsockopt(s.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kLingerTimeoutMs, sizeof kLingerTimeoutMs);
}

// SO_LINGER with a time: the kernel waits in close() until the peer has acknowledged all bytes and
// the FIN. Here the application's thread waits until the slot is free, so the slot is kept until
// then. True: it is to be kept. Ends the sending direction.
bool Ending::lingers_for_acks(Sock& s) const {
  if (s.linger != LingerMode::wait || s.fd < 0 || (s.state & MW_ST_CONNECTED) == 0) return false;
  int unread = 0;
  if (::ioctl(s.fd, FIONREAD, &unread) < 0 || unread > 0) return false;  // close() resets it
  if ((s.flags & kFinSent) == 0) {
    ::shutdown(s.fd, SHUT_WR);
    note_end(s, MW_CONN_OUR_FIN);
    s.flags |= kFinSent;
  }
  tcp_info info{};
  socklen_t len = sizeof info;
  if (::getsockopt(s.fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) return false;
  return info.tcpi_state == TCP_FIN_WAIT1 || info.tcpi_state == TCP_CLOSING ||
         info.tcpi_state == TCP_LAST_ACK;
}

// As close() will end it: with a reset if there are bytes that nobody has read.
void Ending::note_close(Sock& s) const {
  int unread = 0;
  const bool reset = s.linger == LingerMode::reset ||
                     (telemetry_.on() && ::ioctl(s.fd, FIONREAD, &unread) == 0 && unread > 0);
  note_end(s, reset ? MW_CONN_OUR_RST : MW_CONN_OUR_FIN);
}

void Ending::cut_off(SlotRef s) {
  s->conn |= MW_CONN_CUT;
  if ((s->flags & kLingering) != 0)
    reset_and_free(s);
  else
    abort_socket(s);
}

void Ending::cut_off_all() {
  scope_.each_socket([&](SlotRef s) {
    if (s->listener == nullptr) cut_off(s);
  });
  news_.flush();
}

void Ending::abort_socket(SlotRef s) {
  if (s->listener != nullptr || s->fd < 0) return;
  reset_at_close(s->fd);
  note_end(*s, MW_CONN_OUR_RST);
  telemetry_.event(MW_TEL_CLOSE, s);
  ::close(s->fd);
  s->fd = -1;
  limits_.drop(*s);
  s->flags |= kReadDone;
  s->untold = 0;
  news_.publish_failure(s, ECONNRESET,
                        (s->state & ~(MW_ST_CONNECTING | MW_ST_BEHIND)) | MW_ST_CLOSED |
                            MW_ST_RCV_SHUT | MW_ST_SND_SHUT | MW_ST_EOF);
  news_.announce(s, kNewsAll);
}

void Ending::reset_and_free(SlotRef s) {
  if (s->fd >= 0) reset_at_close(s->fd);
  note_end(*s, MW_CONN_OUR_RST);
  free_slot(s);
}

void Ending::finish_close(SlotRef s) {
  if (lingers_for_acks(*s)) return begin_lingering(*s);
  if (s->fd >= 0) note_close(*s);
  if (s->fd >= 0 && s->linger == LingerMode::wait) {
    // The kernel would wait in our close(), where all other sockets would wait too.
    const linger off{0, 0};
    ::setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
  }
  free_slot(s);
}

void Ending::free_slot(SlotRef s) {
  if (s->fd >= 0) {
    telemetry_.event(MW_TEL_CLOSE, s);
    ::close(s->fd);
  }
  limits_.drop(*s);
  if (s->ph >= 0) placeholders_.bury(s->ph);
  s->fd = -1;
  s->ph = -1;
  memory_.release(s);
  // A thread that still waits there is to know if the peer's end came first.
  mw_slot& shared = scope_.ch.slot(s.index);
  A::store_relaxed(shared.state, MW_ST_CLOSED | (s->state & MW_ST_EOF));
  if (s->linger == LingerMode::wait) {
    A::fence();  // pairs with the application's between its wish and its look at the state
    if ((A::load_relaxed(shared.want) & MW_WANT_CLOSED) != 0) futex_wake_all(shared.state);
  }
  s->flags &= kWarm;
  s->conn = 0;
  s->error_seq = 0;
  s->oob_mark = 0;
  s->untold = 0;
  s->rcvlowat = 1;
  s->rx_limit = 0;
  s->control_room = 0;
  s->backlog = 0;
  s->linger = LingerMode::off;
  scope_.slots.release(s.index);
  stalled_.came_free();
}

void Ending::abandon(SlotRef s) {
  // An accepted one that the application has by now stays until it closes it.
  if ((s->flags & kAccepted) != 0 && !accepts_.revoke(s)) return abort_socket(s);
  if (s->ph >= 0) ::close(s->ph);  // its other end lives: it has to see this one go
  s->ph = -1;
  reset_and_free(s);
}

void Ending::report_bypass(SlotRef s) {
  if ((s->flags & kBypassSeen) != 0) return;
  s->flags |= kBypassSeen;
  log_line("mwins", "socket %u: bytes on the placeholder: a system call went past the shim",
           s.index);
  scope_.tell(ControlNote::Kind::bypass, s);
  abort_socket(s);
}

void Ending::on_lingering(SlotRef s, uint32_t events) {
  int unread = 0;
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
    StreamPump::take_reset(*s);
    return free_slot(s);
  }
  if ((events & EPOLLRDHUP) != 0) s->conn |= MW_CONN_PEER_FIN;
  // Bytes that nobody will read: the kernel answers them with a reset after close().
  if ((events & EPOLLIN) != 0 && ::ioctl(s->fd, FIONREAD, &unread) == 0 && unread > 0)
    return reset_and_free(s);
  s->flags &= ~kTxBlocked;
  streams_.send(s);
  auto left =
      ring_ready(scope_.ch.tx(s.index).capacity(), s->tx_head, scope_.ch.slot(s.index).tx_tail);
  if (!left) return scope_.fault(left.error());
  if (*left == 0) finish_close(s);
}

}  // namespace mw
