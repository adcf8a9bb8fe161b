// events.h - what a worker's epoll set watches: both ends of sockets, and its own doorbells.
//
// INVARIANTS  An event carries its slot's generation: what was queued for a slot's earlier life is
//             dropped.
// THREADS     Registering from any worker (a new socket goes to the set of its own); wait() by the
//             worker.
#pragma once

#include <sys/epoll.h>

#include <cstdint>

#include "ins/worker/context.h"

namespace mw {

class WorkerEvents {
 public:
  enum class Of { notes, drop, bell, real, placeholder, accepted_placeholder };
  struct Event {
    Of of;
    uint32_t bits;       // EPOLL*
    uint32_t index = 0;  // slot; accepted_placeholder: its number
    uint32_t gen = 0;
  };

  WorkerEvents(InsContext& ins, uint32_t worker) : ins_(ins), epoll_(ins.epolls[worker].get()) {}

  // A doorbell of this worker.
  bool add(int fd, uint32_t bits, Of of) const;
  void remove(int fd) const;
  // The real socket of a slot. Does nothing if it is watched.
  bool watch_real(SlotRef s) const;
  // The same with what is known of it: once it is published it belongs to its worker.
  bool watch_real(uint32_t slot, uint32_t gen, int fd) const;
  // Our end of a socket's own placeholder, and also for `more` events.
  bool watch_placeholder(uint32_t slot, uint32_t gen, int end) const;
  bool rewatch_placeholder(SlotRef s, uint32_t more = 0) const;
  // Of an accepted connection, by the placeholder's number.
  bool watch_accepted_placeholder(uint32_t number, uint32_t gen, int end) const;

  int wait(epoll_event* events, int most, int timeout_ms) const {
    return ::epoll_wait(epoll_, events, most, timeout_ms);
  }
  static Event read(const epoll_event& e);

 private:
  bool watch(uint32_t slot, int op, int fd, uint32_t bits, uint64_t tag) const;

  InsContext& ins_;
  const int epoll_;
};

}  // namespace mw
