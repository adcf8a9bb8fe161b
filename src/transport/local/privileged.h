// privileged.h - which socket options the driver sets for privileged processes, and how these show
// that they may: by a socket of the kernel's own, which they have made themselves.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace mw {

// The type of the socket that is the proof; 0 for an option that the driver does not set. The option
// is set on it, and the driver sets what it finds there. A device is another one in the INS's network
// namespace: for SO_BINDTODEVICE the proof is a raw socket, which takes the same right.
constexpr int type_of_proof(int level, int name) {
  if (level == IPPROTO_TCP) return name == TCP_CONGESTION ? SOCK_STREAM : 0;
  if (level != SOL_SOCKET) return 0;
  switch (name) {
    case SO_PRIORITY:
    case SO_MARK:
    case SO_RCVBUFFORCE:
    case SO_SNDBUFFORCE:
      return SOCK_DGRAM;
    case SO_BINDTODEVICE:
      return SOCK_RAW;
    default:
      return 0;
  }
}

}  // namespace mw
