#include "ins/worker/limit_clock.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>

#include "base/clock.h"

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

Limits& LimitClock::limits_of(SlotRef s) {
  if (s->limits == nullptr) {
    s->limits = std::make_unique<Limits>();
    s->limits->slot = s.index;
    s->limits->peer = peer_of(s->fd);
    s->flags |= kLimited;
  }
  return *s->limits;
}

void LimitClock::drop(Sock& s) {
  if (s.limits == nullptr) return;
  wheel_.remove(*s.limits);
  if (s.limits->counted != 0) wishes_.gone(s.limits->peer, s.limits->counted);
  s.limits.reset();
  s.flags &= ~kLimited;
}

bool LimitClock::admit(SlotRef s, const mw_addr& peer) {
  sockaddr_storage ss{};
  std::memcpy(&ss, peer.bytes, sizeof peer.bytes);
  const PeerAddress address = peer_address_of(reinterpret_cast<const sockaddr*>(&ss), peer.len);
  const Wishes::Admission a = wishes_.admit(address);
  if (a.refused) return false;
  if (a.census == 0 && a.in.rate == 0 && a.out.rate == 0) return true;
  // Its worker puts it into its wheel with the first event, which a new socket always has.
  s->limits = std::make_unique<Limits>();
  s->limits->slot = s.index;
  s->limits->peer = address;
  s->limits->counted = a.census;
  s->limits->in.rule = a.in;
  s->limits->out.rule = a.out;
  if (a.in.rate != 0) s->limits->in.begin(monotonic_ns(), 0);
  s->flags |= kLimited;
  return true;
}

void LimitClock::stop(Sock& s) {
  if (s.limits == nullptr) return;
  s.limits->in.stop();
  s.limits->out.stop();
  wheel_.remove(*s.limits);
}

void LimitClock::arm(Sock& s) {
  Limits& l = *s.limits;
  if (l.link != nullptr) return;
  int64_t due = INT64_MAX;
  if (l.in.runs() && (l.paused & kPauseIn) == 0) due = l.in.deadline_ns(s.bytes_in);
  // As if nothing was acknowledged: whether it was is asked then.
  if (l.out.runs() && (l.paused & kPauseOut) == 0)
    due = std::min(due, l.out.deadline_ns(l.out.base));
  if (due != INT64_MAX) wheel_.set(l, monotonic_ns(), due);
}

void LimitClock::received(Sock& s, uint32_t moved, bool waited) {
  RateClock& in = s.limits->in;
  if (in.rule.rate == 0) return;
  // While the application took nothing, the peer could not send.
  if (!in.runs() || waited) in.begin(monotonic_ns(), s.bytes_in - (in.runs() ? 0 : moved));
  arm(s);
}

void LimitClock::before_send(Sock& s) {
  RateClock& out = s.limits->out;
  if (out.rule.rate == 0) return;
  if (!out.runs() || unacknowledged(s.fd) == 0) out.begin(monotonic_ns(), s.bytes_out);
  arm(s);
}

// A deadline may have passed. True: it has; Limits::cut says which. False: the next one is in the
// wheel.
bool LimitClock::is_too_slow(SlotRef s, int64_t now) {
  Limits& l = *s->limits;
  int64_t due = INT64_MAX;
  if (l.in.runs() && (l.paused & kPauseIn) == 0) {
    if ((s->flags & kReadDone) != 0 || (s->state & MW_ST_EOF) != 0) {
      l.in.stop();
    } else {
      if ((s->flags & kRxWait) != 0)
        l.in.begin(now, s->bytes_in);  // the application is the slow one
      due = l.in.deadline_ns(s->bytes_in);
      if (due <= now) {
        l.cut = MW_TEL_CUT_MIN_RATE_IN;
        return true;
      }
    }
  }
  if (l.out.runs() && (l.paused & kPauseOut) == 0) {
    const uint64_t waiting = unacknowledged(s->fd);
    const Channel& ch = scope_.ch;
    auto left = ring_ready(ch.tx(s.index).capacity(), s->tx_head, ch.slot(s.index).tx_tail);
    if (!left) {
      scope_.fault(left.error());
      return false;
    }
    if (waiting == 0 && *left == 0) {
      l.out.stop();
    } else {
      const int64_t out_due = l.out.deadline_ns(std::max(l.out.base, acknowledged(*s, waiting)));
      if (out_due <= now) {
        l.cut = MW_TEL_CUT_MIN_RATE_OUT;
        return true;
      }
      due = std::min(due, out_due);
    }
  }
  if (due != INT64_MAX) wheel_.set(l, now, due);
  return false;
}

