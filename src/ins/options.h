// options.h - which socket options and ioctls reach the real socket.
//
// Everything does, and its errno comes back, except those whose argument holds a pointer, a
// descriptor or memory of the caller (docs/protocol.md 5).
#pragma once

#include <cstdint>

namespace mw {

// For setsockopt and getsockopt alike: answered ENOPROTOOPT without asking the kernel.
bool option_is_refused(int level, int name, bool set);

// The argument's size, or 0 if this ioctl is not passed on.
uint32_t ioctl_size(uint32_t request);

// Bytes of SO_RCVBUF that are not the kernel's overhead.
uint32_t granted_rcvbuf(int fd);

}  // namespace mw
