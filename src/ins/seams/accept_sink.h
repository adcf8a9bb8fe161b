// accept_sink.h - the way of accepted connections to the application: a queue of records for each
// listener.
//
// A connection is offered in three steps, because nobody may see it before its worker can find it:
// prepare(), then send() its record, then handed() once its slot is published.
//
// INVARIANTS  A connection whose record was sent is claimed by the application once, or revoked
//             once, never both.
// THREADS     One object for each worker, for the worker's listeners.
#pragma once

#include <cstdint>
#include <vector>

#include "abi/mw_region.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "ins/tables/slot_table.h"

namespace mw {

class AcceptSink {
 public:
  // What a connection needs before its record can be sent.
  struct Offer {
    bool bare = true;       // the record comes without a descriptor
    bool nonblock = false;  // as the application wishes its end
    uint32_t number = 0;    // of its placeholder, if it is not bare
    UniqueFd theirs;        // the application's end of that
  };

  AcceptSink() = default;
  AcceptSink(const AcceptSink&) = delete;
  AcceptSink& operator=(const AcceptSink&) = delete;
  virtual ~AcceptSink() = default;

  // A listener begins: `records` may wait for the application before room is told of.
  virtual void room(SlotRef listener, uint32_t records) = 0;
  // Has the worker told when the application takes records, or no more. Looks at once, so a record
  // that is taken meanwhile is not missed.
  virtual void watch_taking(SlotRef listener, bool on) = 0;
  // How many records the application has not taken, as far as that can be known: 0 if not.
  virtual uint32_t waiting(SlotRef listener) const = 0;
  // The same for reports: a record of which a part is gone still counts.
  virtual uint32_t queued(const Sock& listener) const = 0;
  // True if closing placeholders now would cost more than closing them later.
  virtual bool is_under_way() const = 0;

  // `asked`: the application waits for this very connection in a call. Errors: limit, sys.
  virtual Result<Offer> prepare(SlotRef listener, SlotRef c, bool asked) = 0;
  virtual void give_back(Offer& offer) = 0;
  // What the record says of the offer.
  virtual void fill(const Offer& offer, mw_accept_record& record) const = 0;
  // Errors: would_block (the queue is full), shutdown or sys (the listener is just being closed).
  virtual Status send(SlotRef listener, const mw_accept_record& record, const Offer& offer) = 0;
  // The record was sent, or answered in a call: it counts as under way.
  virtual void sent(SlotRef listener, SlotRef c, const Offer& offer) = 0;
  // The offered connection is published as `gen` and another thread may end it. False: nobody would learn
  // of its end, so it has to be abandoned.
  virtual bool handed(uint32_t gen, const Offer& offer) = 0;
  // Tells that a connection waits in the kernel, for a program that wants no queue. Errors: as send().
  virtual Status tell_of_one(SlotRef listener) = 0;

  // Takes a connection away from whoever might still claim it. False: it is claimed.
  virtual bool revoke(SlotRef c) = 0;
  // The listener is closed: what nobody has claimed is abandoned.
  virtual void on_listener_end(ListenerState& l) = 0;
  // Once a tick: abandons what a process took that is dead. Adds to `unasked` the listeners whose
  // tell_of_one() was taken by one.
  virtual void turn(std::vector<uint32_t>& unasked) = 0;
  // True if turn() has nothing to look at.
  virtual bool is_idle() const = 0;
};

}  // namespace mw
