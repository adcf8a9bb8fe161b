#include "driver/process_info.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>

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

Result<ProcessInfo> peer_of(int socket) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
    return Error{Fault::sys, errno, "SO_PEERCRED"};
  ProcessInfo p;
  p.pid = static_cast<uint32_t>(credentials.pid);
  p.uid = credentials.uid;
  p.death = UniqueFd{static_cast<int>(::syscall(SYS_pidfd_open, credentials.pid, 0))};
  p.command = command_of(p.pid);
  return p;
}

bool is_dead(uint32_t pid) {
  const UniqueFd fd{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
  if (!fd) return errno == ESRCH;
  return has_died(fd.get());  // also a zombie that nobody has waited for
}

bool has_died(int pidfd) {
  pollfd p{pidfd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

std::string describe(const ProcessInfo& p) {
  return p.command + "[" + std::to_string(p.pid) + "]";
}

}  // namespace mw
