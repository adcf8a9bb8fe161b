// sandbox.h - what is left to an INS before it looks at the first byte from the network: no
// capability, its own uid, an empty root, and the system calls of one table.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace mw {

// As many descriptors as the kernel allows. Before enter_sandbox().
void raise_descriptor_limit();

// Empty root, other uid, no capabilities, no new privileges. Without root: the same uid, and the
// empty root if user namespaces are to be had; says in `notes` what could not be done. Call with
// one thread. Errors: sys.
struct SandboxNotes {
  bool empty_root = true;
};
Result<SandboxNotes> drop_privileges(uint32_t uid, uint32_t gid);

// Allows the system calls of the table in sandbox.cc to all threads, and kills the process for any
// other. Errors: sys.
Status filter_system_calls();

}  // namespace mw
