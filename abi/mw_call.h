/* mw_call.h - a control call: the PVM fills a cell of the call table, the INS executes and answers
 * it. Spec: docs/protocol.md 5. Options, addresses, flags and errno values are Linux's own. */
#pragma once
#include "abi/mw_types.h"

/* Operations. `slot`/`gen` name the socket unless stated; `arg` meaning in brackets; in: payload of
 * the request; out: payload of the answer; `ret`/`err` are what the system call would return. */
enum mw_op {
  MW_OP_NONE = 0,
  MW_OP_SOCKET = 1,   /* [domain, type, protocol]; arrives with a placeholder; out: mw_new_socket */
  MW_OP_BIND = 2,     /* in: sockaddr */
  MW_OP_LISTEN = 3,   /* [backlog] */
  MW_OP_CONNECT = 4,  /* [1: the caller waits for the outcome]; in: sockaddr; never blocks:
                         EINPROGRESS, then MW_ST_CONNECTING clears */
  MW_OP_SHUTDOWN = 5, /* [how]; bytes already in the send ring leave first;
                         out: a byte if it was connecting and has given up */
  MW_OP_GETSOCKOPT = 6,  /* [level, name, optlen]; in: what the kernel reads of optval;
                            out: optval, ret 0, out_len = optlen */
  MW_OP_SETSOCKOPT = 7,  /* [level, name]; in: optval */
  MW_OP_GETSOCKNAME = 8, /* out: sockaddr */
  MW_OP_GETPEERNAME = 9, /* out: sockaddr */
  MW_OP_IOCTL = 10,      /* [request]; in: what the kernel reads of the argument, nothing if it is
                            not there; out: what it wrote (src/codec/socket_ioctl.h).
                            SIOCGIFCONF: [request, offset, length, 0: count only]; out: records,
                            or the length. SIOCETHTOOL: in: name, command; out: its structure */
  /* One message: [flags, name length, control length, data length]; in: name, then control, then,
   * if flag bit MW_SEND_INLINE of `flags2` is set, the data; else the data are the next bytes of
   * the send ring and the INS consumes them whatever the outcome. Datagrams and MSG_OOB. */
  MW_OP_SENDMSG = 11,
  /* What is not in the receive ring: [flags, name room, control room, data room] with MSG_OOB or
   * MSG_ERRQUEUE; out: mw_recv_head, name, control, data. */
  MW_OP_RECVMSG = 12,
  /* Host name lookup: slot unused, [family, flags, search]; in: NUL-terminated name; out: an array
   * of sockaddr (each mw_addr) and, after it, the canonical name; err is an EAI_* value. With
   * search 0 the INS's own search list holds; else it is 1 + ndots, and the domains to search stand
   * behind the name, each NUL-terminated. */
  MW_OP_RESOLVE = 13,
  /* Address to name: slot unused, [flags]; in: sockaddr; out: NUL-terminated name; err is EAI_*. */
  MW_OP_RESOLVE_ADDR = 14,
  /* A DNS message as it stands, for the INS's name servers: slot unused; in: the query; out: the
   * answer, cut after its question, with TC set, if it is longer than a payload; err is an errno
   * value. */
  MW_OP_QUERY = 15,
  /* The caller has closed its descriptor. Answered when the socket is closed and its peers are
   * reset, if that was the last one; else at once. */
  MW_OP_CLOSED = 16,
  /* A placeholder for a connection whose accept record came without one; arrives with its other
   * end, as MW_OP_SOCKET does; out: mw_new_socket, whose slot is the placeholder's number. */
  MW_OP_PLACEHOLDER = 17,
  /* Accepts a connection that an MW_ACCEPT_ASK record told of: the slot is the listener's; out: its
   * bare mw_accept_record. EAGAIN if it has gone. */
  MW_OP_ACCEPT = 18,
};

/* Operations that name no slot and may stay unanswered for long. */
static inline int mw_is_lookup(uint32_t op) {
  return op == MW_OP_RESOLVE || op == MW_OP_RESOLVE_ADDR || op == MW_OP_QUERY;
}

#define MW_CALL_BYTES 2048u
#define MW_CALL_PAYLOAD 1920u
#define MW_SEND_INLINE 1u
/* MW_OP_SENDMSG: more than any datagram has, so no data come along; the answer is the kernel's, and
 * what it puts into the error queue. */
#define MW_SEND_TOO_LONG 2u

struct mw_call {
  /* Written by the PVM before it announces the cell. */
  uint32_t op;
  uint32_t slot;
  uint32_t gen;
  uint32_t seq; /* never 0; differs from the cell's previous seq */
  int32_t arg[4];
  uint32_t in_len;
  uint32_t flags2;
  uint32_t caller;  /* thread id, for telemetry */
  uint32_t sent_at; /* when it was announced (src/ring/order.h) */
  uint8_t pad0[16];
  /* Written by the INS; done_seq last, with release. */
  uint32_t done_seq; /* == seq: answered. A futex word on one host. */
  uint32_t waiting;  /* the PVM sets 1 before it sleeps on done_seq */
  int32_t ret;
  int32_t err;
  uint32_t out_len;
  uint8_t pad1[44];
  uint8_t payload[MW_CALL_PAYLOAD];
};
MW_STATIC_ASSERT(sizeof(struct mw_call) == MW_CALL_BYTES, "frozen since protocol 1");
MW_STATIC_ASSERT(offsetof(struct mw_call, done_seq) == 64, "one writer per cache line");

/* An IPv4 or IPv6 socket address: sockaddr_in or sockaddr_in6 in `bytes`, `len` of them. */
struct mw_addr {
  uint32_t len;
  uint8_t bytes[28];
};
MW_STATIC_ASSERT(sizeof(struct mw_addr) == 32, "frozen since protocol 1");

struct mw_new_socket {
  uint32_t slot;
  uint32_t gen;
};

struct mw_recv_head {
  uint32_t name_len;
  uint32_t control_len;
  uint32_t data_len;
  int32_t flags;
};

/* Sent with the placeholder (SCM_RIGHTS on one host) over the listener's own placeholder. gen 0: no
 * connection but a token. */
#define MW_ACCEPT_MAGIC 0x4143574du
struct mw_accept_record {
  uint32_t magic;
  uint32_t slot;
  uint32_t gen;
  uint32_t
      flags; /* MW_ACCEPT_*, and from bit 8 on 1 + the number of the placeholder that came along */
  struct mw_addr local;
  struct mw_addr peer;
};
/* A wish of the listener's; of a record: the placeholder is non-blocking already. */
#define MW_ACCEPT_NONBLOCK 1u
/* The listener's wish: whoever accepts has placeholders in stock. Of a record: none came along. */
#define MW_ACCEPT_BARE 2u
/* Of a bare record: slot and gen are the listener's, and a connection may be had with MW_OP_ACCEPT. */
#define MW_ACCEPT_ASK 4u
#define MW_ACCEPT_PLACEHOLDER_SHIFT 8
MW_STATIC_ASSERT(sizeof(struct mw_accept_record) == 80, "frozen since protocol 1");

/* Sent with the INS's end of a new placeholder over the session's drop socket (one host). */
#define MW_DROP_MAGIC 0x4452574du
struct mw_drop_record {
  uint32_t magic;
  uint32_t call; /* the cell that holds MW_OP_SOCKET */
  uint32_t seq;
};
