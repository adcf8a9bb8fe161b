// socket_copy.h - a socket described so that another one like it can be made, in another process.
//
// PURPOSE     `mw run` describes the sockets that its caller passes to the application. A program under
//             the shim makes them again (take_over.h), so that the INS has them.
// INVARIANTS  What decode() takes is what encode() has written, and nothing else.
// THREADS     Any.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"

namespace mw {

struct CopiedOption {
  int level = 0;
  int name = 0;
  std::string value;  // its bytes
};

struct SocketCopy {
  std::vector<int> numbers;  // the descriptors under which it stands
  int domain = 0;            // AF_INET or AF_INET6
  int type = 0;              // SOCK_STREAM or SOCK_DGRAM
  int protocol = 0;
  bool nonblocking = false;
  int backlog = -1;                   // -1: it does not listen
  sockaddr_storage address{};         // AF_UNSPEC: it is not bound
  std::vector<CopiedOption> options;  // all that could be read of a closed list

  bool listens() const { return backlog >= 0; }
  bool is_bound() const { return address.ss_family != AF_UNSPEC; }
  uint16_t port() const;
  // "descriptor 3, 0.0.0.0:80/tcp", "descriptors 0, 1, 2, [::]:53/udp"
  std::string text() const;
};

// "0.0.0.0:80", "[fe80::1%2]:80".
std::string text_of(const sockaddr_storage& address);

// A socket of TCP, UDP or UDP-Lite without a peer. `numbers` stay empty.
Outcome<SocketCopy> describe_socket(int fd);

// One word without blanks.
std::string encode(const SocketCopy& copy);
std::optional<SocketCopy> decode_socket(const std::string& word);

// Makes it by the ordinary calls, close-on-exec. Errors: something of it cannot be had.
Outcome<UniqueFd> make_socket(const SocketCopy& copy);

}  // namespace mw
