// process_info.h - who is at the other end of a local socket.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

struct ProcessInfo {
  uint32_t pid = 0;
  uint32_t uid = 0;
  std::string command;  // "?" if it cannot be read
  UniqueFd death;       // readable when it died; none if it has already
};

// Errors: sys (no credentials).
Result<ProcessInfo> peer_of(int socket);
// True only for a process that is known to be gone.
bool is_dead(uint32_t pid);
// True once the process of a pidfd has died.
bool has_died(int pidfd);
std::string command_of(uint32_t pid);        // printable; "?" if it cannot be read
std::string describe(const ProcessInfo& p);  // "nginx[4711]"

}  // namespace mw
