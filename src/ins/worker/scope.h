// scope.h - what all parts of a worker share: its slots, its region, its time.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "ins/worker/context.h"
#include "ring/channel.h"

namespace mw {

class WorkerScope {
 public:
  WorkerScope(InsContext& ins, uint32_t worker)
      : slots(ins.slots), ch(ins.channel), index(worker), ins_(ins) {}

  // The PVM did what cannot be: the session ends.
  void fault(const Error& e) const { ins_.poison(e.where); }
  bool is_ours(uint32_t slot) const { return ch.worker_of(slot) == index; }
  uint32_t most_slots() const { return ch.geometry().slots / ch.geometry().workers + 1; }
  template <class Visit>
  void each_socket(Visit&& visit) const {
    const uint32_t end = slots.used_end(index);
    for (uint32_t i = index; i < end; i += ch.geometry().workers) {
      const SlotRef s = slots.find(i);
      if (s && s->fd >= 0) visit(s);
    }
  }
  // Tells the control thread of a socket.
  void tell(ControlNote::Kind kind, SlotRef s) const {
    ins_.to_control.post(ControlNote(kind, s.index, s->gen));
  }
  // Has the socket's own worker abandon it.
  void give_up(uint32_t slot, uint32_t gen) const {
    WorkerNote note(WorkerNote::Kind::abandon, slot);
    note.gen = gen;
    ins_.to_worker[ch.worker_of(slot)]->post(std::move(note));
  }

  SlotTable& slots;
  const Channel ch;
  const uint32_t index;
  uint32_t tick = 0;  // of the heartbeats, as this worker saw it last

 private:
  InsContext& ins_;
};

// Slots with work left over for the worker's next turn.
class WorkList {
 public:
  explicit WorkList(uint32_t slots) {
    // Reserved, not touched: the steady state must not allocate, and unused memory costs nothing.
    now_.reserve(slots);
    next_.reserve(slots);
  }
  bool empty() const { return next_.empty(); }
  void add(SlotRef s) {
    if ((s->flags & kQueued) != 0) return;
    s->flags |= kQueued;
    next_.push_back(s.index);
  }
  // Visits the live ones that were added before this call.
  template <class Visit>
  void turn(SlotTable& slots, Visit&& visit) {
    std::swap(now_, next_);
    next_.clear();
    for (const uint32_t i : now_) {
      const SlotRef s = slots.find(i);
      if (!s || (s->flags & kQueued) == 0) continue;
      s->flags &= ~kQueued;
      visit(s);
    }
  }

 private:
  std::vector<uint32_t> now_;
  std::vector<uint32_t> next_;
};

// Listeners that found no descriptor or slot for a connection.
class StalledListeners {
 public:
  bool any() const { return !listeners_.empty(); }
  bool is_retry_due() const { return retry_; }
  void retry() { retry_ = true; }
  // A slot or a descriptor came free.
  void came_free() {
    if (any()) retry_ = true;
  }
  void add(SlotRef listener) {
    if (listener->listener->stalled) return;
    listener->listener->stalled = true;
    listeners_.push_back(listener.index);
  }
  std::vector<uint32_t> take() {
    retry_ = false;
    return std::exchange(listeners_, {});
  }

 private:
  std::vector<uint32_t> listeners_;
  bool retry_ = false;
};

}  // namespace mw
