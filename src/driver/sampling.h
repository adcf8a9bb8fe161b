// sampling.h - rounds of samples: what an INS says about its sockets, joined with what the session
// and /proc say about who holds them and what they cost.
//
// TRUST       Rows are the INS's word about its own sockets and are copied before they are used; a
//             slot's waits are the application's word about itself. Neither is used as an index or
//             a count. A process is named as a socket's holder only if it is one of the session.
// INVARIANTS  Memory follows the slots that are used. Nothing here waits for anybody.
// THREADS     The NetFlow thread's; process_came() and process_went() are the driver's.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "driver/ins_telemetry.h"
#include "driver/process_info.h"
#include "driver/session_state.h"
#include "netflow/server.h"

namespace mw {

class Sampling {
 public:
  // `belongs` tells whether a process is one of this session's.
  Sampling(SessionMemory& memory, std::function<bool(uint32_t pid)> belongs);

  // Whether a peer is on the allow list.
  std::function<bool(const netflow::Address&)> is_allowed;

  void process_came(uint32_t pid);
  void process_went(uint32_t pid);

  // All of a round that is not an engine's own, of the sockets whose rows are of one of these two
  // rounds of the INS. ins: null if none serves.
  netflow::SampledBatches collect(InsTelemetry* ins, uint32_t row_round, uint32_t other);
  // Says in an observation who holds its socket. One that was taken by nobody yet has the process of
  // its listener, and says so. What was once known of a socket holds until it is closed.
  void add_holder(Seen& o);
  // What the INS uses; no older than a second.
  const std::optional<ProcessUse>& use_of_ins(uint32_t pid);

 private:
  // What the next sample of a socket needs of its last one.
  struct History {
    uint32_t gen;
    uint32_t reserved;
    int64_t at_ns;
    uint64_t bytes_in;
    uint64_t bytes_out;
    double rate_in;
    double rate_out;
    uint64_t worker_us;
  };
  struct Holder {
    int64_t until_ns = 0;
    bool ours = false;
    bool alive = false;
    uint32_t uid = 0;
    netflow::CommandName command{};
  };
  // Who held the socket in a slot when it was observed last.
  struct Identity {
    uint32_t gen;
    uint32_t pid;
    uint32_t uid;
    uint32_t of_listener;
    netflow::CommandName command;
  };
  struct Process {
    int64_t until_ns = 0;
    uint32_t attached = 0;  // connections
    std::optional<ProcessUse> use;
  };
  struct Now {
    int64_t mono_ns;
    uint64_t real_ns;
  };

  netflow::Sample sample_of(const mw_sample_row& row, uint32_t slot, uint16_t ins, const Now& now);
  void add_holder(netflow::Sample& s, SessionSlot& mine, History& h, const Now& now);
  void add_rates(netflow::Sample& s, History& h, const Now& now) const;
  const Holder& holder(uint32_t pid, int64_t now_ns);
  Identity& identify(uint32_t slot, uint32_t gen, int64_t now_ns);
  static void look_at(uint32_t pid, Process& p, int64_t now_ns);
  void add_processes(netflow::SampledBatches& out, const Now& now);

  SessionMemory& memory_;
  std::function<bool(uint32_t)> belongs_;
  struct Freed {
    void operator()(void* p) const;
  };
  // By slot; what was never used costs nothing.
  std::unique_ptr<History[], Freed> history_;
  std::unique_ptr<Identity[], Freed> identities_;
  std::map<uint32_t, Holder> holders_;
  uint32_t looks_left_ = 0;     // at processes that nobody knows, in this round
  int64_t looks_until_ns_ = 0;  // when observations may have more of them
  std::mutex lock_;
  std::map<uint32_t, Process> processes_;  // by pid
  Process ins_;
  uint32_t ins_pid_ = 0;
};

}  // namespace mw
