// kernel.h - where a fuzz target's descriptors, files, processes and time come from.
//
// PROBLEM     A driver with everything around it makes hundreds of system calls for one input, and
//             the kernel remembers things between inputs (pids, names, time).
// PROMISE     After begin() every input finds the same: no descriptor, an empty folder, the same
//             processes, the same time. What an input did is gone with the next begin().
// WAY         Two implementations. kernel_in_memory.cc answers the system calls itself: no call
//             leaves the process, so an input costs microseconds. kernel_real.cc passes them on: the
//             same target then shows what the first one only plays, the kernel's own descriptor
//             passing above all.
// THREADS     One.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mw::fuzz::kernel {

void begin();
// Requires: what the input made is gone, but for its files.
void end();
// A folder of this input's own. It is empty at first.
std::string folder();

// ---- what only the kernel in memory can do; the real one ignores it ----

constexpr uint32_t kPeers = 8;  // processes beside the driver
// Whether peers are processes of their own, which the driver may end.
bool peers_can_be_ended();
// From here on the calls are those of a peer's process, or with act_as_driver() of the driver's.
void act_as_peer(uint32_t peer);
void act_as_driver();
// Ends a peer's process. The next one with this number has another pid.
void end_peer(uint32_t peer);
// What the process calls itself: at most 15 bytes count.
void name_peer(uint32_t peer, const char* name, size_t bytes);
uint32_t pid_of(uint32_t peer);
void pass_ms(uint32_t ms);
// How many descriptors the driver may have from now on beyond those that it has; 0: as many as at first.
void limit_descriptors(uint32_t more);
// Says that these bytes of a sealed file were written, so that begin() clears them. Not needed for
// the first kClearedBytes of a file.
constexpr uint64_t kClearedBytes = 64 * 1024;
void wrote(const void* at, size_t bytes);
// A number that follows from all that was sent and said, and from what stands in the sealed files;
// 0: not known.
uint64_t outcome();

}  // namespace mw::fuzz::kernel
