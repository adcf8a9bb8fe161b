#include "ins/worker/datagrams.h"

#include <time.h>

// needs timespec
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "ins/policy/options.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr uint32_t kMaxControl = 512;
constexpr uint32_t kMaxDatagram = 65535;
constexpr int kDatagramsPerTurn = 64;

// True if the kernel still reports an error after the pending one was taken: its error queue has
// entries.
bool has_error_queue(const Sock& s) {
  pollfd p{s.fd, 0, 0};
  return ::poll(&p, 1, 0) > 0 && (p.revents & POLLERR) != 0;
}

// True if a message from the error queue tells of an ICMP error.
bool is_icmp(msghdr& m) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
    const bool error = (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
                       (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR);
    if (!error || c->cmsg_len < CMSG_LEN(sizeof(sock_extended_err))) continue;
    sock_extended_err e{};
    std::memcpy(&e, CMSG_DATA(c), sizeof e);
    if (e.ee_origin == SO_EE_ORIGIN_ICMP || e.ee_origin == SO_EE_ORIGIN_ICMP6) return true;
  }
  return false;
}

}  // namespace

// Tells the pending error, and whether there are entries in the error queue.
void Datagrams::tell_errors(SlotRef s) {
  int err = 0;
  socklen_t len = sizeof err;
  if (::getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err != 0) publish_error(s, err);
  if (has_error_queue(*s)) news_.set_state(s, s->state | MW_ST_ERRQ);
}

void Datagrams::publish_error(SlotRef s, int err) {
  if (err == ECONNREFUSED) note_refusal(*s);
  news_.publish_error(s, err);
}

// Says once which option leads to the host's services.
void Datagrams::note_refusal(const Sock& s) {
  sockaddr_storage peer{};
  socklen_t len = sizeof peer;
  auto* const address = reinterpret_cast<sockaddr*>(&peer);
  if (::getpeername(s.fd, address, &len) == 0)
    loopback_hint_.refused(true, loopback_target(address, len));
}

void Datagrams::on_event(SlotRef s, uint32_t events) {
  uint32_t news = 0;
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0 || events == 0) news |= receive(s);
  if ((events & EPOLLERR) != 0) {
    tell_errors(s);
    news |= kNewsAll;
  }
  // The shut sides and their poll bits are decided by the application's own shutdown().
  uint32_t state = s->state;
  if ((events & EPOLLRDHUP) != 0) state |= MW_ST_RCV_SHUT;
  if ((events & EPOLLHUP) != 0) state |= MW_ST_CLOSED;
  if (state != s->state) {
    news_.set_state(s, state);
    news |= kNewsAll;
  }
  if ((events & EPOLLOUT) != 0) news |= kNewsOut;
  if (news != 0) news_.announce(s, news);
}

uint32_t Datagrams::receive(SlotRef s) {
  if (!memory_.acquire_rx(s)) return 0;
  const RingBytes ring = ch_.rx(s.index);
  const uint32_t capacity = ring.capacity();
  mw_slot& shared = ch_.slot(s.index);
  const auto largest = static_cast<uint32_t>(mw_dgram_bytes(kMaxControl, kMaxDatagram));
  const uint32_t need = largest < capacity ? largest : capacity;
  const uint32_t data_room = need - static_cast<uint32_t>(sizeof(mw_dgram_head)) - kMaxControl - 7;
  // The application can tell how many datagrams there are ahead of it: few, and never none.
  const uint32_t limit = room_.limit(s);
  const uint32_t enough = std::max(need, capacity - limit / 2);
  uint32_t news = 0;
  for (int turn = 0;; ++turn) {
    auto room = ring_room(capacity, s->rx_tail, shared.rx_head);
    if (!room) {
      scope_.fault(room.error());
      return 0;
    }
    const uint32_t used = capacity - *room;
    if (*room < need || (used != 0 && used >= limit) ||
        ((s->flags & kRxWait) != 0 && *room < enough)) {
      if (!room_.wait_for(s, enough)) break;
      continue;
    }
    s->flags &= ~kRxWait;
    if (turn == kDatagramsPerTurn) {
      work_.add(s);
      break;
    }
    mw_dgram_head head{};
    alignas(cmsghdr) uint8_t control[kMaxControl];
    iovec iov[2];
    msghdr m{};
    m.msg_name = head.name;
    m.msg_namelen = sizeof head.name;
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    m.msg_iov = iov;
    // Most have as many control messages as the one before.
    const uint32_t control_at = s->rx_tail + static_cast<uint32_t>(sizeof head);
    const uint32_t data_at = control_at + s->control_room;
    m.msg_iovlen = static_cast<size_t>(ring.pieces(data_at, data_room, iov));
    const ssize_t n = ::recvmsg(s->fd, &m, MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) break;
      publish_error(s, errno);
      news |= kNewsAll;
      if (errno == ENOTCONN || errno == EBADF || turn >= kDatagramsPerTurn) break;
      continue;  // an ICMP error does not stand for a datagram
    }
    if (wishes_.any() && wishes_.is_blocked(peer_address_of(
                             static_cast<const sockaddr*>(m.msg_name), m.msg_namelen)))
      continue;
    const auto data_len = static_cast<uint32_t>(n);
    // After shutdown for reading an empty queue reads as an empty datagram from nowhere.
    if (n == 0 && m.msg_namelen == 0 && (s->state & MW_ST_RCV_SHUT) != 0) break;
    head.data_len = data_len;
    const auto control_len = static_cast<uint32_t>(m.msg_controllen);
    head.flags = m.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    head.name_len = m.msg_namelen <= sizeof head.name ? m.msg_namelen : sizeof head.name;
    if (control_len > s->control_room) {
      // They come first in the record: make way for them.
      if (scratch_.size() < data_len) scratch_.resize(kMaxDatagram + 1);
      ring.copy_out(data_at, scratch_.data(), data_len);
      s->control_room = static_cast<uint16_t>(CMSG_ALIGN(control_len));
      ring.copy_in(control_at + s->control_room, scratch_.data(), data_len);
    }
    head.control_len = s->control_room;
    std::memset(control + control_len, 0, head.control_len - control_len);
    if (head.control_len != 0) ring.copy_in(control_at, control, head.control_len);
    ring.copy_in(s->rx_tail, &head, sizeof head);
    s->rx_tail += static_cast<uint32_t>(mw_dgram_bytes(head.control_len, data_len));
    A::store_release(shared.rx_tail, s->rx_tail);
    s->bytes_in += data_len;
    if (s->bytes_in == data_len) s->sampled.first_in_ms = coarse_monotonic_ms();
    telemetry_.event(MW_TEL_RECV, s);
    s->last_tick = scope_.tick;
    s->rx_touched = 1;
    stats_.received(data_len);
    news |= kNewsIn;
  }
  return news;
}

