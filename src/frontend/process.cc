#include "frontend/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>

#include "base/helper.h"
#include "base/raw_syscall.h"
#include "base/unique_fd.h"

namespace mw {
namespace {

constexpr rlim_t kHelperFds = 1u << 20;  // the kernel's default fs.nr_open

struct ProcStat {
  char state = 0;
  pid_t parent = 0;
  uint64_t start = 0;
};

// Fields of /proc/PID/stat behind the command name, which may itself hold spaces and brackets.
bool read_stat(pid_t pid, ProcStat* out) {
  const std::string text = read_text("/proc/" + std::to_string(pid) + "/stat");
  const size_t end = text.rfind(')');
  if (end == std::string::npos) return false;
  int parent = 0;
  unsigned long long start = 0;
  const int n =
      std::sscanf(text.c_str() + end + 1,
                  " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                  &out->state, &parent, &start);
  if (n != 3) return false;
  out->parent = parent;
  out->start = start;
  return true;
}

void for_each_pid(const std::function<void(pid_t)>& visit) {
  DIR* dir = ::opendir("/proc");
  if (dir == nullptr) return;
  while (const dirent* entry = ::readdir(dir)) {
    char* end = nullptr;
    const long pid = std::strtol(entry->d_name, &end, 10);
    if (pid > 0 && *end == '\0') visit(static_cast<pid_t>(pid));
  }
  ::closedir(dir);
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

std::vector<std::string> merged_environment(const std::vector<std::string>& added) {
  std::vector<std::string> out;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string entry = *e;
    const std::string name = entry.substr(0, entry.find('=') + 1);
    const bool replaced = std::any_of(added.begin(), added.end(), [&](const std::string& a) {
      return a.compare(0, name.size(), name) == 0;
    });
    if (!replaced) out.push_back(entry);
  }
  out.insert(out.end(), added.begin(), added.end());
  return out;
}

// What the child tells its parent if it cannot become the program.
struct ExecReport {
  int err;
  char step[64];
};

[[noreturn]] void give_up(int report_fd, const char* step) {
  ExecReport report{errno, {}};
  ::strncpy(report.step, step, sizeof(report.step) - 1);
  if (::write(report_fd, &report, sizeof(report)) < 0) ::_exit(126);
  ::_exit(127);
}

void enter_background(const SpawnRequest& request, int report_fd) {
  // A Ctrl-C at the terminal is for the application alone.
  if (::setpgid(0, 0) < 0) give_up(report_fd, "setpgid");
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || ::dup2(null, STDIN_FILENO) < 0) give_up(report_fd, "open /dev/null");
  if (request.messages >= 0 && ::dup2(request.messages, STDERR_FILENO) < 0) {
    give_up(report_fd, "dup2 messages");
  }
  if (::dup2(STDERR_FILENO, STDOUT_FILENO) < 0) give_up(report_fd, "dup2 stderr");
  rlimit limit{};
  // The session's own processes map all of its memory; a soft limit is the application's.
  if (::getrlimit(RLIMIT_AS, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_AS, &limit);
  }
  // Threads have stacks of this size.
  constexpr rlim_t kStack = 8u << 20;
  if (::getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur > kStack) {
    limit.rlim_cur = kStack;
    (void)::setrlimit(RLIMIT_STACK, &limit);
  }
  if (::getrlimit(RLIMIT_NOFILE, &limit) < 0) give_up(report_fd, "getrlimit");
  rlimit wanted{kHelperFds, std::max(limit.rlim_max, kHelperFds)};
  if (::geteuid() == 0 && ::setrlimit(RLIMIT_NOFILE, &wanted) == 0) return;
  wanted = {limit.rlim_max, limit.rlim_max};  // not allowed to raise the hard limit: use all of it
  if (::setrlimit(RLIMIT_NOFILE, &wanted) < 0) give_up(report_fd, "setrlimit NOFILE");
}

// The application gets our environment, and what `request` adds to it.
void exec_application(const SpawnRequest& request) {
  std::vector<std::string> added = request.environment;
  // Sockets that were passed to us are its own.
  const char* pid = std::getenv("LISTEN_PID");
  if (pid != nullptr && pid == std::to_string(::getppid())) {
    added.push_back("LISTEN_PID=" + std::to_string(::getpid()));
    // It names the same process once more, by the inode of its pidfd, from systemd 258 on.
    ::unsetenv("LISTEN_PIDFDID");
  }
  const std::vector<std::string> environment = merged_environment(added);
  ::execvpe(request.argv[0].c_str(), pointers(request.argv).data(), pointers(environment).data());
}

[[noreturn]] void become(const SpawnRequest& request, int report_fd) {
  for (int sig = 1; sig < NSIG; ++sig) {
    struct sigaction now {};
    if (::sigaction(sig, nullptr, &now) < 0) continue;  // numbers that glibc keeps for itself
    // An ignored signal stays ignored, as nohup(1) needs it; the rest start afresh.
    if (now.sa_handler != SIG_IGN && now.sa_handler != SIG_DFL) ::signal(sig, SIG_DFL);
  }
  if (request.background) enter_background(request, report_fd);
  if (request.netns >= 0 && ::setns(request.netns, CLONE_NEWNET) < 0)
    give_up(report_fd, "enter the network namespace");
  if (request.background && !close_on_exec_from(STDERR_FILENO + 1))
    give_up(report_fd, "close the caller's descriptors");
  for (const int fd : request.keep) {
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags < 0 || ::fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC) < 0) {
      give_up(report_fd, "pass on a descriptor");
    }
  }
  ::sigprocmask(SIG_SETMASK, &request.mask, nullptr);
  if (request.background)
    exec_helper(pointers(request.argv).data(), HelperEnvironment(request.environment).get());
  else
    exec_application(request);
  give_up(report_fd, "execute the program");
}

