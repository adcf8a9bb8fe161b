// privileges.h - what the driver gives up once its keepers (keepers.h) are there.
//
// PURPOSE     The driver reads what the INS, the application's processes and strangers send. Who takes
//             it over gets neither the host nor another program by it.
// INVARIANTS  Holds for all threads and for whatever the driver starts, for good.
#pragma once

#include "base/result.h"

namespace mw {

// Capabilities but for a few, new privileges, core files, and system calls that no driver makes.
// Requires: the calling process has one thread. Errors: sys.
Status give_up_privileges();

}  // namespace mw
