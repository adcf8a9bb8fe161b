/* addr.h - socket addresses that come from the other side.
 *
 * TRUST       An address is a private copy, made before; what stands in it is hostile. */
#pragma once
#include "abi/mw_call.h"
#include "kmod/core/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MW_AF_INET 2u
#define MW_AF_INET6 10u
#define MW_IN_BYTES 16u  /* struct sockaddr_in */
#define MW_IN6_BYTES 28u /* struct sockaddr_in6 */

/* MW_AF_INET or MW_AF_INET6 if these bytes are an address of that family, whole and no longer than
 * it; else 0. `bytes` has room for `len`. */
uint32_t mw_name_family(const uint8_t* bytes, uint32_t len);

/* The same of a struct mw_addr, whose bytes behind the address are cleared: nothing of the other
 * side's reaches the application there. */
uint32_t mw_addr_family(struct mw_addr* a);

#ifdef __cplusplus
}
#endif
