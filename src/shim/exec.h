// exec.h - programs started by a protected program stay protected: LD_PRELOAD and MWCOMMS_SESSION
// are put back into environments that lost them.
#pragma once

#include <stddef.h>

namespace mw::shim {

// Entries (with a terminating null) that environment_with_us() needs room for.
size_t environment_room(char* const* env);
// Fills `out` with env plus what is missing. Allocates nothing: it may run in a child of vfork().
char* const* environment_with_us(char* const* env, char** out);

}  // namespace mw::shim
