// exec.h - programs started by a protected program stay protected: LD_PRELOAD and MWCOMMS_SESSION
// are put back into environments that lost them. What the program asked for itself stays.
#pragma once

#include <stddef.h>

namespace mw::shim {

struct PreloadWord {
  const char* text;
  size_t length;
};
// The word of a list of preloaded libraries that names this one; length 0: none does.
PreloadWord find_own_library(const char* list);

// Bytes that environment_with_us() needs.
size_t environment_room(char* const* env);
// Fills `room` with env, this library first among the preloaded ones if it is not among them, and
// the session. Returns what to start the program with: `env` itself if it cannot be read, which is
// the kernel's to refuse. Allocates nothing: it may run in a child of vfork().
char* const* environment_with_us(char* const* env, void* room);

// Mends the process's own environment, for what the C library starts with it by itself.
void keep_own_environment();

}  // namespace mw::shim
