/* slots.h - which socket of ours a slot of the channel belongs to.
 *
 * PROBLEM     The INS hands slots out: in answers to MW_OP_SOCKET and in accept records. It may be
 *             hostile and name one that is in use, and its news may be about any slot at any time.
 * INVARIANTS  A slot is ours from take to release. From release until the INS has freed it, the entry
 *             is closing and keeps the send extent, which the INS may still read. A generation names
 *             one socket: a slot is never taken twice with the same one.
 * TRUST       A slot number is range-checked here. The INS frees a slot by changing the shared `gen`;
 *             one that frees a slot early gives up its own bytes.
 * THREADS     The caller's lock. */
#pragma once
#include "abi/mw_slot.h"
#include "kmod/core/extents.h"

#ifdef __cplusplus
extern "C" {
#endif

enum mw_slot_state { MW_SLOT_FREE = 0, MW_SLOT_USED, MW_SLOT_CLOSING };

struct mw_slot_entry {
  void* owner; /* the socket, while it is used */
  uint32_t gen;
  uint32_t ext; /* while it is closing: its send ring's, or MW_EXT_NONE */
  uint32_t state;
};

struct mw_slots {
  struct mw_slot_entry* entries;
  struct mw_slot* shared;
  uint32_t count;
  uint32_t used;
  uint32_t closing;
};

void mw_slots_init(struct mw_slots* s, struct mw_slot_entry* entries, struct mw_slot* shared,
                   uint32_t count);
/* The INS named a new slot. freed: an extent that a former socket of the slot leaves, or
 * MW_EXT_NONE. Errors: MW_PEER (out of range, in use, a generation that is not the slot's or is not
 * new). */
enum mw_status mw_slots_take(struct mw_slots* s, uint32_t slot, uint32_t gen, void* owner,
                             uint32_t* freed);
/* The socket, if it is the one of this generation; else NULL. Any slot and generation may be asked
 * for. */
void* mw_slots_find(const struct mw_slots* s, uint32_t slot, uint32_t gen);
/* The socket that news about a slot is for, or NULL. */
void* mw_slots_owner(const struct mw_slots* s, uint32_t slot);
/* The socket is closed. Errors: MW_BUG (it is not that slot's). */
enum mw_status mw_slots_release(struct mw_slots* s, uint32_t slot, uint32_t gen, uint32_t ext);
/* News about a slot: true if it was closing and the INS has freed it. freed: its extent, or
 * MW_EXT_NONE. */
bool mw_slots_reap(struct mw_slots* s, uint32_t slot, uint32_t* freed);

#ifdef __cplusplus
}
#endif
