/* mw_region.h - what is where in the shared region.
 * Spec: docs/protocol.md 2. The layout is a pure function of the geometry; both ends compute it
 * from a private copy that they checked, and never from the region afterwards. */
#pragma once
#include "abi/mw_call.h"
#include "abi/mw_ready_set.h"
#include "abi/mw_slot.h"
#include "abi/mw_types.h"

#define MW_MAGIC 0x31434d574d6f636dull
#define MW_PROTOCOL_VERSION 1u
#define MW_PROTOCOL_MIN 1u

#define MW_MAX_SLOTS MW_READY_MAX_BITS
#define MW_MIN_RING 4096u
#define MW_MAX_RING (16u * 1024u * 1024u)
#define MW_MAX_GROUPS 4096u
#define MW_MAX_WORKERS 16u
#define MW_MAX_CALLS 4096u

struct mw_geometry {
  uint32_t slots;
  uint32_t rx_ring; /* bytes, a power of two */
  uint32_t tx_ring; /* bytes, a power of two */
  uint32_t groups;
  uint32_t workers;
  uint32_t calls;
  uint32_t reserved[2]; /* 0 */
};

struct mw_region_header {
  uint64_t magic;
  uint32_t version;
  uint32_t features;
  struct mw_geometry geometry;
  uint64_t bytes;
};

struct mw_layout {
  uint64_t sock_news;  /* [workers] ready sets over slots, PVM to INS: sent bytes, room made */
  uint64_t call_news;  /* [workers] ready sets over calls, PVM to INS */
  uint64_t group_news; /* [groups] ready sets over slots, INS to PVM */
  uint64_t calls;      /* [calls] struct mw_call */
  uint64_t slots;      /* [slots] struct mw_slot */
  uint64_t rings;      /* [slots] receive ring, then send ring */
  uint64_t sock_news_stride;
  uint64_t call_news_stride;
  uint64_t group_news_stride;
  uint64_t ring_stride;
  uint64_t bytes;
};

static inline int mw_is_pow2(uint32_t v) {
  return v != 0 && (v & (v - 1)) == 0;
}

/* Returns 0 and fills *out, or -1 if the geometry is not acceptable. */
static inline int mw_layout_of(const struct mw_geometry* g, struct mw_layout* out) {
  uint64_t at = MW_PAGE;
  if (g->slots < 1 || g->slots > MW_MAX_SLOTS || g->groups < 1 || g->groups > MW_MAX_GROUPS ||
      g->workers < 1 || g->workers > MW_MAX_WORKERS || g->calls < 1 || g->calls > MW_MAX_CALLS)
    return -1;
  if (!mw_is_pow2(g->rx_ring) || g->rx_ring < MW_MIN_RING || g->rx_ring > MW_MAX_RING ||
      !mw_is_pow2(g->tx_ring) || g->tx_ring < MW_MIN_RING || g->tx_ring > MW_MAX_RING)
    return -1;
  if (g->reserved[0] != 0 || g->reserved[1] != 0) return -1;
  out->sock_news_stride = mw_ready_set_bytes(g->slots);
  out->call_news_stride = mw_ready_set_bytes(g->calls);
  out->group_news_stride = mw_ready_set_bytes(g->slots);
  out->ring_stride = (uint64_t)g->rx_ring + g->tx_ring;
  out->sock_news = at;
  at += out->sock_news_stride * g->workers;
  out->call_news = at;
  at += out->call_news_stride * g->workers;
  out->group_news = at;
  at += out->group_news_stride * g->groups;
  out->calls = at;
  at += (uint64_t)sizeof(struct mw_call) * g->calls;
  out->slots = at;
  at += (uint64_t)sizeof(struct mw_slot) * g->slots;
  at = (at + MW_PAGE - 1) / MW_PAGE * MW_PAGE;
  out->rings = at;
  at += out->ring_stride * g->slots;
  out->bytes = at;
  return 0;
}
