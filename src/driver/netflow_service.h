// netflow_service.h - the NetFlow interface's thread: telemetry in, observations out; requests in,
// wishes to the INS out.
//
// It is a thread of its own so that engines and nft never delay what the driver is there for: an
// attach, the replacement of an INS. The two meet in notes only.
//
// TRUST       Engines: netflow/server.h. The INS: ins_telemetry.h. What stands in the session
//             region is the application's word: a process that it names as a socket's owner is
//             signalled only if it has this session's region mapped.
// INVARIANTS  While no engine is connected and nothing is exported the INS reports nothing and this
//             thread sleeps.
// THREADS     Public functions: the driver's thread. The rest: its own.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "driver/address_blocks.h"
#include "driver/ins_telemetry.h"
#include "driver/rules.h"
#include "driver/sampling.h"
#include "driver/session_state.h"
#include "netflow/exporter.h"
#include "netflow/server.h"

namespace mw {

class NetflowService {
 public:
  // An address as things about peers are kept by: its family, then its bytes; zeros: of any peer.
  using PeerKey = std::array<uint8_t, 17>;

  // Errors: as Server::make().
  static Result<std::unique_ptr<NetflowService>> start(const netflow::ServerOptions& options,
                                                       const netflow::ExportOptions& exports,
                                                       SessionMemory& memory, int session_fd,
                                                       std::vector<int> worker_bells,
                                                       int blocks_keeper = -1);
  ~NetflowService();
  NetflowService(const NetflowService&) = delete;
  NetflowService& operator=(const NetflowService&) = delete;

  const std::string& address() const { return address_; }
  // Where metrics are served; "" if they are not.
  const std::string& prometheus_address() const { return prometheus_address_; }

  // An INS serves now; what is returned goes to it. Errors: sys.
  Result<InsTelemetry::TheirEnds> ins_up(uint32_t id, uint32_t pid);
  void ins_gone();
  // Whether its loop has turned since this was last asked; and has it turn once more.
  bool has_turned();
  // A process attached, or is gone.
  void process(uint32_t pid, bool here) {
    here ? sampling_.process_came(pid) : sampling_.process_went(pid);
  }

 private:
  static constexpr uint64_t kTagBlocks = 5;
  static constexpr size_t kMaxDeferred = 1024;
  // A socket that was there before the first engine came is known after this time.
  static constexpr int64_t kIntroductionMs = 500;
  // An INS that has not finished a round by then is shown as it is.
  static constexpr int64_t kRoundPatienceMs = 1000;
  struct Note {
    enum class Kind { ins_up, ins_gone } kind;
    std::unique_ptr<InsTelemetry> ins;
  };
  using EngineId = netflow::Server::EngineId;
  struct Outcome {
    uint32_t err;
    uint64_t value0;
    uint64_t value1;
    uint32_t cut = 0;  // connections that ended by it
  };
  using Then = std::function<void(const Outcome&)>;
  struct Asked {
    EngineId engine;
    netflow::Request request;
    Then then;  // gets the outcome; without it the engine does
  };
  // A change under way.
  struct Change {
    EngineId engine;
    netflow::Asking asking;
    Rules::Values before;
  };
  struct Deferred {
    Asked asked;
    int64_t until_ms;
  };
  struct OptionFeature;

  NetflowService(std::unique_ptr<netflow::Server> server, SessionMemory& memory, int session_fd,
                 std::vector<int> worker_bells, int blocks_keeper);
  void post(Note note);
  void run();
  int timeout_ms(int64_t now) const;
  bool watch(int fd, uint64_t tag);

  // netflow_service.cc
  void on_notes();
  void adopt_ins(std::unique_ptr<InsTelemetry> ins);
  void drop_ins(const char* why);
  void follow_engines();
  void drain();
  void end_ins();
  void put(Seen o);
  void send_batch();
  void retry_deferred();
  void follow_rounds();
  netflow::Round end_of_round(const netflow::SampledBatches& samples, int64_t now);

