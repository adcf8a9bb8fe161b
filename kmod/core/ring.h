/* ring.h - both ends of a byte ring, as the PVM's kernel uses them.
 *
 * TRUST       The other end may be hostile: it can store anything, anywhere in the region, at any
 *             time, also while we copy. We load its index once and use it only after the window
 *             check; our own index is private and the shared copy is write-only to us.
 * INVARIANTS  0 <= tail - head <= mem.size, a power of two or 0 (no memory). The other side's index
 *             never moves back: one that does is as much a breach as one out of the window.
 * ORDERING    Producer: copy in, store tail with release; pairs with the consumer's acquire of tail.
 *             Consumer: copy out, store head with release; pairs with the producer's acquire of head.
 * THREADS     One producer and one consumer at a time; a caller with several holds a lock. */
#pragma once
#include "abi/mw_slot.h"
#include "kmod/core/addr.h"
#include "kmod/core/atomic.h"

#define MW_WANT_OUT_EVENT_BIT 2
#define MW_WANT_RX_ROOM_BIT 3
MW_STATIC_ASSERT(MW_WANT_OUT_EVENT == 1u << MW_WANT_OUT_EVENT_BIT, "one word, two names");
MW_STATIC_ASSERT(MW_WANT_RX_ROOM == 1u << MW_WANT_RX_ROOM_BIT, "one word, two names");

/* The memory of a ring. */
struct mw_bytes {
  uint8_t* data;
  uint32_t size;
};

struct mw_piece {
  uint8_t* at;
  uint32_t len;
};

/* The memory of [at, at + n) as one or two pieces; the second may be empty. Requires: n <= size. */
static inline void mw_bytes_pieces(const struct mw_bytes* b, uint32_t at, uint32_t n,
                                   struct mw_piece out[2]) {
  const uint32_t off = b->size == 0 ? 0 : at & (b->size - 1);
  const uint32_t to_end = b->size - off;
  const uint32_t first = n < to_end ? n : to_end;
  out[0].at = b->data + off;
  out[0].len = first;
  out[1].at = b->data;
  out[1].len = n - first;
}
static inline void mw_bytes_put(const struct mw_bytes* b, uint32_t at, const void* from,
                                uint32_t n) {
  struct mw_piece p[2];
  mw_bytes_pieces(b, at, n, p);
  if (p[0].len != 0) mw_shared_write(p[0].at, from, p[0].len);
  if (p[1].len != 0) mw_shared_write(p[1].at, (const uint8_t*)from + p[0].len, p[1].len);
}
static inline void mw_bytes_get(const struct mw_bytes* b, uint32_t at, void* to, uint32_t n) {
  struct mw_piece p[2];
  mw_bytes_pieces(b, at, n, p);
  if (p[0].len != 0) mw_shared_read(to, p[0].at, p[0].len);
  if (p[1].len != 0) mw_shared_read((uint8_t*)to + p[0].len, p[1].at, p[1].len);
}

struct mw_producer {
  struct mw_bytes mem;
  uint32_t* shared_tail;
  const uint32_t* shared_head;
  uint32_t tail;
  uint32_t head; /* the consumer's, as it was when we looked last */
};

/* A new socket's ring, with no memory yet. */
static inline void mw_producer_init(struct mw_producer* p, uint32_t* shared_tail,
                                    const uint32_t* shared_head) {
  p->mem.data = NULL;
  p->mem.size = 0;
  p->shared_tail = shared_tail;
  p->shared_head = shared_head;
  p->tail = p->head = MW_INDEX_START;
}
static inline uint32_t mw_producer_used(const struct mw_producer* p) {
  return p->tail - p->head;
}
static inline uint32_t mw_producer_room(const struct mw_producer* p) {
  return p->mem.size - mw_producer_used(p);
}
/* Looks how far the consumer is. Errors: MW_PEER. */
static inline enum mw_status mw_producer_look(struct mw_producer* p) {
  const uint32_t head = mw_load_acquire32(p->shared_head);
  if (p->tail - head > mw_producer_used(p)) return MW_PEER;
  p->head = head;
  return MW_OK;
}
/* Asks the INS to announce room, and looks once more: it may have made some before it could see
 * that. The caller sleeps only if there is still none. Errors: MW_PEER. */
static inline enum mw_status mw_producer_ask(struct mw_producer* p, uint32_t* want) {
  mw_set_bit32(want, MW_WANT_OUT_EVENT_BIT);
  mw_fence();
  return mw_producer_look(p);
}
/* The memory for the next n bytes. Requires: n <= room. */
static inline void mw_producer_pieces(const struct mw_producer* p, uint32_t n,
                                      struct mw_piece out[2]) {
  mw_bytes_pieces(&p->mem, p->tail, n, out);
}
/* The next n bytes are written. Requires: n <= room. */
static inline void mw_producer_advance(struct mw_producer* p, uint32_t n) {
  p->tail += n;
  mw_store_release32(p->shared_tail, p->tail);
}
/* Requires: n <= room. */
static inline void mw_producer_put(struct mw_producer* p, const void* from, uint32_t n) {
  mw_bytes_put(&p->mem, p->tail, from, n);
  mw_producer_advance(p, n);
}

