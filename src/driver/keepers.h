// keepers.h - what the driver needs privileges for that it does not keep: two small processes with one
// kind of request each.
//
// PURPOSE     The driver parses what strangers send. The rights to start programs, to enter network
//             namespaces and to change packet filters stay with processes that parse nothing else
//             than these requests.
// TRUST       The driver is hostile. What is started is fixed at the beginning; a block is an address
//             in one set of one table, in a network namespace that is not ours.
// INVARIANTS  A keeper ends with the driver. It has no other descriptor than its end and the standard
//             three.
// THREADS     start() while there is one thread.
#pragma once

#include "base/result.h"
#include "base/unique_fd.h"
#include "driver/options.h"
#include "netflow/wire.h"

namespace mw {

// The driver's ends of SEQPACKET pairs.
struct Keepers {
  UniqueFd front_end;  // starts `mw adopt`
  UniqueFd blocks;     // changes which peers an INS's network namespace lets in

  // `argv`: of this process, which a keeper overwrites: it is no driver. May be null. Errors: sys.
  static Result<Keepers> start(const DriverOptions& options, int argc, char** argv);
};

// Asks for a front end of the session. Returns its pid; sys: it cannot be started.
Result<pid_t> ask_for_front_end(int keeper);

enum class BlockOp : uint32_t { block = 1, let_in = 2, clear = 3 };

struct BlockRequest {  // with the network namespace's descriptor
  BlockOp op;
  netflow::Address address;  // not for clear
};
struct BlockAnswer {
  uint32_t err;    // 0: in force
  int32_t status;  // of nft, if that failed
};

// The transaction that makes the table if need be and lets the address in or not.
std::string block_ruleset(const netflow::Address& address, bool block);
// The one that makes it if need be and lets everybody in.
std::string clear_ruleset();

}  // namespace mw
