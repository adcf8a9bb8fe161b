#include "shim/socket/taker.h"

#include <limits.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "base/clock.h"
#include "shim/process/libc_calls.h"
#include "shim/process/process.h"

// Exported by the C library, but no longer declared.
extern "C" void _pthread_cleanup_push(_pthread_cleanup_buffer*, void (*)(void*), void*);
extern "C" void _pthread_cleanup_pop(_pthread_cleanup_buffer*, int);

namespace mw::shim {
namespace {

constexpr uint32_t kTurn = 1u << 22;

void wake_followers(uint32_t& word) {
  raw_futex(&word, FUTEX_WAKE, INT_MAX, nullptr);
}

bool is_our_thread(uint32_t tid) {
  return !process.confined && libc.syscall(SYS_tgkill, ::getpid(), tid, 0) == 0;
}

// The word without its taker. Another one each time, or a follower that is late in going to sleep
// would take the next turn of the same taker for this one.
constexpr uint32_t after_turn(uint32_t word) {
  return (word & kPollers) | ((word + kTurn) & (kPollers - kTurn));
}

// The word was `seen` and has a taker: it has none any more.
bool end_turn(uint32_t& word, uint32_t seen) {
  if (!std::atomic_ref(word).compare_exchange_strong(seen, after_turn(seen))) return false;
  if ((seen & kWaiters) != 0) wake_followers(word);
  return true;
}

}  // namespace

Part become_taker(uint32_t& word) {
  std::atomic_ref shared(word);
  uint32_t seen = shared.load();
  while (taker_of(seen) == 0)
    if (shared.compare_exchange_weak(seen, seen | this_thread())) return Part::taker;
  return taker_of(seen) == this_thread() ? Part::neither : Part::follower;
}

Part take_part(uint32_t& word, uint32_t& seen) {
  std::atomic_ref shared(word);
  for (;;) {
    const Part part = become_taker(word);
    if (part != Part::follower) return part;
    uint32_t now = shared.load();
    if (taker_of(now) == 0) continue;
    seen = now | kWaiters;
    if (now == seen || shared.compare_exchange_strong(now, seen)) return part;
  }
}

void end_turn_of(uint32_t& word, uint32_t tid) {
  uint32_t seen = StdAtomics::load_seq(word);
  while (taker_of(seen) == tid && !end_turn(word, seen)) seen = StdAtomics::load_seq(word);
}

void end_turn_before_exec(uint32_t slot) {
  end_turn_of(process.session.slot(slot).taker, process.pid);
}

void leave_taker(uint32_t& word) {
  end_turn_of(word, this_thread());
}

int follow_taker(uint32_t& word, uint32_t seen, int64_t deadline) {
  int64_t left = is_our_thread(taker_of(seen)) ? -1 : kPatienceNs;
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
  if (error == ETIMEDOUT) bury_dead_taker(word);
  return error == EINTR ? -EINTR : 0;
}

void bury_dead_taker(uint32_t& word) {
  const uint32_t seen = StdAtomics::load_seq(word);
  if (taker_of(seen) == 0 || process.confined) return;
  if (is_thread_gone(taker_of(seen))) end_turn(word, seen);
}

OnUnwind::OnUnwind(void (*undo)(void*), void* argument) : buffer_{} {
  _pthread_cleanup_push(&buffer_, undo, argument);
}
OnUnwind::~OnUnwind() {
  _pthread_cleanup_pop(&buffer_, 0);
}

}  // namespace mw::shim
