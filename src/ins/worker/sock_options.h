// sock_options.h - the options of a socket as its program has set them, where the real socket has others:
// SO_RCVLOWAT of streams, which is only ours to keep, and SO_REUSEADDR of listeners (policy/options.h).
//
// THREADS     The worker's.
#pragma once

#include <sys/socket.h>

#include "ins/tables/slot_table.h"

namespace mw {

// As getsockopt() and setsockopt() of the real socket.
int get_option(const Sock& s, int level, int name, void* value, socklen_t* len);
int set_option(Sock& s, int level, int name, const void* value, socklen_t len);

}  // namespace mw
