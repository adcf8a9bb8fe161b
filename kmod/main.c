// SPDX-License-Identifier: GPL-2.0
/* main.c - the module mwcomms.
 *
 * So far it holds the core and offers no sockets. Loading it tries the core in this kernel, on memory
 * of its own: each operation on shared words, a ready set, a ring in an extent, a call. A kernel where
 * one of them does not do what it should refuses the module. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "kmod/core/calls.h"
#include "kmod/core/extents.h"
#include "kmod/core/optlog.h"
#include "kmod/core/record.h"
#include "kmod/core/rset.h"
#include "kmod/core/slots.h"

#define TRIED_BITS 4096u

struct trial {
  struct mw_slot slot;
  struct mw_call call;
  struct mw_cell cell;
  struct mw_slot_entry entry;
  struct mw_unit units[MW_CHUNK_PAGES / MW_UNIT_PAGES];
  uint32_t ext;
  uint32_t members;
  uint32_t word;
};

static void count_member(void* arg, uint32_t member) {
  struct trial* const t = arg;
  if (member < TRIED_BITS) ++t->members;
}

static bool try_words(struct trial* t) {
  bool good;
  mw_store_release32(&t->word, 0x80000000u);
  mw_set_bit32(&t->word, 0);
  good = mw_load_acquire32(&t->word) == 0x80000001u;
  good = good && mw_test_and_clear_bit32(&t->word, 31) && !mw_test_and_clear_bit32(&t->word, 31);
  return good && mw_xchg32(&t->word, 7) == 1 && mw_load_seq32(&t->word) == 7;
}

static bool try_set(struct trial* t, void* memory) {
  struct mw_rset_taken taken = {0};
  struct mw_rset set;
  uint32_t i;
  mw_rset_init(&set, memory, TRIED_BITS);
  mw_rset_stay_asleep(&set);
  if (!mw_rset_add(&set, 0)) return false;
  for (i = 1; i < TRIED_BITS; ++i) {
    if (mw_rset_add(&set, i)) return false;
  }
  mw_rset_on_ring(&set);
  while (!mw_rset_drain(&set, &taken, 64, count_member, t)) {
  }
  return t->members == TRIED_BITS;
}

static bool try_ring(struct trial* t, uint8_t* memory) {
  static const char text[] = "mwcomms";
  const struct mw_area area = {.data = memory, .pages = 1u << MW_EXT_MIN_ORDER};
  struct mw_consumer reader;
  struct mw_writer writer;
  struct mw_pool pool;
  char got[sizeof text];
  uint32_t room;
  if (mw_pool_init(&pool, t->units, MW_CHUNK_PAGES) != MW_OK || mw_pool_grow(&pool) != MW_OK)
    return false;
  t->slot.rx_head = t->slot.rx_tail = MW_INDEX_START;
  mw_writer_init(&writer, &t->slot.rx_tail, &t->slot.rx_head, &t->ext, MW_EXT_MIN_ORDER);
  mw_consumer_init(&reader, &t->slot.rx_tail, &t->slot.rx_head);
  if (mw_writer_begin(&writer, &pool, &area, &room) != MW_OK || room < sizeof text) return false;
  mw_bytes_put(&writer.ring.mem, writer.ring.tail, text, sizeof text);
  mw_writer_advance(&writer, sizeof text);
  if (mw_area_look(&area, &reader, &t->ext) != MW_OK || mw_consumer_ready(&reader) != sizeof text)
    return false;
  mw_consumer_get(&reader, got, sizeof got);
  return memcmp(got, text, sizeof text) == 0;
}

static bool try_call(struct trial* t) {
  const struct mw_request request = {.op = MW_OP_GETSOCKNAME, .slot = 3, .gen = 9};
  struct mw_calls calls;
  struct mw_answer answer;
  uint32_t cell;
  mw_calls_init(&calls, &t->cell, &t->call, 1);
  cell = mw_calls_take(&calls, request.op);
  if (cell != 0 || mw_calls_post(&calls, cell, &request, t) != MW_OK) return false;
  if (mw_calls_collect(&calls, cell, &answer, NULL) != MW_BUSY) return false;
  t->call.ret = -1;
  t->call.err = ENOTCONN;
  mw_store_release32(&t->call.done_seq, t->call.seq);
  return mw_calls_collect(&calls, cell, &answer, NULL) == MW_OK && answer.err == ENOTCONN;
}

static bool try_slot(struct trial* t) {
  struct mw_slots slots;
  uint32_t freed;
  mw_slots_init(&slots, &t->entry, &t->slot, 1);
  t->slot.gen = 5;
  return mw_slots_take(&slots, 0, 5, t, &freed) == MW_OK && mw_slots_find(&slots, 0, 5) == t &&
         mw_slots_take(&slots, 0, 5, t, &freed) == MW_PEER;
}

static int __init mwcomms_init(void) {
  const size_t bytes = (size_t)MW_PAGE << MW_EXT_MIN_ORDER;
  struct trial* const t = kzalloc(sizeof *t, GFP_KERNEL);
  uint8_t* const memory = kvzalloc(bytes, GFP_KERNEL);
  int err = -ENOMEM;
  if (t != NULL && memory != NULL) {
    err = try_words(t) && try_set(t, memory) && try_ring(t, memory) && try_call(t) && try_slot(t)
              ? 0
              : -EIO;
    if (err != 0) pr_err("the core does not work in this kernel\n");
  }
  kvfree(memory);
  kfree(t);
  return err;
}

static void __exit mwcomms_exit(void) {}

module_init(mwcomms_init);
module_exit(mwcomms_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("MwComms: sockets that isolated network stacks execute");
