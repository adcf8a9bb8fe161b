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

// A message of one piece of data with room for `kFds` descriptors: what recvmsg() is given.
template <size_t kFds>
class MessageRoom {
 public:
  MessageRoom(void* data, size_t bytes) : iov_{data, bytes} {
    message.msg_iov = &iov_;
    message.msg_iovlen = 1;
    message.msg_control = control_;
    message.msg_controllen = sizeof control_;
  }
  MessageRoom(const MessageRoom&) = delete;
  MessageRoom& operator=(const MessageRoom&) = delete;

  msghdr message{};

 private:
  iovec iov_;
  alignas(cmsghdr) char control_[CMSG_SPACE(sizeof(int) * kFds)];
};

}  // namespace mw
