// supervisor.h - keeps one session running: driver, INS and application.
//
// Starts driver and INS, waits until both serve, then starts the application. Replaces an INS or a
// driver that dies. Ends when the last process of the application has ended: as a subreaper it
// inherits what the application leaves behind, so a daemon that goes to the background stays part
// of the session. Or goes on with a session whose supervisor died: then nobody there is our child,
// and pidfds tell what SIGCHLD does not.
//
// An INS that dies is replaced for ever, at once if it had served for a while and with growing
// delays if not. One that ends because the application's side broke the protocol is replaced a few
// times, as a hostile INS can claim that too; then the session is left without an INS, because a
// hostile application would otherwise have us start one after the other.
//
// INVARIANTS  The application never runs before the channel serves, and driver and INS never
//             outlive run(). One INS at a time; ids rise and are not used twice.
// THREADS     One. The signals that HeldSignals blocks are taken from a signalfd.
#pragma once

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"
#include "frontend/process.h"
#include "frontend/relay.h"

namespace mw {

// Holds back the signals that end or steer a session, so that set-up and removal are never cut
// short.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();  // drops what is still pending: the session that it was meant for is over
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;
  const sigset_t& set() const { return set_; }
  const sigset_t& previous() const { return previous_; }

 private:
  sigset_t set_{};
  sigset_t previous_{};
};

struct SupervisorConfig {
  std::function<SpawnRequest(int ready_fd)> driver;
  std::function<SpawnRequest(unsigned id, int ready_fd)> ins;
  SpawnRequest application;
  // Called after each start or end of a process.
  std::function<void()> changed;
  // Called for an INS that has ended, so that nobody finds it any more.
  std::function<void(unsigned id)> ins_gone;
  // Texts that change while all loops of the INS, and of the driver, turn; called about once a second.
  // Empty: not known.
  std::function<std::string(unsigned id)> heartbeat;
  std::function<std::string()> driver_heartbeat;
  // Whoever belongs to the application of an adopted session; our helpers are never among them.
  std::function<std::vector<pid_t>()> session_processes;
  // What else to wait for: whenever a descriptor is readable its function is called.
  struct Watched {
    int fd;
    std::function<void()> on_event;
  };
  std::vector<Watched> watched;
  // Called once, when the channel serves and before the application starts.
  std::function<void()> serving;
  // Called once, when the application has started.
  std::function<void()> running;
  std::function<void(const std::string&)> log;
  std::chrono::milliseconds ready_timeout{10000};
  std::chrono::milliseconds heartbeat_timeout{6000};
  std::chrono::milliseconds poison_delay{250};   // before the first replacement; then doubled
  std::chrono::milliseconds poison_calm{60000};  // without it for so long: it starts afresh
};

// What is left of a session whose supervisor died.
struct Adopted {
  ProcId application;
  ProcId driver;
  ProcId ins;
  unsigned ins_id = 0;
};

class Supervisor {
 public:
  Supervisor(SupervisorConfig config, const HeldSignals& signals);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Runs the session to its end. The outcome is what a shell would show as the command's exit
  // status. Failure: driver, INS or command could not be started; everything started has been ended
  // again.
  Outcome<int> run();
  // The same for a session that runs already; its command's exit status is nobody's to see any
  // more.
  Outcome<int> adopt(const Adopted& found);

  static constexpr unsigned kMostPoisonings = 5;

  ProcId application() const { return application_; }
  ProcId driver() const { return driver_.id; }
  ProcId ins() const { return ins_.id; }
  unsigned ins_id() const { return ins_id_; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Helper {
    const char* name;
    ProcId id{};  // pid 0: not running
    UniqueFd ready_pipe{};
    UniqueFd death{};  // of one that is not our child
    bool ready = false;
    unsigned quick_deaths = 0;
    unsigned stillborn = 0;  // in a row
    Clock::time_point started{};
    Clock::time_point deadline{};  // not running: when to start it; not ready: when to give it up
    // Its heartbeat, and for how long that has been the same although it, and we, could run.
    std::string last_beat{};
    Clock::duration beatless{};
    uint64_t ran_ns = 0;
  };

  Outcome<Done> start(Helper* helper);
  Outcome<Done> wait_until_serving();
  Outcome<Done> start_application();
  void supervise();
  void wait_for_event(int timeout_ms);
  int next_timeout_ms() const;
  void take_signals();
  void forward(const signalfd_siginfo& info);
  void reap();
  pid_t reap_one(int* status);
  void helper_ended(Helper* helper, const std::string& how, bool poisoned);
  std::chrono::milliseconds delay_after_death(Helper* helper, bool poisoned);
  void say_over() const;
  void tend(Helper* helper);
  void watch_heartbeats();
  void watch_heartbeat(Helper* helper, const std::string& beat, Clock::duration passed);
  void stop_left_behind(int status);
  std::vector<pid_t> left_behind() const;
  bool application_runs();
  bool witness_lives();
  void adopt_helper(Helper* helper, const ProcId& id);
  void end_helpers();
  void end(Helper* helper);

  SupervisorConfig config_;
  const HeldSignals& held_;
  UniqueFd signals_;
  Helper driver_{.name = "mwcommsd"};
  Helper ins_{.name = "mwins"};
  Relay ins_says_{STDERR_FILENO};
  unsigned ins_id_ = 0;
  ProcId application_;
  bool adopted_ = false;
  UniqueFd witness_;  // adopted: some process of the application
  unsigned poisonings_ = 0;
  bool over_ = false;  // no INS will be started any more
  Clock::time_point poisoned_at_;
  bool command_ended_ = false;
  int exit_status_ = 0;
  int interrupted_by_ = 0;  // a signal that arrived before the application was started
  bool starting_ = true;
  std::string starting_failure_;
  Clock::time_point beats_looked_at_;
  // The last signal that meant the end of the command, and whether the terminal sent it; 0: none.
  int stop_signal_ = 0;
  bool stopped_by_terminal_ = false;
  Clock::time_point stopped_at_;
};

}  // namespace mw
