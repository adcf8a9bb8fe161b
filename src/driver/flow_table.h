// flow_table.h - the sockets of one INS, as its telemetry describes them, and the observations that
// follow from it.
//
// TRUST       The records are the INS's word, and it faces the attacker: one that cannot be is
//             Fault::peer, after which nothing of this INS is believed any more. What it says about
//             sockets that it has is taken as it is.
// INVARIANTS  One entry for a slot at most; an entry's number is the generation. Engines are told
//             of a close for every socket that they were told of, also if the INS lost the record.
// THREADS     One.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "abi/mw_telemetry.h"
#include "base/result.h"
#include "netflow/wire.h"

namespace mw {

struct Flow {
  uint32_t gen;   // 0: none
  uint32_t bits;  // MW_TEL_WHO_*
  uint32_t conn;  // MW_CONN_*
  uint64_t made_ns;
  uint64_t last_ns;  // of its last record
  uint64_t bytes_in;
  uint64_t bytes_out;
  netflow::Endpoint local;
  netflow::Endpoint remote;
};

// What an observation of version 2 says of them beside; who holds it is not known here.
uint16_t wire_flags(const Flow& flow);

// An observation, and where the session keeps what it is about. kind none: a connection stands
// differently now, which no call told.
struct Seen : netflow::ExtendedObservation {
  uint32_t slot = 0;  // of an accept: the new connection's
  uint32_t number = 0;
  uint32_t listener_slot = 0;  // of an accept
};

class FlowTable {
 public:
  FlowTable(uint32_t slots, uint32_t workers, uint16_t ins);

  // Takes one record; calls out(Seen) for each observation that follows from it.
  // Errors: peer (it cannot be).
  template <class Out>
  Status take(const mw_telemetry_record& r, Out&& out) {
    if (r.kind == MW_TEL_ALL_TOLD) {
      if (r.gen == epoch_ && r.slot < 64) told_ |= uint64_t{1} << r.slot;
      return Ok{};
    }
    if (r.slot >= slots_ || r.gen == 0) return Error{Fault::peer, 0, "a telemetry record's socket"};
    Flow& flow = flows_[r.slot];
    if (r.kind == MW_TEL_WHO) {
      if (flow.gen != 0 && flow.gen != r.gen) close(r.slot, r.now, out);
      return introduce(r);
    }
    if (r.kind > MW_TEL_CLOSE) return Error{Fault::peer, 0, "a telemetry record's kind"};
    if (flow.gen != r.gen) return Ok{};  // its introduction was lost
    return event(r, flow, out);
  }

  // The INS is gone, and all its sockets with it.
  template <class Out>
  void close_all(uint64_t now_ns, Out&& out) {
    while (!slot_of_.empty()) close(slot_of_.begin()->second, now_ns, out);
  }
  // A new monitoring period begins; nobody is told.
  void forget(uint32_t epoch);

  // The slot of a socket that is known. Nothing if it is not open.
  const Flow* find(uint32_t number, uint32_t* slot) const;
  bool is_open(uint32_t slot, uint32_t number) const {
    return slot < slots_ && flows_[slot].gen == number;
  }
  bool closed_lately(uint32_t number) const {
    return std::find(buried_.begin(), buried_.end(), number) != buried_.end();
  }
  size_t size() const { return slot_of_.size(); }
  // Every worker has introduced the sockets that were there before the period.
  bool complete() const { return told_ == (uint64_t{1} << workers_) - 1; }
  template <class Visit>
  void each(Visit&& visit) const {
    for (const auto& [number, slot] : slot_of_) visit(slot, flows_[slot]);
  }
  uint16_t ins() const { return ins_; }
  // While out() is called with a close: MW_TEL_CUT_*, or what else the INS says.
  uint32_t last_cut() const { return cut_; }

 private:
  template <class Out>
  Status event(const mw_telemetry_record& r, Flow& flow, Out&& out) {
    // Totals never shrink.
    if (r.u.event.bytes_in > flow.bytes_in) flow.bytes_in = r.u.event.bytes_in;
    if (r.u.event.bytes_out > flow.bytes_out) flow.bytes_out = r.u.event.bytes_out;
    flow.last_ns = r.now;
    const bool changed = flow.conn != (r.u.event.conn & MW_CONN_ALL);
    flow.conn = r.u.event.conn & MW_CONN_ALL;
    if (r.kind == MW_TEL_TOTALS && !changed) return Ok{};
    Seen o = observation(r.slot, r.kind, r.now);
    if (r.kind == MW_TEL_ACCEPT) {
      uint32_t slot = 0;
      if (find(r.extra, &slot) == nullptr)
        return Ok{};  // closed already: its worker's ring was read before this one
      accepted(o, slot);
    }
    if (r.kind == MW_TEL_CLOSE) {
      cut_ = r.extra;
      o.extra = static_cast<uint64_t>(o.socket);
      erase(r.slot);
    }
    out(o);
    return Ok{};
  }
  template <class Out>
  void close(uint32_t slot, uint64_t now_ns, Out&& out) {
    Seen o = observation(slot, MW_TEL_CLOSE, now_ns);
    o.extra = static_cast<uint64_t>(o.socket);
    o.flags |= netflow::kCloseUnseen;
    cut_ = 0;
    erase(slot);
    out(o);
  }
  Status introduce(const mw_telemetry_record& r);
  void erase(uint32_t slot);
  int64_t number_of(const Flow& flow) const { return netflow::encode({ins_, flow.gen}); }
  Seen observation(uint32_t slot, uint32_t kind, uint64_t now_ns) const;
  void accepted(Seen& o, uint32_t slot);

  struct Freed {
    void operator()(Flow* p) const;
  };
  uint32_t slots_;
  uint32_t workers_;
  uint32_t epoch_ = 0;
  uint64_t told_ = 0;  // workers that introduced all in this period, as bits
  uint16_t ins_;
  uint32_t cut_ = 0;
  std::unique_ptr<Flow[], Freed> flows_;  // by slot; memory that was never used costs nothing
  std::unordered_map<uint32_t, uint32_t> slot_of_;
  // The sockets closed last: the worker that accepted one may introduce it after its own worker
  // said that it is gone.
  static constexpr size_t kBuried = 1024;
  std::array<uint32_t, kBuried> buried_{};
  size_t next_buried_ = 0;
};

}  // namespace mw
