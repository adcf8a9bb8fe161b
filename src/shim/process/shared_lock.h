// shared_lock.h - a lock between threads of all processes of a session, that survives its owner's
// death.
//
// A robust pthread mutex would do, but its list of held locks runs through the locks' own memory;
// this is one word: 0 free, else the owner's thread id, with kWaiters if somebody sleeps on it.
//
// INVARIANTS  Held only for a copy, never across a wait or a call of the application's.
//             A thread that already holds it enters again (a signal handler that interrupted the
//             critical section, or left it with longjmp): the data stay memory-safe because every
//             index is checked against its window at each use.
// THREADS     Any thread of any process that maps the word. A dead owner is noticed after
//             kPatienceNs.
#pragma once

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "ring/atomics.h"

namespace mw::shim {

constexpr uint32_t kWaiters = 0x80000000u;

inline thread_local uint32_t cached_tid = 0;
inline uint32_t this_thread() {
  if (cached_tid == 0) [[unlikely]]
    cached_tid = static_cast<uint32_t>(::gettid());
  return cached_tid;
}

// After which a sleeper looks whether whoever is to wake it still lives.
constexpr int64_t kPatienceNs = 20'000'000;
// True once no thread, of any process, has this number.
bool is_thread_gone(uint32_t tid);

long raw_futex(uint32_t* word, int op, uint32_t value, const timespec* timeout);

class SharedLock {
 public:
  explicit SharedLock(uint32_t& word) : word_(word) {
    const uint32_t me = this_thread();
    uint32_t expected = 0;
    if (std::atomic_ref(word_).compare_exchange_strong(expected, me, std::memory_order_acquire))
        [[likely]] {
      owned_ = true;
      return;
    }
    if ((expected & ~kWaiters) == me) return;
    lock_slow(me);
    owned_ = true;
  }
  ~SharedLock() {
    if (!owned_) return;
    const uint32_t was = std::atomic_ref(word_).exchange(0, std::memory_order_release);
    if ((was & kWaiters) != 0) raw_futex(&word_, FUTEX_WAKE, 1, nullptr);
  }
  SharedLock(const SharedLock&) = delete;
  SharedLock& operator=(const SharedLock&) = delete;

 private:
  void lock_slow(uint32_t me);

  uint32_t& word_;
  bool owned_ = false;
};

// Frees a lock of a slot that gets another socket. An owner that lives and does not leave at once
// has left it by a jump, or is stopped: `lost` says so from then on.
void free_left_lock(uint32_t& word, uint32_t& lost);

// Holds a lock that was free, of anybody: also the thread itself may be in what it guards.
class TryLock {
 public:
  explicit TryLock(uint32_t& word) : word_(word) {
    uint32_t nobody = 0;
    held_ = std::atomic_ref(word_).compare_exchange_strong(nobody, this_thread(),
                                                           std::memory_order_acquire);
  }
  ~TryLock() {
    if (!held_) return;
    const uint32_t was = std::atomic_ref(word_).exchange(0, std::memory_order_release);
    if ((was & kWaiters) != 0) raw_futex(&word_, FUTEX_WAKE, 1, nullptr);
  }
  TryLock(const TryLock&) = delete;
  TryLock& operator=(const TryLock&) = delete;
  bool held() const { return held_; }

 private:
  uint32_t& word_;
  bool held_ = false;
};

}  // namespace mw::shim
