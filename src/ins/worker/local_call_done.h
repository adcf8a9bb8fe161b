// local_call_done.h - CallDone on one host: a futex in the region.
#pragma once

#include "base/futex.h"
#include "ins/tables/call_done.h"

namespace mw {

class LocalCallDone final : public CallDone {
 public:
  void wake(uint32_t, mw_call& cell) override { futex_wake_all(cell.done_seq); }
};

}  // namespace mw
