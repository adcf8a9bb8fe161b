// limit_clock.h - minimum rates, pauses and the peers' shares of connections (docs/netflow.md,
// version 2): when each is due, and what is allowed meanwhile.
//
// INVARIANTS  A connection that has limits has kLimited; its deadline hangs in the wheel whenever a
//             clock of it runs.
// THREADS     The worker's.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "ins/policy/limits.h"
#include "ins/policy/wishes.h"
#include "ins/worker/scope.h"

namespace mw {

class LimitClock {
 public:
  LimitClock(const WorkerScope& scope, Wishes& wishes, WorkList& work)
      : scope_(scope), wishes_(wishes), work_(work) {}

  static bool is_paused(const Sock& s, uint32_t direction) {
    return (s.flags & kLimited) != 0 && (s.limits->paused & direction) != 0;
  }

  // A connection that was just accepted, and is nobody's yet. False: it is not wanted.
  bool admit(SlotRef s, const mw_addr& peer);
  // The socket ends.
  void drop(Sock& s);
  // The socket is connected no more, and may be again.
  void stop(Sock& s);

  // Requires for the next three: the socket has limits.
  // Puts it into the wheel, if a clock runs and it does not hang there.
  void arm(Sock& s);
  // Bytes came: the first ones after the application has sent begin a turn. `waited`: they had
  // found no room.
  void received(Sock& s, uint32_t moved, bool waited);
  void before_send(Sock& s);

  bool is_idle() const { return wheel_.empty(); }
  int wait_ms() const { return wheel_.wait_ms(monotonic_ns()); }
  // Calls cut(s) for each connection that was too slow.
  template <class Cut>
  void turn(Cut&& cut) {
    const int64_t now = monotonic_ns();
    wheel_.advance(now, [&](Limits& l) {
      const SlotRef s = scope_.slots.find(l.slot);
      if (s && s->limits.get() == &l && is_too_slow(s, now)) cut(s);
    });
  }

  // ---- what the driver asks for ----
  // Of one socket, or of all if there is none.
  void min_rate(SlotRef s, const InsRequest& r, InsReply& reply);
  void pause(SlotRef s, const InsRequest& r, InsReply& reply);
  void allow(const InsRequest& r);
  void peer_cap(const InsRequest& r);
  // Counts connections that were accepted before there was a cap.
  void count_peers();
  void forget();

 private:
  Limits& limits_of(SlotRef s);
  bool is_too_slow(SlotRef s, int64_t now);
  void set_min_rate(SlotRef s, bool out, const MinRate& rule);
  void set_paused(SlotRef s, uint32_t bits);

  const WorkerScope& scope_;
  Wishes& wishes_;
  WorkList& work_;
  TimerWheel wheel_;
};

}  // namespace mw
