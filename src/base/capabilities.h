// capabilities.h - a process of ours keeps no more capabilities than it needs, for good.
//
// THREADS     The calling thread's, and those of threads that it starts later.
#pragma once

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "base/result.h"

namespace mw {

constexpr uint64_t capability_bit(int capability) {
  return uint64_t{1} << capability;
}

// No program that it executes gets others than `kept`. Errors: sys.
inline Status bound_capabilities(uint64_t kept) {
  for (int cap = 0; ::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; ++cap) {
    if ((kept & capability_bit(cap)) != 0) continue;
    // EPERM: it has none to lose.
    if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
      return Error{Fault::sys, errno, "capability bound"};
  }
  return Ok{};
}

// Of those that it has it keeps `kept`, in every set. Errors: sys.
inline Status keep_capabilities(uint64_t kept) {
  if (auto bounded = bound_capabilities(kept); !bounded) return bounded;
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
    return Error{Fault::sys, errno, "ambient capabilities"};
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[2] = {};
  if (::syscall(SYS_capget, &header, sets) < 0) return Error{Fault::sys, errno, "capget"};
  for (int i = 0; i < 2; ++i) {
    sets[i].permitted &= static_cast<uint32_t>(kept >> 32 * i);
    sets[i].effective = sets[i].permitted;
    sets[i].inheritable = 0;
  }
  if (::syscall(SYS_capset, &header, sets) < 0) return Error{Fault::sys, errno, "capset"};
  return Ok{};
}

}  // namespace mw
