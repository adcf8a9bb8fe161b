// datagrams.h - datagram sockets: records in the receive ring; a send is a call, its data the next
// bytes of the send ring.
//
// TRUST       As in stream_pump.h. Blocked peers are dropped here.
// THREADS     The worker's.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <vector>

#include "ins/policy/loopback_hint.h"
#include "ins/policy/wishes.h"
#include "ins/report/telemetry.h"
#include "ins/seams/ring_memory.h"
#include "ins/worker/news.h"
#include "ins/worker/receive_room.h"
#include "ins/worker/scope.h"

namespace mw {

class Datagrams {
 public:
  Datagrams(const WorkerScope& scope, News& news, WorkList& work, RingMemory& memory,
            Telemetry& telemetry, Stats& stats, const Wishes& wishes, LoopbackHint& loopback_hint)
      : scope_(scope),
        news_(news),
        work_(work),
        memory_(memory),
        telemetry_(telemetry),
        stats_(stats),
        wishes_(wishes),
        loopback_hint_(loopback_hint),
        room_(scope),
        ch_(scope.ch) {}

  // events: EPOLL* bits, or 0 for work left over from the last turn. Requires: a real socket.
  void on_event(SlotRef s, uint32_t events);
  // Moves what the kernel holds into the receive ring. Returns the news of it.
  uint32_t receive(SlotRef s);
  // Executes MW_OP_SENDMSG, also for a stream's urgent data.
  void send(SlotRef s, const Request& r, Answer& a);
  void option_set(SlotRef s, int level, int name);
  // An entry of the error queue was taken. The kernel's pending error is then that of the next
  // entry, and none if there is no next one; ours follows.
  void error_entry_taken(SlotRef s, msghdr& taken);

 private:
  void publish_error(SlotRef s, int err);
  void tell_errors(SlotRef s);
  void note_refusal(const Sock& s);

  const WorkerScope& scope_;
  News& news_;
  WorkList& work_;
  RingMemory& memory_;
  Telemetry& telemetry_;
  Stats& stats_;
  const Wishes& wishes_;
  LoopbackHint& loopback_hint_;
  const ReceiveRoom room_;
  const Channel ch_;
  std::vector<uint8_t> scratch_;  // one datagram whose control messages precede it
};

}  // namespace mw
