#include "kmod/core/addr.h"

uint32_t mw_name_family(const uint8_t* bytes, uint32_t len) {
  uint16_t family;
  if (len != MW_IN_BYTES && len != MW_IN6_BYTES) return 0;
  memcpy(&family, bytes, sizeof family);
  if (family == MW_AF_INET && len == MW_IN_BYTES) return MW_AF_INET;
  if (family == MW_AF_INET6 && len == MW_IN6_BYTES) return MW_AF_INET6;
  return 0;
}

uint32_t mw_addr_family(struct mw_addr* a) {
  const uint32_t family = a->len <= sizeof a->bytes ? mw_name_family(a->bytes, a->len) : 0;
  if (family != 0) memset(a->bytes + a->len, 0, sizeof a->bytes - a->len);
  return family;
}
