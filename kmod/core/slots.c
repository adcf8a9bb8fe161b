#include "kmod/core/slots.h"

void mw_slots_init(struct mw_slots* s, struct mw_slot_entry* entries, struct mw_slot* shared,
                   uint32_t count) {
  uint32_t i;
  s->entries = entries;
  s->shared = shared;
  s->count = count;
  s->used = 0;
  s->closing = 0;
  for (i = 0; i < count; ++i) {
    entries[i].owner = NULL;
    entries[i].gen = 0;
    entries[i].ext = MW_EXT_NONE;
    entries[i].state = MW_SLOT_FREE;
  }
}

enum mw_status mw_slots_take(struct mw_slots* s, uint32_t slot, uint32_t gen, void* owner,
                             uint32_t* freed) {
  struct mw_slot_entry* e;
  *freed = MW_EXT_NONE;
  if (slot >= s->count || gen == 0) return MW_PEER;
  e = &s->entries[slot];
  if (e->state == MW_SLOT_USED || e->gen == gen) return MW_PEER;
  /* It sets the slot's generation before it names the slot. */
  if (mw_load_acquire32(&s->shared[slot].gen) != gen) return MW_PEER;
  if (e->state == MW_SLOT_CLOSING) {
    *freed = e->ext;
    --s->closing;
  }
  e->owner = owner;
  e->gen = gen;
  e->ext = MW_EXT_NONE;
  e->state = MW_SLOT_USED;
  ++s->used;
  return MW_OK;
}

void* mw_slots_find(const struct mw_slots* s, uint32_t slot, uint32_t gen) {
  if (slot >= s->count || s->entries[slot].gen != gen) return NULL;
  return mw_slots_owner(s, slot);
}

void* mw_slots_owner(const struct mw_slots* s, uint32_t slot) {
  if (slot >= s->count || s->entries[slot].state != MW_SLOT_USED) return NULL;
  return s->entries[slot].owner;
}

enum mw_status mw_slots_release(struct mw_slots* s, uint32_t slot, uint32_t gen, uint32_t ext) {
  struct mw_slot_entry* e;
  if (slot >= s->count) return MW_BUG;
  e = &s->entries[slot];
  if (e->state != MW_SLOT_USED || e->gen != gen) return MW_BUG;
  e->owner = NULL;
  e->ext = ext;
  e->state = MW_SLOT_CLOSING;
  --s->used;
  ++s->closing;
  return MW_OK;
}

bool mw_slots_reap(struct mw_slots* s, uint32_t slot, uint32_t* freed) {
  struct mw_slot_entry* e;
  *freed = MW_EXT_NONE;
  if (slot >= s->count) return false;
  e = &s->entries[slot];
  if (e->state != MW_SLOT_CLOSING) return false;
  if (mw_load_acquire32(&s->shared[slot].gen) == e->gen) return false;
  *freed = e->ext;
  e->ext = MW_EXT_NONE;
  e->state = MW_SLOT_FREE;
  --s->closing;
  return true;
}
