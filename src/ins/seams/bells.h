// bells.h - how a worker and the PVM wake each other.
//
// PROMISE     After ring_group() a sleeper of that group looks at its ready set again; after
//             ring_worker() that worker looks at its own.
// THREADS     One object for each worker, used by that worker only.
#pragma once

#include <cstdint>

#include "base/unique_fd.h"

namespace mw {

class Bells {
 public:
  Bells() = default;
  Bells(const Bells&) = delete;
  Bells& operator=(const Bells&) = delete;
  virtual ~Bells() = default;

  // What the PVM rings for this worker: a descriptor for an epoll set, and the events to watch.
  virtual int wait_fd() const = 0;
  virtual uint32_t wait_events() const = 0;
  // wait_fd() had an event.
  virtual void heard() = 0;

  // The group has a sleeper's doorbell from now on, or none (an empty descriptor).
  virtual void set_group(uint32_t group, UniqueFd doorbell) = 0;
  virtual bool has_group(uint32_t group) const = 0;
  // Wakes the group's sleeper. Does nothing without a doorbell.
  virtual void ring_group(uint32_t group) = 0;
  // Wakes another worker of this INS as the PVM would.
  virtual void ring_worker(uint32_t worker) = 0;
};

}  // namespace mw
