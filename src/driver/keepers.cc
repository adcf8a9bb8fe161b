#include "driver/keepers.h"

#include <linux/nsfs.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/helper.h"
#include "netflow/address.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

constexpr const char* kTable = "inet mw_blocks";
constexpr timeval kPatience{5, 0};

struct FrontEndAnswer {
  int32_t pid;
  int32_t err;
};

// Starts it in a terminal session of its own: a Ctrl-C is for the application. It gets the session's
// secret over its connection.
FrontEndAnswer start_front_end(const DriverOptions& options) {
  std::vector<std::string> words{options.adopt_with, "adopt", options.session};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  posix_spawnattr_t attributes;
  if (const int err = ::posix_spawnattr_init(&attributes); err != 0) return {0, err};
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  const int err =
      ::posix_spawn(&pid, argv[0], nullptr, &attributes, argv.data(), HelperEnvironment().get());
  ::posix_spawnattr_destroy(&attributes);
  return {err == 0 ? pid : 0, err};
}

void serve_front_end(int end, const DriverOptions& options) {
  char request = 0;
  while (::recv(end, &request, sizeof request, 0) == sizeof request) {
    // Earlier ones that have ended.
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    const FrontEndAnswer answer = start_front_end(options);
    if (::send(end, &answer, sizeof answer, MSG_NOSIGNAL) < 0) return;
  }
}

bool is_foreign_network(int fd) {
  struct stat theirs {};
  struct stat ours {};
  return ::ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET && ::fstat(fd, &theirs) == 0 &&
         ::stat("/proc/self/ns/net", &ours) == 0 && theirs.st_ino != ours.st_ino;
}

[[noreturn]] void enter_and_run(int netns, int rules, char* const* environment) {
  static constexpr const char* kWords[] = {"nft", "-f", "-", nullptr};
  if (::setns(netns, CLONE_NEWNET) == 0 && ::dup2(rules, STDIN_FILENO) == STDIN_FILENO &&
      close_on_exec_from(STDERR_FILENO + 1))
    exec_helper(const_cast<char* const*>(kWords), environment);
  ::_exit(127);
}

BlockAnswer run_nft(int netns, const std::string& rules) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) < 0) return {static_cast<uint32_t>(errno), 0};
  const UniqueFd out{pipe[0]};
  UniqueFd in{pipe[1]};
  // A pipe takes a page and more at once; the rules are shorter.
  if (::write(in.get(), rules.data(), rules.size()) != static_cast<ssize_t>(rules.size()))
    return {EIO, 0};
  in.reset();
  const HelperEnvironment environment;
  const pid_t pid = ::fork();
  if (pid < 0) return {static_cast<uint32_t>(errno), 0};
  if (pid == 0) enter_and_run(netns, out.get(), environment.get());
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  const bool worked = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return {worked ? 0 : uint32_t{EIO}, WIFEXITED(status) ? WEXITSTATUS(status) : -status};
}

BlockAnswer change_block(const BlockRequest& request, const ReceivedMessage& m) {
  const bool known =
      request.op == BlockOp::block || request.op == BlockOp::let_in || request.op == BlockOp::clear;
  const bool fits =
      request.op == BlockOp::clear || request.address.af == 4 || request.address.af == 6;
  if (m.bytes != sizeof request || m.fd_count != 1 || !known || !fits) return {EINVAL, 0};
  if (!is_foreign_network(m.fds[0].get())) return {EPERM, 0};
  return run_nft(m.fds[0].get(),
                 request.op == BlockOp::clear
                     ? clear_ruleset()
                     : block_ruleset(request.address, request.op == BlockOp::block));
}

void serve_blocks(int end, const DriverOptions&) {
  for (;;) {
    BlockRequest request{};
    auto m = receive_message(end, writable_bytes_of(request), 0);
    if (!m) return;
    const BlockAnswer answer = change_block(request, *m);
    if (!send_message(end, bytes_of(answer), {}, 0)) return;
  }
}

// In the child.
[[noreturn]] void be_keeper(const char* name, UniqueFd end, int argc, char** argv,
                            void (*serve)(int, const DriverOptions&),
                            const DriverOptions& options) {
  (void)::prctl(PR_SET_NAME, name, 0, 0, 0);
  for (int i = 0; i < argc; ++i) std::memset(argv[i], 0, std::strlen(argv[i]));
  // The driver has its own use for signals; we end with it.
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  if (close_all_but({end.get()})) serve(end.get(), options);
  ::_exit(0);
}

Result<UniqueFd> start_one(const char* name, void (*serve)(int, const DriverOptions&),
                           const DriverOptions& options, int argc, char** argv) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return Error{Fault::sys, errno, "socketpair for a keeper"};
  UniqueFd ours{pair[0]};
  UniqueFd theirs{pair[1]};
  const pid_t pid = ::fork();
  if (pid < 0) return Error{Fault::sys, errno, "fork of a keeper"};
  if (pid == 0) be_keeper(name, std::move(theirs), argc, argv, serve, options);
  return ours;
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

Result<Keepers> Keepers::start(const DriverOptions& options, int argc, char** argv) {
  auto front_end = start_one("mwkeeper-front", serve_front_end, options, argc, argv);
  if (!front_end) return front_end.error();
  auto blocks = start_one("mwkeeper-block", serve_blocks, options, argc, argv);
  if (!blocks) return blocks.error();
  return Keepers{std::move(*front_end), std::move(*blocks)};
}

Result<pid_t> ask_for_front_end(int keeper) {
  if (keeper < 0) return Error{Fault::sys, ENOTCONN, "keeper of the front end"};
  (void)::setsockopt(keeper, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  const char request = 1;
  FrontEndAnswer answer{};
  if (::send(keeper, &request, sizeof request, MSG_NOSIGNAL) < 0)
    return Error{Fault::sys, errno, "keeper of the front end"};
  const ssize_t n = ::recv(keeper, &answer, sizeof answer, 0);
  if (n != sizeof answer)
    return Error{Fault::sys, n < 0 ? errno : EPIPE, "keeper of the front end"};
  if (answer.pid <= 0) return Error{Fault::sys, answer.err, "start of a front end"};
  return pid_t{answer.pid};
}

}  // namespace mw
