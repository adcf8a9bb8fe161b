#include "shim/process/shared_lock.h"

#include <sched.h>

#include "shim/process/libc_calls.h"

namespace mw::shim {

long raw_futex(uint32_t* word, int op, uint32_t value, const timespec* timeout) {
  return libc.syscall(SYS_futex, word, op, value, timeout, nullptr, 0);
}

bool is_thread_gone(uint32_t tid) {
  return libc.syscall(SYS_tkill, tid, 0) < 0 && errno == ESRCH;
}

void free_left_lock(uint32_t& word, uint32_t& lost) {
  constexpr int kMostYields = 16;
  uint32_t owner = 0;
  for (int k = 0; (owner = StdAtomics::load_acquire(word)) != 0 && k < kMostYields; ++k)
    ::sched_yield();
  if (owner == 0) return;
  if (!is_thread_gone(owner & ~kWaiters)) StdAtomics::exchange(lost, 1u);
  StdAtomics::exchange(word, 0u);
}

void SharedLock::lock_slow(uint32_t me) {
  const int saved = errno;
  constexpr timespec kPatience{0, kPatienceNs};
  std::atomic_ref word(word_);
  for (;;) {
    uint32_t seen = word.load(std::memory_order_relaxed);
    if (seen == 0) {
      // With kWaiters, as others may sleep: at worst one wake too many.
      if (word.compare_exchange_weak(seen, me | kWaiters, std::memory_order_acquire)) break;
      continue;
    }
    if ((seen & kWaiters) == 0 &&
        !word.compare_exchange_weak(seen, seen | kWaiters, std::memory_order_relaxed))
      continue;
    seen |= kWaiters;
    if (raw_futex(&word_, FUTEX_WAIT, seen, &kPatience) < 0 && errno == ETIMEDOUT &&
        is_thread_gone(seen & ~kWaiters) &&
        word.compare_exchange_strong(seen, me | kWaiters, std::memory_order_acquire))
      break;  // its owner died holding it
  }
  errno = saved;
}

}  // namespace mw::shim
