// socket_option.h - what a descriptor says of itself that somebody has handed over.
#pragma once

#include <sys/socket.h>

namespace mw {

// The number that an option of level SOL_SOCKET has; -1 if it has none, or is no socket's.
inline int socket_option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

}  // namespace mw
