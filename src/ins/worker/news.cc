#include "ins/worker/news.h"

#include "ring/atomics.h"
#include "ring/order.h"

namespace mw {
namespace {

using A = StdAtomics;

}  // namespace

News::News(const WorkerScope& scope, const Placeholders& placeholders, Bells& bells, uint32_t batch)
    : placeholders_(placeholders), bells_(bells), ch_(scope.ch) {
  due_.reserve(ch_.geometry().groups + batch * MW_MAX_WATCHES);
}

void News::set_state(SlotRef s, uint32_t state) const {
  s->state = state;
  A::store_release(ch_.slot(s.index).state, state);
}

void News::publish_error(SlotRef s, int err) const {
  mw_slot& shared = ch_.slot(s.index);
  A::store_relaxed(shared.error, err);
  A::store_release(shared.error_seq, ++s->error_seq);
}

void News::publish_failure(SlotRef s, int err, uint32_t state) const {
  set_state(s, s->state | MW_ST_FAILING);
  publish_error(s, err);
  set_state(s, state & ~MW_ST_FAILING);
}

void News::flush() {
  for (const uint32_t group : due_) bells_.ring_group(group);
  due_.clear();
}

void News::announce(SlotRef s, uint32_t news) {
  A::fence();
  mw_slot& shared = ch_.slot(s.index);
  const uint32_t want = A::load_relaxed(shared.want);
  const bool out = (news & kNewsOut) != 0;
  if ((news & kNewsIn) != 0 || (want & MW_WANT_OUT_EVENT) != 0) {
    if (out && (want & MW_WANT_OUT_EVENT) != 0) A::fetch_and(shared.want, ~MW_WANT_OUT_EVENT);
    for (const uint64_t& word : shared.watches) {
      for (uint64_t watches = A::load_relaxed(word); watches != 0; watches >>= 16) {
        const uint32_t group = static_cast<uint32_t>(watches & 0xffff);
        if (group == 0 || group > ch_.geometry().groups) continue;
        ReadySet group_news = ch_.group_news(group - 1);
        if (!group_news.has(s.index)) A::store_relaxed(shared.told_at, order_stamp());
        if (group_news.add(s.index)) due_.push_back(group - 1);
      }
    }
  }
  const uint32_t tokens =
      ((news & kNewsIn) != 0 ? MW_WANT_TOKEN_IN : 0) | (out ? MW_WANT_TOKEN_OUT : 0);
  if ((want & tokens) == 0) return;
  if ((A::fetch_and(shared.want, ~tokens) & tokens) == 0) return;
  placeholders_.send_token(s);
}

}  // namespace mw
