// call_cell.h - one cell of the call table as the PVM uses it: who holds it, which call it carries,
// and when that is answered.
//
// TRUST       The INS may store anything into the cell: it can answer wrongly, or never.
// INVARIANTS  A cell is used again only after its last call was answered. A call may be awaited by
//             threads that do not hold the cell (a posted one), also after the cell went on to
//             another call.
// ORDERING    Waiter: set `waiting`, look at done_seq, sleep on it. INS: store done_seq, fence, look
//             at `waiting`, wake. The next holder may come between the INS's store and its look: if
//             it clears `waiting`, it wakes in the INS's place.
// THREADS     Any, in any process; one holds a cell at a time.
#pragma once

#include <cstdint>

#include "ring/atomics.h"

namespace mw {

// True if call `seq` of a cell is answered, when the number answered last is `done`: the cell may be
// further by now. Numbers wrap.
constexpr bool call_is_done(uint32_t done, uint32_t seq) {
  return static_cast<int32_t>(done - seq) >= 0;
}

// Owner: SessionCall, Cell: mw_call or, in a model, structures with the same members.
template <class Owner, class Cell, class Atomics = StdAtomics>
class CallCell {
 public:
  CallCell(Owner& owner, Cell& cell) : owner_(owner), cell_(cell) {}

  // Makes it ours. False: somebody holds it, or its last call is still on its way.
  bool acquire(uint32_t pid) {
    if (Atomics::load_relaxed(owner_.pid) != 0) return false;
    if (!Atomics::compare_exchange(owner_.pid, 0u, pid)) return false;
    const uint32_t done = Atomics::load_acquire(cell_.done_seq);
    if (done == Atomics::load_relaxed(owner_.seq)) return true;
    // A call that was withdrawn, and then answered all the same.
    if (done == Atomics::load_relaxed(cell_.seq)) {
      Atomics::store_relaxed(owner_.seq, done);
      return true;
    }
    release();
    return false;
  }
  void release() { Atomics::store_release(owner_.pid, 0u); }

  // The holder, before it writes the next request. True: threads may still sleep over an earlier
  // call, and the caller has to wake all of them.
  bool take_over_waiters() {
    return Atomics::load_relaxed(cell_.waiting) != 0 && Atomics::exchange(cell_.waiting, 0u) != 0;
  }
  // Numbers the request that was written. Returns the number.
  uint32_t publish() {
    uint32_t seq = Atomics::load_relaxed(owner_.seq) + 1;
    if (seq == 0) seq = 1;
    Atomics::store_relaxed(owner_.seq, seq);
    Atomics::store_release(cell_.seq, seq);
    return seq;
  }
  // The request never left: the cell counts as answered.
  void withdraw() { Atomics::store_relaxed(owner_.seq, Atomics::load_acquire(cell_.done_seq)); }

  bool is_answered(uint32_t seq) {
    return call_is_done(Atomics::load_acquire(cell_.done_seq), seq);
  }
  // Announces a sleep over call `seq`. False: it is answered. Else `seen` is what to sleep on.
  bool prepare_sleep(uint32_t seq, uint32_t& seen) {
    Atomics::store_relaxed(cell_.waiting, 1u);
    Atomics::fence();
    seen = Atomics::load_acquire(cell_.done_seq);
    return !call_is_done(seen, seq);
  }
  // The holder slept over its own call and is awake: nobody else sleeps over this one, and who slept
  // over earlier ones was woken before.
  void forget_waiters() { Atomics::store_relaxed(cell_.waiting, 0u); }

 private:
  Owner& owner_;
  Cell& cell_;
};

// The INS answers call `seq`; the answer itself is written. True: the caller has to wake all that
// sleep on done_seq.
template <class Atomics = StdAtomics, class Cell>
bool answer_call(Cell& cell, uint32_t seq) {
  Atomics::store_release(cell.done_seq, seq);
  Atomics::fence();
  return Atomics::load_relaxed(cell.waiting) != 0;
}

}  // namespace mw
