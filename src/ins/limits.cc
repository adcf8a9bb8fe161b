// limits.cc - minimum rates, pauses, the peers' shares (docs/netflow.md, version 2).
#include "ins/limits.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>

#include "base/clock.h"
#include "ins/worker.h"

namespace mw {
namespace {

// Bytes that the peer has not acknowledged.
uint64_t unacknowledged(int fd) {
  int bytes = 0;
  return ::ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<uint64_t>(bytes) : 0;
}

uint64_t acknowledged(const Sock& s, uint64_t waiting) {
  return s.bytes_out - std::min(waiting, s.bytes_out);
}

PeerAddress peer_of(int fd) {
  sockaddr_storage ss{};
  socklen_t len = sizeof ss;
  auto* const name = reinterpret_cast<sockaddr*>(&ss);
  return ::getpeername(fd, name, &len) < 0 ? PeerAddress{} : peer_address_of(name, len);
}

template <class T>
void put_value(InsReply& reply, const T& value) {
  static_assert(sizeof value <= sizeof reply.value);
  reply.len = sizeof value;
  std::memcpy(reply.value, &value, sizeof value);
}

template <class T>
bool take_value(const InsRequest& r, T& value) {
  if (r.len != sizeof value) return false;
  std::memcpy(&value, r.value, sizeof value);
  return true;
}

}  // namespace

Limits& Worker::limits_of(uint32_t i, Sock& s) {
  if (s.limits == nullptr) {
    s.limits = std::make_unique<Limits>();
    s.limits->slot = i;
    s.limits->peer = peer_of(s.fd);
    s.flags |= kLimited;
  }
  return *s.limits;
}

void Worker::drop_limits(Sock& s) {
  if (s.limits == nullptr) return;
  wheel_.remove(*s.limits);
  if (s.limits->counted != 0) ins_.wishes.gone(s.limits->peer, s.limits->counted);
  s.limits.reset();
  s.flags &= ~kLimited;
}

// A connection that was just accepted, and is nobody's yet. False: it is not wanted.
bool Worker::admit(uint32_t i, Sock& s, const mw_addr& peer) {
  sockaddr_storage ss{};
  std::memcpy(&ss, peer.bytes, sizeof peer.bytes);
  const PeerAddress address = peer_address_of(reinterpret_cast<const sockaddr*>(&ss), peer.len);
  const Wishes::Admission a = ins_.wishes.admit(address);
  if (a.refused) return false;
  if (a.census == 0 && a.in.rate == 0 && a.out.rate == 0) return true;
  // Its worker puts it into its wheel with the first event, which a new socket always has.
  s.limits = std::make_unique<Limits>();
  s.limits->slot = i;
  s.limits->peer = address;
  s.limits->counted = a.census;
  s.limits->in.rule = a.in;
  s.limits->out.rule = a.out;
  if (a.in.rate != 0) s.limits->in.begin(monotonic_ns(), 0);
  s.flags |= kLimited;
  return true;
}

// Puts it into the wheel, if a clock runs and it does not hang there.
void Worker::arm(Sock& s) {
  Limits& l = *s.limits;
  if (l.link != nullptr) return;
  int64_t due = INT64_MAX;
  if (l.in.runs() && (l.paused & kPauseIn) == 0) due = l.in.deadline_ns(s.bytes_in);
  // As if nothing was acknowledged: whether it was is asked then.
  if (l.out.runs() && (l.paused & kPauseOut) == 0)
    due = std::min(due, l.out.deadline_ns(l.out.base));
  if (due != INT64_MAX) wheel_.set(l, monotonic_ns(), due);
}

// Bytes came: the first ones after the application has sent begin a turn.
void Worker::limits_received(Sock& s, uint32_t moved, bool waited) {
  RateClock& in = s.limits->in;
  if (in.rule.rate == 0) return;
  // While the application took nothing, the peer could not send.
  if (!in.runs() || waited) in.begin(monotonic_ns(), s.bytes_in - (in.runs() ? 0 : moved));
  arm(s);
}

void Worker::limits_before_send(Sock& s) {
  RateClock& out = s.limits->out;
  if (out.rule.rate == 0) return;
  if (!out.runs() || unacknowledged(s.fd) == 0) out.begin(monotonic_ns(), s.bytes_out);
  arm(s);
}

void Worker::limits_turn() {
  const int64_t now = monotonic_ns();
  wheel_.advance(now, [this, now](Limits& l) {
    Sock* s = ins_.slots.find(l.slot);
    if (s != nullptr && s->limits.get() == &l) limit_due(l.slot, *s, now);
  });
}

// A deadline may have passed.
void Worker::limit_due(uint32_t i, Sock& s, int64_t now) {
  Limits& l = *s.limits;
  int64_t due = INT64_MAX;
  if (l.in.runs() && (l.paused & kPauseIn) == 0) {
    if ((s.flags & kReadDone) != 0 || (s.state & MW_ST_EOF) != 0) {
      l.in.stop();
    } else {
      if ((s.flags & kRxWait) != 0) l.in.begin(now, s.bytes_in);  // the application is the slow one
      due = l.in.deadline_ns(s.bytes_in);
      if (due <= now) return cut(i, s, MW_TEL_CUT_MIN_RATE_IN);
    }
  }
  if (l.out.runs() && (l.paused & kPauseOut) == 0) {
    const uint64_t waiting = unacknowledged(s.fd);
    auto left = ring_ready(ch_.geometry().tx_ring, s.tx_head, ch_.slot(i).tx_tail);
    if (!left) return fault(left.error());
    if (waiting == 0 && *left == 0) {
      l.out.stop();
    } else {
      const int64_t out_due = l.out.deadline_ns(std::max(l.out.base, acknowledged(s, waiting)));
      if (out_due <= now) return cut(i, s, MW_TEL_CUT_MIN_RATE_OUT);
      due = std::min(due, out_due);
    }
  }
  if (due != INT64_MAX) wheel_.set(l, now, due);
}

void Worker::cut(uint32_t i, Sock& s, uint32_t why) {
  s.limits->cut = why;
  cut_off(i, s);
}

// ---- what the driver asks for ----

void Worker::min_rate(uint32_t i, Sock* s, const InsRequest& r, InsReply& reply) {
  MinRate value;
  const bool out = r.name != 0;
  if (r.write != 0 &&
      (!take_value(r, value) || value.rate > kMaxMinRate || value.grace_s > kMaxGraceSeconds)) {
    reply.status = EINVAL;
    return;
  }
  MinRate rule{value.rate, value.grace_s};
  if (s == nullptr) {
    if (r.write != 0) ins_.wishes.set_rate(out, rule);
    rule = ins_.wishes.rate(out);
  } else if (s->kind != SockKind::stream || s->listener != nullptr) {
    reply.status = EOPNOTSUPP;
    return;
  } else if (r.write == 0) {
    if (s->limits != nullptr) rule = (out ? s->limits->out : s->limits->in).rule;
  } else {
    set_min_rate(i, *s, out, rule);
  }
  put_value(reply, rule);
}

void Worker::set_min_rate(uint32_t i, Sock& s, bool out, const MinRate& rule) {
  if (s.limits == nullptr && rule.rate == 0) return;
  Limits& l = limits_of(i, s);
  RateClock& clock = out ? l.out : l.in;
  clock.rule = rule;
  clock.stop();
  const int64_t now = monotonic_ns();
  if (rule.rate != 0 && out) {
    const uint64_t waiting = unacknowledged(s.fd);
    if (waiting != 0) clock.begin(now, acknowledged(s, waiting));
  } else if (rule.rate != 0 && (s.state & MW_ST_CONNECTED) != 0 && (s.flags & kSentLast) == 0) {
    clock.begin(now, s.bytes_in);
  }
  wheel_.remove(l);
  arm(s);
}

void Worker::pause(uint32_t i, Sock* s, const InsRequest& r, InsReply& reply) {
  uint32_t bits = 0;
  if (s == nullptr || s->kind != SockKind::stream || s->listener != nullptr) {
    reply.status = s == nullptr ? EBADF : EOPNOTSUPP;
    return;
  }
  if (r.write != 0) {
    if (!take_value(r, bits) || (bits & ~(kPauseIn | kPauseOut)) != 0) {
      reply.status = EINVAL;
      return;
    }
    set_paused(i, *s, bits);
  }
  put_value(reply, s->limits == nullptr ? 0 : s->limits->paused);
}

void Worker::set_paused(uint32_t i, Sock& s, uint32_t bits) {
  if (s.limits == nullptr && bits == 0) return;
  Limits& l = limits_of(i, s);
  const int64_t now = monotonic_ns();
  // A clock stands still while its direction does.
  if (l.in.runs() && (l.paused & kPauseIn) != 0) l.in.since_ns += now - l.paused_at_ns;
  if (l.out.runs() && (l.paused & kPauseOut) != 0) l.out.since_ns += now - l.paused_at_ns;
  l.paused_at_ns = now;
  l.paused = bits;
  wheel_.remove(l);
  arm(s);
  // What waits moves on.
  requeue(i, s);
}

PeerAddress Worker::peer_named(const InsRequest& r) {
  PeerAddress peer;
  peer.family = r.family;
  std::memcpy(peer.bytes.data(), r.value, peer.bytes.size());
  return peer;
}

void Worker::allow(const InsRequest& r) {
  const PeerAddress peer = peer_named(r);
  ins_.wishes.allow(peer, r.write != 0);
  if (r.write == 0) return;
  // What held for it by default holds no more.
  each_socket([&](uint32_t, Sock& s) {
    if (s.limits == nullptr || s.limits->peer != peer) return;
    s.limits->in = RateClock{};
    s.limits->out = RateClock{};
    wheel_.remove(*s.limits);
  });
}

void Worker::peer_cap(const InsRequest& r) {
  const PeerAddress peer = peer_named(r);
  ins_.wishes.set_cap(r.family == 0 ? nullptr : &peer, static_cast<uint32_t>(r.level));
}

// Connections that were accepted before there was a cap.
void Worker::count_peers() {
  const uint32_t census = ins_.wishes.census();
  if (census == 0) return;
  each_socket([&](uint32_t i, Sock& s) {
    if (s.kind != SockKind::stream || (s.flags & kAccepted) == 0) return;
    Limits& l = limits_of(i, s);
    if (l.counted != census) l.counted = ins_.wishes.count(l.peer);
  });
}

void Worker::forget_limits() {
  each_socket([&](uint32_t i, Sock& s) {
    if (s.limits == nullptr) return;
    set_paused(i, s, 0);
    s.limits->in = RateClock{};
    s.limits->out = RateClock{};
    wheel_.remove(*s.limits);
  });
}

}  // namespace mw