void Datagrams::option_set(SlotRef s, int level, int name) {
  keep_control_messages(s->fd, level, name);
  if (level != SOL_SOCKET || (name != SO_RCVBUF && name != SO_RCVBUFFORCE)) return;
  s->rx_limit = datagrams_ahead(s->fd);
  room_.publish_limit(s);
  if ((s->flags & kRxWait) == 0) return;
  if (const uint32_t news = receive(s); news != 0) news_.announce(s, news);
}

void Datagrams::error_entry_taken(SlotRef s, msghdr& taken) {
  int err = 0;
  socklen_t len = sizeof err;
  if (s->kind == SockKind::dgram && ::getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 &&
      (err != 0 || is_icmp(taken)))
    publish_error(s, err);
  news_.set_state(s, has_error_queue(*s) ? s->state | MW_ST_ERRQ : s->state & ~MW_ST_ERRQ);
}

void Datagrams::send(SlotRef s, const Request& r, Answer& a) {
  const auto name_len = static_cast<uint32_t>(r.arg[1]);
  const auto control_len = static_cast<uint32_t>(r.arg[2]);
  const auto data_len = static_cast<uint32_t>(r.arg[3]);
  const bool inlined = (r.flags2 & MW_SEND_INLINE) != 0;
  const bool too_long = (r.flags2 & MW_SEND_TOO_LONG) != 0;
  mw_slot& shared = ch_.slot(s.index);
  iovec iov[2];
  msghdr m{};
  m.msg_iov = iov;
  m.msg_name = name_len != 0 ? const_cast<uint8_t*>(r.payload) : nullptr;
  m.msg_namelen = name_len;
  // The payload starts at a multiple of 8; a name in between moves the control messages off it.
  alignas(cmsghdr) uint8_t control[MW_CALL_PAYLOAD];
  if (control_len != 0) {
    std::memcpy(control, r.payload + name_len, control_len);
    m.msg_control = control;
    m.msg_controllen = control_len;
  }
  if (inlined) {
    iov[0] = {const_cast<uint8_t*>(r.payload) + name_len + control_len, data_len};
    m.msg_iovlen = 1;
  } else if (too_long) {
    // The kernel refuses it by its length; if not, there is no memory to send.
    iov[0] = {nullptr, data_len};
    m.msg_iovlen = 1;
  } else {
    const RingBytes ring = ch_.tx(s.index);
    auto ready = ring_ready(ring.capacity(), s->tx_head, shared.tx_tail);
    if (!ready) return scope_.fault(ready.error());
    if (*ready < data_len)
      return scope_.fault({Fault::peer, 0, "a message that is not in its ring"});
    m.msg_iovlen = static_cast<size_t>(ring.pieces(s->tx_head, data_len, iov));
  }
  constexpr int kRefused = MSG_ZEROCOPY | MSG_FASTOPEN | MSG_ERRQUEUE;
  const int flags = (r.arg[0] & ~kRefused) | MSG_DONTWAIT | MSG_NOSIGNAL;
  ssize_t n = 0;
  do {
    n = ::sendmsg(s->fd, &m, flags);
  } while (n < 0 && errno == EINTR);
  a.ret = static_cast<int32_t>(n);
  a.err = n < 0 ? errno : 0;
  if (!inlined && !too_long) {
    s->tx_head += data_len;
    A::store_release(shared.tx_head, s->tx_head);
    s->last_tick = scope_.tick;
  }
  if (n < 0) {
    // What it left in the error queue is seen as soon as the call has returned.
    if (s->kind == SockKind::dgram && a.err == ECONNREFUSED) note_refusal(*s);
    if (s->kind == SockKind::dgram && a.err != EAGAIN) tell_errors(s);
    return;
  }
  s->bytes_out += static_cast<uint64_t>(n);
  if (s->sampled.first_out_ms == 0) s->sampled.first_out_ms = coarse_monotonic_ms();
  telemetry_.event(MW_TEL_SEND, s);
  if (n > 0) stats_.sent(static_cast<uint64_t>(n));
}

}  // namespace mw
