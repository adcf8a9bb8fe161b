#include "shim/ring_window.h"

#include <sys/resource.h>

#include <algorithm>

#include "shim/process.h"

namespace mw::shim {

using A = StdAtomics;

Status RingWindow::open(const SealedFile& file, const mw_layout& layout, uint32_t slots) {
  spare_ = static_cast<uint32_t>(std::clamp<uint64_t>(kSpareBytes / layout.ring_stride, 1, kSpare));
  spare_now_ = spare_;
  return pieces_.open(file, layout.rings, layout.ring_stride * slots, layout.ring_stride);
}

uint32_t RingWindow::most(uint32_t sockets) const {
  return A::load_relaxed(spare_now_) + sockets + sockets / 2;
}

std::byte* RingWindow::map(uint32_t slot) {
  rlimit limit{};
  if (!process.confined && ::getrlimit(RLIMIT_AS, &limit) == 0)
    A::store_relaxed(spare_now_,
                     limit.rlim_cur == RLIM_INFINITY ? spare_ : std::min(spare_, kSpareIfLimited));
  std::byte* const here = pieces_.get(slot);
  return here != nullptr || !drop_unused() ? here : pieces_.get(slot);
}

void RingWindow::trim() {
  if (mapped() > spare_now_ && !process.confined) trim_to(most(sockets_in_use()));
}

bool RingWindow::drop_unused() {
  return !process.confined && trim_to(0) != 0;
}

uint32_t RingWindow::trim_to(uint32_t most) {
  uint32_t unmapped = 0;
  for (uint32_t left = pieces_.used_end(); left != 0 && mapped() > most; --left) {
    const uint32_t slot = A::fetch_add(hand_, 1u) % pieces_.used_end();
    if (pieces_.find(slot) != nullptr && references(slot) == 0 && unmap(slot)) ++unmapped;
  }
  return unmapped;
}

bool RingWindow::unmap(uint32_t slot) {
  std::byte* taken = nullptr;
  {
    SessionSlot& s = process.session.slot(slot);
    const TryLock rx(s.rx_lock);
    if (!rx.held()) return false;
    const TryLock tx(s.tx_lock);
    // lock_lost is set before a lock is taken from its owner, so it is looked at with both held.
    if (!tx.held() || A::load_seq(s.lock_lost) != 0) return false;
    taken = pieces_.take(slot);
  }
  if (taken == nullptr) return false;
  pieces_.unmap(slot, taken);
  return true;
}

}  // namespace mw::shim
