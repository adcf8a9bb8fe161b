/* base.h - types, string functions and results of the core, for the kernel and for userspace.
 *
 * RULE        The core allocates nothing, calls nothing but memcpy(), memmove(), memset() and
 *             memcmp(), and never waits. Memory comes from the caller. */
#pragma once
#ifdef __KERNEL__
#include <linux/string.h>
#include <linux/types.h>
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#endif
#include "abi/mw_types.h"

enum mw_status {
  MW_OK = 0,
  MW_NONE, /* there is nothing to take, or nothing of that name */
  MW_FULL, /* there is no room, or no memory is left */
  MW_BUSY, /* not yet: something has to happen first */
  MW_PEER, /* the other side broke the protocol: the channel is to be poisoned */
  MW_BUG,  /* the caller broke a precondition; nothing was changed */
};

#define MW_NOTHING 0xffffffffu /* no cell, no extent */
