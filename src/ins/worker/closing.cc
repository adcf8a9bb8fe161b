// closing.cc - the end of a socket: what is left is sent, then its slot is free.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/futex.h"
#include "ins/worker/worker.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

// After its last close a socket that the peer does not drain is given up by the kernel.
constexpr unsigned kLingerTimeoutMs = 60'000;

}  // namespace

// Calls that nobody waits for came before the close.
void Worker::close_marked() {
  for (const uint32_t i : closing_) {
    const SlotRef s = ins_.slots.find(i);
    if (s && A::load_relaxed(ch_.slot(i).closed) == s->gen) last_close(s);
  }
  closing_.clear();
}

void Worker::last_close(SlotRef s) {
  if (s->listener != nullptr) {
    ins_.to_control.post(ControlNote(Kind::listener_down, s.index, s->gen));
    revoke_all(*s->listener);
    return free_slot(s);
  }
  if (s->kind == SockKind::dgram) return free_slot(s);
  if ((s->flags & kLingering) != 0) return;
  // Still in the queue when its listener was closed: the kernel resets such a connection.
  if ((s->flags & kAccepted) != 0 && claim_of(s) == 0) return reset_and_free(s);
  // A pause ends with the socket: what was written leaves, and nobody reads any more.
  if ((s->flags & kLimited) != 0) s->limits->paused = 0;
  if ((s->flags & kTxBlocked) == 0) stream_tx(s, 0, true);
  mw_slot& shared = ch_.slot(s.index);
  auto room = ring_room(ch_.geometry().rx_ring, s->rx_tail, shared.rx_head);
  auto left = ring_ready(ch_.geometry().tx_ring, s->tx_head, shared.tx_tail);
  if (!room) return fault(room.error());
  if (!left) return fault(left.error());
  if (*room != ch_.geometry().rx_ring) return reset_and_free(s);  // unread bytes, as in the kernel
  if (*left == 0 || (s->state & MW_ST_CONNECTED) == 0 || s->linger == LingerMode::reset)
    return finish_close(s);
  // The kernel's own unread bytes make its close() reset; with bytes of ours still to go, look.
  int unread = 0;
  if (::ioctl(s->fd, FIONREAD, &unread) == 0 && unread > 0) return reset_and_free(s);
  begin_lingering(*s);
}

void Worker::begin_lingering(Sock& s) {
  if ((s.flags & kLingering) != 0) return;
  s.flags |= kLingering;
  if ((s.flags & kUserTimeout) == 0)
    ::setsockopt(s.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kLingerTimeoutMs, sizeof kLingerTimeoutMs);
}

