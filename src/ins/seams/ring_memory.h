// ring_memory.h - memory behind the rings: a slot has some while it moves bytes.
//
// THREADS     One object for each worker, for the worker's slots.
#pragma once

#include <cstdint>

#include "ins/tables/slot_table.h"

namespace mw {

class RingMemory {
 public:
  RingMemory() = default;
  RingMemory(const RingMemory&) = delete;
  RingMemory& operator=(const RingMemory&) = delete;
  virtual ~RingMemory() = default;

  // Before bytes are put into the slot's receive ring. False: there is no memory for it now.
  bool acquire_rx(SlotRef s) { return (s->flags & kWarm) != 0 || begin_use(s); }
  // The socket ended; its slot is about to be freed.
  virtual void release(SlotRef s) = 0;
  // Once a tick: gives back what has been idle.
  virtual void turn() = 0;
  // True if turn() has nothing to look at.
  virtual bool is_idle() const = 0;

 protected:
  // The slot gets kWarm and is looked at by turn() from now on.
  virtual bool begin_use(SlotRef s) = 0;
};

}  // namespace mw
