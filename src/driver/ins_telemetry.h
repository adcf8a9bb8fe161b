// ins_telemetry.h - the driver's end of one INS's telemetry: the rings that it reads, and the
// questions that it asks about sockets (docs/protocol.md 9).
//
// TRUST       The INS is hostile once it was taken over: its memory is sealed by us, its records
//             are checked by FlowTable, an answer must be to a question that is open. The first
//             thing that does not fit ends this connection; the INS itself is not touched.
// THREADS     Made by the driver's thread, then used by the NetFlow thread only.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "driver/flow_table.h"
#include "ring/sample_rows.h"
#include "ring/telemetry_ring.h"
#include "transport/local/control.h"
#include "transport/local/mapping.h"

namespace mw {

class InsTelemetry {
 public:
  // What goes to the INS with ControlType::telemetry.
  struct TheirEnds {
    UniqueFd memory;
    UniqueFd bell;
    UniqueFd requests;
  };
  struct Ends;

  // `worker_bells` wake the workers, so that they notice a new period. `netns`: the INS's network
  // namespace, none if it cannot be opened. Errors: sys.
  static Result<Ends> make(uint32_t id, uint32_t pid, const mw_geometry& geometry,
                           const std::vector<int>& worker_bells, UniqueFd netns);

  // On from the start, so that an engine which is there misses nothing of an INS that takes over.
  static constexpr uint32_t kFirstEpoch = 1;

  uint32_t id() const { return id_; }
  uint32_t pid() const { return pid_; }
  int bell() const { return bell_.get(); }
  int requests() const { return requests_.get(); }
  int netns() const { return netns_.get(); }
  FlowTable& flows() { return flows_; }

  // 0 ends the monitoring.
  void set_epoch(uint32_t epoch);
  void set_muted(bool muted);
  // Reads all rings. Returns the number of records. Errors: peer.
  template <class Out>
  Result<uint32_t> drain(Out&& out) {
    uint32_t count = 0;
    for (TelemetryReader& ring : rings_) {
      Status sound = Ok{};
      auto n = ring.drain(kRecordsAtOnce, [&](const mw_telemetry_record& r) {
        if (!sound) return;
        sound = flows_.take(r, out);
      });
      if (!n) return n.error();
      if (!sound) return sound.error();
      count += *n;
    }
    return count;
  }
  // Asks for a round of samples, another one than the last.
  void want_round(uint32_t round);
  // True once every worker has written all rows of this round, which is remembered as a sign of
  // life.
  bool round_done(uint32_t round, int64_t now_ms);
  const SampleRowReader& rows() const { return rows_; }
  // When the worker that was silent longest gave its last sign of life; 0: none did yet.
  int64_t alive_ms() const { return alive_ms_; }
  uint64_t dropped() const { return dropped_; }
  // What the INS dropped since the last time.
  uint64_t newly_dropped();
  // True: sleep, the doorbell will be rung. False: there is more.
  bool prepare_sleep();
  void wake();

  using Done = std::function<void(const InsReply&)>;
  // Done is called once, here if it cannot be asked (ECONNRESET, EBUSY), else from on_replies(), or
  // by fail_all().
  void ask(InsRequest request, Done done);
  // Errors: peer, shutdown.
  Status on_replies();
  void fail_all(uint32_t err);

 private:
  static constexpr uint32_t kRecordsAtOnce = MW_TELEMETRY_RECORDS;
  static constexpr size_t kMaxQuestions = 1024;

  InsTelemetry(uint32_t id, uint32_t pid, const mw_geometry& geometry)
      : id_(id), pid_(pid), flows_(geometry.slots, geometry.workers, static_cast<uint16_t>(id)) {}

  void ring_workers();

  uint32_t id_;
  uint32_t pid_;
  FlowTable flows_;
  Mapping memory_;
  std::vector<TelemetryReader> rings_;
  SampleRowReader rows_;
  int64_t alive_ms_ = 0;
  std::vector<UniqueFd> worker_bells_;
  UniqueFd bell_;
  UniqueFd requests_;
  UniqueFd netns_;
  uint64_t dropped_ = 0;
  uint32_t next_question_ = 1;
  std::map<uint32_t, Done> questions_;
};

struct InsTelemetry::Ends {
  std::unique_ptr<InsTelemetry> ours;
  TheirEnds theirs;
};

}  // namespace mw
