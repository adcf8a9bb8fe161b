// received_fds.h - the descriptors that came with a message (SCM_RIGHTS), or go with one.
//
// TRUST       For received messages the kernel made the control bytes; for messages to be sent the
//             application did, and CMSG_NXTHDR keeps within msg_controllen.
// THREADS     No state. Async-signal-safe.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstring>

namespace mw {

// Calls visit(fd) for each descriptor, in order. Those of a received message are its receiver's to
// close.
template <class Visit>
void each_passed_fd(const msghdr& message, Visit&& visit) {
  auto* m = const_cast<msghdr*>(&message);  // the C library's macros do not know const
  for (cmsghdr* c = CMSG_FIRSTHDR(m); c != nullptr; c = CMSG_NXTHDR(m, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(0))
      continue;
    for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      visit(fd);
    }
  }
}

}  // namespace mw
