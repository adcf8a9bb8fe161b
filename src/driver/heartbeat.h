// heartbeat.h - the driver's sign of life, which the front end watches.
//
// PROBLEM     A driver that hangs is worse than one that has died: the session's processes wait for it,
//             and nobody starts another.
// PROMISE     R/mw/pvm/heartbeat rises once a second while all loops of the driver turn, and only then.
// INVARIANTS  The file is opened once and keeps its length: a file system that is full stops no beat.
// THREADS     The driver's.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"
#include "registry/local_registry.h"

namespace mw {

class Heartbeat {
 public:
  // Errors: sys.
  Status open(LocalRegistry& registry);
  // Readable when it is time for on_time().
  int timer_fd() const { return timer_.get(); }
  // `turning`: all other loops have turned since the last time.
  void on_time(bool turning);

 private:
  void write();

  UniqueFd timer_;
  UniqueFd file_;
  uint32_t count_ = 0;
};

}  // namespace mw
