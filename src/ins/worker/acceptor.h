// acceptor.h - accepting ahead of the application.
//
// Each accepted connection becomes a slot, and a record of it waits in the listener's queue (seams/
// accept_sink.h). How many wait there is bounded: `ahead` counts what was sent since the queue last
// told how much was taken, so the steady state does not ask. When the bound is reached we have
// ourselves told when the application takes records.
//
// A client can tell how many connections a program lets in that does not accept: one more than its
// backlog. While the program takes what it is sent, the real listener has the whole backlog, so that
// no burst of clients meets a shorter queue than natively. Once the program is behind, what waits
// ahead is taken off the real listener's share, before more is accepted. One with a short backlog
// that has taken what it was sent is forgiven more for a moment: each connection passes through our
// hands too, and it shall not lose clients over that.
//
// THREADS     The worker's.
#pragma once

#include <cstdint>
#include <vector>

#include "ins/policy/wishes.h"
#include "ins/report/telemetry.h"
#include "ins/seams/accept_sink.h"
#include "ins/worker/ending.h"
#include "ins/worker/events.h"
#include "ins/worker/limit_clock.h"
#include "ins/worker/news.h"
#include "ins/worker/openings.h"
#include "ins/worker/placeholders.h"
#include "ins/worker/scope.h"
#include "ins/worker/stream_pump.h"

namespace mw {

// How many connections may be accepted before the program takes them.
uint32_t accepted_ahead(uint32_t backlog);

class Acceptor {
 public:
  struct Uses {
    const WorkerScope& scope;
    NoteQueue<ControlNote>& to_control;
    const Wishes& wishes;
    News& news;
    WorkList& work;
    StalledListeners& stalled;
    AcceptSink& sink;
    Bells& bells;
    const WorkerEvents& events;
    Openings& openings;
    Placeholders& placeholders;
    StreamPump& streams;
    LimitClock& limits;
    Ending& ending;
    Telemetry& telemetry;
  };
  explicit Acceptor(const Uses& uses) : use_(uses), ch_(uses.scope.ch) {}

  // listen() was called.
  void start(SlotRef s, int backlog);
  // Tells the driver, so that it can have the listener made again by a successor.
  void announce(SlotRef s);
  // Clients wait, or the application took records.
  void accept_some(SlotRef s);
  // Executes MW_OP_ACCEPT.
  void call_accept(SlotRef s, Answer& a);
  // Once a tick.
  void turn();
  // Tries again what had no slot or descriptor.
  void retry_stalled();

 private:
  struct Accepted;
  bool accept_one(SlotRef s, Answer* answer = nullptr);
  bool take_from_kernel(SlotRef s, Accepted& accepted, bool& again);
  bool is_wanted(SlotRef c, const Accepted& accepted, bool& again);
  void begin_connection(SlotRef s, SlotRef c, Accepted& accepted);
  bool give(SlotRef s, SlotRef c, const mw_accept_record& record, AcceptSink::Offer& offer,
            Answer* answer, bool& again);
  void hand_over(SlotRef c, const AcceptSink::Offer& offer);
  void stall(SlotRef s);
  static void share_out(Sock& s, uint32_t ahead);
  void count_ahead(SlotRef s);
  bool room_ahead(SlotRef s);
  void nobody_waits(SlotRef s);
  void tell_of_one(SlotRef s);

  const Uses use_;
  const Channel ch_;
  std::vector<uint32_t> unasked_;
};

}  // namespace mw
