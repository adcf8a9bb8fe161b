#include "driver/front_end.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/pidfd.h"
#include "driver/keepers.h"
#include "driver/process_info.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

using std::chrono::milliseconds;

constexpr int kAcceptsPerTurn = 8;

}  // namespace

Status FrontEnd::open(LocalRegistry& registry) {
  if (options_.front_end == 0) return Ok{};
  timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  if (!timer_) return Error{Fault::sys, errno, "timerfd_create"};
  if (auto s = poller_.add(timer_.get(), EPOLLIN, Source::adopt_timer); !s) return s;
  if (auto s = listen(registry); !s) return s;
  // It has started us: if somebody else is our parent by now, it died and the pid means nothing.
  if (!watch(options_.front_end) || ::getppid() != static_cast<pid_t>(options_.front_end))
    on_death();
  return Ok{};
}

Status FrontEnd::listen(LocalRegistry& registry) {
  auto folder = registry.open_folder(kAdoptFolder);
  if (!folder) return folder.error();
  listener_ = UniqueFd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!listener_) return Error{Fault::sys, errno, "socket for front ends"};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  const std::string path = "/proc/self/fd/" + std::to_string(folder->get()) + "/" + kAdoptSocket;
  std::memcpy(a.sun_path, path.c_str(), path.size() + 1);
  if (::unlink(a.sun_path) < 0 && errno != ENOENT)
    return Error{Fault::sys, errno, "removal of an earlier driver's socket"};
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0)
    return Error{Fault::sys, errno, "bind for front ends"};
  if (::listen(listener_.get(), 4) < 0) return Error{Fault::sys, errno, "listen for front ends"};
  return poller_.add(listener_.get(), EPOLLIN, Source::adopt);
}

bool FrontEnd::watch(uint32_t pid) {
  UniqueFd death = open_pidfd(static_cast<pid_t>(pid));
  if (!death || !poller_.add(death.get(), EPOLLIN, Source::front_end_death)) return false;
  death_ = std::move(death);
  pid_ = pid;
  return true;
}

void FrontEnd::on_death() {
  if (death_) {
    if (!has_died(death_.get())) return;  // news of the one before
    poller_.remove(death_.get());
    death_.reset();
  }
  if (adopter_ == static_cast<pid_t>(pid_)) forget_adopter();
  const char* hint = options_.adopt_with.empty() ? "" : "; starting another";
  log_line("mwcommsd", "the front end of %s (pid %u) is gone%s", options_.session.c_str(),
           pid_ != 0 ? pid_ : options_.front_end, hint);
  failures_ = 0;
  const auto age = std::chrono::duration_cast<milliseconds>(Clock::now() - started_);
  start_after(adopter_ != 0 && age < options_.adopt_delay ? options_.adopt_delay - age
                                                          : milliseconds{0});
}

void FrontEnd::start_after(milliseconds delay) {
  if (delay.count() <= 0) return start_adopter();
  itimerspec t{};
  t.it_value.tv_sec = delay.count() / 1000;
  t.it_value.tv_nsec = delay.count() % 1000 * 1'000'000;
  (void)::timerfd_settime(timer_.get(), 0, &t, nullptr);
}

void FrontEnd::on_timer() {
  uint64_t expired = 0;
  (void)::read(timer_.get(), &expired, sizeof expired);
  start_adopter();
}

void FrontEnd::start_adopter() {
  if (death_ || options_.adopt_with.empty()) return;
  if (adopter_death_) return;  // one is on its way
  started_ = Clock::now();
  adopter_ = 0;
  if (auto started = ask_for_front_end(options_.front_end_keeper)) {
    adopter_ = *started;
    adopter_death_ = open_pidfd(adopter_);
    if (adopter_death_ && poller_.add(adopter_death_.get(), EPOLLIN, Source::adopter_death)) return;
    log_line("mwcommsd", "cannot watch the new front end (pid %d): error %d", adopter_, errno);
    return;
  } else {
    log_line("mwcommsd", "cannot start %s: %s", options_.adopt_with.c_str(),
             std::strerror(started.error().err));
  }
  adopter_failed();
}

void FrontEnd::forget_adopter() {
  if (!adopter_death_) return;
  poller_.remove(adopter_death_.get());
  adopter_death_.reset();
}

void FrontEnd::on_adopter_end() {
  if (!adopter_death_ || !has_died(adopter_death_.get())) return;  // news of the one before
  forget_adopter();
  // If it is what we watch, that says the rest; if somebody else has the session, all is well.
  if (!death_) adopter_failed();
}

void FrontEnd::adopter_failed() {
  if (++failures_ < kMostFailures) return start_after(options_.adopt_delay * (1 << failures_));
  log_line("mwcommsd", "%s has no front end: nobody replaces a dead INS; try: mw adopt %s",
           options_.session.c_str(), options_.session.c_str());
}

void FrontEnd::on_connect() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    const UniqueFd connection{
        ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!connection) return;
    auto who = peer_of(connection.get());
    if (!who || (who->uid != 0 && who->uid != ::geteuid())) continue;
    if (death_ && !has_died(death_.get())) {
      refusals_.say("refused %s: %s has a front end", describe(*who).c_str(),
                    options_.session.c_str());
      continue;
    }
    if (auto handed = hand_over_to(connection.get()); !handed) {
      refusals_.say("cannot hand %s over to %s: %s (error %d)", options_.session.c_str(),
                    describe(*who).c_str(), handed.error().where, handed.error().err);
      continue;
    }
    if (death_) poller_.remove(death_.get());
    death_.reset();
    if (!watch(who->pid)) {
      pid_ = who->pid;
      on_death();
    } else {
      on_successor();
    }
  }
}

Status FrontEnd::hand_over_to(int connection) const {
  std::vector<SessionFdRef> fds{{SessionFdRole::channel, options_.channel_fd},
                                {SessionFdRole::session, options_.session_fd},
                                {SessionFdRole::attach, options_.attach_fd},
                                {SessionFdRole::placeholders, options_.placeholders_fd},
                                {SessionFdRole::drop_pvm, options_.drop_pvm_fd},
                                {SessionFdRole::drop_ins, options_.drop_ins_fd}};
  for (const int bell : options_.bell_fds) fds.push_back({SessionFdRole::bell, bell});
  if (options_.store_fds[0] >= 0) {
    fds.push_back({SessionFdRole::store_in, options_.store_fds[0]});
    fds.push_back({SessionFdRole::store_out, options_.store_fds[1]});
  }
  for (const int kept : options_.kept_fds) fds.push_back({SessionFdRole::kept, kept});
  return hand_over(connection, options_.token, fds);
}

}  // namespace mw
