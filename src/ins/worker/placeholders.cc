// placeholders.cc - the placeholders of accepted connections: which connection one serves, and what
// its end means (docs/protocol.md 3).
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cstring>

#include "base/log.h"
#include "ins/worker/worker.h"
#include "ring/atomics.h"

namespace mw {
namespace {
using A = StdAtomics;
}  // namespace

// 1 + the number of the placeholder with which the application has claimed the connection; 0 if it
// has not, or with one that cannot be.
uint32_t Worker::claim_of(SlotRef s) const {
  const uint64_t claim = A::load_acquire(ch_.slot(s.index).claim);
  const auto low = static_cast<uint32_t>(claim);
  if (claim >> 32 != s->gen || low == 0 || low > ch_.geometry().slots) return 0;
  return ch_.worker_of(low - 1) == index_ ? low : 0;
}

// Our end of the socket's placeholder, or -1.
int Worker::placeholder_of(SlotRef s) const {
  if ((s->flags & kAccepted) == 0) return s->ph;
  const uint32_t claim = claim_of(s);
  return claim == 0 ? -1 : ins_.placeholders.end(claim - 1);
}

// The live connections of a placeholder: that which it was made for, unless the application has put
// another one under it or it under another, and that which the application says it serves now.
template <class Visit>
void Worker::each_served(uint32_t number, Visit&& visit) {
  const PlaceholderTable::Made made = ins_.placeholders.made(number);
  const uint32_t slots[] = {made.slot, A::load_acquire(ch_.slot(number).bound) - 1};
  for (const uint32_t i : slots) {
    if (i >= ch_.geometry().slots || ch_.worker_of(i) != index_) continue;
    // Claimed already, while the worker that accepted it still hands it over.
    const auto gen = static_cast<uint32_t>(A::load_acquire(ch_.slot(i).claim) >> 32);
    while (ins_.slots.is_being_made(i, gen)) ::sched_yield();
    const SlotRef s = ins_.slots.find(i);
    if (!s) continue;
    while (!s->handed.load(std::memory_order_acquire)) ::sched_yield();
    if ((s->flags & kAccepted) == 0) continue;
    const uint32_t claim = claim_of(s);
    if (claim == number + 1 || (claim == 0 && i == made.slot && s->gen == made.gen)) visit(s);
  }
}

void Worker::on_accepted_placeholder(uint32_t number, uint32_t gen, uint32_t events) {
  const int end = ins_.placeholders.end(number);
  if (end < 0 || ins_.placeholders.made(number).gen != gen) return;
  if ((events & EPOLLIN) != 0 && drain_placeholder(end))
    each_served(number, [&](SlotRef s) {
      if (A::load_relaxed(ch_.slot(s.index).closed) != s->gen) report_bypass(s);
    });
  if ((events & EPOLLHUP) == 0) return;
  serve_before_close();
  each_served(number, [&](SlotRef s) { last_close(s); });
  bury(ins_.placeholders.remove(number).release());
}

// An accepted connection that was dissolved becomes a listener: its placeholder stays with it.
void Worker::keep_placeholder(SlotRef s) {
  if ((s->flags & kAccepted) == 0) return;
  const uint32_t claim = claim_of(s);
  s->flags &= ~kAccepted;
  if (claim == 0) return;
  s->ph = ins_.placeholders.remove(claim - 1).release();
  if (s->ph >= 0) watch(s->ph, kPlaceholderEvents, s.index, s->gen, true, EPOLL_CTL_MOD);
}

// Takes what stands on a placeholder. Nothing but its end may come there, so true means that a
// system call went past the shim. Descriptors sent along are dropped by the kernel.
bool Worker::drain_placeholder(int end) {
  char bytes[256];
  bool any = false;
  while (::recv(end, bytes, sizeof bytes, MSG_DONTWAIT) > 0) any = true;
  return any;
}

void Worker::report_bypass(SlotRef s) {
  if ((s->flags & kBypassSeen) != 0) return;
  s->flags |= kBypassSeen;
  log_line("mwins", "socket %u: bytes on the placeholder: a system call went past the shim",
           s.index);
  ins_.to_control.post(ControlNote(Kind::bypass, s.index, s->gen));
  abort_socket(s);
}

// The application makes a placeholder for a connection whose record came without one. False: the
// channel is poisoned.
bool Worker::new_placeholder(const Request& r, UniqueFd end, Answer& a) {
  if (r.slot >= ch_.geometry().slots || r.gen == 0) {
    fault({Fault::peer, 0, "a placeholder for a connection that cannot be"});
    return false;
  }
  const int fd = end.get();
  auto number = ins_.placeholders.add(ch_.worker_of(r.slot), std::move(end), {r.slot, r.gen});
  if (!number) return true;
  if (!watch_placeholder(fd, *number, r.gen)) {
    ins_.placeholders.remove(*number).reset();
    return true;
  }
  const mw_new_socket out{*number, r.gen};
  std::memcpy(a.payload, &out, sizeof out);
  a.out_len = sizeof out;
  a.ret = 0;
  a.err = 0;
  return true;
}

}  // namespace mw
