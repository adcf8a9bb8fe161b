/* mw_types.h - the integer types of the shared region, for C11, C++20 and the kernel alike.
 * Spec: docs/protocol.md 1. Every field is fixed-width and little-endian as the host is; there are
 * no pointers and no bitfields; any byte pattern is a legal value of every structure in abi/. */
#pragma once
#ifdef __KERNEL__
#include <linux/stddef.h>
#include <linux/types.h>
#else
#include <stddef.h>
#include <stdint.h>
#endif
#ifdef __cplusplus
#define MW_STATIC_ASSERT static_assert
#else
#define MW_STATIC_ASSERT _Static_assert
#endif

#define MW_CACHE_LINE 64u
#define MW_PAGE 4096u
