#include "ins/worker/local_ring_memory.h"

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>

namespace mw {
namespace {

constexpr uint32_t kIdleTicks = 2;

}  // namespace

bool LocalRingMemory::begin_use(SlotRef s) {
  s->flags |= kWarm;
  in_use_.push_back(s.index);
  return true;
}

void LocalRingMemory::release(SlotRef s) {
  // How far the send ring was used decides how much of it may be resident.
  s->tx_high = std::max(s->tx_high, s->tx_head - MW_INDEX_START);
  if (s->tx_high > MW_PAGE && (s->flags & kWarm) == 0) begin_use(s);
  s->last_tick = scope_.tick;
}

void LocalRingMemory::punch(uint64_t offset, uint64_t bytes) {
  // A failure costs memory and nothing else.
  (void)!::fallocate(region_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(offset), static_cast<off_t>(bytes));
}

// Only the INS writes a receive ring, so an empty one can lose its pages at any time; a send ring
// only after its socket is gone.
void LocalRingMemory::turn() {
  const Channel& ch = scope_.ch;
  for (size_t k = 0; k < in_use_.size();) {
    const SlotRef s = scope_.slots.at(in_use_[k]);
    const uint32_t rx_bytes = ch.rx(s.index).capacity();
    const bool live = s->live.load(std::memory_order_relaxed) != 0;
    bool keep = scope_.tick - s->last_tick < kIdleTicks;
    if (!keep && live) {
      auto room = ring_room(rx_bytes, s->rx_tail, ch.slot(s.index).rx_head);
      keep = !room || *room != rx_bytes;
    }
    if (keep) {
      ++k;
      continue;
    }
    const uint64_t ring = ch.layout().rings + ch.layout().ring_stride * s.index;
    if (live) {
      if (s->rx_touched != 0) punch(ring, rx_bytes);
      s->rx_touched = 0;
      s->flags &= ~kWarm;
    } else {
      bool freed = false;
      scope_.slots.if_free(s.index, [&] {
        if (s->rx_touched != 0) punch(ring, rx_bytes);
        if (s->tx_high > MW_PAGE) punch(ring + rx_bytes, ch.tx(s.index).capacity());
        s->rx_touched = 0;
        s->tx_high = 0;
        s->flags &= ~kWarm;
        freed = true;
      });
      if (!freed) {  // taken again while we looked
        ++k;
        continue;
      }
    }
    in_use_[k] = in_use_.back();
    in_use_.pop_back();
  }
}

}  // namespace mw
