// driver.h - mwcommsd: joins a session's processes with its INS, and puts the session right when
// one of them dies.
//
// TRUST       See processes.h, groups.h, listeners.h, ins_link.h, session_state.h: each checks its
//             side.
// INVARIANTS  One INS has the region at a time. A successor gets it only when the old one is known
//             to be dead, because one that merely left its connection could still write there.
// THREADS     One, besides that of netflow_service.h. Nothing here blocks except in epoll_wait.
#pragma once

#include <map>
#include <memory>
#include <optional>

#include "driver/fd_store.h"
#include "driver/front_end.h"
#include "driver/groups.h"
#include "driver/heartbeat.h"
#include "driver/ins_link.h"
#include "driver/listeners.h"
#include "driver/netflow_service.h"
#include "driver/options.h"
#include "driver/page_release.h"
#include "driver/poller.h"
#include "driver/privileged_options.h"
#include "driver/processes.h"
#include "driver/session_state.h"
#include "registry/local_registry.h"

namespace mw {

class Driver {
 public:
  // Errors: peer (the regions do not fit), shutdown (no registry), sys.
  static Result<std::unique_ptr<Driver>> make(const DriverOptions& options);
  ~Driver() = default;
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // For the signals of main().
  Poller& poller() { return poller_; }
  // The front end gives up: no INS will come any more.
  void end_session();
  // Waits for events and handles them. True: Source::signals was among them. Errors: sys.
  Result<bool> run_once(int timeout_ms);

  size_t attached() const { return processes_.attached(); }

 private:
  Driver(const DriverOptions& options, Poller poller, SessionMemory memory, LocalRegistry registry);

  Status start();
  Status restore();
  void handle(const Event& e);

  void look_for_ins();
  void try_ins(uint32_t id);
  void greet(InsLink& ins);
  void on_registry();
  void on_ins_events(uint32_t id, uint32_t events);
  bool on_ins_message(InsLink& ins, std::span<const std::byte> data, ReceivedMessage& m);
  bool on_hello_ack(InsLink& ins, std::span<const std::byte> data);
  bool on_listener_up(std::span<const std::byte> data, ReceivedMessage& m);
  bool on_lent(std::span<const std::byte> data, ReceivedMessage& m);
  bool on_slot_message(InsLink& ins, const ControlSlot& s);
  void serve_if_ready(InsLink& ins);
  void start_serving(InsLink& ins);
  Status start_netflow();
  void start_telemetry(InsLink& ins);
  void report_bypass(const ControlSlot& s);
  void lose_ins(const char* why);
  void kill_ins();
  void ins_is_gone();
  void on_violation(const ProcessInfo& who, uint32_t epoch);
  void send_to_ins(std::span<const std::byte> data, std::span<const int> fds);
  void tell_group(ControlType type, uint32_t group);
  void tell_names(uint32_t file);
  void tell_all_names();
  void tell_front_end();
  void sweep_groups();
  void publish(const char* name, const std::string& value);
  void arm_retry(bool on);

  DriverOptions options_;
  Poller poller_;
  SessionMemory memory_;
  LocalRegistry registry_;
  FdStore store_;
  Groups groups_;
  Listeners listeners_;
  Processes processes_;
  PrivilegedOptions privileged_;
  std::unique_ptr<NetflowService> netflow_;  // none: it was not to be started
  PageRelease release_;
  FrontEnd front_end_;
  Heartbeat heartbeat_;
  UniqueFd retry_timer_;

  // An INS that is there but does not listen yet is tried again for a while.
  struct Candidate {
    int tries = 0;
    bool hopeless = false;
  };
  std::map<uint32_t, Candidate> candidates_;
  std::optional<InsLink> ins_;
  int greeting_ticks_ = 0;
  // The INS that served when an earlier driver ended: it goes on where it was.
  std::optional<uint32_t> survivor_;
  uint32_t survivor_pid_ = 0;
  UniqueFd survivor_death_;
  uint32_t bypass_reports_ = 0;
  bool said_ready_ = false;
  bool over_ = false;
  bool registry_complained_ = false;
};

}  // namespace mw
