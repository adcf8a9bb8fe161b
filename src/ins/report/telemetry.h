// telemetry.h - a worker's reports to the driver about the calls that it executes (docs/protocol.md
// 9).
//
// Nobody listening costs a load and a branch for each call; running totals are kept always.
//
// TRUST       The memory is the driver's. It holds nothing that the INS believes: a period's number
//             that changes at will costs reports and no more.
// INVARIANTS  A socket's first report in a period follows one that says who it is. Where that did
//             not fit, the socket's other reports are dropped (and counted) until it does.
// THREADS     The worker's.
#pragma once

#include <sys/socket.h>

#include <memory>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "ins/tables/slot_table.h"
#include "ring/telemetry_ring.h"
#include "transport/local/mapping.h"

namespace mw {

// What the driver sent to report into: shared by the workers, each of which has a ring of its own.
struct TelemetryChannel {
  Mapping memory;
  UniqueFd bell;
};

// A socket address as it stands in reports; `family` if there is none.
mw_telemetry_endpoint telemetry_endpoint_of(const sockaddr* a, socklen_t len, uint16_t family);

class Telemetry {
 public:
  Telemetry(SlotTable& slots, uint32_t worker, uint32_t workers)
      : slots_(slots), worker_(worker), workers_(workers) {}

  // Reports go there from now on.
  void attach(std::shared_ptr<TelemetryChannel> channel);

  bool on() const { return writer_.epoch() != 0; }
  // A call of this socket was executed. kind: MW_TEL_*.
  void event(uint32_t kind, SlotRef s) {
    if (on()) [[unlikely]]
      report(kind, s);
  }
  // Something happened to its connection (Sock::conn) that no call tells.
  void changed(SlotRef s) {
    if (on()) [[unlikely]]
      report(MW_TEL_TOTALS, s);
  }
  // connect() was called, with this address. kind: MW_TEL_CONNECT, or MW_TEL_TOTALS if it failed in
  // a way that only `conn` tells.
  void connecting(uint32_t kind, SlotRef s, const sockaddr* to, socklen_t len) {
    if (on()) [[unlikely]]
      report_connecting(kind, s, to, len);
  }
  // A listener's new connection, not yet handed to its worker.
  void accepted(SlotRef listener, SlotRef s, const mw_addr& local, const mw_addr& peer) {
    if (on()) [[unlikely]]
      report_accepted(listener, s, local, peer);
  }

  // Once a turn, before the worker may sleep: rings for the driver, and introduces the sockets that
  // were there before the period began, some at a time. True: there are more.
  bool turn(uint32_t tick) {
    if (!writer_.unannounced() && writer_.epoch() == scanned_epoch_) [[likely]]
      return false;
    return do_turn(tick);
  }

 private:
  void report(uint32_t kind, SlotRef s);
  void report_accepted(SlotRef listener, SlotRef s, const mw_addr& local, const mw_addr& peer);
  void report_connecting(uint32_t kind, SlotRef s, const sockaddr* to, socklen_t len);
  bool introduce(SlotRef s, uint32_t epoch, const mw_telemetry_endpoint* to = nullptr);
  bool push_who(SlotRef s, const mw_telemetry_endpoint& local, const mw_telemetry_endpoint& remote);
  bool push_event(uint32_t kind, SlotRef s, uint32_t extra);
  bool do_turn(uint32_t tick);
  bool scan(uint32_t tick);

  SlotTable& slots_;
  const uint32_t worker_;
  const uint32_t workers_;
  std::shared_ptr<TelemetryChannel> channel_;
  TelemetryWriter writer_;
  uint32_t scanned_epoch_ = 0;  // the period in which every socket of ours was introduced
  uint32_t scan_epoch_ = 0;     // the one that scan_at_ belongs to
  uint32_t scan_at_ = 0;
  uint32_t scan_pause_ = 0;  // the tick in which there was no room to go on
};

}  // namespace mw
