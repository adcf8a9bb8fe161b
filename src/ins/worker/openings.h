// openings.h - new sockets, and how one comes to its worker.
//
// TRUST       What arrives at the drop socket was sent by the PVM: a record or a descriptor that
//             cannot be ends the session.
// THREADS     The worker's; the socket that it makes may be another worker's.
#pragma once

#include <cstdint>

#include "base/unique_fd.h"
#include "ins/policy/wishes.h"
#include "ins/report/telemetry.h"
#include "ins/tables/call_table.h"
#include "ins/worker/events.h"
#include "ins/worker/placeholders.h"
#include "ins/worker/receive_room.h"
#include "ins/worker/scope.h"

namespace mw {

class Openings {
 public:
  Openings(const WorkerScope& scope, const UniqueFd& drop, CallTable& calls, const Wishes& wishes,
           const Placeholders& placeholders, const WorkerEvents& events, Telemetry& telemetry)
      : scope_(scope),
        drop_(drop),
        calls_(calls),
        wishes_(wishes),
        placeholders_(placeholders),
        events_(events),
        telemetry_(telemetry),
        room_(scope) {}

  // New sockets wait at the drop socket.
  void on_drop();
  // A slot of the worker that gets the next new socket. Errors: limit (none is free).
  Result<SlotRef> allocate() { return scope_.slots.allocate(next_); }
  // It was used: the next one is another worker's.
  void advance() { next_ = (next_ + 1) % scope_.ch.geometry().workers; }
  // Makes the slot's shared side that of a new socket. Requires: the private side is filled in.
  void init_shared(SlotRef s) const;
  // Hands a new socket, filled in, to its worker. From here on it is that worker's.
  void hand_over(SlotRef s, bool with_real) const;

 private:
  bool take_drop();
  void new_socket(const Request& r, UniqueFd placeholder, Answer& a);

  const WorkerScope& scope_;
  const UniqueFd& drop_;
  CallTable& calls_;
  const Wishes& wishes_;
  const Placeholders& placeholders_;
  const WorkerEvents& events_;
  Telemetry& telemetry_;
  const ReceiveRoom room_;
  uint32_t next_ = 0;  // the worker that gets the next new socket
  Request request_;
  Answer answer_;
};

}  // namespace mw
