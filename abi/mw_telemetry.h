/* mw_telemetry.h - what an INS tells the driver about the calls that it executes.
 * Spec: docs/protocol.md 9. One ring for each worker of the INS, in memory that the application
 * never sees. The INS writes records and never waits: what does not fit is counted. The driver
 * reads them. */
#pragma once
#include "abi/mw_types.h"

#define MW_TELEMETRY_RECORDS 32768u /* of one ring; a power of two */

/* Indexes count records, modulo 2^32, starting at MW_TELEMETRY_START in a new ring. */
#define MW_TELEMETRY_START 0xffffff00u

struct mw_telemetry_header {
  /* The driver's, changed rarely: what the INS looks at for every call. */
  uint32_t
      epoch; /* 0: nobody listens. Else the number of the monitoring period, never used before */
  uint32_t muted; /* 1: nobody keeps up; records of received and sent bytes are counted only */
  uint32_t round; /* the round of samples that is wanted now; any other number than the last one */
  uint8_t pad0[52];
  /* The driver's. */
  uint32_t head;
  uint32_t sleeping; /* 1: ring the doorbell after the next records, and clear this */
  uint8_t pad1[56];
  /* The INS's. */
  uint32_t tail;
  uint32_t round_done; /* == round: every socket of this worker has its row */
  uint64_t dropped;    /* records that were not written, since the ring was made */
  uint32_t rows_end;   /* all rows of this worker are below */
  uint8_t pad3[44];
};
MW_STATIC_ASSERT(sizeof(struct mw_telemetry_header) == 192, "frozen since protocol 1");

/* Kinds. 1 to 7 are the NetFlow interface's observations. */
#define MW_TEL_TOTALS 0u /* the running totals of a socket and its `conn`, unasked */
#define MW_TEL_CREATE 1u
#define MW_TEL_BIND 2u
#define MW_TEL_ACCEPT \
  3u /* slot: the listener; extra: generation of the new socket, whose WHO came before */
#define MW_TEL_CONNECT 4u
#define MW_TEL_RECV 5u
#define MW_TEL_SEND 6u
#define MW_TEL_CLOSE 7u /* extra: MW_TEL_CUT_*, or 0 */
/* Who a socket is: before its first other record in a period, and again when an endpoint changed.
 * `now` is when it was made; extra holds MW_TEL_WHO_* bits. */
#define MW_TEL_WHO 16u
/* Every socket of this worker that was there when the period `gen` began has been introduced. */
#define MW_TEL_ALL_TOLD 17u

/* Why the INS closed it. */
#define MW_TEL_CUT_MIN_RATE_IN 1u
#define MW_TEL_CUT_MIN_RATE_OUT 2u

#define MW_TEL_WHO_DATAGRAM 1u
#define MW_TEL_WHO_LISTENER 2u

/* How a connection stands, in every record of an event: what is known to have happened to it. */
#define MW_CONN_INBOUND 1u /* it was accepted */
#define MW_CONN_ESTABLISHED 2u
#define MW_CONN_PEER_FIN 4u
#define MW_CONN_OUR_FIN 8u
#define MW_CONN_PEER_RST 16u /* without ESTABLISHED: the attempt was refused */
#define MW_CONN_OUR_RST 32u
#define MW_CONN_CUT 64u /* by the INS, and not by the application */
#define MW_CONN_ALL 127u

struct mw_telemetry_endpoint {
  uint16_t family; /* AF_INET, AF_INET6 */
  uint16_t port;   /* host byte order */
  uint8_t address[16];
};

struct mw_telemetry_record {
  uint32_t kind;
  uint32_t slot;
  uint32_t gen;
  uint32_t extra;
  uint64_t now; /* CLOCK_REALTIME, nanoseconds */
  union {
    struct {
      uint64_t bytes_in;
      uint64_t bytes_out;
      uint32_t conn; /* MW_CONN_* */
      uint8_t pad[20];
    } event;
    struct {
      struct mw_telemetry_endpoint local;
      struct mw_telemetry_endpoint remote;
    } who;
  } u;
};
MW_STATIC_ASSERT(sizeof(struct mw_telemetry_record) == 64, "one cache line");

/* Row flags. */
#define MW_ROW_LISTENER 1u
#define MW_ROW_INBOUND 2u
#define MW_ROW_TCP 4u /* the members from tcp_state on are true */
#define MW_ROW_PAUSED 8u
#define MW_ROW_PACED 16u
#define MW_ROW_MIN_RATE 32u
#define MW_ROW_DATAGRAM 64u

#define MW_NEVER 0xffffffffu

/* A socket as it stood in a round, in the row of its slot behind the rings. Ages are milliseconds
 * before the row was written, MW_NEVER: it never happened. */
struct mw_sample_row {
  uint32_t seq; /* odd while the row is being written */
  uint32_t gen;
  uint32_t round;
  uint32_t flags;
  struct mw_telemetry_endpoint local;
  struct mw_telemetry_endpoint remote;
  uint64_t bytes_in;
  uint64_t bytes_out;
  uint32_t calls_in;
  uint32_t calls_out;
  uint32_t age;
  uint32_t first_in;
  uint32_t last_in;
  uint32_t first_out;
  uint32_t last_out;
  uint32_t unread;
  uint32_t unsent;
  uint32_t queue;
  uint32_t backlog;
  uint32_t tcp_state;
  uint32_t rtt_us;
  uint32_t rttvar_us;
  uint32_t min_rtt_us;
  uint32_t snd_wnd;
  uint32_t notsent;
  uint32_t unacked;
  uint32_t total_retrans;
  uint32_t probes;
  uint32_t backoff;
  uint32_t last_data_recv;
  uint32_t last_data_sent;
  uint32_t last_ack_recv;
  uint64_t bytes_acked;
  uint64_t bytes_received;
  uint64_t bytes_retrans;
  uint64_t busy_us;
  uint64_t rwnd_limited_us;
  uint64_t sndbuf_limited_us;
  uint64_t delivery_rate;
  uint8_t pad[32];
};
MW_STATIC_ASSERT(sizeof(struct mw_sample_row) == 256, "four cache lines");
MW_STATIC_ASSERT(offsetof(struct mw_sample_row, bytes_acked) == 168, "no holes");

#define MW_TELEMETRY_STRIDE \
  (MW_PAGE + (uint64_t)sizeof(struct mw_telemetry_record) * MW_TELEMETRY_RECORDS)

/* The whole memory: a ring for each worker, then a row for each slot. */
static inline uint64_t mw_telemetry_bytes(uint32_t workers, uint32_t slots) {
  return MW_TELEMETRY_STRIDE * workers + (uint64_t)sizeof(struct mw_sample_row) * slots;
}
