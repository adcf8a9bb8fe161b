#include "shim/process/copies.h"

#include <sched.h>
#include <sys/mman.h>

#include <cassert>
#include <cerrno>

#include "abi/mw_region.h"
#include "ring/atomics.h"

extern "C" {
[[gnu::visibility("hidden"), gnu::tls_model("initial-exec")]] thread_local int mw_in_vfork = 0;
[[gnu::visibility("hidden")]] uint32_t mw_descriptor_copies = 1;
[[gnu::visibility("hidden")]] uint32_t mw_copying = 0;  // how many threads copy
[[gnu::visibility("hidden")]] void mw_set_errno(int error) {
  errno = error;
}
}

namespace mw::shim {
namespace {

using A = StdAtomics;

uint32_t* origins = nullptr;  // of each slot's socket: descriptor_copies() when it came to be
uint32_t momentary = 0;       // threads that are in such a state
void (*fork_hooks[kMostForkHooks])() = {};
uint32_t fork_hook_count = 0;

// One less. It is 0 already in the child of a signal handler's fork, once that returns to what it
// interrupted.
void count_down(uint32_t& count) {
  uint32_t n = A::load_relaxed(count);
  while (n != 0 && !std::atomic_ref(count).compare_exchange_weak(n, n - 1)) {
  }
}

}  // namespace

bool open_copies() {
  void* const memory = ::mmap(nullptr, MW_MAX_SLOTS * sizeof *origins, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  origins = static_cast<uint32_t*>(memory);
  return true;
}

uint32_t descriptor_copies() {
  return A::load_acquire(mw_descriptor_copies);
}
void note_origin(uint32_t slot, uint32_t copies_before) {
  A::store_relaxed(origins[slot], copies_before);
}
bool is_nobody_elses(uint32_t slot) {
  return !is_copying() && A::load_relaxed(origins[slot]) == descriptor_copies();
}

void begin_copying() {
  A::fetch_add(mw_copying, 1u);
  // A signal handler that forks may have interrupted the very thread that it would wait for, so this
  // ends.
  constexpr int kMostWaits = 1000;
  for (int k = 0; k < kMostWaits && A::load_seq(momentary) != 0; ++k) ::sched_yield();
}
void end_copying() {
  A::fetch_add(mw_descriptor_copies, 1u);
  count_down(mw_copying);
}
bool is_copying() {
  return A::load_acquire(mw_copying) != 0;
}

// Either the thread that begins to copy sees this, or we see that it has begun.
Momentary::Momentary() {
  A::fetch_add(momentary, 1u);
  late_ = A::load_seq(mw_copying) != 0;
}
Momentary::~Momentary() {
  count_down(momentary);
}

void after_fork(void (*run)()) {
  assert(fork_hook_count < kMostForkHooks);
  fork_hooks[fork_hook_count++] = run;
}

void after_fork_in_child() {
  A::fetch_add(mw_descriptor_copies, 1u);
  mw_copying = 0;
  momentary = 0;
  for (uint32_t i = 0; i < fork_hook_count; ++i) fork_hooks[i]();
}

bool in_vfork_child() {
  return mw_in_vfork != 0;
}

}  // namespace mw::shim
