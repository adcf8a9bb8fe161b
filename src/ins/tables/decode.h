// decode.h - a request as it stands in a call cell, copied once and checked; no I/O.
//
// TRUST       Every byte of a cell is the PVM's choice and may change while we look. Whoever
//             executes a request works on the private copy made here and never looks at the cell
//             again.
#pragma once

#include <cstdint>
#include <span>

#include "abi/mw_region.h"
#include "base/result.h"

namespace mw {

struct Request {
  uint32_t op = 0;
  uint32_t slot = 0;
  uint32_t gen = 0;
  uint32_t seq = 0;
  int32_t arg[4] = {};
  uint32_t in_len = 0;
  uint32_t flags2 = 0;
  uint8_t payload[MW_CALL_PAYLOAD];
};

struct Answer {
  int32_t ret = 0;
  int32_t err = 0;
  uint32_t out_len = 0;
  uint8_t payload[MW_CALL_PAYLOAD];
};

constexpr uint32_t kDnsHeaderBytes = 12;

// Copies the request out of its cell. Errors: peer (its length cannot be; the head was copied all
// the same).
Status copy_request(mw_call& cell, Request& out);

// What no honest PVM sends: unknown operations, slots that do not exist or belong to another
// worker, lengths that contradict each other. Errors: peer.
Status check_request(const Request& r, const mw_geometry& geometry, uint32_t worker);

inline bool names_a_slot(uint32_t op) {
  return !mw_is_lookup(op) && op != MW_OP_SOCKET && op != MW_OP_PLACEHOLDER;
}

}  // namespace mw
