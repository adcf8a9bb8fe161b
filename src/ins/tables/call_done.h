// call_done.h - how a thread of the PVM that sleeps until its call is answered is woken.
//
// THREADS     Any.
#pragma once

#include <cstdint>

#include "abi/mw_call.h"

namespace mw {

class CallDone {
 public:
  CallDone() = default;
  CallDone(const CallDone&) = delete;
  CallDone& operator=(const CallDone&) = delete;
  virtual ~CallDone() = default;
  // The answer stands in the cell, and a thread sleeps for it.
  virtual void wake(uint32_t call, mw_call& cell) = 0;
};

}  // namespace mw
