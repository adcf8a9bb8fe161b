/* record.h - accept records, which the INS puts into a listener's receive ring.
 *
 * TRUST       A record is copied once and checked field by field; what is handed out can be used.
 *             That its slot is not in use already is what mw_slots_take() checks.
 * THREADS     The caller holds the listener's lock. */
#pragma once
#include "abi/mw_call.h"
#include "kmod/core/ring.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is known of the listener whose ring it is. */
struct mw_listener {
  uint32_t family; /* MW_AF_INET or MW_AF_INET6 */
  uint32_t slot;
  uint32_t gen;
  uint32_t slots; /* that the channel has */
};

/* Connections that wait in the ring, as of the last look. */
uint32_t mw_records_waiting(const struct mw_consumer* c);

/* Takes the next record. One with MW_ACCEPT_ASK names the listener itself and no addresses: a
 * connection is to be fetched with MW_OP_ACCEPT. Errors: MW_NONE, MW_PEER. */
enum mw_status mw_record_take(struct mw_consumer* c, const struct mw_listener* l,
                              struct mw_accept_record* out);

/* Checks a record that came another way: in the answer to MW_OP_ACCEPT. Errors: MW_PEER. */
enum mw_status mw_record_check(const struct mw_listener* l, struct mw_accept_record* r);

#ifdef __cplusplus
}
#endif
