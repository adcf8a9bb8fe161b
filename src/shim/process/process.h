// process.h - what every part of the shim asks about the program that it lives in, and the memory
// that all processes of the session share.
//
// The parts: who the driver is (attachment.h), which descriptors are ours (descriptors.h, identity.h),
// who may have copies of them (copies.h), and the INS that executes the calls (stack.h).
//
// THREADS     Any. `attached` is set once, after all that it promises is there.
#pragma once

#include <cstdint>

#include "shim/process/libc_calls.h"
#include "shim/process/regions.h"

namespace mw::shim {

struct Process {
  SessionView session;
  uint32_t pid = 0;  // of the process that this state belongs to
  bool attached = false;
  // The program has confined itself with a seccomp filter: from now on the shim sleeps with read()
  // and poll() only, which every such filter of a network program allows.
  bool confined = false;
  bool locks_memory = false;  // mlockall(MCL_FUTURE): what is mapped from now on is locked
  // The program talks to itself over the network (it connected to a port that it listens on, at an
  // address of its own). See loopback_order.h.
  bool talks_to_itself = false;
  bool unsettled = false;  // something was sent since the last settle()
  // An epoll instance came by exec or SCM_RIGHTS; it may watch sockets that we never looked at.
  bool found_instance = false;
};
extern Process process;

}  // namespace mw::shim
