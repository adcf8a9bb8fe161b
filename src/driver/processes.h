// processes.h - the application's processes: attaching, liveness, groups that they ask for.
//
// TRUST       Anyone on the host can connect to an abstract socket. A connection that did not show
//             the token yet is worth nothing (strangers.h). After it a process is as trusted as the
//             application, and its connections are still bounded, per process and per user.
// INVARIANTS  The connection tells who asks; the process is alive until its pidfd says otherwise,
//             as it may close the connection, and its children may hold it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "base/line_limit.h"
#include "driver/groups.h"
#include "driver/options.h"
#include "driver/poller.h"
#include "driver/process_info.h"
#include "driver/session_state.h"
#include "driver/strangers.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"

namespace mw {

class Processes {
 public:
  Processes(Poller& poller, const DriverOptions& options, SessionMemory& memory, Groups& groups)
      : poller_(poller), options_(options), memory_(memory), groups_(groups) {}

  // Called with a group that the INS has to learn about.
  std::function<void(uint32_t group)> on_group_open;
  // Called with the pid of a process that attached, and of one that will not be heard of any more.
  std::function<void(uint32_t pid, bool here)> on_process;
  // Called with a process's question for a privileged option, to be answered by answer_option().
  std::function<void(uint32_t id, const SocketOption& wanted, int proof)> on_option;
  // Called when a process says that the INS of this epoch broke the protocol.
  std::function<void(const ProcessInfo& who, uint32_t epoch)> on_violation;

  // Errors: sys.
  Status listen();
  void accept_new();
  void accept_placeholders();
  void on_placeholder(uint32_t id);
  void on_door_timer();
  void on_message(uint32_t id, uint32_t events);
  void on_death(uint32_t id);
  void answer_option(uint32_t id, uint32_t status);
  // Frees the calls of processes that died, whether they were attached or not. `died`: one of them,
  // or 0.
  void sweep_calls(uint32_t died = 0);
  // True while a later sweep has something to decide.
  bool suspects() const { return !suspects_.empty(); }

  size_t attached() const;
  // "nginx[12] nginx[13] ...", shortened.
  std::string names() const;

  // Connections that have shown the token.
  static constexpr size_t kMaxPerUser = 8192;
  static constexpr size_t kMaxPerProcess = 1024;

 private:
  struct Attachment {
    UniqueFd connection;
    ProcessInfo who;        // without its name and its pidfd while it is a stranger
    bool known = false;     // it has shown the token
    bool admitted = false;  // ... and asked for the session
  };
  void admit(UniqueFd connection);
  void admit_placeholder(UniqueFd fd);
  template <class Take>
  void accept_some(int listener, Take&& take);
  bool refuse_one(int listener);
  void open_door(bool open);
  void arm_door();
  bool know(uint32_t id, Attachment& a);
  void refuse_crowd(uint32_t id, AttachType request);
  void connection_ended(uint32_t id);
  void forget(uint32_t id);
  bool answer_attach(Attachment& a, uint32_t id);
  bool answer_group_open(Attachment& a, ReceivedMessage& m);
  bool answer_group_find(Attachment& a, int epfd);
  bool answer_group_keep(Attachment& a, int epfd);
  AttachReply reply_to(AttachType request) const;
  uint32_t workers_kept_waiting();
  void announce_for_the_dead(const mw_drop_record& record);

  // The owner of a call that does not exist here, and since when. It may have been a child that
  // never attached, or be alive under another number in a PID namespace of its own; one that is
  // alive takes its answer long before kSuspectTime has passed.
  struct Suspect {
    uint32_t pid;
    uint32_t seq;
    std::chrono::steady_clock::time_point since;
  };
  static constexpr std::chrono::milliseconds kSuspectTime{1500};

  Poller& poller_;
  const DriverOptions& options_;
  SessionMemory& memory_;
  Groups& groups_;
  UniqueFd spare_;  // given up for a moment to refuse a connection when we are out of descriptors
  UniqueFd door_timer_;
  int64_t door_due_ms_ = 0;  // 0: the timer is off
  bool door_open_ = true;
  Strangers strangers_;  // attachments_ that are not known
  Strangers silent_placeholders_;
  std::map<uint32_t, UniqueFd> placeholders_;
  uint32_t next_id_ = 1;
  std::map<uint32_t, Attachment> attachments_;
  std::map<uint32_t, size_t> per_user_;  // those that are known
  struct Crowd {
    size_t known = 0;
    size_t admitted = 0;
  };
  std::map<uint32_t, Crowd> per_process_;  // the same, by pid
  std::map<uint32_t, Suspect> suspects_;   // by cell
  // One for each kind, so that none hides another.
  LineLimit refusals_{"mwcommsd"};
  LineLimit crowds_{"mwcommsd"};
  LineLimit shortages_{"mwcommsd"};
  LineLimit faults_{"mwcommsd"};
};

}  // namespace mw
