// fd_message.h - one message with descriptors over an AF_UNIX SOCK_SEQPACKET or SOCK_STREAM socket.
//
// INVARIANTS  Received descriptors are CLOEXEC and owned from the first instruction. A message that
//             was truncated, or carries more descriptors than room, is Fault::peer and leaks none.
// THREADS     No state. Async-signal-safe, allocates nothing.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

constexpr size_t kMaxMessageFds = 24;

struct ReceivedMessage {
  size_t bytes = 0;
  size_t fd_count = 0;
  UniqueFd fds[kMaxMessageFds];
};

// Sends data and descriptors as one message. flags: MSG_DONTWAIT as wanted; MSG_NOSIGNAL is added.
// Errors: would_block, shutdown (the peer is gone), sys.
Status send_message(int socket, std::span<const std::byte> data, std::span<const int> fds,
                    int flags);

// Receives one message into `room`. Errors: would_block, shutdown (end of stream), peer, sys.
Result<ReceivedMessage> receive_message(int socket, std::span<std::byte> room, int flags);

template <class T>
std::span<const std::byte> bytes_of(const T& t) {
  return std::as_bytes(std::span<const T, 1>(&t, 1));
}
template <class T>
std::span<std::byte> writable_bytes_of(T& t) {
  return std::as_writable_bytes(std::span<T, 1>(&t, 1));
}

}  // namespace mw
