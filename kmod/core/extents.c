/* extents.c - the pool is a buddy allocator whose largest block is a chunk. A free block's buddy is the
 * block of the same order that it was split from; two that are free become one again at once. */
#include "kmod/core/extents.h"

enum mw_unit_state {
  MW_UNIT_INSIDE = 0, /* of a larger extent, or beyond the pool */
  MW_UNIT_FREE,
  MW_UNIT_TAKEN,
};

static uint32_t units_of(uint32_t order) {
  return 1u << (order - MW_EXT_MIN_ORDER);
}

static uint32_t* list_of(struct mw_pool* p, uint32_t order) {
  return &p->free[order - MW_EXT_MIN_ORDER];
}

static void push(struct mw_pool* p, uint32_t i, uint32_t order) {
  uint32_t* const list = list_of(p, order);
  struct mw_unit* const u = &p->units[i];
  u->order = (uint8_t)order;
  u->state = MW_UNIT_FREE;
  u->prev = MW_NOTHING;
  u->next = *list;
  if (*list != MW_NOTHING) p->units[*list].prev = i;
  *list = i;
}

static void unlink_free(struct mw_pool* p, uint32_t i) {
  struct mw_unit* const u = &p->units[i];
  if (u->prev != MW_NOTHING) {
    p->units[u->prev].next = u->next;
  } else {
    *list_of(p, u->order) = u->next;
  }
  if (u->next != MW_NOTHING) p->units[u->next].prev = u->prev;
  u->state = MW_UNIT_INSIDE;
}

enum mw_status mw_pool_init(struct mw_pool* p, struct mw_unit* units, uint32_t max_pages) {
  uint32_t k;
  if (max_pages % MW_CHUNK_PAGES != 0 || max_pages > MW_MAX_POOL_PAGES) return MW_BUG;
  p->units = units;
  p->max_pages = max_pages;
  p->pages = 0;
  p->free_pages = 0;
  for (k = 0; k < MW_EXT_ORDERS; ++k) p->free[k] = MW_NOTHING;
  memset(units, 0, sizeof *units * (max_pages / MW_UNIT_PAGES));
  return MW_OK;
}

enum mw_status mw_pool_grow(struct mw_pool* p) {
  if (p->pages == p->max_pages) return MW_FULL;
  push(p, p->pages / MW_UNIT_PAGES, MW_EXT_MAX_ORDER);
  p->pages += MW_CHUNK_PAGES;
  p->free_pages += MW_CHUNK_PAGES;
  return MW_OK;
}

enum mw_status mw_pool_shrink(struct mw_pool* p) {
  uint32_t last;
  if (p->pages == 0) return MW_NONE;
  last = (p->pages - MW_CHUNK_PAGES) / MW_UNIT_PAGES;
  if (p->units[last].state != MW_UNIT_FREE || p->units[last].order != MW_EXT_MAX_ORDER)
    return MW_BUSY;
  unlink_free(p, last);
  p->pages -= MW_CHUNK_PAGES;
  p->free_pages -= MW_CHUNK_PAGES;
  return MW_OK;
}

uint32_t mw_pool_acquire(struct mw_pool* p, uint32_t order) {
  uint32_t from = order, i;
  if (order < MW_EXT_MIN_ORDER || order > MW_EXT_MAX_ORDER) return MW_EXT_NONE;
  while (from <= MW_EXT_MAX_ORDER && *list_of(p, from) == MW_NOTHING) ++from;
  if (from > MW_EXT_MAX_ORDER) return MW_EXT_NONE;
  i = *list_of(p, from);
  unlink_free(p, i);
  while (from > order) {
    --from;
    push(p, i + units_of(from), from);
  }
  p->units[i].order = (uint8_t)order;
  p->units[i].state = MW_UNIT_TAKEN;
  p->free_pages -= 1u << order;
  return mw_ext_of(i * MW_UNIT_PAGES, order);
}

uint32_t mw_pool_acquire_most(struct mw_pool* p, uint32_t order, uint32_t least) {
  for (; order >= least && order >= MW_EXT_MIN_ORDER; --order) {
    const uint32_t ext = mw_pool_acquire(p, order);
    if (ext != MW_EXT_NONE) return ext;
  }
  return MW_EXT_NONE;
}

enum mw_status mw_pool_release(struct mw_pool* p, uint32_t ext) {
  uint32_t order = mw_ext_order(ext);
  const uint32_t page = mw_ext_page(ext);
  uint32_t i = page / MW_UNIT_PAGES;
  if (page % MW_UNIT_PAGES != 0 || page >= p->pages) return MW_BUG;
  if (p->units[i].state != MW_UNIT_TAKEN || p->units[i].order != order) return MW_BUG;
  p->units[i].state = MW_UNIT_INSIDE;
  p->free_pages += 1u << order;
  for (; order < MW_EXT_MAX_ORDER; ++order) {
    const uint32_t buddy = i ^ units_of(order);
    if (p->units[buddy].state != MW_UNIT_FREE || p->units[buddy].order != order) break;
    unlink_free(p, buddy);
    if (buddy < i) i = buddy;
  }
  push(p, i, order);
  return MW_OK;
}

