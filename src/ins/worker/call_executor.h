// call_executor.h - execution of the calls (docs/protocol.md 5). Each is answered at once; none
// blocks.
//
// TRUST       A request is copied once and checked before it is looked at (tables/decode.h).
// THREADS     The worker's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ins/policy/loopback_hint.h"
#include "ins/report/telemetry.h"
#include "ins/seams/accept_sink.h"
#include "ins/tables/call_table.h"
#include "ins/worker/acceptor.h"
#include "ins/worker/datagrams.h"
#include "ins/worker/ending.h"
#include "ins/worker/events.h"
#include "ins/worker/limit_clock.h"
#include "ins/worker/news.h"
#include "ins/worker/option_effects.h"
#include "ins/worker/placeholders.h"
#include "ins/worker/scope.h"
#include "ins/worker/stream_pump.h"

namespace mw {

class CallExecutor {
 public:
  struct Uses {
    const WorkerScope& scope;
    InsContext& ins;  // the table of calls, and notes to the control thread and to other workers
    News& news;
    WorkList& work;
    AcceptSink& accepts;
    const WorkerEvents& events;
    Placeholders& placeholders;
    StreamPump& streams;
    Datagrams& datagrams;
    OptionEffects& options;
    LimitClock& limits;
    Ending& ending;
    Acceptor& acceptor;
    Telemetry& telemetry;
  };
  explicit CallExecutor(const Uses& uses) : use_(uses), ch_(uses.scope.ch) {}

  void on_call(uint32_t call);

  // Calls that found an address taken wait until all workers have seen the closes before them.
  bool has_late() const { return !late_.empty(); }
  // Another worker has seen them, for this call.
  void looked(uint32_t call);
  // This worker has: executes those that wait for no other one.
  void retry_late();

 private:
  void serve(uint32_t call, bool again);
  void set_aside(uint32_t call);
  void execute(SlotRef s, const Request& r, Answer& a);
  void call_bind(SlotRef s, const Request& r, Answer& a);
  void call_listen(SlotRef s, const Request& r, Answer& a);
  void call_connect(SlotRef s, const Request& r, Answer& a);
  void note_connect(SlotRef s, bool established, bool dissolved);
  void dissolved(SlotRef s);
  void call_shutdown(SlotRef s, const Request& r, Answer& a);
  void call_setsockopt(SlotRef s, const Request& r, Answer& a);
  void call_closed(SlotRef s, Answer& a);
  void call_ioctl(SlotRef s, const Request& r, Answer& a);
  void call_sendmsg(SlotRef s, const Request& r, Answer& a);
  void call_recvmsg(SlotRef s, const Request& r, Answer& a);

  struct LateCall {
    uint32_t call;
    uint32_t looks_due;  // other workers that have not looked yet
    std::unique_ptr<Request> request;
  };

  const Uses use_;
  const Channel ch_;
  std::vector<LateCall> late_;
  Request request_;
  Answer answer_;
};

}  // namespace mw
