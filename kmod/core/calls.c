#include "kmod/core/calls.h"

void mw_calls_init(struct mw_calls* t, struct mw_cell* cells, struct mw_call* shared,
                   uint32_t count) {
  t->cells = cells;
  t->shared = shared;
  t->count = count;
  t->next = 0;
  t->busy = 0;
  t->lookups = 0;
  memset(cells, 0, sizeof *cells * count);
}

uint32_t mw_calls_take(struct mw_calls* t, uint32_t op) {
  const bool lookup = mw_is_lookup(op);
  uint32_t k;
  if (t->busy == t->count || (lookup && t->lookups >= t->count / 2)) return MW_NOTHING;
  for (k = 0; k < t->count; ++k) {
    const uint32_t i = (t->next + k) % t->count;
    struct mw_cell* const c = &t->cells[i];
    if (c->state != MW_CELL_FREE) continue;
    c->state = MW_CELL_TAKEN;
    c->op = op;
    t->next = (i + 1) % t->count;
    ++t->busy;
    if (lookup) ++t->lookups;
    return i;
  }
  return MW_NOTHING;
}

static void free_cell(struct mw_calls* t, struct mw_cell* c) {
  c->state = MW_CELL_FREE;
  c->waiter = NULL;
  --t->busy;
  if (mw_is_lookup(c->op)) --t->lookups;
}

void mw_calls_give_back(struct mw_calls* t, uint32_t cell) {
  if (cell < t->count && t->cells[cell].state == MW_CELL_TAKEN) free_cell(t, &t->cells[cell]);
}

enum mw_status mw_calls_post(struct mw_calls* t, uint32_t cell, const struct mw_request* r,
                             void* waiter) {
  struct mw_cell* c;
  struct mw_call* s;
  uint32_t k;
  if (cell >= t->count || r->in_len > MW_CALL_PAYLOAD || r->most_out > MW_CALL_PAYLOAD)
    return MW_BUG;
  c = &t->cells[cell];
  if (c->state != MW_CELL_TAKEN || c->op != r->op || r->most_ret < 0) return MW_BUG;
  s = &t->shared[cell];
  mw_store_relaxed32(&s->op, r->op);
  mw_store_relaxed32(&s->slot, r->slot);
  mw_store_relaxed32(&s->gen, r->gen);
  for (k = 0; k < 4; ++k) mw_store_relaxed32((uint32_t*)&s->arg[k], (uint32_t)r->arg[k]);
  mw_store_relaxed32(&s->in_len, r->in_len);
  mw_store_relaxed32(&s->flags2, r->flags2);
  mw_store_relaxed32(&s->caller, r->caller);
  mw_store_relaxed32(&s->sent_at, r->sent_at);
  if (r->in_len != 0) mw_shared_write(s->payload, r->in, r->in_len);
  c->waiter = waiter;
  c->most_out = r->most_out;
  c->most_ret = r->most_ret;
  c->state = MW_CELL_WAITING;
  if (++c->seq == 0) c->seq = 1;
  mw_store_release32(&s->seq, c->seq);
  return MW_OK;
}

/* Whether the call that the cell carries is answered. Errors: MW_BUSY, MW_PEER. */
static enum mw_status look(struct mw_calls* t, uint32_t cell) {
  struct mw_cell* const c = &t->cells[cell];
  const uint32_t done = mw_load_acquire32(&t->shared[cell].done_seq);
  if (done == c->seq) return MW_OK;
  return done == c->done ? MW_BUSY : MW_PEER;
}

void* mw_calls_on_news(struct mw_calls* t, uint32_t cell, enum mw_status* status) {
  struct mw_cell* c;
  *status = MW_OK;
  if (cell >= t->count) return NULL;
  c = &t->cells[cell];
  /* News may come late: the answer was seen without it. */
  if (c->state != MW_CELL_WAITING && c->state != MW_CELL_ABANDONED) return NULL;
  *status = look(t, cell);
  if (*status == MW_BUSY) {
    *status = MW_OK;
    return NULL;
  }
  if (*status != MW_OK) return NULL;
  if (c->state == MW_CELL_WAITING) return c->waiter;
  c->done = c->seq;
  free_cell(t, c);
  return NULL;
}

static bool is_possible(const struct mw_cell* c, const struct mw_answer* a) {
  if (a->out_len > c->most_out) return false;
  if (a->err == 0) return a->ret >= 0 && a->ret <= c->most_ret;
  if (a->ret != -1) return false;
  if (mw_is_lookup(c->op) && a->err < 0) return a->err >= -MW_MAX_ERRNO;
  return a->err > 0 && a->err <= MW_MAX_ERRNO;
}

enum mw_status mw_calls_collect(struct mw_calls* t, uint32_t cell, struct mw_answer* a, void* out) {
  struct mw_cell* c;
  struct mw_call* s;
  enum mw_status status;
  if (cell >= t->count || t->cells[cell].state != MW_CELL_WAITING) return MW_BUG;
  c = &t->cells[cell];
  s = &t->shared[cell];
  status = look(t, cell);
  if (status != MW_OK) return status;
  a->ret = (int32_t)mw_load_relaxed32((const uint32_t*)&s->ret);
  a->err = (int32_t)mw_load_relaxed32((const uint32_t*)&s->err);
  a->out_len = mw_load_relaxed32(&s->out_len);
  if (!is_possible(c, a)) return MW_PEER;
  if (a->out_len != 0) mw_shared_read(out, s->payload, a->out_len);
  c->done = c->seq;
  free_cell(t, c);
  return MW_OK;
}

void mw_calls_abandon(struct mw_calls* t, uint32_t cell) {
  if (cell >= t->count || t->cells[cell].state != MW_CELL_WAITING) return;
  t->cells[cell].waiter = NULL;
  t->cells[cell].state = MW_CELL_ABANDONED;
}
