/* calls.h - the channel's call cells (abi/mw_call.h): which are free, which call each carries, and
 * what its answer is.
 *
 * TRUST       The INS may store anything into a cell at any time. What was asked is kept here; of the
 *             answer each word is read once, after done_seq, and checked against what was asked.
 * INVARIANTS  A cell is taken by one caller, and used again only after its last call was answered, so
 *             done_seq is either the number of the call that waits or the one before it.
 * ORDERING    Post: request, then seq with release, then the cell into call_news. Answer: done_seq
 *             with acquire, then the rest.
 * THREADS     The caller's lock, also in the drain of done_news. */
#pragma once
#include "abi/mw_call.h"
#include "kmod/core/atomic.h"

#ifdef __cplusplus
extern "C" {
#endif

enum mw_cell_state {
  MW_CELL_FREE = 0,
  MW_CELL_TAKEN,     /* somebody fills it */
  MW_CELL_WAITING,   /* posted, and its caller waits */
  MW_CELL_ABANDONED, /* posted, and its caller was killed */
};

struct mw_cell {
  void* waiter; /* the caller's, for whoever sees the answer first */
  uint32_t state;
  uint32_t seq;  /* of the last call */
  uint32_t done; /* of the last answered one */
  uint32_t op;
  uint32_t most_out; /* bytes that the answer may have */
  int32_t most_ret;
};

struct mw_calls {
  struct mw_cell* cells;
  struct mw_call* shared;
  uint32_t count;
  uint32_t next; /* where the search for a free cell begins */
  uint32_t busy;
  uint32_t lookups; /* of busy; at most half of the cells, as they may stay unanswered for long */
};

struct mw_request {
  uint32_t op;
  uint32_t slot;
  uint32_t gen;
  int32_t arg[4];
  uint32_t flags2;
  uint32_t caller;
  uint32_t sent_at;
  const void* in;
  uint32_t in_len;   /* at most MW_CALL_PAYLOAD */
  uint32_t most_out; /* bytes that the answer may have */
  int32_t most_ret;  /* what the call may return at most */
};

struct mw_answer {
  int32_t ret; /* -1 with an error, else from 0 to most_ret */
  int32_t err; /* 0, an errno value, or of a lookup an EAI_* value */
  uint32_t out_len;
};

#define MW_MAX_ERRNO 4095

/* The region is new: no cell has been used. Requires: count <= MW_MAX_CALLS. */
void mw_calls_init(struct mw_calls* t, struct mw_cell* cells, struct mw_call* shared,
                   uint32_t count);
/* Takes a cell for an operation; MW_NOTHING: none is free. */
uint32_t mw_calls_take(struct mw_calls* t, uint32_t op);
/* Gives back a cell that nothing was posted in. */
void mw_calls_give_back(struct mw_calls* t, uint32_t cell);
/* Writes the request. The caller then adds the cell to call_news. Errors: MW_BUG (the cell is not
 * taken, another operation, or a payload or answer that has no room). */
enum mw_status mw_calls_post(struct mw_calls* t, uint32_t cell, const struct mw_request* r,
                             void* waiter);
/* The cell is in done_news: who waits for it is to look. NULL: nobody does, and a cell whose caller is
 * gone is free again if that was its answer. Errors in *status: MW_PEER. */
void* mw_calls_on_news(struct mw_calls* t, uint32_t cell, enum mw_status* status);
/* Looks for the answer of a posted call; out has room for most_out bytes. With MW_OK the cell is free
 * again. Errors: MW_BUSY (not yet), MW_PEER, MW_BUG (nothing is posted). */
enum mw_status mw_calls_collect(struct mw_calls* t, uint32_t cell, struct mw_answer* a, void* out);
/* The caller of a posted call waits no longer. */
void mw_calls_abandon(struct mw_calls* t, uint32_t cell);

#ifdef __cplusplus
}
#endif
