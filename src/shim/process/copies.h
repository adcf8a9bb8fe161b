// copies.h - whether another process may have a copy of a descriptor.
//
// PURPOSE     A connection that no other process can have is closed without asking the kernel
//             (stock.h). Descriptors are copied one by one (SCM_RIGHTS) or all at once (fork and its
//             kin). The former is noted for the socket, the latter counted here.
// INVARIANTS  A socket is ours alone if its origin is the present count and no copying goes on.
//             Copies are counted after the fact, so what appeared meanwhile counts as copied.
// THREADS     Any, and children of vfork(). after_fork_in_child() runs in a process of one thread.
#pragma once

#include <cstdint>

namespace mw::shim {

// How often descriptors of this process went to another one as a whole, plus 1.
uint32_t descriptor_copies();
// Around whatever copies them. Waits, briefly, until no thread is in a Momentary state.
void begin_copying();
void end_copying();
bool is_copying();
class Copying {
 public:
  Copying() { begin_copying(); }
  ~Copying() { end_copying(); }
  Copying(const Copying&) = delete;
  Copying& operator=(const Copying&) = delete;
};

// A state of the whole process that a copy must not inherit: begin_copying() waits for its end.
class Momentary {
 public:
  Momentary();
  ~Momentary();
  Momentary(const Momentary&) = delete;
  Momentary& operator=(const Momentary&) = delete;
  // Copying had begun before: whoever copies does not wait for us.
  bool is_late() const { return late_; }

 private:
  bool late_;
};

// Sets what is_nobody_elses() compares with. `copies_before`: descriptor_copies() before the socket's
// descriptor existed; 0: others may have it.
void note_origin(uint32_t slot, uint32_t copies_before);
// Requires: this process has a descriptor of the socket.
bool is_nobody_elses(uint32_t slot);

// Has `run` called in each child of fork(), in the order of registration. For start() only.
// Requires: fewer than kMostForkHooks are registered.
constexpr uint32_t kMostForkHooks = 8;
void after_fork(void (*run)());
// In the new process.
void after_fork_in_child();

// True in a child of vfork(), which shares our memory but not our descriptors (vfork.S).
bool in_vfork_child();

// Makes room for the origins. False: no memory.
bool open_copies();

}  // namespace mw::shim
