// control.h - messages between driver and INS (over R/mw/<id>/channel, SOCK_SEQPACKET) and between
// shim and driver (over the attach socket). Spec: docs/protocol.md 6 and 7.
//
// Every message is one of these structures, whole; descriptors travel beside it in the order given.
// TRUST       Receivers check size, type, every id and the kind of each descriptor. A message that
//             does not fit ends the connection, with one log line.
#pragma once

#include <cstdint>

#include "abi/mw_region.h"

namespace mw {

// ---- driver and INS ----
enum class ControlType : uint32_t {
  hello = 1,        // driver to INS: ControlHello + fds channel, drop_ins, bell x workers
  hello_ack = 2,    // INS to driver: ControlHello with the version and features chosen, status
  listener_up = 3,  // INS to driver: ControlListener + the INS's end of the listener's placeholder
  listener_down = 4,  // INS to driver: ControlSlot: its last descriptor was closed
  replay = 5,         // driver to INS: ControlListener + the same descriptor: make it again
  replayed = 6,     // INS to driver: ControlSlot with status (errno of the step that failed, or 0)
  start = 7,        // driver to INS: ControlSlot: the replay is complete, serve
  group_open = 8,   // driver to INS: ControlSlot{slot = group} + the group's doorbell eventfd
  group_close = 9,  // driver to INS: ControlSlot{slot = group}
  bypass = 10,      // INS to driver: ControlSlot: bytes that nobody expected on a placeholder
  poisoned = 11,    // INS to driver: ControlSlot: the PVM broke the protocol; the INS ends itself
  // driver to INS, if kFeatureTelemetry was taken: ControlSlot + memory for the workers' rings, the
  // driver's doorbell eventfd, and a SEQPACKET socket for InsRequest and InsReply
  telemetry = 12,
  // An option that the INS has no right to set: the driver asks for the real socket, the INS hands a
  // copy over, the driver says that the option is set.
  lend = 13,        // driver to INS: ControlOption
  lent = 14,        // INS to driver: ControlOption + the real socket; without it `status` says why
  option_set = 15,  // driver to INS: ControlOption
  // driver to INS, if kFeatureNames was taken: ControlSlot{slot = NameFile} + the file, to be read: this
  // is what it says now
  names = 16,
  // driver to INS, if kFeatureFrontEnd was taken: ControlSlot + a pidfd of the session's front end. An INS
  // that has lost both, and gets neither back in time, ends
  front_end = 17,
};

// ControlHello::features
constexpr uint32_t kFeatureTelemetry = 1;
constexpr uint32_t kFeatureNames = 2;
constexpr uint32_t kFeatureFrontEnd = 4;

struct ControlHello {
  ControlType type;
  uint32_t version;      // hello: the newest we speak; ack: the one chosen
  uint32_t version_min;  // hello only
  uint32_t features;     // hello: offered; ack: the subset taken
  mw_geometry geometry;
  uint32_t status;     // ack: 0 or errno
  uint32_t first_gen;  // hello: generations of new slots start here; ack: the same
};

struct ControlSlot {
  ControlType type;
  uint32_t slot;
  uint32_t gen;
  uint32_t status;
};

constexpr uint32_t kMaxReplayOptions = 32;
struct ReplayOption {
  int32_t level;
  int32_t name;
  uint32_t len;
  uint8_t value[36];
};

struct ControlOption {
  ControlType type;
  uint32_t slot;
  uint32_t gen;
  int32_t level;
  int32_t name;
  uint32_t status;  // lent: errno, or 0
};

struct SocketOption {
  uint32_t slot;
  uint32_t gen;
  ReplayOption option;
};

struct ControlListener {
  ControlType type;
  uint32_t slot;
  uint32_t gen;
  int32_t domain;
  int32_t socket_type;
  int32_t protocol;
  int32_t backlog;
  uint32_t option_count;
  mw_addr local;
  ReplayOption options[kMaxReplayOptions];  // in the order in which they were set
};

// ---- the NetFlow thread of the driver, and INS: over a socket of their own ----
enum class InsOp : uint32_t {
  option = 1,    // socket: getsockopt, or setsockopt and then getsockopt
  close = 2,     // socket: resets the connection now; the application sees ECONNRESET
  cut_peer = 3,  // resets every connection with this peer, and refuses new ones if `write` is set;
                 // without `write` it is let in again. `value` of the answer: how many were cut
  all_option = 4,   // option of every stream socket of this INS, and of those to come
  look_again = 5,   // socket: wakes whoever waits for it, because something beside it changed
  min_rate = 6,     // socket, or with gen 0 every connection that is accepted from now on: `name` 0
                    // in, 1 out; value: MinRate
  pause = 7,        // socket: value: u32, bit 0 in, bit 1 out
  peer_cap = 8,     // `level` connections of the peer in value, family 0: of any; 0: any number
  count_peers = 9,  // counts the connections that were there before a cap, once that was answered
  allow = 10,       // neither block nor cap nor minimum rate holds for the peer in value; with
                    // `write` 0 they do again
  forget = 11,  // ends blocks, caps, the allow list, minimum rates and pauses: whoever asked for
                // them is gone. `value` of the answer: u32, how many peers were blocked
};

constexpr uint32_t kMaxOptionBytes = 16;

// The value of min_rate.
struct MinRate {
  uint64_t rate = 0;  // bytes a second, 0: none
  uint64_t grace_s = 0;
};
static_assert(sizeof(MinRate) <= kMaxOptionBytes);
constexpr uint64_t kMaxMinRate = 1'000'000'000;
constexpr uint64_t kMaxGraceSeconds = 1'000'000;

struct InsRequest {
  InsOp op;
  uint32_t id;
  uint32_t slot;
  uint32_t gen;
  uint32_t write;  // else read
  int32_t level;
  int32_t name;
  uint32_t len;     // of value: to be set, or room for what is read
  uint16_t family;  // cut_peer, peer_cap, allow; value holds the address
  uint16_t reserved;
  uint8_t value[kMaxOptionBytes];
};

struct InsReply {
  uint32_t id;
  uint32_t status;  // 0 or errno
  uint32_t len;
  uint8_t value[kMaxOptionBytes];
};

// ---- shim and driver ----
enum class AttachType : uint32_t {
  attach = 1,  // shim: AttachRequest. Answer: AttachReply + fds channel, session, drop_pvm, bells
  group_open = 2,  // shim: AttachRequest + fds doorbell eventfd, write end of the life pipe, memory
  // of the registrations. Answer: AttachReply with `group`, once the INS knows it or as soon as it comes
  group_find = 3,  // shim: AttachRequest + an epoll instance that it got from elsewhere. Answer:
                   // AttachReply with `group` + fds doorbell, read end of the life pipe, memory of
                   // the registrations; or ENOENT
  group_keep = 4,  // shim: AttachRequest + an epoll instance that is about to leave the process (by
                   // exec or SCM_RIGHTS): its group then lasts as long as the instance
  violation = 5,   // shim: AttachRequest: the INS of this epoch broke the protocol. No answer.
  introduce = 6,   // shim: AttachRequest + one end of a SEQPACKET pair: from now on that is a
                   // connection like those that come by the abstract address, which a process in
                   // another network namespace cannot reach. No answer.
  option = 7,      // shim: AttachRequest with `option` + the proof of the right to it
                   // (transport/local/privileged.h). Answer: AttachReply
};

struct AttachRequest {
  AttachType type;
  uint32_t version;
  uint8_t token[16];  // the session's secret, from MWCOMMS_SESSION
  uint32_t epoch;     // violation: as the process read it from the session's header; else 0
  SocketOption option;
};

// A process that has a single descriptor left cannot make a pair. It connects the descriptor to the
// stream socket of this name instead, and says this: its end is the placeholder then, and the driver
// passes the other one on to the INS with the record.
constexpr char kPlaceholderSuffix = '+';  // behind the name of the attach socket

struct PlaceholderRequest {
  uint32_t version;
  uint8_t token[16];
  mw_drop_record record;
};

struct AttachReply {
  AttachType type;
  uint32_t status;  // 0 or errno
  uint32_t group;
  uint32_t version;
  mw_geometry geometry;
};

}  // namespace mw
