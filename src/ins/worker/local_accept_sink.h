// local_accept_sink.h - AcceptSink on one host: records wait in the queue of the listener's own
// placeholder, which all processes of the application share, each with the application's end of a
// placeholder.
//
// A descriptor that waits in a queue or came with a message is closed by the kernel when its holder
// ends. A bare record is not: a listener that ends revokes those that nobody has claimed, and what
// is neither in the queue nor claimed was taken by a process that is dead, or about to claim it.
#pragma once

#include <vector>

#include "ins/seams/accept_sink.h"
#include "ins/worker/events.h"
#include "ins/worker/scope.h"

namespace mw {

class LocalAcceptSink final : public AcceptSink {
 public:
  LocalAcceptSink(const WorkerScope& scope, PlaceholderTable& table, const WorkerEvents& events);

  void room(SlotRef listener, uint32_t records) override;
  void watch_taking(SlotRef listener, bool on) override;
  uint32_t waiting(SlotRef listener) const override;
  uint32_t queued(const Sock& listener) const override;
  bool is_under_way() const override;

  Result<Offer> prepare(SlotRef listener, SlotRef c, bool asked) override;
  void give_back(Offer& offer) override;
  void fill(const Offer& offer, mw_accept_record& record) const override;
  Status send(SlotRef listener, const mw_accept_record& record, const Offer& offer) override;
  void sent(SlotRef listener, SlotRef c, const Offer& offer) override;
  bool handed(uint32_t gen, const Offer& offer) override;
  Status tell_of_one(SlotRef listener) override;

  bool revoke(SlotRef c) override { return revoke(c.index, c->gen); }
  void on_listener_end(ListenerState& l) override;
  void turn(std::vector<uint32_t>& unasked) override;
  bool is_idle() const override { return handing_.empty(); }

 private:
  bool revoke(uint32_t slot, uint32_t gen);
  bool is_waiting(uint32_t slot, uint32_t gen) const;
  void note_bare(SlotRef listener, SlotRef c);
  void look_later(SlotRef listener);
  bool look_for_missing(SlotRef listener, std::vector<uint32_t>& unasked);

  const WorkerScope& scope_;
  PlaceholderTable& table_;
  const WorkerEvents& events_;
  const uint32_t record_cost_;     // what one record weighs in the queue; 0: not known
  std::vector<uint32_t> handing_;  // listeners with bare records
  uint32_t handed_by_ = 0;         // the listener whose record was sent last
};

}  // namespace mw
