// pidfd.h - a descriptor names one process for good, where a number may name the next one.
//
// The C library's <sys/pidfd.h> (2.36) declares these calls without extern "C": C++ cannot link them.
#pragma once

#include <poll.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace mw {

// Empty: there is no such process (ESRCH), or another reason that errno tells.
inline UniqueFd open_pidfd(pid_t pid) {
  return UniqueFd{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
}

// False: the process has not got it, and errno tells why.
inline bool signal_pidfd(int pidfd, int signal) {
  return ::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0;
}

// Waits for the end of the process, -1 ms: without a limit. A zombie has ended, although its parent
// has not waited for it yet. False if a signal handler ran meanwhile, too.
inline bool has_died(int pidfd, int wait_ms = 0) {
  pollfd death{pidfd, POLLIN, 0};
  return ::poll(&death, 1, wait_ms) == 1;
}

}  // namespace mw
