/* rset.h - ready sets (abi/mw_ready_set.h) as the PVM's kernel uses them: it adds to the INS's sets
 * and drains its own, from an interrupt.
 *
 * TRUST       Any member may appear at any time, and the upper levels may lie. A drain takes at most
 *             as many steps as it is allowed, each of them one word or one member, so the other side
 *             decides neither how long an interrupt lasts nor which index is used.
 * INVARIANTS  What a drain has taken from the set and not handed out yet is private (struct
 *             mw_rset_drain): nothing is ever put back, so a consumer only exchanges words.
 * ORDERING    Everything is sequentially consistent. Adder: set level 0, 1, 2 (or see them set), look
 *             at sleepers, exchange rung. Consumer: clear rung, then drain until `top` is 0; what is
 *             added later rings again (tests/kmod/kmod_model_test.cc).
 * THREADS     Any number of adders. One drainer at a time; the caller's lock passes it on. */
#pragma once
#include "abi/mw_ready_set.h"
#include "kmod/core/atomic.h"

struct mw_rset {
  struct mw_ready_set* h;
  uint64_t* words;
  uint32_t bits;
};

/* The set at `base`, of `bits` members. Requires: bits <= MW_READY_MAX_BITS. */
static inline void mw_rset_init(struct mw_rset* s, void* base, uint32_t bits) {
  s->h = (struct mw_ready_set*)base;
  s->words = (uint64_t*)((uint8_t*)base + sizeof(struct mw_ready_set));
  s->bits = bits;
}

static inline void mw_rset_set_upper(uint64_t* word, uint32_t bit) {
  if ((mw_load_seq64(word) >> bit & 1) == 0) mw_set_bit64(word, bit);
}
/* Adds member i. True: a consumer sleeps that nobody has rung for, and the caller has to ring.
 * Requires: i < bits. */
static inline bool mw_rset_add(const struct mw_rset* s, uint32_t i) {
  /* Level 0 always with a read-modify-write: it publishes what the news is about. */
  mw_set_bit64(&s->words[i / 64], i & 63);
  mw_rset_set_upper(&s->h->mid[i / 4096], i / 64 & 63);
  mw_rset_set_upper(&s->h->top, i / 4096);
  if (mw_load_seq32(&s->h->sleepers) == 0) return false;
  return mw_xchg32(&s->h->rung, 1) == 0;
}

/* The consumer is woken by its doorbell alone: it counts as asleep from now on. */
static inline void mw_rset_stay_asleep(const struct mw_rset* s) {
  (void)mw_xchg32(&s->h->sleepers, 1);
}
/* The doorbell rang. What is added from now on rings again; a drain has to follow. */
static inline void mw_rset_on_ring(const struct mw_rset* s) {
  (void)mw_xchg32(&s->h->rung, 0);
}

/* What was taken from the set and not handed out yet. All zero at first. */
struct mw_rset_taken {
  uint64_t top;
  uint64_t mid; /* of bit t of level 2 */
  uint64_t low; /* of word m of level 0 */
  uint32_t t;
  uint32_t m;
};

typedef void (*mw_rset_take)(void* arg, uint32_t member);

static inline bool mw_rset_drained(const struct mw_rset* s, const struct mw_rset_taken* d) {
  return (d->top | d->mid | d->low) == 0 && mw_load_seq64(&s->h->top) == 0;
}

/* Hands members to `take`, in at most `steps` steps. True: nothing is left. False: to be called again,
 * without waiting for the doorbell. */
static inline bool mw_rset_drain(const struct mw_rset* s, struct mw_rset_taken* d, uint32_t steps,
                                 mw_rset_take take, void* arg) {
  for (; steps > 0; --steps) {
    if (d->low != 0) {
      const uint32_t i = d->m * 64 + (uint32_t)__builtin_ctzll(d->low);
      d->low &= d->low - 1;
      if (i < s->bits) take(arg, i);
    } else if (d->mid != 0) {
      const uint32_t m = d->t * 64 + (uint32_t)__builtin_ctzll(d->mid);
      d->mid &= d->mid - 1;
      if (m >= (s->bits + 63) / 64) continue; /* a lie: there is no such word */
      d->m = m;
      d->low = mw_xchg64(&s->words[m], 0);
    } else if (d->top != 0) {
      d->t = (uint32_t)__builtin_ctzll(d->top);
      d->top &= d->top - 1;
      d->mid = mw_xchg64(&s->h->mid[d->t], 0);
    } else {
      if (mw_load_seq64(&s->h->top) == 0) return true;
      d->top = mw_xchg64(&s->h->top, 0);
    }
  }
  return mw_rset_drained(s, d);
}
