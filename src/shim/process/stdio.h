// stdio.h - C streams on protected sockets. The C library's own streams read and write by internal
// calls that nobody can interpose, so a stream on a socket gets our functions instead.
#pragma once

#include <stdio.h>

namespace mw::shim {

// As fdopen(), for a descriptor that is a protected socket.
FILE* open_stream(int fd, const char* mode);

// stdin, stdout and stderr that were inherited as protected sockets (inetd style).
void adopt_standard_streams();
// The same for one of 0, 1, 2 after dup2() put a socket there or took it away.
void adopt_standard_stream(int fd);

}  // namespace mw::shim
