// lost_wakeups.h - once a second a worker looks for wake-ups that were lost.
//
// Everything that is to be done is announced, and whoever sleeps is rung for. If that fails, it is a
// fault of this program; the beat then makes it cost a second instead of for ever, and counts it
// (mw_ready_set.repairs) where `mw ps --json`, the metrics and the tests see it. A doubt becomes a
// repair only if nothing has changed at the next beat, so what is under way is not counted.
//
// THREADS     The worker's.
#pragma once

#include <cstdint>
#include <vector>

#include "ins/seams/bells.h"
#include "ins/worker/news.h"
#include "ins/worker/receive_room.h"
#include "ins/worker/scope.h"
#include "ins/worker/stream_pump.h"

namespace mw {

class LostWakeups {
 public:
  LostWakeups(const WorkerScope& scope, NoteQueue<ControlNote>& to_control, Bells& bells,
              News& news, StreamPump& streams);

  // Once a second.
  void beat();
  bool has_doubts() const { return !doubted_.empty(); }
  // In every turn: a sleeper that woke is in no doubt any more.
  void settle_doubts();
  // Counts one that was lost, and was repaired.
  void repaired(const char* what);

 private:
  struct GroupDoubt {
    uint8_t beats = 0;      // in which its sleeper was seen to be kept waiting
    bool rung = false;      // by a beat
    bool given_up = false;  // that changed nothing
  };
  void look_at(SlotRef s);
  void look_at_group(uint32_t group);

  const WorkerScope& scope_;
  NoteQueue<ControlNote>& to_control_;
  Bells& bells_;
  News& news_;
  StreamPump& streams_;
  const ReceiveRoom room_;
  ReadySet sock_news_;
  uint32_t next_slot_;  // where the next beat begins
  std::vector<GroupDoubt> group_doubts_;
  std::vector<uint32_t> doubted_;
};

}  // namespace mw
