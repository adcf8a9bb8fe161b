#include "driver/address_blocks.h"

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/helper.h"
#include "base/log.h"
#include "netflow/address.h"

namespace mw {
namespace {

constexpr const char* kTable = "inet mw_blocks";

// In the child: only what is safe between fork() and exec of a program with threads.
[[noreturn]] void enter_and_run(int netns, int rules, char* const* environment) {
  static constexpr const char* kWords[] = {"nft", "-f", "-", nullptr};
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::setns(netns, CLONE_NEWNET) == 0 && ::dup2(rules, STDIN_FILENO) == STDIN_FILENO &&
      close_on_exec_from(STDERR_FILENO + 1))
    exec_helper(const_cast<char* const*>(kWords), environment);
  ::_exit(127);
}

std::string table_ruleset() {
  const std::string table = kTable;
  std::string rules = "add table " + table + "\n";
  rules += "add set " + table + " peers4 { type ipv4_addr; }\n";
  rules += "add set " + table + " peers6 { type ipv6_addr; }\n";
  rules += "add chain " + table + " input { type filter hook input priority -300; }\n";
  rules += "flush chain " + table + " input\n";
  rules += "add rule " + table + " input ip saddr @peers4 drop\n";
  rules += "add rule " + table + " input ip6 saddr @peers6 drop\n";
  return rules;
}

}  // namespace

std::string block_ruleset(const netflow::Address& address, bool block) {
  const bool v6 = address.af == 6;
  const std::string element = std::string(kTable) + (v6 ? " peers6" : " peers4") + " { " +
                              netflow::to_string(address) + " }\n";
  // Added first in any case: what is not there cannot be deleted.
  return table_ruleset() + "add element " + element + (block ? "" : "delete element " + element);
}

std::string clear_ruleset() {
  const std::string table = kTable;
  return table_ruleset() + "flush set " + table + " peers4\nflush set " + table + " peers6\n";
}

AddressBlocks::~AddressBlocks() {
  if (!child_) return;
  siginfo_t info{};
  ::waitid(P_PIDFD, static_cast<id_t>(child_.get()), &info, WEXITED);
}

void AddressBlocks::change(int netns, const netflow::Address& address, bool block, Done done) {
  run(netns, block_ruleset(address, block), std::move(done));
}

void AddressBlocks::run(int netns, std::string rules, Done done) {
  UniqueFd own{::fcntl(netns, F_DUPFD_CLOEXEC, 3)};
  if (!own || jobs_.size() >= kMaxQueued) return done(own ? EBUSY : EMFILE);
  jobs_.push_back({std::move(own), std::move(rules), std::move(done)});
  if (jobs_.size() == 1) start_next();
}

void AddressBlocks::start_next() {
  while (!jobs_.empty()) {
    const uint32_t err = start(jobs_.front());
    if (err == 0) return;
    const Done done = std::move(jobs_.front().done);
    jobs_.pop_front();
    done(err);
  }
}

uint32_t AddressBlocks::start(const Job& job) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) < 0) return static_cast<uint32_t>(errno);
  const UniqueFd out{pipe[0]};
  const UniqueFd in{pipe[1]};
  // A pipe takes a page and more at once; the rules are shorter.
  if (::write(in.get(), job.rules.data(), job.rules.size()) !=
      static_cast<ssize_t>(job.rules.size()))
    return EIO;
  const HelperEnvironment environment;
  const pid_t pid = ::fork();
  if (pid < 0) return static_cast<uint32_t>(errno);
  if (pid == 0) enter_and_run(job.netns.get(), out.get(), environment.get());
  child_ = UniqueFd{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
  if (child_) return 0;
  const int err = errno;
  ::waitpid(pid, nullptr, 0);
  return static_cast<uint32_t>(err);
}

void AddressBlocks::on_end() {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(child_.get()), &info, WEXITED | WNOHANG) < 0 ||
      info.si_pid == 0)
    return;
  child_.reset();
  const bool worked = info.si_code == CLD_EXITED && info.si_status == 0;
  if (!worked)
    log_line("mwcommsd", "NetFlow: nft in the INS's namespace failed (status %d)", info.si_status);
  const Done done = std::move(jobs_.front().done);
  jobs_.pop_front();
  start_next();
  done(worked ? 0 : EIO);
}

}  // namespace mw
