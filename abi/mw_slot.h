/* mw_slot.h - the control lines of one socket, and the records of its rings.
 * Spec: docs/protocol.md 3. Indexes are free-running byte counts modulo 2^32, starting at
 * MW_INDEX_START in both rings of every new socket, just below the wrap on purpose.
 * Receive ring: INS writes, PVM reads. Send ring: PVM writes, INS reads. */
#pragma once
#include "abi/mw_types.h"

#define MW_INDEX_START 0xfffff000u
#define MW_MAX_WATCHES 16u
#define MW_WATCHES_IN_WORD 4u

/* want: set by the PVM before it sleeps, cleared by the INS when it acts. */
#define MW_WANT_TOKEN_IN 1u  /* put a token on the placeholder when input or state changes */
#define MW_WANT_TOKEN_OUT 2u /* ... when the send ring has room again or state changes */
#define MW_WANT_OUT_EVENT 4u /* announce to the watching groups when there is room again */
#define MW_WANT_RX_ROOM \
  8u /* set by the INS, cleared by the PVM: announce when the reader made room */
#define MW_WANT_HOLD \
  16u /* set and cleared by the PVM: it holds bytes back (TCP_CORK, MSG_MORE); the INS sends none
         until they are announced, a shutdown or a close comes, or it has waited long enough */
#define MW_WANT_CLOSED 32u /* wake whoever sleeps on `state` when the slot is free again */

/* state, written by the INS only */
#define MW_ST_OPEN 1u
#define MW_ST_CONNECTING 2u
#define MW_ST_CONNECTED 4u
#define MW_ST_LISTENING 8u
#define MW_ST_RCV_SHUT 16u  /* poll: RDHUP (the peer's FIN was seen, or shutdown(RD)) */
#define MW_ST_EOF 32u       /* nothing will follow the bytes now in the receive ring */
#define MW_ST_SND_SHUT 64u  /* our side was shut for writing */
#define MW_ST_CLOSED 128u   /* TCP state CLOSE, or both directions shut: poll HUP */
#define MW_ST_PRI 256u      /* urgent data pending */
#define MW_ST_ERRQ 512u     /* the error queue is not empty: poll ERR */
#define MW_ST_AT_MARK 1024u /* oob_mark is valid */
#define MW_ST_BEHIND \
  2048u /* bytes are still to come that stand before the pending error and the end */
#define MW_ST_FIN 4096u /* EOF is the peer's FIN: recv() tells it, and leaves an error to others */
#define MW_ST_FAILING \
  8192u /* an error is being published: nobody is told of it before the state that it brings */

/* The low half of claim: whose an accepted connection is. The INS sets it to NOBODY's; from there
 * it is changed once, by whichever side is first. */
#define MW_CLAIM_NOBODY 0u           /* it waits to be accepted */
#define MW_CLAIM_DROPPED 0xfffffffeu /* by the PVM: taken from the queue, but not accepted */
#define MW_CLAIM_REVOKED 0xffffffffu /* by the INS: whoever took it from the queue is dead */

static inline uint64_t mw_claim(uint32_t gen, uint32_t whose) {
  return (uint64_t)gen << 32 | whose;
}

struct mw_slot {
  /* The PVM's line. */
  uint32_t tx_tail;
  uint32_t rx_head;
  uint32_t want;
  union {
    uint32_t accept_flags; /* listener: MW_ACCEPT_*, what the last accept asked for */
    uint32_t sent_at;      /* others: when the PVM announced this socket (src/ring/order.h) */
  };
  uint32_t
      closed; /* accepted connection: its gen, once it is closed though its placeholder is not */
  uint32_t bound; /* of the placeholder with this number: 1 + the slot that it serves, or served */
  uint64_t claim; /* accepted connection: gen << 32 | MW_CLAIM_* or 1 + its placeholder's number */
  /* 16-bit numbers, each 0 or 1 + a group that wants this socket's news; none twice */
  uint64_t watches[MW_MAX_WATCHES / MW_WATCHES_IN_WORD];
  /* The INS's line. */
  uint32_t rx_tail;
  uint32_t tx_head;
  uint32_t state;
  uint32_t gen;
  int32_t error;      /* errno of the pending asynchronous error number error_seq */
  uint32_t error_seq; /* grows by one for each; the PVM remembers which it has delivered */
  uint32_t oob_mark;
  uint32_t rx_limit; /* the INS fills the receive ring up to this many bytes, and asks for room
                        until half of them are free */
  uint32_t told_at;  /* when the INS announced this socket to its groups (src/ring/order.h) */
  uint8_t pad1[28];
};
MW_STATIC_ASSERT(sizeof(struct mw_slot) == 128, "frozen since protocol 1");
MW_STATIC_ASSERT(offsetof(struct mw_slot, rx_tail) == 64, "one writer per cache line");

/* A received datagram in the receive ring: this head, then control_len bytes of control messages
 * (zeros may follow the last one), then data_len bytes; the next one starts mw_dgram_bytes() behind
 * this one. */
struct mw_dgram_head {
  uint32_t data_len;
  uint32_t control_len;
  int32_t flags; /* MSG_TRUNC, MSG_CTRUNC as the kernel reported them to the INS */
  uint32_t name_len;
  uint8_t name[32];
};
MW_STATIC_ASSERT(sizeof(struct mw_dgram_head) == 48, "frozen since protocol 1");

/* What a datagram takes of the ring: no less than Linux counts it for against SO_RCVBUF, so that a
 * limit of the ring's bytes bounds small datagrams as the kernel's limit does. A multiple of 8. */
static inline uint64_t mw_dgram_bytes(uint64_t control_len, uint64_t data_len) {
  const uint64_t least = data_len <= 192    ? 832
                         : data_len <= 640  ? 1280
                         : data_len <= 1664 ? 2304
                                            : 0;
  const uint64_t bytes = (sizeof(struct mw_dgram_head) + control_len + data_len + 7) & ~(uint64_t)7;
  return bytes < least ? least : bytes;
}
