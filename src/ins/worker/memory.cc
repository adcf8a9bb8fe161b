// memory.cc - gives back the memory of rings that are not in use.
#include <fcntl.h>
#include <linux/falloc.h>

#include "ins/worker/worker.h"

namespace mw {
namespace {

constexpr uint32_t kIdleTicks = 2;

}  // namespace

void Worker::touch(SlotRef s) {
  s->last_tick = tick_;
  s->rx_touched = 1;
  if ((s->flags & kWarm) != 0) return;
  s->flags |= kWarm;
  warm_.push_back(s.index);
}

void Worker::punch(uint64_t offset, uint64_t bytes) {
  // A failure costs memory and nothing else.
  (void)!::fallocate(ins_.channel_fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(offset), static_cast<off_t>(bytes));
}

// Gives back the ring memory of slots that were idle for a while. Only the INS writes a receive
// ring, so an empty one can lose its pages at any time; a send ring only after its socket is gone.
void Worker::release_idle_memory() {
  const mw_geometry& g = ch_.geometry();
  for (size_t k = 0; k < warm_.size();) {
    const uint32_t i = warm_[k];
    Sock& s = *ins_.slots.at(i);
    const bool live = s.live.load(std::memory_order_relaxed) != 0;
    bool keep = tick_ - s.last_tick < kIdleTicks;
    if (!keep && live) {
      auto room = ring_room(g.rx_ring, s.rx_tail, ch_.slot(i).rx_head);
      keep = !room || *room != g.rx_ring;
    }
    if (keep) {
      ++k;
      continue;
    }
    const uint64_t ring = ch_.layout().rings + ch_.layout().ring_stride * i;
    if (live) {
      if (s.rx_touched != 0) punch(ring, g.rx_ring);
      s.rx_touched = 0;
      s.flags &= ~kWarm;
    } else {
      bool freed = false;
      ins_.slots.if_free(i, [&] {
        if (s.rx_touched != 0) punch(ring, g.rx_ring);
        if (s.tx_high > MW_PAGE) punch(ring + g.rx_ring, g.tx_ring);
        s.rx_touched = 0;
        s.tx_high = 0;
        s.flags &= ~kWarm;
        freed = true;
      });
      if (!freed) {  // taken again while we looked
        ++k;
        continue;
      }
    }
    warm_[k] = warm_.back();
    warm_.pop_back();
  }
}

}  // namespace mw
