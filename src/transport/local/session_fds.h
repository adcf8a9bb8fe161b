// session_fds.h - the descriptors that make a session, made once by the front end and kept by it
// for the session's life, so that a driver can be started again with the same ones.
//
// The driver holds them as well, and hands them over if the front end dies and another one comes
// for the session: front end and driver each survive the other's death.
//
// TRUST       A driver hands over to its own user or root only, and only while the session has no
//             front end; who takes checks the driver the same way, and each descriptor's role.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "abi/mw_region.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

// Fits 100 000 connections; memory is used where it is touched. With a send ring of half a MiB one
// stream leaves as fast as natively; with half of that it lost a third of the rate to sleeps.
constexpr mw_geometry kDefaultGeometry{.slots = 131072,
                                       .rx_ring = 256 * 1024,
                                       .tx_ring = 512 * 1024,
                                       .groups = 1024,
                                       .workers = 1,
                                       .calls = 1024,
                                       .reserved = {0, 0}};

// Of region B, as a process that maps it shows it in /proc/PID/maps.
constexpr const char* kSessionMemoryName = "mw-session";

struct SessionFds {
  UniqueFd channel;             // region A, header filled in
  UniqueFd session;             // region B, header filled in
  UniqueFd attach;              // listening abstract SEQPACKET socket "\0" + attach_name
  UniqueFd placeholders;        // listening STREAM socket, at that name with kPlaceholderSuffix
  UniqueFd drop_pvm;            // the shims send the INS's ends of new placeholders here
  UniqueFd drop_ins;            // ... and the INS receives them here
  std::vector<UniqueFd> bells;  // one eventfd for each worker of the INS
  UniqueFd store_in,
      store_out;               // where a driver leaves what the next one needs (driver/fd_store.h)
  std::vector<UniqueFd> kept;  // the front end's own (ports that it holds), of no use to a driver
  std::string attach_name;
};

// Makes all of them for a session of this name. Its processes reach the sockets that have a name in the
// network namespace of the caller. Errors: peer (geometry), sys.
Result<SessionFds> make_session_fds(const std::string& session, const mw_geometry& geometry);

// ---- from a driver to the front end that adopts its session ----

using SessionToken = std::array<uint8_t, 16>;

enum class SessionFdRole : uint32_t {
  channel,
  session,
  attach,
  placeholders,
  drop_pvm,
  drop_ins,
  bell,
  store_in,
  store_out,
  kept,
  end  // of the list; comes without a descriptor
};

struct SessionFdRef {
  SessionFdRole role;
  int fd;
};

constexpr size_t kMaxKeptFds = 256;

// The socket in a session's folder that a driver listens on for this.
constexpr const char* kAdoptFolder = "mw/pvm";
constexpr const char* kAdoptSocket = "adopt";

// Sends all of it without blocking. Errors: would_block, shutdown, sys.
Status hand_over(int socket, const SessionToken& token, std::span<const SessionFdRef> fds);

struct AdoptedSession {
  SessionFds fds;
  SessionToken token;
};

// Asks the driver of the session in this folder. Errors: shutdown (no driver is there, or it
// refuses), would_block (it does not answer within a few seconds), peer (not a driver's answer),
// sys.
Result<AdoptedSession> take_over(const std::string& folder);

}  // namespace mw
