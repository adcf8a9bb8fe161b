#include "ins/tables/call_table.h"

#include <cstring>

#include "ring/atomics.h"
#include "ring/call_cell.h"

namespace mw {
namespace {

using A = StdAtomics;

}  // namespace

void CallTable::init(const Channel& channel, CallDone& done) {
  done_ = &done;
  channel_ = channel;
  const uint32_t calls = channel.geometry().calls;
  last_ = std::make_unique<std::atomic<uint32_t>[]>(calls);
  for (uint32_t i = 0; i < calls; ++i)
    last_[i].store(A::load_relaxed(channel.call(i).done_seq), std::memory_order_relaxed);
}

Result<bool> CallTable::begin(uint32_t call, Request& out, uint32_t seq) {
  mw_call& cell = channel_.call(call);
  // Pairs with answer(): another worker is through with the call before.
  (void)A::load_acquire(cell.done_seq);
  const Status copied = copy_request(cell, out);
  if (seq != 0 && out.seq != seq) return false;
  if (last_[call].exchange(out.seq, std::memory_order_relaxed) == out.seq) return false;
  if (!copied) return copied.error();
  return true;
}

void CallTable::answer(uint32_t call, uint32_t seq, const Answer& a) {
  mw_call& cell = channel_.call(call);
  if (a.out_len != 0) std::memcpy(cell.payload, a.payload, a.out_len);
  A::store_relaxed(cell.ret, a.ret);
  A::store_relaxed(cell.err, a.err);
  A::store_relaxed(cell.out_len, a.out_len);
  if (answer_call(cell, seq)) done_->wake(call, cell);
}

}  // namespace mw
