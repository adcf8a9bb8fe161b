#include "frontend/supervisor.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/exit_codes.h"
#include "base/pidfd.h"

namespace mw {
namespace {

using std::chrono::milliseconds;

// Passed on to the application. SIGCHLD is for us; job control is left to the terminal.
constexpr int kForwarded[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,
                              SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH};
// A helper that dies younger than this is started again with a growing delay, never above
// kLongestDelay: new connections must work within a second.
constexpr milliseconds kYoung{1000};
constexpr milliseconds kFirstDelay{20};
constexpr milliseconds kLongestDelay{900};
// After a row of so many that did not even become ready there is nothing to be quick about.
constexpr unsigned kHopelessRow = 12;
constexpr milliseconds kHopelessDelay{5000};
constexpr milliseconds kBeat{1000};
constexpr milliseconds kEndTimeout{2000};
// A command that ends later than this after a signal went on in spite of it.
constexpr milliseconds kStopMemory{10000};

std::string describe(int status) {
  if (WIFSIGNALED(status)) {
    const char* name = ::sigabbrev_np(WTERMSIG(status));
    return std::string("was killed by SIG") + (name != nullptr ? name : "?");
  }
  return "ended with exit status " + std::to_string(WEXITSTATUS(status));
}

bool says_poisoned(int status) {
  return WIFEXITED(status) && WEXITSTATUS(status) == kExitPoisoned;
}

bool is_stop(int sig) {
  return sig == SIGINT || sig == SIGTERM || sig == SIGHUP || sig == SIGQUIT;
}

// What a process that the command left behind is told instead of `sig`. Ctrl-C means stop to it too, and
// a shell has what it starts in the background ignore SIGINT and SIGQUIT.
int for_left_behind(pid_t pid, int sig) {
  const bool stops = sig == SIGINT || sig == SIGQUIT || sig == SIGHUP;
  return sig == SIGINT || (stops && ignores(pid, sig)) ? SIGTERM : sig;
}

int as_shell_status(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

HeldSignals::HeldSignals() {
  ::sigemptyset(&set_);
  ::sigaddset(&set_, SIGCHLD);
  for (const int sig : kForwarded) ::sigaddset(&set_, sig);
  ::sigprocmask(SIG_BLOCK, &set_, &previous_);
}

HeldSignals::~HeldSignals() {
  const timespec now{};
  while (::sigtimedwait(&set_, nullptr, &now) > 0) {
  }
  ::sigprocmask(SIG_SETMASK, &previous_, nullptr);
}

Supervisor::Supervisor(SupervisorConfig config, const HeldSignals& signals)
    : config_(std::move(config)), held_(signals) {
  signals_.reset(::signalfd(-1, &signals.set(), SFD_CLOEXEC | SFD_NONBLOCK));
  ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

Supervisor::~Supervisor() {
  end_helpers();
}

Outcome<int> Supervisor::run() {
  if (!signals_) return Failure{"watch signals", "signalfd: " + errno_text(errno), ""};
  if (auto done = start(&driver_); !done) return done.error();
  if (auto done = start(&ins_); !done) return done.error();
  if (auto done = wait_until_serving(); !done) return done.error();
  if (interrupted_by_ != 0) return 128 + interrupted_by_;
  starting_ = false;
  config_.serving();
  if (auto done = start_application(); !done) return done.error();
  config_.running();
  supervise();
  end_helpers();
  return exit_status_;
}

Outcome<int> Supervisor::adopt(const Adopted& found) {
  if (!signals_) return Failure{"watch signals", "signalfd: " + errno_text(errno), ""};
  adopted_ = true;
  starting_ = false;
  command_ended_ = true;
  application_ = found.application;
  ins_id_ = found.ins_id;
  adopt_helper(&driver_, found.driver);
  adopt_helper(&ins_, found.ins);
  config_.changed();
  supervise();
  end_helpers();
  return exit_status_;
}

// One that is dead already is simply started at once.
void Supervisor::adopt_helper(Helper* helper, const ProcId& id) {
  UniqueFd death = open_pidfd(id.pid);
  if (!death || !is_alive(id)) return;  // looked at second: the pidfd now pins who it is
  helper->id = id;
  helper->death = std::move(death);
  helper->ready = true;
  helper->started = Clock::now();
}

Outcome<Done> Supervisor::start(Helper* helper) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
    return Failure{std::string("start ") + helper->name, "pipe2: " + errno_text(errno),
                   "raise the limit of open files"};
  }
  helper->ready_pipe.reset(ends[0]);
  const UniqueFd theirs{ends[1]};
  SpawnRequest request =
      helper == &ins_ ? config_.ins(++ins_id_, theirs.get()) : config_.driver(theirs.get());
  request.keep.push_back(theirs.get());
  request.background = true;
  UniqueFd messages;
  if (helper == &ins_) {
    auto end = ins_says_.open();
    if (!end) return end.error();
    messages = std::move(*end);
    request.messages = messages.get();
  }
  request.mask = held_.previous();
  // The first process of a pid namespace gets what comes before it takes signals only if it waits.
  if (request.own_pids) ::sigaddset(&request.mask, SIGTERM);
  auto pid = spawn(request);
  helper->started = Clock::now();
  if (!pid) {
    helper->ready_pipe.reset();
    return pid.error();
  }
  helper->id = identify(*pid);
  helper->ready = false;
  helper->deadline = helper->started + config_.ready_timeout;
  config_.changed();
  return Done{};
}

Outcome<Done> Supervisor::wait_until_serving() {
  const Clock::time_point deadline = Clock::now() + config_.ready_timeout;
  while (!driver_.ready || !ins_.ready) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) {
      const char* who = ins_.ready ? "mwcommsd" : "mwins";
      return Failure{"start the session",
                     std::string(who) + " was not ready within " +
                         std::to_string(config_.ready_timeout.count() / 1000) + " s",
                     "its messages, if any, stand above"};
    }
    wait_for_event(static_cast<int>(left));
    if (interrupted_by_ != 0) return Done{};
    if (!starting_failure_.empty()) {
      return Failure{"start the session", starting_failure_, "its messages, if any, stand above"};
    }
  }
  return Done{};
}

