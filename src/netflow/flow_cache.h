// flow_cache.h - flows from observations: both directions of a connection in one entry, told when
// it ends, when it has been silent, and again and again while it lasts.
//
// A flow starts with the accept or connect of its socket, with the first bytes that are seen of it,
// or with open(). What a record tells as carried is what was carried since the flow's last record, so that
// records add up.
//
// TRUST       Observations come from an INS: any sequence of them is taken; totals that shrink
//             carry nothing.
// INVARIANTS  At most `max_flows` entries: the one that would be told next gives way, and is told
//             as such. Time comes with the calls and is never read here.
// THREADS     One.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

#include "netflow/wire.h"

namespace mw::netflow {

struct FlowTimeouts {
  uint32_t active_s = 60;       // a flow that lasts is told this often
  uint32_t idle_s = 15;         // a flow is told when there were no bytes for so long
  bool tell_beginning = false;  // a flow is told when it begins, too
};

enum class Protocol : uint8_t { tcp = 6, udp = 17 };

// The values of IPFIX's flowEndReason, and one of ours.
enum class FlowEnd : uint8_t {
  begun = 0,
  idle_timeout = 1,
  active_timeout = 2,
  end_of_flow = 3,
  forced_end = 4,
  lack_of_resources = 5,
};

struct FlowRecord {
  int64_t socket = 0;
  Protocol protocol = Protocol::tcp;
  bool inbound = true;  // the peer began: it is the originator
  Endpoint local;
  Endpoint remote;
  uint32_t number = 0;  // records that this flow had before
  FlowEnd reason = FlowEnd::end_of_flow;
  uint64_t session_start_ns = 0;
  // What this record tells, and the last bytes in it or before it.
  uint64_t start_ns = 0;
  uint64_t end_ns = 0;
  uint64_t last_bytes_ns = 0;
  // Seen from the application, since the record before.
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint64_t calls_in = 0;
  uint64_t calls_out = 0;
  // Of the socket from its beginning.
  uint64_t total_in = 0;
  uint64_t total_out = 0;
  // What was seen to happen, as Zeek's conn.log has it: S its opening, h the answer to it, A the
  // handshake's end, D bytes, F the end of what is sent, R a reset; the originator's upper case, the
  // responder's lower case.
  std::string history;
  uint16_t conn = 0;   // kConn*: how it stands
  uint16_t fresh = 0;  // those of them that the record before had not
  // Of the process that made or accepted it, as far as it is known; pid 0: not at all.
  uint32_t pid = 0;
  uint32_t uid = 0;
  CommandName command{};

  const Endpoint& originator() const { return inbound ? remote : local; }
  const Endpoint& responder() const { return inbound ? local : remote; }
  bool final() const { return reason >= FlowEnd::end_of_flow; }
};

// Its conn_state, as Zeek has it; docs/exports.md.
const char* state_of(const FlowRecord& r);

class FlowCache {
 public:
  static constexpr size_t kMaxFlows = 1u << 17;
  using Sink = std::function<void(const FlowRecord&)>;
  struct Counts {
    uint64_t started = 0;
    uint64_t ended = 0;
    uint64_t evicted = 0;
    uint64_t bytes_in = 0;
    uint64_t bytes_out = 0;
  };

  FlowCache(const FlowTimeouts& timeouts, Sink sink, size_t max_flows = kMaxFlows);

  void take(const ExtendedObservation& o);
  // A connection that was there before.
  void open(const netflow::Flow& f, uint64_t now_ns);
  // Tells the flows whose time has come.
  void expire(uint64_t now_ns);
  // Every flow ends: nobody watches any more.
  void end_all(uint64_t now_ns);

  size_t size() const { return flows_.size(); }
  const Counts& counts() const { return counts_; }

 private:
  struct Flow {
    FlowRecord next;         // the record as it grows
    bool idle = false;       // told as such, and silent since
    uint64_t told_ns = 0;    // when the last record was told
    uint64_t queued_ns = 0;  // its valid entry in due_
  };
  struct Due {
    uint64_t at_ns;
    int64_t socket;
    bool operator<(const Due& other) const { return at_ns > other.at_ns; }
  };

  Flow& begin(int64_t socket, const ExtendedObservation& o, bool inbound, const char* history);
  void on_connect(const ExtendedObservation& o);
  void on_change(const ExtendedObservation& o);
  void on_bytes(const ExtendedObservation& o);
  void on_close(const ExtendedObservation& o);
  static void name(FlowRecord& r, const ExtendedObservation& o);
  static void stand(FlowRecord& r, uint16_t conn);
  void carry(Flow& flow, const Observation& o);
  void tell_begun(Flow& flow);
  void tell(Flow& flow, uint64_t now_ns, FlowEnd reason);
  void end(int64_t socket, uint64_t now_ns, FlowEnd reason);
  void make_room(uint64_t now_ns);
  void schedule(Flow& flow);
  uint64_t due_ns(const Flow& flow) const;

  const uint64_t active_ns_;
  const uint64_t idle_ns_;
  const bool tell_beginning_;
  const Sink sink_;
  const size_t max_flows_;
  std::unordered_map<int64_t, Flow> flows_;
  std::priority_queue<Due> due_;  // valid entries, and void ones until their time comes
  Counts counts_;
};

}  // namespace mw::netflow
