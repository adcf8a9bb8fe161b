// calls_process.cc - fork, exec, spawn, signals and limits.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "call.h"
#include "session.h"

namespace sockagent {
namespace {

std::atomic<int> g_signals{0};

void count_signal(int) {
  g_signals.fetch_add(1, std::memory_order_relaxed);
}

// fork NAME: the child serves as process NAME.
void do_fork(const Call& call, Reply& reply) {
  const std::string name = call.text(0);
  const pid_t child = ::fork();
  if (child == 0) serve(name, "0");
  reply.print(child > 0 ? "= child" : "= -1");
}

// exec: the interpreter again, in the same process and with the same control pipes.
void do_exec(const Call& call, Reply& reply) {
  const std::string name = call.text(0);
  const char* const argv[] = {identity().program.c_str(), identity().directory.c_str(),
                              name.c_str(), current_request().c_str(), nullptr};
  reply.call([&] { return ::execv(argv[0], const_cast<char* const*>(argv)); });
}

// vfork_exec NAME
void do_vfork_exec(const Call& call, Reply& reply) {
  const std::string name = call.text(0);
  const char* const argv[] = {identity().program.c_str(), identity().directory.c_str(),
                              name.c_str(), "0", nullptr};
  const pid_t child = ::vfork();
  if (child == 0) {
    ::execv(argv[0], const_cast<char* const*>(argv));
    ::_exit(98);
  }
  reply.print(child > 0 ? "= child" : "= -1");
}

// spawn NAME [dup=FD:NUMBER]: posix_spawn, as shells and servers start their helpers.
void do_spawn(const Call& call, Reply& reply) {
  const std::string name = call.text(0);
  const char* const argv[] = {identity().program.c_str(), identity().directory.c_str(),
                              name.c_str(), "0", nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const auto dup = call.options.find("dup");
  if (dup != call.options.end()) {
    const std::size_t colon = dup->second.find(':');
    posix_spawn_file_actions_adddup2(&actions,
                                     static_cast<int>(parse_number(dup->second.substr(0, colon))),
                                     static_cast<int>(parse_number(dup->second.substr(colon + 1))));
  }
  pid_t child = 0;
  const int result =
      ::posix_spawn(&child, argv[0], &actions, nullptr, const_cast<char* const*>(argv), environ);
  posix_spawn_file_actions_destroy(&actions);
  reply.print("= " + std::to_string(result));
}

// wait: the end of any child.
void do_wait(const Call&, Reply& reply) {
  int status = 0;
  pid_t child;
  do {
    child = ::waitpid(-1, &status, 0);
  } while (child < 0 && errno == EINTR);
  if (child < 0) {
    reply.print("= -1");
  } else if (WIFSIGNALED(status)) {
    reply.field("killed", std::string("SIG") + sigabbrev_np(WTERMSIG(status)));
  } else {
    reply.field("exited", WEXITSTATUS(status));
  }
}

void do_exit(const Call& call, Reply&) {
  reply_and_exit("= exit", static_cast<int>(call.number(0, 0)));
}

// signal NAME handle|restart|ignore|default
void do_signal(const Call& call, Reply& reply) {
  const std::string& how = call.text(1);
  struct sigaction action {};
  if (how == "ignore") {
    action.sa_handler = SIG_IGN;
  } else if (how == "default") {
    action.sa_handler = SIG_DFL;
  } else {
    action.sa_handler = count_signal;
    action.sa_flags = how == "restart" ? SA_RESTART : 0;
  }
  reply.call([&] { return ::sigaction(static_cast<int>(call.number(0)), &action, nullptr); });
}

// tkill THREAD SIGNAL: to one actor thread of this process.
void do_tkill(const Call& call, Reply& reply) {
  reply.call([&] {
    return ::syscall(SYS_tgkill, ::getpid(), thread_id(call.text(0)),
                     static_cast<int>(call.number(1)));
  });
}

// sigblock SIGNAL: for the calling actor's thread, and those that it makes.
void do_sigblock(const Call& call, Reply& reply) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, static_cast<int>(call.number(0)));
  reply.print("= " + std::to_string(::pthread_sigmask(SIG_BLOCK, &set, nullptr)));
}

void do_signals(const Call&, Reply& reply) {
  reply.field("count", g_signals.exchange(0));
}

// await_signal: waits for the first, prints how many there were.
void do_await_signal(const Call&, Reply& reply) {
  const auto limit = Clock::now() + kPatience;
  while (g_signals.load() == 0 && Clock::now() < limit) ::usleep(500);
  reply.field("count", g_signals.exchange(0));
}

// map MODE: something else is mapped at PAGE.
void do_map(const Call& call, Reply& reply) {
  const int protection = call.text(0) == "none" ? PROT_NONE : PROT_READ | PROT_WRITE;
  reply.call([&] {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    return ::mmap(page_pointer(), kPageLength, protection, kFlags, -1, 0) == MAP_FAILED ? -1 : 0;
  });
}

// protect MODE: what may be done with the memory at PAGE.
void do_protect(const Call& call, Reply& reply) {
  const std::string& mode = call.text(0);
  const int protection = mode == "none"   ? PROT_NONE
                         : mode == "read" ? PROT_READ
                                          : PROT_READ | PROT_WRITE;
  reply.call([&] { return ::mprotect(page_pointer(), kPageLength, protection); });
}

// limit_files SOFT [hard=HARD]
void do_limit_files(const Call& call, Reply& reply) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = static_cast<rlim_t>(call.number(0));
  if (call.has("hard")) limit.rlim_max = static_cast<rlim_t>(call.option("hard", 0));
  reply.call([&] { return ::setrlimit(RLIMIT_NOFILE, &limit); });
}

// sysctl NAME VALUE: of the script's own network namespace.
void do_sysctl(const Call& call, Reply& reply) {
  const std::string path = "/proc/sys/" + call.text(0);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  reply.call([&] { return ::write(fd, call.text(1).data(), call.text(1).size()); });
  ::close(fd);
}

void do_getpid_same(const Call&, Reply& reply) {
  reply.field("thread", ::gettid() == ::getpid());
}

}  // namespace

void add_process_calls(Table& table) {
  table.insert({{"fork", do_fork},
                {"exec", do_exec},
                {"vfork_exec", do_vfork_exec},
                {"spawn", do_spawn},
                {"wait", do_wait},
                {"exit", do_exit},
                {"signal", do_signal},
                {"tkill", do_tkill},
                {"sigblock", do_sigblock},
                {"signals", do_signals},
                {"await_signal", do_await_signal},
                {"map", do_map},
                {"protect", do_protect},
                {"limit_files", do_limit_files},
                {"sysctl", do_sysctl},
                {"main_thread", do_getpid_same}});
}

}  // namespace sockagent