Outcome<Done> Supervisor::start_application() {
  config_.application.mask = held_.previous();
  auto pid = spawn(config_.application);
  if (!pid) return pid.error();
  application_ = identify(*pid);
  config_.changed();
  return Done{};
}

void Supervisor::supervise() {
  while (application_runs()) {
    wait_for_event(next_timeout_ms());
    tend(&driver_);
    tend(&ins_);
    watch_heartbeats();
  }
}

int Supervisor::next_timeout_ms() const {
  milliseconds timeout = kBeat;
  for (const Helper* h : {&driver_, &ins_}) {
    if (h->ready || (h == &ins_ && over_)) continue;
    const auto left = std::chrono::ceil<milliseconds>(h->deadline - Clock::now());
    timeout = std::clamp(left, milliseconds{0}, timeout);
  }
  return static_cast<int>(timeout.count());
}

void Supervisor::wait_for_event(int timeout_ms) {
  Helper* const helpers[2] = {&driver_, &ins_};
  constexpr size_t kOwn = 7;
  std::vector<pollfd> fds(kOwn + config_.watched.size());
  fds[0] = {signals_.get(), POLLIN, 0};
  fds[1] = {witness_ ? witness_.get() : -1, POLLIN, 0};
  for (int i = 0; i < 2; ++i) {
    fds[2 + i] = {helpers[i]->ready_pipe ? helpers[i]->ready_pipe.get() : -1, POLLIN, 0};
    fds[4 + i] = {helpers[i]->death ? helpers[i]->death.get() : -1, POLLIN, 0};
  }
  fds[6] = {ins_says_.fd(), POLLIN, 0};
  for (size_t i = 0; i < config_.watched.size(); ++i)
    fds[kOwn + i] = {config_.watched[i].fd, POLLIN, 0};
  if (::poll(fds.data(), fds.size(), timeout_ms) <= 0) return;
  for (size_t i = 0; i < config_.watched.size(); ++i)
    if (fds[kOwn + i].revents != 0) config_.watched[i].on_event();
  if (fds[6].revents != 0) ins_says_.take();
  for (int i = 0; i < 2; ++i) {
    if (fds[4 + i].revents != 0) helper_ended(helpers[i], "is gone", false);
    if (fds[2 + i].revents == 0) continue;
    char byte = 0;
    const ssize_t n = ::read(helpers[i]->ready_pipe.get(), &byte, 1);
    if (n < 0 && errno == EAGAIN) continue;
    // A newline says ready; an end without one is the helper's death, which SIGCHLD reports.
    helpers[i]->ready_pipe.reset();
    helpers[i]->ready = n == 1 && byte == '\n';
    if (!helpers[i]->ready || starting_) continue;
    config_.log(std::string(helpers[i]->name) + " serves again");
    if (helpers[i] == &driver_) say_over();
  }
  if (fds[0].revents != 0) take_signals();
}

