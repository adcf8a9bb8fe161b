// call_table.h - which calls the PVM has made and we have not answered.
//
// INVARIANTS  Each cell has at most one call pending, and a call is answered once.
// THREADS     begin() by the worker that drained the cell; answer() by whoever executed the call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "ins/tables/call_done.h"
#include "ins/tables/decode.h"
#include "ring/channel.h"

namespace mw {

class CallTable {
 public:
  // `done` outlives this.
  void init(const Channel& channel, CallDone& done);
  // Copies and claims the request in cell `call`. False: there is nothing new in it.
  // Errors: peer (the cell cannot be; the call is claimed and stays unanswered).
  // seq: the request that is meant, 0 for whatever stands there; another one is left alone.
  Result<bool> begin(uint32_t call, Request& out, uint32_t seq = 0);
  void answer(uint32_t call, uint32_t seq, const Answer& a);

 private:
  Channel channel_;
  CallDone* done_ = nullptr;
  std::unique_ptr<std::atomic<uint32_t>[]> last_;
};

}  // namespace mw
