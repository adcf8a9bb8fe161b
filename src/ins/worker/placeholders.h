// placeholders.h - our ends of the placeholders: which connection one serves, and what stands on it
// (docs/protocol.md 3).
//
// TRUST       Which placeholder serves which connection the PVM says (`bound` and `claim` in the
//             slots); a lie costs the connections of the liar and no others.
// THREADS     The worker's.
#pragma once

#include <sched.h>

#include <cstdint>
#include <vector>

#include "base/unique_fd.h"
#include "ins/tables/placeholder_table.h"
#include "ins/worker/events.h"
#include "ins/worker/scope.h"
#include "ring/atomics.h"

namespace mw {

class Placeholders {
 public:
  Placeholders(const WorkerScope& scope, PlaceholderTable& table, const WorkerEvents& events);
  Placeholders(const Placeholders&) = delete;
  Placeholders& operator=(const Placeholders&) = delete;
  ~Placeholders() { close_buried(); }

  // 1 + the number of the placeholder with which the application has claimed the connection; 0 if
  // it has not, or with one that cannot be.
  uint32_t claim_of(SlotRef s) const;
  // Our end of the socket's placeholder, or -1.
  int end_of(SlotRef s) const;
  // Our end of the numbered one, or -1 if it is another one by now.
  int end_of(uint32_t number, uint32_t gen) const {
    const int end = table_.end(number);
    return end >= 0 && table_.made(number).gen == gen ? end : -1;
  }
  // Visits the live connections of a placeholder: that which it was made for, unless the
  // application has put another one under it or it under another, and that which the application
  // says it serves now.
  template <class Visit>
  void each_served(uint32_t number, Visit&& visit) const;
  // Wakes a thread that sleeps at the socket's placeholder.
  void send_token(SlotRef s) const;
  // Takes what stands on a placeholder. Nothing but its end may come there, so true means that a
  // system call went past the shim. Descriptors sent along are dropped by the kernel.
  static bool drain(int end);

  // The application makes one for a connection whose record came without. Not made if there is no
  // number or no memory for it: the answer stays as it is.
  void make(const Request& r, UniqueFd end, Answer& a) const;
  // An accepted connection that was dissolved becomes a listener: its placeholder stays with it.
  void keep(SlotRef s) const;

  // The other end of this numbered one is gone.
  void remove(uint32_t number) { bury(table_.remove(number).release()); }
  // Closes one whose other end is gone, some time. While any AF_UNIX descriptor travels in a
  // message (an accept record that waits, say) the kernel answers each close() of such a socket
  // with a run of its garbage collector in another thread; so we wait until none of ours does.
  void bury(int end);
  void close_buried();
  bool has_buried() const { return !buried_.empty(); }
  bool has_many_buried() const { return buried_.size() >= kManyBuried; }

 private:
  static constexpr size_t kMaxBuried = 512;
  static constexpr size_t kManyBuried = 16;

  const WorkerScope& scope_;
  PlaceholderTable& table_;
  const WorkerEvents& events_;
  std::vector<int> buried_;
};

template <class Visit>
void Placeholders::each_served(uint32_t number, Visit&& visit) const {
  using A = StdAtomics;
  const Channel& ch = scope_.ch;
  const PlaceholderTable::Made made = table_.made(number);
  const uint32_t slots[] = {made.slot, A::load_acquire(ch.slot(number).bound) - 1};
  for (const uint32_t i : slots) {
    if (i >= ch.geometry().slots || !scope_.is_ours(i)) continue;
    // Claimed already, while the worker that accepted it still hands it over.
    const auto gen = static_cast<uint32_t>(A::load_acquire(ch.slot(i).claim) >> 32);
    while (scope_.slots.is_being_made(i, gen)) ::sched_yield();
    const SlotRef s = scope_.slots.find(i);
    if (!s) continue;
    while (!s->handed.load(std::memory_order_acquire)) ::sched_yield();
    if ((s->flags & kAccepted) == 0) continue;
    const uint32_t claim = claim_of(s);
    if (claim == number + 1 || (claim == 0 && i == made.slot && s->gen == made.gen)) visit(s);
  }
}

}  // namespace mw