void Supervisor::take_signals() {
  signalfd_siginfo info{};
  bool child = false;
  while (::read(signals_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    if (info.ssi_signo == SIGCHLD) {
      child = true;
    } else {
      forward(info);
    }
  }
  if (child) reap();
}

void Supervisor::forward(const signalfd_siginfo& info) {
  const int sig = static_cast<int>(info.ssi_signo);
  if (application_.pid == 0) {
    if (is_stop(sig)) interrupted_by_ = sig;
    return;
  }
  if (!command_ended_) {
    if (is_stop(sig)) {
      stop_signal_ = sig;
      stopped_at_ = Clock::now();
      stopped_by_terminal_ = info.ssi_code == SI_KERNEL;
    }
    // The terminal has sent its own signals to the whole foreground group, the application
    // included.
    if (info.ssi_code != SI_KERNEL) ::kill(application_.pid, sig);
    return;
  }
  // Daemons that the command left behind ended their ties to the terminal; Ctrl-C still means stop.
  const std::vector<pid_t> told = left_behind();
  if (adopted_ && is_stop(sig) && !told.empty()) {
    stop_signal_ = sig;
    stopped_at_ = Clock::now();
    witness_ = open_pidfd(told.front());
  }
  for (const pid_t pid : told) ::kill(pid, for_left_behind(pid, sig));
}

// The command was told to end and has ended: so does what it leaves. `status`: how it ended; SIGHUP is
// often only a wish to read the configuration again.
void Supervisor::stop_left_behind(int status) {
  if (stop_signal_ == 0 || Clock::now() - stopped_at_ > kStopMemory) return;
  if (stop_signal_ == SIGHUP && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP)) return;
  for (const pid_t pid : left_behind()) {
    // The terminal's signal has reached those of its foreground group already.
    if (stopped_by_terminal_ && ::getpgid(pid) == ::getpgrp()) continue;
    ::kill(pid, for_left_behind(pid, stop_signal_));
  }
}

// What the command has left: the processes at the top, which know what to do with their own
// children.
std::vector<pid_t> Supervisor::left_behind() const {
  const auto is_helper = [this](pid_t pid) { return pid == driver_.id.pid || pid == ins_.id.pid; };
  std::vector<pid_t> out = adopted_ ? config_.session_processes() : children_of(::getpid());
  std::erase_if(out, is_helper);
  if (!adopted_) {
    if (!out.empty()) return out;
    // A session ends by this: a daemon that was just left behind must not be overlooked.
    out = all_children_of(::getpid());
    std::erase_if(out, is_helper);
    return out;
  }
  const std::vector<pid_t> all = out;
  std::erase_if(out, [&all](pid_t pid) {
    return std::find(all.begin(), all.end(), parent_of(pid)) != all.end();
  });
  return out;
}

void Supervisor::reap() {
  int status = 0;
  for (;;) {
    const pid_t pid = reap_one(&status);
    if (pid <= 0) return;
    if (pid == driver_.id.pid) {
      helper_ended(&driver_, describe(status), false);
    } else if (pid == ins_.id.pid) {
      helper_ended(&ins_, describe(status), says_poisoned(status));
    } else if (pid == application_.pid && !command_ended_) {
      command_ended_ = true;
      exit_status_ = as_shell_status(status);
      stop_left_behind(status);
    }
  }
}

// As waitpid(-1), WNOHANG; but what a helper leaves behind ends with it, and never counts as part
// of the application. Its group is named by its pid, which nobody else can get before we have
// reaped it.
pid_t Supervisor::reap_one(int* status) {
  siginfo_t info{};
  while (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0) {
    if (errno != EINTR) return -1;
  }
  if (info.si_pid == 0) return 0;
  if (info.si_pid == driver_.id.pid || info.si_pid == ins_.id.pid) ::kill(-info.si_pid, SIGKILL);
  return ::waitpid(info.si_pid, status, 0);
}

void Supervisor::helper_ended(Helper* helper, const std::string& how, bool poisoned) {
  helper->deadline = Clock::now() + delay_after_death(helper, poisoned);
  const std::string what =
      std::string(helper->name) + " (pid " + std::to_string(helper->id.pid) + ") " + how;
  helper->id = ProcId{};
  helper->ready_pipe.reset();
  helper->death.reset();
  helper->ready = false;
  if (helper == &ins_) {
    ins_says_.take();  // its last words come first
    config_.ins_gone(ins_id_);
  }
  config_.changed();
  if (starting_) {
    starting_failure_ = what + " before it was ready";
  } else if (!over_ || helper != &ins_) {
    config_.log(what + "; starting another");
  } else {
    config_.log(what + ", for the " + std::to_string(poisonings_) +
                "th time in a row because the application's side broke the channel's protocol: "
                "no other is started, its network stays down; end the command and look at it");
    say_over();
  }
}

milliseconds Supervisor::delay_after_death(Helper* helper, bool poisoned) {
  const Clock::time_point now = Clock::now();
  if (poisoned) {
    if (now - poisoned_at_ > config_.poison_calm) poisonings_ = 0;
    poisoned_at_ = now;
    over_ = ++poisonings_ == kMostPoisonings;
    return config_.poison_delay * (1 << (poisonings_ - 1));
  }
  const bool young = now - helper->started < kYoung;
  helper->quick_deaths = young ? helper->quick_deaths + 1 : 0;
  helper->stillborn = helper->ready ? 0 : helper->stillborn + 1;
  if (helper->quick_deaths == 0) return milliseconds{0};
  if (helper->stillborn > kHopelessRow) return kHopelessDelay;
  return std::min(kLongestDelay, kFirstDelay * (1 << std::min(helper->quick_deaths, 8u)));
}