// SO_LINGER with a time: the kernel waits in close() until the peer has acknowledged all bytes and
// the FIN. Here the application's thread waits until the slot is free, so the slot is kept until
// then. True: it is to be kept. Ends the sending direction.
bool Worker::lingers_for_acks(Sock& s) {
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

// What this end of a connection does now, unless the connection is over already.
void Worker::note_end(Sock& s, uint8_t what) {
  constexpr uint8_t kBothFins = MW_CONN_PEER_FIN | MW_CONN_OUR_FIN;
  const bool over = (s.conn & (MW_CONN_PEER_RST | MW_CONN_OUR_RST)) != 0 ||
                    (s.conn & kBothFins) == kBothFins || (s.state & MW_ST_CLOSED) != 0;
  if ((s.conn & MW_CONN_ESTABLISHED) != 0 && !over) s.conn |= what;
}

// As close() will end it: with a reset if there are bytes that nobody has read.
void Worker::note_close(Sock& s) {
  int unread = 0;
  const bool reset = s.linger == LingerMode::reset ||
                     (telemetry_.on() && ::ioctl(s.fd, FIONREAD, &unread) == 0 && unread > 0);
  note_end(s, reset ? MW_CONN_OUR_RST : MW_CONN_OUR_FIN);
}

// For somebody else than the application.
void Worker::cut_off(SlotRef s) {
  s->conn |= MW_CONN_CUT;
  if ((s->flags & kLingering) != 0)
    reset_and_free(s);
  else
    abort_socket(s);
}

// Before an INS that nobody supervises ends: the application comes to know of its connections, and so
// do their peers. Whoever waits at a listener sees the end of its placeholder.
void Worker::reset_all() {
  each_socket([&](SlotRef s) {
    if (s->listener == nullptr) cut_off(s);
  });
  ring_groups();
}

void Worker::reset_at_close(int fd) {
  const linger now{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

// Closes the connection now and with a reset; the slot and its placeholder stay.
void Worker::abort_socket(SlotRef s) {
  if (s->listener != nullptr || s->fd < 0) return;
  reset_at_close(s->fd);
  note_end(*s, MW_CONN_OUR_RST);
  telemetry_.event(MW_TEL_CLOSE, s);
  ::close(s->fd);
  s->fd = -1;
  drop_limits(*s);
  s->flags |= kReadDone;
  s->untold = 0;
  publish_failure(s, ECONNRESET,
                  (s->state & ~(MW_ST_CONNECTING | MW_ST_BEHIND)) | MW_ST_CLOSED | MW_ST_RCV_SHUT |
                      MW_ST_SND_SHUT | MW_ST_EOF);
  announce(s, kNewsAll);
}

void Worker::reset_and_free(SlotRef s) {
  if (s->fd >= 0) reset_at_close(s->fd);
  note_end(*s, MW_CONN_OUR_RST);
  free_slot(s);
}

void Worker::finish_close(SlotRef s) {
  if (lingers_for_acks(*s)) return begin_lingering(*s);
  if (s->fd >= 0) note_close(*s);
  if (s->fd >= 0 && s->linger == LingerMode::wait) {
    // The kernel would wait in our close(), where all other sockets would wait too.
    const linger off{0, 0};
    ::setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
  }
  free_slot(s);
}

void Worker::free_slot(SlotRef s) {
  if (s->fd >= 0) {
    telemetry_.event(MW_TEL_CLOSE, s);
    ::close(s->fd);
  }
  drop_limits(*s);
  if (s->ph >= 0) bury(s->ph);
  s->fd = -1;
  s->ph = -1;
  // How far the send ring was used decides how much of it may be resident.
  s->tx_high = std::max(s->tx_high, s->tx_head - MW_INDEX_START);
  // A thread that still waits there is to know if the peer's end came first.
  mw_slot& shared = ch_.slot(s.index);
  A::store_relaxed(shared.state, MW_ST_CLOSED | (s->state & MW_ST_EOF));
  if (s->linger == LingerMode::wait) {
    A::fence();  // pairs with the application's between its wish and its look at the state
    if ((A::load_relaxed(shared.want) & MW_WANT_CLOSED) != 0) futex_wake_all(shared.state);
  }
  const uint32_t keep = s->flags & kWarm;
  s->flags = keep;
  s->conn = 0;
  s->error_seq = 0;
  s->oob_mark = 0;
  s->untold = 0;
  s->rcvlowat = 1;
  s->rx_limit = 0;
  s->control_room = 0;
  s->backlog = 0;
  s->linger = LingerMode::off;
  if (s->tx_high > MW_PAGE && keep == 0) {
    s->flags |= kWarm;
    warm_.push_back(s.index);
  }
  s->last_tick = tick_;
  ins_.slots.release(s.index);
  if (!stalled_.empty()) retry_now_ = true;
}

// Closes a placeholder whose other end is gone, some time. While any AF_UNIX descriptor travels in
// a message (an accept record that waits, say) the kernel answers each close() of such a socket
// with a run of its garbage collector in another thread; so we wait until none of ours does.
void Worker::bury(int placeholder) {
  dead_.push_back(placeholder);
  if (dead_.size() >= kMaxDead) close_dead();
}

bool Worker::records_under_way() const {
  // None was handed over yet: the slot is another worker's.
  if (ch_.worker_of(handed_by_) != index_) return false;
  const SlotRef s = ins_.slots.find(handed_by_);
  int queued = 0;
  return s && s->listener != nullptr && ::ioctl(s->ph, TIOCOUTQ, &queued) == 0 && queued != 0;
}

void Worker::close_dead() {
  for (const int fd : dead_) ::close(fd);
  dead_.clear();
}

}  // namespace mw