struct mw_consumer {
  struct mw_bytes mem;
  const uint32_t* shared_tail;
  uint32_t* shared_head;
  uint32_t head;
  uint32_t tail; /* the producer's, as it was when we looked last */
};

static inline void mw_consumer_init(struct mw_consumer* c, const uint32_t* shared_tail,
                                    uint32_t* shared_head) {
  c->mem.data = NULL;
  c->mem.size = 0;
  c->shared_tail = shared_tail;
  c->shared_head = shared_head;
  c->head = c->tail = MW_INDEX_START;
}
/* Bytes that were there when we looked last. */
static inline uint32_t mw_consumer_ready(const struct mw_consumer* c) {
  return c->tail - c->head;
}
/* Takes a tail that was loaded with acquire. Errors: MW_PEER. */
static inline enum mw_status mw_consumer_accept(struct mw_consumer* c, uint32_t tail) {
  const uint32_t ready = tail - c->head;
  if (ready > c->mem.size || ready < mw_consumer_ready(c)) return MW_PEER;
  c->tail = tail;
  return MW_OK;
}
/* Looks for bytes in memory that never changes. Errors: MW_PEER. */
static inline enum mw_status mw_consumer_look(struct mw_consumer* c) {
  return mw_consumer_accept(c, mw_load_acquire32(c->shared_tail));
}
/* The memory of n bytes, `from` bytes behind the next one. Requires: from + n <= ready. */
static inline void mw_consumer_pieces(const struct mw_consumer* c, uint32_t from, uint32_t n,
                                      struct mw_piece out[2]) {
  mw_bytes_pieces(&c->mem, c->head + from, n, out);
}
/* Copies without taking. Requires: from + n <= ready. */
static inline void mw_consumer_peek(const struct mw_consumer* c, uint32_t from, void* to,
                                    uint32_t n) {
  mw_bytes_get(&c->mem, c->head + from, to, n);
}
/* The next n bytes are read. Requires: n <= ready. */
static inline void mw_consumer_advance(struct mw_consumer* c, uint32_t n) {
  c->head += n;
  mw_store_release32(c->shared_head, c->head);
}
/* Requires: n <= ready. */
static inline void mw_consumer_get(struct mw_consumer* c, void* to, uint32_t n) {
  mw_consumer_peek(c, 0, to, n);
  mw_consumer_advance(c, n);
}
/* After an advance. True: the INS waits for room, and the slot is to be announced. limit: how much
 * the INS fills the ring to; a wrong one makes the announcement early or late. */
static inline bool mw_consumer_owes_news(const struct mw_consumer* c, uint32_t* want,
                                         uint32_t limit) {
  mw_fence();
  if ((mw_load_relaxed32(want) & MW_WANT_RX_ROOM) == 0) return false;
  if (mw_consumer_ready(c) > limit / 2) return false;
  return mw_test_and_clear_bit32(want, MW_WANT_RX_ROOM_BIT);
}

/* A datagram at the head of a receive ring. */
struct mw_dgram {
  struct mw_dgram_head head; /* checked; its lengths lie within the record */
  uint32_t bytes;            /* of the whole record */
};

#define MW_DGRAM_FLAGS 0x28 /* MSG_TRUNC, MSG_CTRUNC */

/* Looks at the next record. Control messages stand sizeof head behind the consumer's head, the data
 * behind them. Errors: MW_NONE, MW_PEER. */
static inline enum mw_status mw_dgram_look(const struct mw_consumer* c, struct mw_dgram* out) {
  const uint32_t ready = mw_consumer_ready(c);
  uint64_t bytes;
  if (ready == 0) return MW_NONE;
  if (ready < sizeof out->head) return MW_PEER;
  mw_consumer_peek(c, 0, &out->head, sizeof out->head);
  bytes = mw_dgram_bytes(out->head.control_len, out->head.data_len);
  if (bytes > ready) return MW_PEER;
  if (out->head.name_len != 0 && mw_name_family(out->head.name, out->head.name_len) == 0)
    return MW_PEER;
  out->head.flags &= MW_DGRAM_FLAGS;
  out->bytes = (uint32_t)bytes;
  return MW_OK;
}
static inline void mw_dgram_done(struct mw_consumer* c, const struct mw_dgram* d) {
  mw_consumer_advance(c, d->bytes);
}