// The driver tells the application's processes that no INS will come.
void Supervisor::say_over() const {
  if (over_ && driver_.id.pid != 0) ::kill(driver_.id.pid, SIGUSR1);
}

void Supervisor::tend(Helper* helper) {
  if (helper == &ins_ && over_) return;
  if (Clock::now() < helper->deadline || !application_runs()) return;
  if (helper->id.pid == 0) {
    if (auto done = start(helper); !done) {
      config_.log(done.error().text());
      helper->deadline = Clock::now() + kLongestDelay;
    }
  } else if (!helper->ready) {
    config_.log(std::string(helper->name) + " does not become ready; ending it");
    ::kill(helper->id.pid, SIGKILL);
    helper->deadline = Clock::now() + config_.ready_timeout;
  }
}

void Supervisor::watch_heartbeats() {
  const Clock::time_point now = Clock::now();
  // If we come late, the machine may have stood still for them as well.
  const Clock::duration passed = std::min<Clock::duration>(now - beats_looked_at_, 2 * kBeat);
  beats_looked_at_ = now;
  const auto runs = [](const Helper& h) { return h.id.pid != 0 && h.ready; };
  watch_heartbeat(&ins_, runs(ins_) ? config_.heartbeat(ins_id_) : std::string(), passed);
  watch_heartbeat(&driver_, runs(driver_) ? config_.driver_heartbeat() : std::string(), passed);
}

void Supervisor::watch_heartbeat(Helper* helper, const std::string& beat, Clock::duration passed) {
  if (beat.empty() || beat != helper->last_beat) {
    helper->last_beat = beat;
    helper->beatless = {};
    return;
  }
  if (!is_starved(helper->id.pid, &helper->ran_ns)) helper->beatless += passed;
  if (helper->beatless <= config_.heartbeat_timeout) return;
  config_.log(std::string(helper->name) + " (pid " + std::to_string(helper->id.pid) +
              ") has stopped beating; ending it");
  ::kill(helper->id.pid, SIGKILL);
  helper->beatless = {};
}

bool Supervisor::application_runs() {
  if (adopted_) return witness_lives();
  return !command_ended_ || !left_behind().empty();
}

// One process of the application is enough to know that it runs. When that one ends another is
// looked for, twice: a parent that ends can hide its new child from one look.
bool Supervisor::witness_lives() {
  if (witness_ && !has_died(witness_.get())) return true;
  // It was told to end, and has: so does what it leaves.
  if (stop_signal_ != 0 && Clock::now() - stopped_at_ <= kStopMemory)
    for (const pid_t pid : left_behind()) ::kill(pid, for_left_behind(pid, stop_signal_));
  for (int look = 0; look < 2; ++look) {
    for (const pid_t pid : config_.session_processes()) {
      witness_ = open_pidfd(pid);
      if (witness_ && !has_died(witness_.get())) return true;
    }
  }
  witness_.reset();
  return false;
}

void Supervisor::end_helpers() {
  // The driver first: it would report the end of its INS as a loss.
  end(&driver_);
  end(&ins_);
  ins_says_.take();
}

void Supervisor::end(Helper* helper) {
  if (helper->id.pid == 0) return;
  const Clock::time_point deadline = Clock::now() + kEndTimeout;
  ::kill(helper->id.pid, SIGTERM);
  bool killed = false;
  while (helper->id.pid != 0) {
    if (helper->death) {
      pollfd gone{helper->death.get(), POLLIN, 0};
      const bool in_time = ::poll(&gone, 1, static_cast<int>(kEndTimeout.count())) == 1;
      if (!in_time) ::kill(helper->id.pid, SIGKILL);
      if (!in_time) ::poll(&gone, 1, static_cast<int>(kEndTimeout.count()));
      helper->death.reset();
      helper->id = ProcId{};
      return;
    }
    int status = 0;
    const pid_t pid = reap_one(&status);
    if (pid < 0) return;
    for (Helper* h : {&driver_, &ins_}) {
      if (pid > 0 && h->id.pid == pid) h->id = ProcId{};
    }
    if (pid != 0) continue;
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
    if (left <= 0 && !killed) {
      killed = true;
      ::kill(helper->id.pid, SIGKILL);
    }
    pollfd sigchld{signals_.get(), POLLIN, 0};
    ::poll(&sigchld, 1, killed ? -1 : static_cast<int>(left));
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof(info)) > 0) {
    }
  }
}

}  // namespace mw
