// ending.h - the end of a socket: what is left is sent, then its slot is free.
//
// What ends a socket, and what becomes of its slot:
//
//   close    the application's last descriptor is gone: last_close()
//   abort    a reset now, by us: abort_socket(); the application still has the slot
//   cut off  an abort for the driver: cut_off()
//   revoke   nobody claimed the accepted connection: abandon(), after AcceptSink::revoke()
//   release  the slot is free for another socket: free_slot()
//
//   state of the socket            close                        abort, cut off   end event
//   ---------------------------    -------------------------    -------------    -----------------
//   listener                       release; unclaimed: revoke   nothing          -
//   datagram                       release                      abort            -
//   connecting                     release                      abort            -
//   accepted, not claimed          reset, release               abort            -
//   connected, unread bytes        reset, release               abort            -
//   connected, all sent            finish                       abort            -
//   connected, bytes to send       linger                       abort            -
//   lingering, bytes to send       nothing                      reset, release   all sent: finish
//   lingering, waits for acks      nothing                      reset, release   acked: release
//   aborted                        release                      nothing          -
//
//   finish: release, or linger until the FIN is acknowledged where the application asked for that
//   (SO_LINGER with a time); a peer that resets or sends to a lingering socket ends the wait.
//
// INVARIANTS  A slot is released once, after its descriptors are closed and its end is reported.
// THREADS     The worker's.
#pragma once

#include <cstdint>
#include <vector>

#include "ins/report/telemetry.h"
#include "ins/seams/accept_sink.h"
#include "ins/seams/ring_memory.h"
#include "ins/worker/limit_clock.h"
#include "ins/worker/news.h"
#include "ins/worker/placeholders.h"
#include "ins/worker/scope.h"
#include "ins/worker/stream_pump.h"

namespace mw {

// close() of the real socket will reset the connection.
void reset_at_close(int fd);

class Ending {
 public:
  Ending(const WorkerScope& scope, News& news, StreamPump& streams, AcceptSink& accepts,
         Placeholders& placeholders, LimitClock& limits, RingMemory& memory,
         StalledListeners& stalled, Telemetry& telemetry);

  void last_close(SlotRef s);
  // The same by a mark in the slot: after the calls that nobody waits for, which came before it.
  void mark(SlotRef s) { marked_.push_back(s.index); }
  bool has_marked() const { return !marked_.empty(); }
  void close_marked();

  // An event of the real socket that lingers.
  void on_lingering(SlotRef s, uint32_t events);

  // Closes the connection now and with a reset; the slot and its placeholder stay.
  void abort_socket(SlotRef s);
  // For somebody else than the application.
  void cut_off(SlotRef s);
  // Before an INS that nobody supervises ends: the application comes to know of its connections,
  // and so do their peers. Whoever waits at a listener sees the end of its placeholder.
  void cut_off_all();
  // Nobody would learn of this socket's end.
  void abandon(SlotRef s);
  void reset_and_free(SlotRef s);
  // Bytes came by a system call past the shim.
  void report_bypass(SlotRef s);

 private:
  void finish_close(SlotRef s);
  bool lingers_for_acks(Sock& s) const;
  static void begin_lingering(Sock& s);
  void note_close(Sock& s) const;
  void free_slot(SlotRef s);

  const WorkerScope& scope_;
  News& news_;
  StreamPump& streams_;
  AcceptSink& accepts_;
  Placeholders& placeholders_;
  LimitClock& limits_;
  RingMemory& memory_;
  StalledListeners& stalled_;
  Telemetry& telemetry_;
  std::vector<uint32_t> marked_;
};

}  // namespace mw
