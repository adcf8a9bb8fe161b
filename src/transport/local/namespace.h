// namespace.h - which network namespace a socket belongs to.
//
// THREADS     No state. Async-signal-safe.
#pragma once

#include <sys/socket.h>

#include <cstdint>

#include "base/raw_syscall.h"

namespace mw {

// The namespace's number, which no other one gets until the next boot; 0 if the kernel does not
// tell. A socket belongs to the namespace that its maker's thread was in.
inline uint64_t network_namespace_of(int socket) {
  uint64_t cookie = 0;
  socklen_t len = sizeof cookie;
  if (raw_syscall(SYS_getsockopt, socket, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) < 0) return 0;
  return len == sizeof cookie ? cookie : 0;
}

}  // namespace mw
