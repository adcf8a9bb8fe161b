// loopback_hint.h - names, once, the option by which 127.0.0.1 leads to the host's services.
//
// PROBLEM     A program that talks to a database of its own host finds none at 127.0.0.1, which is the
//             INS's own, and the user sees ECONNREFUSED only.
// PROMISE     The first connection to a loopback address that is refused gives one line, with the option
//             that helps. None for ports that lead to the host already: those are refused over there.
// THREADS     init() before there are others; refused() by any thread.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace mw {

// An address of this namespace's loopback that a socket connects to.
struct LoopbackTarget {
  in_addr_t v4 = 0;    // 0: ::1
  in_port_t port = 0;  // 0: it is no address of loopback
};
LoopbackTarget loopback_target(const sockaddr* address, socklen_t len);

class LoopbackHint {
 public:
  // `led`: what leads to the host, as the front end's --to-host has it, or none. False: it is neither.
  bool init(const std::string& led);
  void refused(bool is_udp, const LoopbackTarget& target);

 private:
  struct Led {
    uint16_t port;
    bool is_udp;
  };
  std::vector<Led> led_;
  bool wanted_ = false;
  std::atomic<bool> said_{false};
};

}  // namespace mw
