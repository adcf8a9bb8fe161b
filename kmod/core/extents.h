/* extents.h - memory for rings, from a pool that both domains have mapped for good.
 *
 * PROBLEM     Granting and mapping a page takes a thousand times as long as a ring operation, and a
 *             domain's grants are too few to give each socket rings of its own. So a ring has memory
 *             only while there are bytes in it.
 * RULES       Whoever writes a ring takes its memory from its own pool and names it in its own line
 *             of the slot, as an extent: first page << 8 | order, 1 << order pages. Its reader
 *             believes that word only within the pool as it has it mapped. The writer changes or
 *             frees an extent only while head == tail, so a reader that sees bytes sees their extent.
 * TRUST       A wrong extent is a breach of the protocol. One within the pool gives the reader other
 *             bytes of the writer's own pool, which is the writer's loss.
 * ORDERING    Writer: extent, relaxed, before the tail, release. Reader: tail, acquire; the extent,
 *             relaxed, once when the ring was empty before, and no more while there are bytes.
 * THREADS     The pool: the caller's lock. A ring: as ring.h says. */
#pragma once
#include "kmod/core/ring.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MW_EXT_NONE MW_NOTHING
#define MW_EXT_MIN_ORDER 2u
#define MW_EXT_MAX_ORDER 8u
#define MW_EXT_ORDERS (MW_EXT_MAX_ORDER - MW_EXT_MIN_ORDER + 1u)
#define MW_CHUNK_PAGES (1u << MW_EXT_MAX_ORDER) /* by so many a pool grows */
#define MW_UNIT_PAGES (1u << MW_EXT_MIN_ORDER)
#define MW_MAX_POOL_PAGES (1u << 24) /* what an extent can name */

static inline uint32_t mw_ext_of(uint32_t first_page, uint32_t order) {
  return first_page << 8 | order;
}
static inline uint32_t mw_ext_order(uint32_t ext) {
  return ext & 0xff;
}
static inline uint32_t mw_ext_page(uint32_t ext) {
  return ext >> 8;
}
static inline uint32_t mw_ext_bytes(uint32_t ext) {
  return MW_PAGE << mw_ext_order(ext);
}

/* ---- the pool, which its owner keeps in private memory ---- */

/* Four pages. Of an extent, free or not, the first unit tells. */
struct mw_unit {
  uint32_t next; /* free extents of one order */
  uint32_t prev;
  uint8_t order;
  uint8_t state; /* enum mw_unit_state */
};

struct mw_pool {
  struct mw_unit* units;
  uint32_t max_pages;
  uint32_t pages;
  uint32_t free_pages;
  uint32_t free[MW_EXT_ORDERS]; /* the unit freed last, or MW_NOTHING */
};

/* An empty pool that can grow to max_pages, with a unit for every MW_UNIT_PAGES of them.
 * Errors: MW_BUG (no whole chunks, or more than an extent can name). */
enum mw_status mw_pool_init(struct mw_pool* p, struct mw_unit* units, uint32_t max_pages);
/* Adds the next chunk. Errors: MW_FULL. */
enum mw_status mw_pool_grow(struct mw_pool* p);
/* Gives up the last chunk. Errors: MW_BUSY (an extent of it is taken), MW_NONE (there is none). */
enum mw_status mw_pool_shrink(struct mw_pool* p);
/* Takes an extent of this order; the one freed last, so that memory stays warm. MW_EXT_NONE: there is
 * none left. */
uint32_t mw_pool_acquire(struct mw_pool* p, uint32_t order);
/* Takes the largest extent that is there, of `order` at most and `least` at least. */
uint32_t mw_pool_acquire_most(struct mw_pool* p, uint32_t order, uint32_t least);
/* Errors: MW_BUG (no extent that is taken). */
enum mw_status mw_pool_release(struct mw_pool* p, uint32_t ext);
/* So little is left that rings give their memory back as soon as they are empty. */
static inline bool mw_pool_is_short(const struct mw_pool* p) {
  return p->free_pages < p->pages / 8;
}

/* ---- the reader: a pool of the other side's ---- */

struct mw_area {
  uint8_t* data;  /* where this side has it mapped */
  uint32_t pages; /* how much of it */
};

/* False: no extent within the area. */
bool mw_area_find(const struct mw_area* a, uint32_t ext, struct mw_bytes* out);
/* Looks for bytes, wherever the writer has put them. Errors: MW_PEER. */
enum mw_status mw_area_look(const struct mw_area* a, struct mw_consumer* c,
                            const uint32_t* shared_ext);

/* ---- the writer of one ring ---- */

struct mw_writer {
  struct mw_producer ring;
  uint32_t* shared_ext;
  uint32_t ext;   /* MW_EXT_NONE: it has no memory */
  uint32_t next;  /* a larger one, taken already: the ring runs empty, then moves there */
  uint8_t order;  /* of the next extent */
  uint8_t least;  /* no extent may be smaller, so that a largest record fits */
  uint8_t fulls;  /* how often it was full since it has this extent */
  bool full_told; /* this time counts already */
  uint8_t idle;   /* ticks since it was empty and nothing was written */
};

/* A writer whose ring was full so often gets the next one twice as large. */
#define MW_FULLS_TO_DOUBLE 2u
/* Of an empty ring whose pool is not short, until its memory is given back. */
#define MW_IDLE_TICKS 2u

/* Requires: MW_EXT_MIN_ORDER <= least <= MW_EXT_MAX_ORDER. */
void mw_writer_init(struct mw_writer* w, uint32_t* shared_tail, const uint32_t* shared_head,
                    uint32_t* shared_ext, uint32_t least);
/* Looks how far the reader is, takes memory if there is none, moves to a larger extent, and says how
 * many bytes may be written now: with MW_OK at least one. Errors: MW_BUSY (full, or about to move:
 * ask for news of room), MW_FULL (the pool has nothing: wait for an extent), MW_PEER. */
enum mw_status mw_writer_begin(struct mw_writer* w, struct mw_pool* p, const struct mw_area* a,
                               uint32_t* room);
/* The next n bytes are written. Requires: n <= room. */
void mw_writer_advance(struct mw_writer* w, uint32_t n);
/* Gives memory back if the ring is empty: at once if the pool is short, else after some ticks without
 * a byte. is_tick: this is one. True: an extent became free, and somebody may wait for one.
 * Errors come with the next begin. */
bool mw_writer_rest(struct mw_writer* w, struct mw_pool* p, bool is_tick);
/* The socket is closed, and bytes may still be in the ring: hands its extent, or MW_EXT_NONE, to the
 * slot's entry, where it stays until the reader has freed the slot. */
uint32_t mw_writer_leave(struct mw_writer* w, struct mw_pool* p);

#ifdef __cplusplus
}
#endif
