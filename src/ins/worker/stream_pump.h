// stream_pump.h - the data path of stream sockets: kernel to receive ring, send ring to kernel.
//
// PROMISE     Bytes are told in their order; the end of a connection, an error and urgent data are
//             told after the bytes before them.
// TRUST       The PVM's indexes pass the window checks of ring/ before every use.
// THREADS     The worker's.
#pragma once

#include <cstdint>

#include "ins/policy/loopback_hint.h"
#include "ins/report/telemetry.h"
#include "ins/seams/ring_memory.h"
#include "ins/worker/limit_clock.h"
#include "ins/worker/news.h"
#include "ins/worker/receive_room.h"
#include "ins/worker/scope.h"

namespace mw {

class StreamPump {
 public:
  StreamPump(const WorkerScope& scope, News& news, WorkList& work, RingMemory& memory,
             LimitClock& limits, Telemetry& telemetry, Stats& stats, LoopbackHint& loopback_hint)
      : scope_(scope),
        news_(news),
        work_(work),
        memory_(memory),
        limits_(limits),
        telemetry_(telemetry),
        stats_(stats),
        loopback_hint_(loopback_hint),
        room_(scope),
        ch_(scope.ch) {}

  // events: EPOLL* bits, or 0 for work left over from the last turn. Requires: a real socket that
  // has not begun to linger.
  void on_event(SlotRef s, uint32_t events);
  // Moves what the kernel holds into the receive ring. Returns the news of it.
  uint32_t receive(SlotRef s);
  // Moves what is new in the send ring into the kernel, bytes that the program holds back only if
  // `even_held`. Returns the news of it.
  uint32_t send(SlotRef s, int flags = 0, bool even_held = false);
  // What was written is not all sent: the kernel's buffer is full, or a pause or an error holds it
  // up.
  bool has_unsent(SlotRef s) const;
  // An option was set that is about the receive ring too. The kernel's clamping counts.
  void option_set(SlotRef s, int level, int name);

  // The error that is pending, which is taken; if it is the peer's reset, that is noted.
  static int take_reset(Sock& s);
  // What the kernel's own poll() says about the connection's end.
  static uint32_t end_bits(const Sock& s);

 private:
  void finish_connect(SlotRef s);
  void on_urgent(SlotRef s);
  void look_for_mark(SlotRef s);
  uint32_t on_error(SlotRef s, bool hangs);
  uint32_t on_read_error(SlotRef s, int err);
  static uint32_t on_read_end(SlotRef s);
  void count_received(SlotRef s, uint32_t moved, bool waited);
  uint32_t end_state(Sock& s);
  uint32_t tell_end(SlotRef s);
  void publish_last_error(SlotRef s, int err, bool closed);
  void send_failed(SlotRef s, int err, uint32_t tail);

  const WorkerScope& scope_;
  News& news_;
  WorkList& work_;
  RingMemory& memory_;
  LimitClock& limits_;
  Telemetry& telemetry_;
  Stats& stats_;
  LoopbackHint& loopback_hint_;
  const ReceiveRoom room_;
  const Channel ch_;
};

}  // namespace mw
