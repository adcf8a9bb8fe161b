// copy.h - sendfile() and splice() with a protected socket at one end. The bytes go straight
// between the file or pipe and the ring.
#pragma once

#include <sys/types.h>

#include "shim/socket/socket.h"

namespace mw::shim {

ssize_t shim_sendfile(int out, int in, off_t* offset, size_t count);
// The socket is what is read; only a pipe takes its bytes.
ssize_t shim_sendfile_from(int out, int in, off_t* offset, size_t count);
// One end is a protected socket.
ssize_t shim_splice(int in, loff_t* in_off, int out, loff_t* out_off, size_t count, unsigned flags);

}  // namespace mw::shim
