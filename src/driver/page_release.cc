#include "driver/page_release.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cstdlib>

namespace mw {
namespace {

constexpr uint32_t kWaiters = 0x80000000u;

// Holds a slot's lock if it was free.
class TryLock {
 public:
  explicit TryLock(uint32_t& word) : word_(word) {
    uint32_t nobody = 0;
    held_ = std::atomic_ref(word_).compare_exchange_strong(
        nobody, static_cast<uint32_t>(::gettid()), std::memory_order_acquire);
  }
  ~TryLock() {
    if (!held_) return;
    const uint32_t was = std::atomic_ref(word_).exchange(0, std::memory_order_release);
    if ((was & kWaiters) != 0)
      (void)::syscall(SYS_futex, &word_, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
  TryLock(const TryLock&) = delete;
  TryLock& operator=(const TryLock&) = delete;
  bool held() const { return held_; }

 private:
  uint32_t& word_;
  bool held_ = false;
};

}  // namespace

void PageRelease::Free::operator()(void* p) const {
  std::free(p);
}

PageRelease::PageRelease(SessionMemory& memory)
    : memory_(memory),
      seen_(static_cast<Seen*>(std::calloc(memory.geometry().slots, sizeof(Seen)))) {}

Status PageRelease::open_timer() {
  if (!seen_) return Error{Fault::sys, ENOMEM, "table of rings"};
  timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  if (!timer_) return Error{Fault::sys, errno, "timerfd_create"};
  stir();
  return Ok{};
}

void PageRelease::arm(int64_t pause_ms) {
  pause_ms_ = pause_ms;
  itimerspec t{};
  t.it_value.tv_sec = pause_ms / 1000;
  t.it_value.tv_nsec = pause_ms % 1000 * 1'000'000;
  (void)::timerfd_settime(timer_.get(), 0, &t, nullptr);
}

void PageRelease::stir() {
  if (pause_ms_ == 0 || pause_ms_ > kPauseMs) arm(kPauseMs);
}

void PageRelease::on_timer() {
  uint64_t expired = 0;
  if (::read(timer_.get(), &expired, sizeof expired) < 0) return;
  const Turn t = turn();
  if (t.unfinished) return arm(kNextPartMs);
  arm(t.moved || t.released != 0 ? kPauseMs
                                 : std::min(kLongestPauseMs, std::max(kPauseMs, 2 * pause_ms_)));
}

PageRelease::Turn PageRelease::turn() {
  Turn t;
  memory_.each_touched_session_slot([&](uint32_t i, SessionSlot& slot) {
    if (StdAtomics::load_relaxed(slot.gen) == 0) return;
    const uint32_t tail = StdAtomics::load_relaxed(slot.tx_tail);
    Seen& seen = seen_[i];
    if (seen.tail != tail) {
      seen = {tail, 0};
      t.moved = true;
      return;
    }
    if (seen.released != 0) return;
    if (t.released == kReleasesPerTurn) {
      t.unfinished = true;
      return;
    }
    switch (release(i)) {
      case Outcome::released:
        seen.released = 1;
        ++t.released;
        return;
      case Outcome::busy:
        t.moved = true;
        return;
      case Outcome::failed:
        seen.released = 1;  // not again before it is used again
        return;
    }
  });
  return t;
}

PageRelease::Outcome PageRelease::release(uint32_t i) {
  SessionSlot& slot = memory_.session().slot(i);
  const Channel& c = memory_.channel();
  const TryLock lock(slot.tx_lock);
  if (!lock.held()) return Outcome::busy;
  if (StdAtomics::load_relaxed(slot.tx_tail) != StdAtomics::load_acquire(c.slot(i).tx_head) ||
      seen_[i].tail != StdAtomics::load_relaxed(slot.tx_tail))
    return Outcome::busy;
  const uint64_t at = c.layout().rings + c.layout().ring_stride * i + c.geometry().rx_ring;
  return memory_.punch_channel(at, c.geometry().tx_ring) ? Outcome::released : Outcome::failed;
}

}  // namespace mw