bool mw_area_find(const struct mw_area* a, uint32_t ext, struct mw_bytes* out) {
  const uint32_t order = mw_ext_order(ext);
  const uint32_t page = mw_ext_page(ext);
  if (order < MW_EXT_MIN_ORDER || order > MW_EXT_MAX_ORDER) return false;
  if (page >= a->pages || a->pages - page < (1u << order)) return false;
  out->data = a->data + (size_t)page * MW_PAGE;
  out->size = mw_ext_bytes(ext);
  return true;
}

enum mw_status mw_area_look(const struct mw_area* a, struct mw_consumer* c,
                            const uint32_t* shared_ext) {
  const uint32_t tail = mw_load_acquire32(c->shared_tail);
  if (mw_consumer_ready(c) == 0 && tail != c->tail &&
      !mw_area_find(a, mw_load_relaxed32(shared_ext), &c->mem))
    return MW_PEER;
  return mw_consumer_accept(c, tail);
}

void mw_writer_init(struct mw_writer* w, uint32_t* shared_tail, const uint32_t* shared_head,
                    uint32_t* shared_ext, uint32_t least) {
  mw_producer_init(&w->ring, shared_tail, shared_head);
  w->shared_ext = shared_ext;
  w->ext = MW_EXT_NONE;
  w->next = MW_EXT_NONE;
  w->order = w->least = (uint8_t)least;
  w->fulls = 0;
  w->full_told = false;
  w->idle = 0;
}

static void forget_extent(struct mw_writer* w) {
  w->ext = MW_EXT_NONE;
  w->ring.mem.data = NULL;
  w->ring.mem.size = 0;
  w->fulls = 0;
  w->full_told = false;
  w->idle = 0;
}

/* Requires: the ring is empty. */
static bool use_extent(struct mw_writer* w, const struct mw_area* a, uint32_t ext) {
  if (!mw_area_find(a, ext, &w->ring.mem)) return false;
  w->ext = ext;
  /* Seen by the reader with the next tail. */
  mw_store_relaxed32(w->shared_ext, ext);
  return true;
}

/* The ring is empty, and a larger extent waits for that. */
static enum mw_status move(struct mw_writer* w, struct mw_pool* p, const struct mw_area* a) {
  const uint32_t old = w->ext, next = w->next;
  w->next = MW_EXT_NONE;
  forget_extent(w);
  if (mw_pool_release(p, old) != MW_OK || !use_extent(w, a, next)) return MW_BUG;
  return MW_OK;
}

static void note_full(struct mw_writer* w, struct mw_pool* p) {
  if (w->full_told) return;
  w->full_told = true;
  if (++w->fulls < MW_FULLS_TO_DOUBLE || mw_ext_order(w->ext) == MW_EXT_MAX_ORDER) return;
  w->fulls = 0;
  /* Taken before the ring runs empty: without one, it need not. */
  w->next = mw_pool_acquire(p, mw_ext_order(w->ext) + 1);
  if (w->next != MW_EXT_NONE) w->order = (uint8_t)mw_ext_order(w->next);
}

enum mw_status mw_writer_begin(struct mw_writer* w, struct mw_pool* p, const struct mw_area* a,
                               uint32_t* room) {
  enum mw_status status;
  *room = 0;
  if (mw_producer_look(&w->ring) != MW_OK) return MW_PEER;
  if (w->ext == MW_EXT_NONE) {
    const uint32_t ext = mw_pool_acquire_most(p, w->order, w->least);
    if (ext == MW_EXT_NONE) return MW_FULL;
    if (!use_extent(w, a, ext)) return MW_BUG;
  }
  if (w->next != MW_EXT_NONE) {
    if (mw_producer_used(&w->ring) != 0) return MW_BUSY;
    status = move(w, p, a);
    if (status != MW_OK) return status;
  }
  *room = mw_producer_room(&w->ring);
  if (*room != 0) return MW_OK;
  note_full(w, p);
  return MW_BUSY;
}

void mw_writer_advance(struct mw_writer* w, uint32_t n) {
  if (n == 0) return;
  w->full_told = false;
  w->idle = 0;
  mw_producer_advance(&w->ring, n);
}

bool mw_writer_rest(struct mw_writer* w, struct mw_pool* p, bool is_tick) {
  uint32_t old, next;
  if (w->ext == MW_EXT_NONE || mw_producer_look(&w->ring) != MW_OK) return false;
  if (mw_producer_used(&w->ring) != 0) return false;
  if (is_tick && w->idle < MW_IDLE_TICKS) ++w->idle;
  if (w->idle < MW_IDLE_TICKS && !mw_pool_is_short(p)) return false;
  old = w->ext;
  next = w->next;
  w->next = MW_EXT_NONE;
  forget_extent(w);
  if (next != MW_EXT_NONE) (void)mw_pool_release(p, next);
  return mw_pool_release(p, old) == MW_OK;
}

uint32_t mw_writer_leave(struct mw_writer* w, struct mw_pool* p) {
  const uint32_t ext = w->ext;
  if (w->next != MW_EXT_NONE) (void)mw_pool_release(p, w->next);
  w->next = MW_EXT_NONE;
  forget_extent(w);
  return ext;
}
