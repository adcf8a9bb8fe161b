// process_info.h - who is at the other end of a local socket.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/pidfd.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

struct ProcessInfo {
  uint32_t pid = 0;
  uint32_t uid = 0;
  std::string command;  // "?" if it cannot be read
  UniqueFd death;       // readable when it died; none if it has already
};

// Only pid and uid, in one system call. Errors: sys (no credentials).
Result<ProcessInfo> credentials_of(int socket);
// The rest of it.
void look_up(ProcessInfo& p);
// Both. Errors: sys (no credentials).
Result<ProcessInfo> peer_of(int socket);
// True only for a process that is known to be gone.
bool is_dead(uint32_t pid);
std::string command_of(uint32_t pid);  // printable; "?" if it cannot be read
uint32_t uid_of(uint32_t pid);         // 0 if it cannot be read

// What a process uses of the machine.
struct ProcessUse {
  uint32_t uid = 0;
  std::string command;
  uint64_t rss_bytes = 0;
  uint64_t cpu_us = 0;
  uint32_t threads = 0;
  uint32_t fds = 0;  // 0: not known
};
// Nothing if there is no such process.
std::optional<ProcessUse> use_of(uint32_t pid);

std::string describe(const ProcessInfo& p);  // "nginx[4711]"

}  // namespace mw