// As fork(). Containers do not have the right to a namespace, or no more room for one.
pid_t fork_for(const SpawnRequest& request) {
  if (request.own_pids) {
    const auto pid = static_cast<pid_t>(raw_syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0));
    if (pid >= 0) return pid;
  }
  return ::fork();
}

}  // namespace

std::string errno_text(int err) {
  char buffer[128];
  return ::strerror_r(err, buffer, sizeof(buffer));  // the GNU one: returns the text
}

std::string read_text(const std::string& path, size_t most) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd) return {};
  std::string text;
  char buffer[4096];
  while (text.size() < most) {
    const ssize_t n = ::read(fd.get(), buffer, std::min(sizeof(buffer), most - text.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

Outcome<Done> write_text_atomically(const std::string& path, const std::string& text) {
  const std::string step = "write " + path;
  const std::string temporary = path + ".new";
  const UniqueFd fd{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  if (!fd) return Failure{step, errno_text(errno), kWriteRemedy};
  const ssize_t n = ::write(fd.get(), text.data(), text.size());
  if (n != static_cast<ssize_t>(text.size())) {
    const int err = n < 0 ? errno : ENOSPC;
    ::unlink(temporary.c_str());
    return Failure{step, errno_text(err), kWriteRemedy};
  }
  if (::rename(temporary.c_str(), path.c_str()) < 0) return Failure{step, errno_text(errno), ""};
  return Done{};
}

ProcId identify(pid_t pid) {
  ProcStat stat;
  if (pid <= 0 || !read_stat(pid, &stat)) return {pid, 0};
  return {pid, stat.start};
}

bool is_alive(const ProcId& id) {
  ProcStat stat;
  if (id.pid <= 0 || id.start == 0 || !read_stat(id.pid, &stat)) return false;
  return stat.start == id.start && stat.state != 'Z' && stat.state != 'X';
}

bool is_starved(pid_t pid, uint64_t* ran_ns) {
  const uint64_t before = *ran_ns;
  // Its first number is the time on a processor.
  const std::string text = read_text("/proc/" + std::to_string(pid) + "/schedstat");
  *ran_ns = std::strtoull(text.c_str(), nullptr, 10);
  ProcStat s;
  return *ran_ns == before && read_stat(pid, &s) && s.state == 'R';
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> out;
  // One file instead of one for each process of the host. The kernel keeps it for each thread; a
  // process that starts others here has one.
  const std::string own = "/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent);
  if (::access((own + "/children").c_str(), R_OK) == 0) {
    std::istringstream pids(read_text(own + "/children"));
    for (pid_t pid = 0; pids >> pid;) out.push_back(pid);
    return out;
  }
  return all_children_of(parent);
}

std::vector<pid_t> all_children_of(pid_t parent) {
  std::vector<pid_t> out;
  ProcStat child;
  for_each_pid([&](pid_t pid) {
    if (read_stat(pid, &child) && child.parent == parent) out.push_back(pid);
  });
  return out;
}

std::vector<pid_t> processes_with_environment(const std::string& prefix) {
  std::vector<pid_t> out;
  for_each_pid([&](pid_t pid) {
    const std::string text = read_text("/proc/" + std::to_string(pid) + "/environ");
    const bool first = text.compare(0, prefix.size(), prefix) == 0;
    if (first || text.find('\0' + prefix) != std::string::npos) out.push_back(pid);
  });
  return out;
}

std::vector<pid_t> processes_with_memory(const MemoryId& memory) {
  if (memory.inode == 0) return {};
  const std::string wanted = " " + std::to_string(memory.inode) + " ";
  std::vector<pid_t> out;
  for_each_pid([&](pid_t pid) {
    std::istringstream maps(read_text("/proc/" + std::to_string(pid) + "/maps"));
    for (std::string line; std::getline(maps, line);) {
      const size_t at = line.find("/memfd:" + memory.name + " ");
      if (at == std::string::npos || line.find(wanted) > at) continue;
      out.push_back(pid);
      return;
    }
  });
  return out;
}

std::vector<pid_t> processes_with_arguments(const std::string& first, const std::string& second) {
  const std::string wanted = '\0' + first + '\0' + second + '\0';
  std::vector<pid_t> out;
  for_each_pid([&](pid_t pid) {
    const std::string words = read_text("/proc/" + std::to_string(pid) + "/cmdline");
    if (words.find(wanted) != std::string::npos) out.push_back(pid);
  });
  return out;
}

bool ignores(pid_t pid, int signal) {
  const std::string text = read_text("/proc/" + std::to_string(pid) + "/status");
  constexpr const char* kLine = "\nSigIgn:\t";
  const size_t at = text.find(kLine);
  if (at == std::string::npos) return false;
  const uint64_t mask = std::strtoull(text.c_str() + at + ::strlen(kLine), nullptr, 16);
  return (mask >> (signal - 1) & 1) != 0;
}

pid_t parent_of(pid_t pid) {
  ProcStat stat;
  return read_stat(pid, &stat) ? stat.parent : 0;
}

Outcome<pid_t> spawn(const SpawnRequest& request) {
  const std::string step = "start " + request.argv[0];
  int report[2];
  if (::pipe2(report, O_CLOEXEC) < 0) {
    return Failure{step, "pipe2: " + errno_text(errno), "raise the limit of open files"};
  }
  UniqueFd report_in{report[0]};
  UniqueFd report_out{report[1]};
  const pid_t pid = fork_for(request);
  if (pid < 0) {
    return Failure{step, "fork: " + errno_text(errno),
                   "raise the limit of processes or free memory"};
  }
  if (pid == 0) become(request, report_out.get());
  report_out.reset();
  ExecReport result{};
  ssize_t n = 0;
  do {
    n = ::read(report_in.get(), &result, sizeof(result));
  } while (n < 0 && errno == EINTR);
  if (n == 0) return pid;  // closed by the exec
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  const char* what = n == sizeof(result) ? result.step : "report";
  return Failure{step, std::string(what) + ": " + errno_text(result.err), ""};
}

InheritedDescriptors::InheritedDescriptors() {
  DIR* dir = ::opendir("/proc/self/fd");
  if (dir == nullptr) return;
  while (const dirent* entry = ::readdir(dir)) {
    const int fd = std::atoi(entry->d_name);
    const int flags = ::fcntl(fd, F_GETFD);
    // What is closed at an exec was opened in this process.
    if (fd > STDERR_FILENO && flags >= 0 && (flags & FD_CLOEXEC) == 0) fds_.push_back(fd);
  }
  ::closedir(dir);
}

std::vector<int> InheritedDescriptors::all() const {
  std::vector<int> out = fds_;
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) out.push_back(fd);
  std::sort(out.begin(), out.end());
  return out;
}

void InheritedDescriptors::close() {
  for (const int fd : fds_) ::close(fd);
  fds_.clear();
  const UniqueFd null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
  if (!null) return;
  (void)::dup2(null.get(), STDIN_FILENO);
  (void)::dup2(null.get(), STDOUT_FILENO);
}

namespace {

std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

Outcome<Done> check_preload(const std::string& library, const std::string& program) {
  const std::string step = "load " + library;
  if (library.find_first_of(" :") != std::string::npos) {
    return Failure{step, "LD_PRELOAD is cut at the space or colon in its path",
                   "build or install MwComms elsewhere"};
  }
  int said[2];
  if (::pipe2(said, O_CLOEXEC) < 0) return Failure{step, "pipe2: " + errno_text(errno), ""};
  const UniqueFd said_in{said[0]};
  UniqueFd said_out{said[1]};
  const pid_t pid = ::fork();
  if (pid < 0) return Failure{step, "fork: " + errno_text(errno), ""};
  if (pid == 0) {
    const HelperEnvironment environment({"LD_PRELOAD=" + library});
    if (::dup2(said_out.get(), STDERR_FILENO) < 0 || ::dup2(said_out.get(), STDOUT_FILENO) < 0 ||
        !close_on_exec_from(STDERR_FILENO + 1))
      ::_exit(1);
    exec_helper(pointers({program}).data(), environment.get());
    ::_exit(1);
  }
  said_out.reset();
  std::string why;
  char piece[512];
  for (ssize_t n = 0; (n = ::read(said_in.get(), piece, sizeof piece)) != 0;) {
    if (n > 0) why.append(piece, static_cast<size_t>(n));
    if (n < 0 && errno != EINTR) break;
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (why.empty() && WIFEXITED(status) && WEXITSTATUS(status) == 0) return Done{};
  return Failure{step, why.empty() ? program + " does not run with it" : one_line(why),
                 "build or install MwComms completely"};
}

namespace {

// Feeds `input` to one pipe while it empties two others, until both have ended.
void converse(UniqueFd to, const std::string& input, const UniqueFd& out, const UniqueFd& err,
              std::string* out_text, std::string* err_text) {
  size_t sent = 0;
  bool out_open = true;
  bool err_open = true;
  const auto drain = [](int fd, std::string* text) {
    char buffer[4096];
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n > 0) text->append(buffer, static_cast<size_t>(n));
    return n > 0 || (n < 0 && errno == EINTR);
  };
  if (input.empty()) to.reset();
  while (out_open || err_open) {
    pollfd fds[3] = {{out_open ? out.get() : -1, POLLIN, 0},
                     {err_open ? err.get() : -1, POLLIN, 0},
                     {to ? to.get() : -1, POLLOUT, 0}};
    if (::poll(fds, 3, -1) < 0) continue;
    if (fds[0].revents != 0) out_open = drain(out.get(), out_text);
    if (fds[1].revents != 0) err_open = drain(err.get(), err_text);
    if (fds[2].revents != 0) {
      const ssize_t n = ::write(to.get(), input.data() + sent, input.size() - sent);
      if (n > 0) sent += static_cast<size_t>(n);
      if ((n < 0 && errno != EAGAIN) || sent == input.size()) to.reset();
    }
  }
}

}  // namespace

Outcome<std::string> run_tool(const std::string& step, const std::vector<std::string>& argv,
                              const std::string& input) {
  int in[2];
  int out[2];
  int err[2];
  if (::pipe2(in, O_CLOEXEC) < 0) return Failure{step, "pipe2: " + errno_text(errno), ""};
  UniqueFd in_read{in[0]};
  UniqueFd in_write{in[1]};
  // A write must not wait for a tool that itself waits until we have read its output.
  ::fcntl(in_write.get(), F_SETFL, O_NONBLOCK);
  if (::pipe2(out, O_CLOEXEC) < 0) return Failure{step, "pipe2: " + errno_text(errno), ""};
  UniqueFd out_read{out[0]};
  UniqueFd out_write{out[1]};
  if (::pipe2(err, O_CLOEXEC) < 0) return Failure{step, "pipe2: " + errno_text(errno), ""};
  UniqueFd err_read{err[0]};
  UniqueFd err_write{err[1]};
  const pid_t pid = ::fork();
  if (pid < 0) return Failure{step, "fork: " + errno_text(errno), ""};
  if (pid == 0) {
    // Its own group: a Ctrl-C must not cut a transaction in half.
    ::setpgid(0, 0);
    ::signal(SIGPIPE, SIG_DFL);
    if (::dup2(in_read.get(), 0) < 0 || ::dup2(out_write.get(), 1) < 0 ||
        ::dup2(err_write.get(), 2) < 0 || !close_on_exec_from(STDERR_FILENO + 1)) {
      ::_exit(126);
    }
    exec_helper(pointers(argv).data(), HelperEnvironment().get());
    ::dprintf(2, "%s: %s", argv[0].c_str(), errno_text(errno).c_str());
    ::_exit(127);
  }
  in_read.reset();
  out_write.reset();
  err_write.reset();
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;  // a tool that fails early closes its stdin
  ::sigaction(SIGPIPE, &ignore, &before);
  std::string out_text;
  std::string err_text;
  converse(std::move(in_write), input, out_read, err_read, &out_text, &err_text);
  ::sigaction(SIGPIPE, &before, nullptr);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return out_text;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return Failure{step, one_line(err_text), "install the Debian package that has " + argv[0]};
  }
  return Failure{step, argv[0] + " says: " + one_line(err_text), ""};
}

}  // namespace mw
