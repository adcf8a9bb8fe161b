// worker.h - one event loop of the INS: it executes the calls about its slots and moves their
// bytes.
//
// The loop: take news from the PVM (call_news, sock_news), then events from the kernel (epoll), then
// what is left over from the last turn; sleep only after announcing it in both ready sets. The
// steady state allocates nothing: a request costs one recv and one send of the real socket.
//
// The worker itself knows the order in which things are looked at, and nothing else: each thing is
// done by a part, whose constructor names what it touches. A part is declared after those that it
// uses.
//
// TRUST       Slots, calls and the indexes in them come from the PVM: find() and the window checks
//             of ring/ stand before every use. A violation poisons the channel and ends the loop.
// INVARIANTS  A slot's epoll events carry its generation: what was queued for a slot's earlier life
//             is dropped. The shared copies of our own indexes are written and never read.
// THREADS     run() is the worker's thread; everything else is called from it. Other threads send
//             notes.
#pragma once

#include <cstdint>
#include <vector>

#include "ins/report/sampler.h"
#include "ins/report/telemetry.h"
#include "ins/worker/acceptor.h"
#include "ins/worker/call_executor.h"
#include "ins/worker/context.h"
#include "ins/worker/datagrams.h"
#include "ins/worker/driver_requests.h"
#include "ins/worker/ending.h"
#include "ins/worker/events.h"
#include "ins/worker/limit_clock.h"
#include "ins/worker/local_transport.h"
#include "ins/worker/lost_wakeups.h"
#include "ins/worker/news.h"
#include "ins/worker/openings.h"
#include "ins/worker/option_effects.h"
#include "ins/worker/placeholders.h"
#include "ins/worker/scope.h"
#include "ins/worker/spin.h"
#include "ins/worker/stream_pump.h"
#include "ring/order.h"

namespace mw {

class Worker {
 public:
  Worker(InsContext& ins, uint32_t index);
  // Serves until a stop note or until the channel is poisoned.
  void run();

  // The pieces of run(). False: the worker cannot work (logged).
  bool begin();
  // One round of everything; sleeps if there is nothing to do and it may.
  void turn(bool may_sleep);

 private:
  uint32_t turn_news();
  uint32_t turn_calls();
  int turn_events(int timeout_ms);
  void turn_local();
  void turn_tick();
  void serve_before_close();
  void see_closes();
  void sleep();
  int sleep_ms() const;
  bool spin();
  void look_after_sleep();
  void on_event(const WorkerEvents::Event& e);
  void on_real(SlotRef s, uint32_t events);
  void on_placeholder(SlotRef s, uint32_t events);
  void on_accepted_placeholder(uint32_t number, uint32_t gen, uint32_t events);
  void on_notes();
  void on_note(WorkerNote& note);
  void on_sock_news(uint32_t i);

  InsContext& ins_;
  WorkerScope scope_;
  WorkerEvents events_;
  WorkList work_;
  StalledListeners stalled_;
  Telemetry telemetry_;
  Placeholders placeholders_;
  LocalTransport transport_;
  News news_;
  LimitClock limits_;
  StreamPump streams_;
  Datagrams datagrams_;
  OptionEffects options_;
  Ending ending_;
  Openings openings_;
  Acceptor acceptor_;
  CallExecutor calls_;
  DriverRequests requests_;
  LostWakeups wakeups_;
  Sampler sampler_;
  Spin spin_;
  ReadySet sock_news_;
  ReadySet call_news_;
  bool stop_ = false;
  int turns_without_events_ = 0;
  std::vector<OrderedMember> batch_;  // calls and slots with news, in their order
  std::vector<WorkerNote> asked_looks_;
};

}  // namespace mw
