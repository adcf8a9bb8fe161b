#include "shim/taker.h"

#include <limits.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "base/clock.h"
#include "shim/process.h"
#include "shim/shared_lock.h"

namespace mw::shim {
namespace {

// After which a process looks whether another one's taker still lives.
constexpr int64_t kPatienceNs = 20'000'000;

void wake_followers(uint32_t& word) {
  raw_futex(&word, FUTEX_WAKE, INT_MAX, nullptr);
}

bool is_our_thread(uint32_t tid) {
  return !process.confined && libc.syscall(SYS_tgkill, ::getpid(), tid, 0) == 0;
}

// A taker that was killed leaves nothing but its number.
void remove_dead(uint32_t& word, uint32_t seen) {
  if (process.confined) return;
  if (libc.syscall(SYS_tkill, seen & ~kWaiters, 0) == 0 || errno != ESRCH) return;
  if (std::atomic_ref(word).compare_exchange_strong(seen, 0)) wake_followers(word);
}

}  // namespace

bool become_taker(uint32_t& word) {
  const uint32_t me = this_thread();
  uint32_t taker = 0;
  return std::atomic_ref(word).compare_exchange_strong(taker, me) || (taker & ~kWaiters) == me;
}

bool become_taker_or_follow(uint32_t& word, uint32_t& seen) {
  for (;;) {
    if (become_taker(word)) return true;
    std::atomic_ref shared(word);
    uint32_t taker = shared.load();
    if (taker == 0) continue;
    seen = taker | kWaiters;
    if (taker == seen || shared.compare_exchange_strong(taker, seen)) return false;
  }
}

void leave_taker(uint32_t& word) {
  std::atomic_ref shared(word);
  uint32_t taker = shared.load();
  while ((taker & ~kWaiters) == this_thread())
    if (shared.compare_exchange_weak(taker, 0)) {
      if ((taker & kWaiters) != 0) wake_followers(word);
      return;
    }
}

int follow_taker(uint32_t& word, uint32_t seen, int64_t deadline) {
  int64_t left = is_our_thread(seen & ~kWaiters) ? -1 : kPatienceNs;
  if (deadline != 0) {
    const int64_t until = deadline - monotonic_ns();
    if (until <= 0) return -EAGAIN;
    left = left < 0 ? until : std::min(left, until);
  }
  const timespec t{left / 1'000'000'000, left % 1'000'000'000};
  int type = 0;
  ::pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
  const bool slept = raw_futex(&word, FUTEX_WAIT, seen, left < 0 ? nullptr : &t) == 0;
  const int error = slept ? 0 : errno;
  ::pthread_setcanceltype(type, nullptr);
  if (error == ETIMEDOUT) remove_dead(word, seen);
  return error == EINTR ? -EINTR : 0;
}

}  // namespace mw::shim
