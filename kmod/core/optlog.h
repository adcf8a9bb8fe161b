/* optlog.h - the options that a socket was given, to give them to another INS's socket.
 *
 * PROBLEM     A listener or a datagram socket gets further ends in further INSs, and new ones when an
 *             INS dies. Each has to be as the application made the first.
 * PROMISE     Replaying the log in order makes the same socket. Of options that hold a value only the
 *             last one stays, at the place in the order where it was set last. Memberships and source
 *             filters add up: they stay until they are left.
 * INVARIANTS  Bounded by the caller's memory. An option that finds no room is not in the log, and the
 *             caller fails the call: a log with a hole would make another socket than the first.
 * THREADS     The socket's lock. */
#pragma once
#include "kmod/core/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An option; the value stands behind it, padded to a multiple of 4. */
struct mw_option {
  int32_t level;
  int32_t name;
  uint32_t len;
};

struct mw_optlog {
  uint8_t* bytes; /* aligned to 4 */
  uint32_t room;
  uint32_t used;
};

enum mw_option_kind {
  MW_OPTION_VALUE, /* the last value holds */
  MW_OPTION_JOIN,  /* adds a member that a leave with the same value takes away */
  MW_OPTION_LEAVE,
  MW_OPTION_FILTER, /* changes the sources of a group; ends with its membership */
  MW_OPTION_ACT,    /* does something once, and is not to be repeated */
};

enum mw_option_kind mw_option_kind(int32_t level, int32_t name);

void mw_optlog_init(struct mw_optlog* l, uint8_t* bytes, uint32_t room);
/* Whether add() would find room: asked before the INS is, so that a call which succeeds can be logged. */
bool mw_optlog_has_room(const struct mw_optlog* l, int32_t level, int32_t name,
                        const uint8_t* value, uint32_t len);
/* The option was set. Errors: MW_FULL (nothing was changed). */
enum mw_status mw_optlog_add(struct mw_optlog* l, int32_t level, int32_t name, const uint8_t* value,
                             uint32_t len);
/* The option at *at, 0 at first, and *at moves to the next. value points into the log. Errors:
 * MW_NONE (that was the last one). */
enum mw_status mw_optlog_next(const struct mw_optlog* l, uint32_t* at, struct mw_option* out,
                              const uint8_t** value);

#ifdef __cplusplus
}
#endif
