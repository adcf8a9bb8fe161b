// loopback_order.h - for programs that talk to themselves over the network.
//
// PURPOSE     The kernel's loopback is synchronous: what a program sent to itself has arrived when
//             send() returns. Ours is not, so before such a program is told "nothing there", the
//             INS does what it was told, for at most 100 ms. Free for all other programs.
// THREADS     Any.
#pragma once

#include <sys/socket.h>

#include "shim/process/process.h"
#include "shim/socket/socket.h"

namespace mw::shim {

void settle_slowly();
inline void settle() {
  if (process.unsettled) [[unlikely]]
    settle_slowly();
}

// The program listens at this port (network order).
void note_listening_port(uint16_t port);
// It connects, or has just begun to; `len` bytes of `to` are valid.
void note_connection(const Sock& s, const sockaddr* to, socklen_t len);

}  // namespace mw::shim
