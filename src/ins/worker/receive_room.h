// receive_room.h - how far a receive ring may be filled, and waiting until it may be filled further.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ins/worker/scope.h"
#include "ring/atomics.h"

namespace mw {

class ReceiveRoom {
 public:
  explicit ReceiveRoom(const WorkerScope& scope) : scope_(scope) {}

  uint32_t limit(SlotRef s) const {
    const uint32_t capacity = scope_.ch.rx(s.index).capacity();
    return s->rx_limit != 0 ? std::min(s->rx_limit, capacity) : capacity;
  }
  void publish_limit(SlotRef s) const {
    StdAtomics::store_relaxed(scope_.ch.slot(s.index).rx_limit, limit(s));
  }
  // Asks for news of `need` bytes of room in the receive ring. True: there is room already, try
  // again.
  bool wait_for(SlotRef s, uint32_t need) const {
    using A = StdAtomics;
    mw_slot& shared = scope_.ch.slot(s.index);
    A::fetch_or(shared.want, MW_WANT_RX_ROOM);
    A::fence();
    auto room = ring_room(scope_.ch.rx(s.index).capacity(), s->rx_tail, shared.rx_head);
    if (!room) {
      scope_.fault(room.error());
      return false;
    }
    if (*room >= need) {
      A::fetch_and(shared.want, ~MW_WANT_RX_ROOM);
      s->flags &= ~kRxWait;
      return true;
    }
    s->flags |= kRxWait;
    return false;
  }

 private:
  const WorkerScope& scope_;
};

}  // namespace mw
