#include "driver/process_info.h"

#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/pidfd.h"

namespace mw {
// A process chooses its own name: control characters do not get into our log.
std::string command_of(uint32_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/comm";
  UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  char text[64];
  const ssize_t n = fd ? ::read(fd.get(), text, sizeof text) : -1;
  if (n <= 0) return "?";
  std::string name(text, static_cast<size_t>(n));
  if (name.back() == '\n') name.pop_back();
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return name;
}

Result<ProcessInfo> credentials_of(int socket) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
    return Error{Fault::sys, errno, "SO_PEERCRED"};
  ProcessInfo p;
  p.pid = static_cast<uint32_t>(credentials.pid);
  p.uid = credentials.uid;
  return p;
}

void look_up(ProcessInfo& p) {
  p.death = open_pidfd(static_cast<pid_t>(p.pid));
  p.command = command_of(p.pid);
}

Result<ProcessInfo> peer_of(int socket) {
  auto p = credentials_of(socket);
  if (p) look_up(*p);
  return p;
}

bool is_dead(uint32_t pid) {
  const UniqueFd fd = open_pidfd(static_cast<pid_t>(pid));
  if (!fd) return errno == ESRCH;
  return has_died(fd.get());  // also a zombie that nobody has waited for
}

uint32_t uid_of(uint32_t pid) {
  struct stat st {};
  return ::stat(("/proc/" + std::to_string(pid)).c_str(), &st) == 0 ? st.st_uid : 0;
}

namespace {

// Linux 6.2 and later say it as the folder's size; before, one has to count.
uint32_t count_fds(uint32_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd";
  struct stat st {};
  if (::stat(path.c_str(), &st) == 0 && st.st_size > 0) return static_cast<uint32_t>(st.st_size);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir{::opendir(path.c_str()), ::closedir};
  uint32_t n = 0;
  while (dir != nullptr && ::readdir(dir.get()) != nullptr) ++n;
  return n >= 2 ? n - 2 : 0;  // "." and ".."
}

}  // namespace

std::optional<ProcessUse> use_of(uint32_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  char text[1024];
  const ssize_t n = fd ? ::read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return std::nullopt;
  text[n] = 0;
  // The command stands in parentheses and may hold any character.
  const char* rest = std::strrchr(text, ')');
  unsigned long user = 0;
  unsigned long system = 0;
  unsigned long threads = 0;
  unsigned long pages = 0;
  if (rest == nullptr || std::sscanf(rest + 1,
                                     " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d "
                                     "%*d %*d %*d %lu %*d %*u %*u %lu",
                                     &user, &system, &threads, &pages) != 4)
    return std::nullopt;
  static const auto ticks = static_cast<uint64_t>(::sysconf(_SC_CLK_TCK));
  static const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  ProcessUse use;
  use.uid = uid_of(pid);
  use.command = command_of(pid);
  use.rss_bytes = pages * page;
  use.cpu_us = (user + system) * (1'000'000 / ticks);
  use.threads = static_cast<uint32_t>(threads);
  use.fds = count_fds(pid);
  return use;
}

std::string describe(const ProcessInfo& p) {
  return p.command + "[" + std::to_string(p.pid) + "]";
}

}  // namespace mw
