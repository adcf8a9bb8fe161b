#include "shim/process/ring_window.h"

#include <sys/resource.h>

#include <algorithm>

#include "shim/process/descriptors.h"
#include "shim/process/shared_lock.h"
#include "shim/process/stack.h"

namespace mw::shim {

using A = StdAtomics;

Status RingWindow::open(const SealedFile& file, const mw_layout& layout, uint32_t slots,
                        uint32_t first) {
  first_ = first;
  stride_ = layout.ring_stride;
  return pieces_.open(file, layout.rings, layout.ring_stride * slots, layout.ring_stride);
}

uint32_t RingWindow::most(uint32_t sockets) const {
  const uint64_t tables = mapped_table_bytes();
  const uint64_t bytes = A::load_relaxed(spare_bytes_);
  const uint64_t spare = (bytes - std::min(bytes, tables)) / stride_;
  return static_cast<uint32_t>(std::clamp<uint64_t>(spare, kFewestSpare, UINT16_MAX)) + sockets +
         sockets / 2;
}

std::byte* RingWindow::map(uint32_t slot) {
  rlimit limit{};
  if (!process.confined && ::getrlimit(RLIMIT_AS, &limit) == 0)
    A::store_relaxed(spare_bytes_, std::min<uint64_t>(kSpareBytes, limit.rlim_cur / kPartOfLimit));
  std::byte* const here = pieces_.get(slot);
  return here != nullptr || !drop_unused() ? here : pieces_.get(slot);
}

void RingWindow::trim() {
  if (mapped() > kFewestSpare && !process.confined) trim_to(most(sockets_in_use()));
}

bool RingWindow::drop_unused() {
  return !process.confined && trim_to(0) != 0;
}

uint32_t RingWindow::trim_to(uint32_t most) {
  uint32_t unmapped = 0;
  // From anywhere: the slots of a busy listener go round, and the one that was left longest ago is
  // the next to be used.
  const uint32_t end = pieces_.used_end();
  uint32_t slot = A::fetch_add(looks_, 2654435761u);
  for (uint32_t left = end; left != 0 && mapped() > most; --left) {
    slot = (slot + 1) % end;
    if (pieces_.find(slot) != nullptr && references(first_ + slot) == 0 && unmap(slot)) ++unmapped;
  }
  return unmapped;
}

bool RingWindow::unmap(uint32_t slot) {
  std::byte* taken = nullptr;
  {
    SessionSlot& s = process.session.slot(first_ + slot);
    const TryLock rx(s.rx_lock);
    if (!rx.held()) return false;
    const TryLock tx(s.tx_lock);
    // lock_lost is set before a lock is taken from its owner, so it is looked at with both held.
    if (!tx.held() || A::load_seq(s.lock_lost) != 0) return false;
    taken = pieces_.take(slot);
    // A thread that was given a lock meanwhile may have found it before: better lost than unmapped.
    if (A::load_seq(s.lock_lost) != 0) return false;
  }
  if (taken == nullptr) return false;
  pieces_.unmap(slot, taken);
  return true;
}

}  // namespace mw::shim