// ---- what the driver asks for ----

void LimitClock::min_rate(SlotRef s, const InsRequest& r, InsReply& reply) {
  MinRate value;
  const bool out = r.name != 0;
  if (r.write != 0 &&
      (!take_value(r, value) || value.rate > kMaxMinRate || value.grace_s > kMaxGraceSeconds)) {
    reply.status = EINVAL;
    return;
  }
  MinRate rule{value.rate, value.grace_s};
  if (!s) {
    if (r.write != 0) wishes_.set_rate(out, rule);
    rule = wishes_.rate(out);
  } else if (s->kind != SockKind::stream || s->listener != nullptr) {
    reply.status = EOPNOTSUPP;
    return;
  } else if (r.write == 0) {
    if (s->limits != nullptr) rule = (out ? s->limits->out : s->limits->in).rule;
  } else {
    set_min_rate(s, out, rule);
  }
  put_value(reply, rule);
}

void LimitClock::set_min_rate(SlotRef s, bool out, const MinRate& rule) {
  if (s->limits == nullptr && rule.rate == 0) return;
  Limits& l = limits_of(s);
  RateClock& clock = out ? l.out : l.in;
  clock.rule = rule;
  clock.stop();
  const int64_t now = monotonic_ns();
  if (rule.rate != 0 && out) {
    const uint64_t waiting = unacknowledged(s->fd);
    if (waiting != 0) clock.begin(now, acknowledged(*s, waiting));
  } else if (rule.rate != 0 && (s->state & MW_ST_CONNECTED) != 0 && (s->flags & kSentLast) == 0) {
    clock.begin(now, s->bytes_in);
  }
  wheel_.remove(l);
  arm(*s);
}

void LimitClock::pause(SlotRef s, const InsRequest& r, InsReply& reply) {
  uint32_t bits = 0;
  if (!s || s->kind != SockKind::stream || s->listener != nullptr) {
    reply.status = !s ? EBADF : EOPNOTSUPP;
    return;
  }
  if (r.write != 0) {
    if (!take_value(r, bits) || (bits & ~(kPauseIn | kPauseOut)) != 0) {
      reply.status = EINVAL;
      return;
    }
    set_paused(s, bits);
  }
  put_value(reply, s->limits == nullptr ? 0 : s->limits->paused);
}

void LimitClock::set_paused(SlotRef s, uint32_t bits) {
  if (s->limits == nullptr && bits == 0) return;
  Limits& l = limits_of(s);
  const int64_t now = monotonic_ns();
  // A clock stands still while its direction does.
  if (l.in.runs() && (l.paused & kPauseIn) != 0) l.in.since_ns += now - l.paused_at_ns;
  if (l.out.runs() && (l.paused & kPauseOut) != 0) l.out.since_ns += now - l.paused_at_ns;
  l.paused_at_ns = now;
  l.paused = bits;
  wheel_.remove(l);
  arm(*s);
  // What waits moves on.
  work_.add(s);
}

void LimitClock::allow(const InsRequest& r) {
  const PeerAddress peer = peer_named(r);
  wishes_.allow(peer, r.write != 0);
  if (r.write == 0) return;
  // What held for it by default holds no more.
  scope_.each_socket([&](SlotRef s) {
    if (s->limits == nullptr || s->limits->peer != peer) return;
    s->limits->in = RateClock{};
    s->limits->out = RateClock{};
    wheel_.remove(*s->limits);
  });
}

void LimitClock::peer_cap(const InsRequest& r) {
  const PeerAddress peer = peer_named(r);
  wishes_.set_cap(r.family == 0 ? nullptr : &peer, static_cast<uint32_t>(r.level));
}

void LimitClock::count_peers() {
  const uint32_t census = wishes_.census();
  if (census == 0) return;
  scope_.each_socket([&](SlotRef s) {
    if (s->kind != SockKind::stream || (s->flags & kAccepted) == 0) return;
    Limits& l = limits_of(s);
    if (l.counted != census) l.counted = wishes_.count(l.peer);
  });
}

void LimitClock::forget() {
  scope_.each_socket([&](SlotRef s) {
    if (s->limits == nullptr) return;
    set_paused(s, 0);
    s->limits->in = RateClock{};
    s->limits->out = RateClock{};
    wheel_.remove(*s->limits);
  });
}

}  // namespace mw
