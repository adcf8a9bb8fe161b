// refused_options.h - the socket options that never reach a real socket: their argument holds a pointer,
// a descriptor or memory of the caller, or a program for the kernel (docs/protocol.md 5). Everything
// else does, and its errno comes back.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace mw {

// For setsockopt and getsockopt alike: answered ENOPROTOOPT without asking the kernel.
constexpr bool option_is_refused(int level, int name, bool set) {
  switch (level) {
    case SOL_SOCKET:
      switch (name) {
        case SO_ATTACH_FILTER:  // also SO_GET_FILTER
        case SO_ATTACH_BPF:
        case SO_ATTACH_REUSEPORT_CBPF:
        case SO_ATTACH_REUSEPORT_EBPF:
        case SO_ZEROCOPY:
          return true;
        default:
          return false;
      }
    case IPPROTO_TCP:
      switch (name) {
        case 19:  // TCP_REPAIR
        case 20:  // TCP_REPAIR_QUEUE
        case 22:  // TCP_REPAIR_OPTIONS
        case 29:  // TCP_REPAIR_WINDOW
        case 31:  // TCP_ULP
        case 35:  // TCP_ZEROCOPY_RECEIVE
          return true;
        case 21:  // TCP_QUEUE_SEQ
          return set;
        default:
          return false;
      }
    default:
      return false;
  }
}

}  // namespace mw
