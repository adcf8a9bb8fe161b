#include "ins/tables/decode.h"

#include <cstring>

#include "codec/socket_ioctl.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

Error violation(const char* what) {
  return {Fault::peer, 0, what};
}

}  // namespace

Status copy_request(mw_call& cell, Request& out) {
  out.op = A::load_relaxed(cell.op);
  out.slot = A::load_relaxed(cell.slot);
  out.gen = A::load_relaxed(cell.gen);
  out.seq = A::load_relaxed(cell.seq);
  for (int i = 0; i < 4; ++i) out.arg[i] = A::load_relaxed(cell.arg[i]);
  out.in_len = A::load_relaxed(cell.in_len);
  out.flags2 = A::load_relaxed(cell.flags2);
  if (out.in_len > MW_CALL_PAYLOAD) return violation("request longer than its cell");
  std::memcpy(out.payload, cell.payload, out.in_len);
  // From here on the copy counts: the compiler may not go back to the cell.
  asm volatile("" ::: "memory");
  return Ok{};
}

Status check_request(const Request& r, const mw_geometry& geometry, uint32_t worker) {
  if (names_a_slot(r.op)) {
    if (r.slot >= geometry.slots) return violation("call about a slot that does not exist");
    if (r.slot % geometry.workers != worker) return violation("call sent to the wrong worker");
  }
  const auto len = [&r](int i) { return static_cast<uint32_t>(r.arg[i]); };
  switch (r.op) {
    case MW_OP_SOCKET:
    case MW_OP_PLACEHOLDER:
      return violation("a placeholder's call without the placeholder");
    case MW_OP_BIND:
    case MW_OP_CONNECT:
    case MW_OP_RESOLVE_ADDR:
      if (r.in_len > 128) return violation("address longer than any");
      return Ok{};
    case MW_OP_LISTEN:
    case MW_OP_SHUTDOWN:
    case MW_OP_GETSOCKNAME:
    case MW_OP_GETPEERNAME:
    case MW_OP_SETSOCKOPT:
    case MW_OP_CLOSED:
    case MW_OP_ACCEPT:
      return Ok{};
    case MW_OP_GETSOCKOPT:
      if (r.arg[2] >= 0 && r.in_len > MW_CALL_PAYLOAD) return violation("option value too long");
      return Ok{};
    case MW_OP_IOCTL:
      if (r.in_len > kMostIoctlBytes) return violation("ioctl argument too long");
      return Ok{};
    case MW_OP_SENDMSG: {
      // Each is at most 32 bits and the sum is taken in 64, so nothing wraps.
      const uint64_t head = uint64_t{len(1)} + len(2);
      const bool inlined = (r.flags2 & MW_SEND_INLINE) != 0;
      if (head + (inlined ? len(3) : 0) != r.in_len) return violation("message lengths disagree");
      if (len(1) > 128) return violation("address longer than any");
      if ((r.flags2 & MW_SEND_TOO_LONG) != 0) {
        if (inlined || len(3) <= UINT16_MAX || r.arg[3] < 0)
          return violation("message that is not too long");
        return Ok{};
      }
      if (!inlined && len(3) > geometry.tx_ring) return violation("message longer than the ring");
      return Ok{};
    }
    case MW_OP_RECVMSG: {
      const uint64_t room = sizeof(mw_recv_head) + uint64_t{len(1)} + len(2) + len(3);
      if (room > MW_CALL_PAYLOAD) return violation("more room than a cell has");
      return Ok{};
    }
    case MW_OP_RESOLVE:
      if (r.in_len == 0 || r.in_len > 1024 || r.payload[r.in_len - 1] != 0 ||
          (r.arg[2] == 0 && std::memchr(r.payload, 0, r.in_len) != r.payload + r.in_len - 1))
        return violation("host name without its end");
      if (r.arg[2] < 0 || r.arg[2] > 16) return violation("dots of a search list");
      return Ok{};
    case MW_OP_QUERY:
      if (r.in_len < kDnsHeaderBytes) return violation("query without a header");
      return Ok{};
    default:
      return violation("unknown operation");
  }
}

}  // namespace mw
