// confinement.h - programs that confine themselves with a seccomp filter.
//
// PURPOSE     Such a filter may forbid to map memory and most calls. So what the shim may need later is
//             mapped before, and from then on it sleeps with read() and poll() only.
// THREADS     Any.
#pragma once

namespace mw::shim {

// The program is about to install a filter.
void become_confined();

}  // namespace mw::shim
