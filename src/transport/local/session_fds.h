// session_fds.h - the descriptors that make a session, made once by the front end and kept by it
// for the session's life, so that a driver can be started again with the same ones.
#pragma once

#include <string>
#include <vector>

#include "abi/mw_region.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

// Fits 100 000 connections; memory is used where it is touched. Rings of half a MiB: one stream
// then moves as fast as natively in both directions; half of that lost a third of the rate to
// sleeps.
constexpr mw_geometry kDefaultGeometry{.slots = 131072,
                                       .rx_ring = 512 * 1024,
                                       .tx_ring = 512 * 1024,
                                       .groups = 256,
                                       .workers = 1,
                                       .calls = 1024,
                                       .reserved = {0, 0}};

struct SessionFds {
  UniqueFd channel;             // region A, header filled in
  UniqueFd session;             // region B, header filled in
  UniqueFd attach;              // listening abstract SEQPACKET socket "\0" + attach_name
  UniqueFd drop_pvm;            // the shims send the INS's ends of new placeholders here
  UniqueFd drop_ins;            // ... and the INS receives them here
  std::vector<UniqueFd> bells;  // one eventfd for each worker of the INS
  std::string attach_name;
};

// Makes all of them for a session of this name. Errors: peer (geometry), sys.
Result<SessionFds> make_session_fds(const std::string& session, const mw_geometry& geometry);

}  // namespace mw
