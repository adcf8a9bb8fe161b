#include "kmod/core/record.h"

uint32_t mw_records_waiting(const struct mw_consumer* c) {
  return mw_consumer_ready(c) / (uint32_t)sizeof(struct mw_accept_record);
}

enum mw_status mw_record_check(const struct mw_listener* l, struct mw_accept_record* r) {
  /* No descriptor travels between domains, so no placeholder has a number here. */
  if (r->magic != MW_ACCEPT_MAGIC || (r->flags & MW_ACCEPT_BARE) == 0 ||
      (r->flags & ~(MW_ACCEPT_BARE | MW_ACCEPT_ASK | MW_ACCEPT_NONBLOCK)) != 0)
    return MW_PEER;
  if ((r->flags & MW_ACCEPT_ASK) != 0) {
    if (r->slot != l->slot || r->gen != l->gen) return MW_PEER;
    memset(&r->local, 0, sizeof r->local);
    memset(&r->peer, 0, sizeof r->peer);
    return MW_OK;
  }
  if (r->slot >= l->slots || r->slot == l->slot || r->gen == 0) return MW_PEER;
  if (mw_addr_family(&r->local) != l->family || mw_addr_family(&r->peer) != l->family)
    return MW_PEER;
  return MW_OK;
}

enum mw_status mw_record_take(struct mw_consumer* c, const struct mw_listener* l,
                              struct mw_accept_record* out) {
  const uint32_t ready = mw_consumer_ready(c);
  enum mw_status status;
  if (ready == 0) return MW_NONE;
  /* The INS publishes whole records only. */
  if (ready % sizeof *out != 0) return MW_PEER;
  mw_consumer_peek(c, 0, out, sizeof *out);
  status = mw_record_check(l, out);
  if (status == MW_OK) mw_consumer_advance(c, sizeof *out);
  return status;
}
