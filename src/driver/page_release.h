// page_release.h - gives the memory of idle send rings back to the system.
//
// A ring keeps each page that bytes ever passed through. When a send ring has been empty and
// untouched since the turn before, its pages are punched out of the memfd; the next byte brings one
// of them back. (Receive rings are the INS's, who writes them, to release.)
//
// TRUST       "Empty" compares the application's private tail with the INS's head. An INS that lies
//             about its head loses bytes that were meant for itself, nothing else.
// INVARIANTS  Punching happens under the slot's tx_lock and only while tail and head are equal, so
//             no byte of a writer is lost. The lock is only ever tried, by the protocol of
//             src/shim/process/shared_lock.h: 0 free, else the owner's thread id, with the top bit if
//             somebody sleeps on it.
// THREADS     The driver's only thread. A turn releases a bounded number of rings. While nothing
//             moves the pauses double up to kLongestPauseMs, so an idle session costs nothing that
//             can be measured.
#pragma once

#include <cstdint>
#include <memory>

#include "base/unique_fd.h"
#include "driver/session_state.h"

namespace mw {

class PageRelease {
 public:
  struct Turn {
    uint32_t released = 0;
    bool moved = false;       // some ring was used since the turn before
    bool unfinished = false;  // there is more to release at once
  };

  explicit PageRelease(SessionMemory& memory);

  // Errors: sys.
  Status open_timer();
  int timer_fd() const { return timer_.get(); }
  void on_timer();
  // Something happened that may bring traffic: look again soon.
  void stir();

  Turn turn();

  static constexpr int64_t kPauseMs = 2000;
  static constexpr int64_t kLongestPauseMs = 64000;
  static constexpr int64_t kNextPartMs = 20;
  static constexpr uint32_t kReleasesPerTurn = 1024;

 private:
  enum class Outcome { released, busy, failed };
  Outcome release(uint32_t slot);
  void arm(int64_t pause_ms);

  SessionMemory& memory_;
  UniqueFd timer_;
  int64_t pause_ms_ = 0;  // 0: not armed yet
  // What the turn before saw, by slot: the tail, and whether the ring was released at it. From
  // calloc, so that slots which were never used cost nothing.
  struct Free {
    void operator()(void* p) const;
  };
  struct Seen {
    uint32_t tail;
    uint32_t released;
  };
  std::unique_ptr<Seen[], Free> seen_;
};

}  // namespace mw
