// options.h - socket options and device requests on the real socket (docs/protocol.md 5).
#pragma once

#include <cstdint>

namespace mw {

// What the kernel says to a device request that is not executed (src/codec/socket_ioctl.h), to one
// who has no privilege. `argument`: it points to memory; `device`: that names one.
int errno_of_ioctl(uint32_t request, bool inet6, bool argument, bool device);

// A listener reuses its address whatever the application has set. Else the connections of an INS that died
// would keep the port from its successor while they are in TIME_WAIT; two listeners exclude each other all
// the same. False: the application had set it.
bool reuse_address(int fd);

// Bytes of SO_RCVBUF that are not the kernel's overhead.
uint32_t granted_rcvbuf(int fd);

// The control messages that every record of a datagram socket carries: the application decides
// later which of them it wants. Has the real socket give them.
void want_control_messages(int fd, int domain);
// The application has set an option of its own: if it was one of those, they are wanted again.
void keep_control_messages(int fd, int level, int name);
// How many bytes of the receive ring datagrams may take, in addition to what SO_RCVBUF grants them
// in the kernel.
uint32_t datagrams_ahead(int fd);

}  // namespace mw
