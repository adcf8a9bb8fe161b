/* mw_ready_set.h - a set of small integers that one side adds to and the other drains.
 * Spec: docs/protocol.md 4. Announces which sockets or calls have news. It is a bitmap of three
 * levels: bit i of level 0 is member i; a bit of level n+1 says "that word of level n may be
 * non-zero". Adding sets the bits from the bottom up, draining clears them from the top down, both
 * with read-modify-write operations; so a set bit is never missed and adding twice costs nothing.
 * There is nothing to reserve: a producer killed at any instruction blocks nobody. */
#pragma once
#include "abi/mw_types.h"

#define MW_READY_MAX_BITS (64u * 64u * 64u)

struct mw_ready_set {
  /* Consumers that sleep or are about to; the producer rings only if it is not 0. */
  uint32_t sleepers;
  /* 1 from a ring until the woken consumer looked: no second ring is needed meanwhile. */
  uint32_t rung;
  /* 1 while a consumer watches the set without sleeping: it needs no ring, and it is at rest. */
  uint32_t watched;
  /* 1 once a producer wants to know when the consumer is done with what it added. From then on the
   * consumer counts its turns, each of which ends with a look at what the kernel has for it. */
  uint32_t asked;
  uint32_t turns;
  /* How often the consumer found by its clock alone what it should have been rung for, or what a
   * sleeper should have been. Each one is a fault of this program. */
  uint32_t repairs;
  uint8_t pad0[40];
  uint64_t top;
  uint8_t pad1[56];
  uint64_t mid[64];
  /* level 0 follows: ceil(bits / 64) words of 64 bits */
};
MW_STATIC_ASSERT(sizeof(struct mw_ready_set) == 640, "frozen since protocol 1");

static inline uint64_t mw_ready_set_bytes(uint32_t bits) {
  uint64_t words = (bits + 63u) / 64u;
  uint64_t bytes = sizeof(struct mw_ready_set) + words * 8u;
  return (bytes + MW_PAGE - 1) / MW_PAGE * MW_PAGE;
}