  // netflow_requests.cc
  void on_request(EngineId engine, const netflow::Asking& asking);
  void execute(const Asked& a);
  void answer(const Asked& a, uint32_t err, uint64_t value0 = 0, uint64_t value1 = 0);
  void answer(const Asked& a, const Outcome& outcome);
  void defer(const Asked& a);
  bool on_socket_request(const Asked& a, bool may_wait);
  void on_option(const Asked& a, const OptionFeature& f, uint32_t slot, uint32_t number);
  void on_session_value(const Asked& a, uint32_t slot, uint32_t number);
  void on_owner(const Asked& a, uint32_t slot, uint32_t number);
  UniqueFd process_of_session(uint32_t pid) const;
  void on_congestion(const Asked& a);
  void on_delack(const Asked& a);
  void on_address_block(const Asked& a);
  void change_block(const netflow::Address& peer, bool block, const Then& then);
  bool on_list(const Asked& a, bool may_wait);
  bool may_be_introduced() const;
  void wish(const InsRequest& request);
  void renew_wishes();

  // netflow_changes.cc
  static PeerKey key_of(const netflow::Address& a);
  static netflow::Address address_of(const PeerKey& key);
  static InsRequest about_peer(InsOp op, const PeerKey& key, bool write);
  void on_change(EngineId engine, const netflow::Asking& asking);
  void make(const Change& change);
  void finish(const Change& change, const Outcome& o);
  netflow::Address peer_of_request(const netflow::Request& r) const;
  bool is_listener(const netflow::Request& r) const;
  void end_rule(uint32_t id, uint16_t state, const Then& then);
  void end_due_rules();
  void on_undo(const Asked& a, bool dry_run);
  void on_rules(const Asked& a);
  void on_closed(const netflow::Observation& o);
  void read_block(const Asked& a);
  void on_allow(const Asked& a);
  void on_peer_cap(const Asked& a);
  void ask_cap(const PeerKey& key, uint32_t cap, const std::function<void(uint32_t)>& then);
  void on_default_rate(const Asked& a);
  void on_limit(const Asked& a, uint32_t slot, uint32_t number);
  void forget_predecessors_rules();
  void renew_rules();

  SessionMemory& memory_;
  const int session_fd_;                 // borrowed
  const std::vector<int> worker_bells_;  // borrowed
  std::unique_ptr<netflow::Server> server_;
  std::string address_;
  std::unique_ptr<netflow::Exporter> exporter_;  // null: nothing is exported
  std::string prometheus_address_;

  UniqueFd epoll_;
  UniqueFd notes_bell_;
  std::mutex lock_;
  std::vector<Note> notes_;
  std::atomic<bool> stop_{false};
  std::atomic<uint32_t> turns_{0};  // of its loop
  uint32_t turns_seen_ = 0;         // the driver's thread's

  // From here on the thread's own.
  std::unique_ptr<InsTelemetry> ins_;
  uint32_t epoch_ = 0;       // of the INS's rings; 0: off
  uint32_t last_epoch_ = 0;  // grows
  int64_t epoch_since_ms_ = 0;
  bool muted_ = false;
  uint64_t flow_sequence_ = 0;
  bool reading_ = false;  // the rings are read by time, not by doorbell
  int64_t next_drain_ms_ = 0;
  std::shared_ptr<netflow::Batch> batch_;
  std::shared_ptr<netflow::Batch> extended_batch_;
  std::vector<netflow::ExtendedObservation> exported_;
  std::vector<Deferred> deferred_;
  const int blocks_keeper_;
  AddressBlocks blocks_;
  Sampling sampling_;
  // The round that was asked of the INS and is awaited since then; 0: none is.
  int64_t round_since_ms_ = 0;
  uint32_t row_round_ = 0;       // as the INS counts them
  uint32_t last_row_round_ = 0;  // the last one that it finished
  uint64_t round_ = 0;           // as the engines do
  // In force, and wanted of the next INS too.
  std::set<PeerKey> blocked_;
  std::set<PeerKey> allowed_;
  std::map<PeerKey, uint32_t> caps_;
  Rules::Values min_rate_in_;  // of new connections
  Rules::Values min_rate_out_;
  std::vector<InsRequest> wishes_;
  Rules rules_;
  std::thread thread_;  // last: everything above is there when it starts
};

}  // namespace mw
