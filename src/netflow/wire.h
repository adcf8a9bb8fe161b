// wire.h - the NetFlow interface's messages, version 1: structures <-> bytes. Spec:
// docs/netflow.md.
//
// Every integer is big-endian and every structure packed; a message's length follows from its first
// two bytes. Nothing here does input or output, reads a clock or allocates.
//
// TRUST       A request's bytes are an engine's: any pattern is decoded into something or refused,
//             and what was decoded is still to be checked for meaning by whoever executes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"

namespace mw::netflow {

constexpr uint16_t kSigObservation = 0xd310;
constexpr uint16_t kSigRequest = 0xd320;
constexpr uint16_t kSigResponse = 0xd32f;

// Sent only to an engine that asked for it; its length follows the signature.
constexpr uint16_t kSigFlow = 0xd341;

constexpr size_t kObservationBytes = 116;
constexpr size_t kRequestBytes = 46;
constexpr size_t kResponseBytes = 26;
constexpr size_t kFlowBytes = 142;

struct Address {
  uint32_t af = 4;                  // 4 or 6
  std::array<uint8_t, 16> bytes{};  // network order; IPv4 in the first 4, the rest zero
  bool operator==(const Address&) const = default;
};

struct Endpoint {
  Address address;
  uint16_t port = 0;
  bool operator==(const Endpoint&) const = default;
};

struct Timestamp {
  uint64_t seconds = 0;
  uint64_t nanoseconds = 0;
  bool operator==(const Timestamp&) const = default;
};

inline Timestamp timestamp_of(uint64_t ns) {
  return {ns / 1'000'000'000, ns % 1'000'000'000};
}

enum class ObservationKind : uint16_t {
  none = 0,
  create = 1,
  bind = 2,
  accept = 3,
  connect = 4,
  recv = 5,
  send = 6,
  close = 7,
};

struct Observation {
  ObservationKind kind = ObservationKind::none;
  Timestamp session_start;
  Timestamp now;
  int64_t socket = 0;
  Endpoint local;
  Endpoint remote;
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint64_t extra = 0;
  bool operator==(const Observation&) const = default;
};

// Request::flags
constexpr uint16_t kRequestWrite = 1;
constexpr uint16_t kRequestBySocket = 2;
constexpr uint16_t kRequestByPeer = 4;
constexpr uint16_t kRequestFlags = kRequestWrite | kRequestBySocket | kRequestByPeer;

// Bits of a feature's code.
constexpr uint16_t kFeatureMitigation = 0x0100;
constexpr uint16_t kFeatureWholeIns = 0x1000;

enum class Feature : uint16_t {
  monitor_on = 0x0001,
  monitor_off = 0x0002,
  nonblock = 0x0003,
  reuseaddr = 0x0004,
  reuseport = 0x0005,
  keepalive = 0x0006,
  defer_accept = 0x0007,
  nodelay = 0x0008,
  list = 0x0010,
  is_open = 0x0101,
  owner_running = 0x0102,
  sndbuf = 0x0109,
  rcvbuf = 0x010a,
  sndtimeo = 0x010b,
  rcvtimeo = 0x010c,
  sndlowat = 0x010d,
  rcvlowat = 0x010e,
  error = 0x010f,
  congestion = 0x1101,
  delack_ticks = 0x1102,
  address_block = 0x1103,
};

constexpr uint64_t kCongestionReno = 0x90;
constexpr uint64_t kCongestionNewReno = 0x91;
constexpr uint64_t kCongestionCubic = 0x92;

struct Request {
  uint32_t id = 0;
  uint16_t flags = 0;
  uint16_t name = 0;  // a Feature, or anything else
  uint64_t value0 = 0;
  uint64_t value1 = 0;
  std::array<uint8_t, 20> identity{};
  bool operator==(const Request&) const = default;

  bool write() const { return (flags & kRequestWrite) != 0; }
};

struct Response {
  uint32_t id = 0;
  uint32_t status = 0;  // 0 or a Linux errno
  uint64_t value0 = 0;
  uint64_t value1 = 0;
  bool operator==(const Response&) const = default;
};

// A socket that is open, as it stands.
struct Flow {
  uint64_t sequence = 0;
  int64_t socket = 0;
  uint16_t type = 1;  // 1 stream, 2 datagram
  uint16_t flags = 0;
  Timestamp session_start;
  Timestamp last;  // its last observation
  Endpoint local;
  Endpoint remote;
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint32_t pid = 0;  // of the process that made or accepted it; 0: not known
  uint32_t uid = 0;
  std::array<char, 16> command{};  // NUL-padded
  bool operator==(const Flow&) const = default;
};
constexpr uint16_t kFlowListener = 1;

// ---- socket identifiers ----

struct SocketId {
  uint16_t ins = 0;
  uint32_t number = 0;
  bool operator==(const SocketId&) const = default;
};
int64_t encode(SocketId id);
// Nothing if the bits that are fixed are not what they have to be.
std::optional<SocketId> decode_socket(int64_t value);

// What a request names; nothing if the 12 bytes that have to be zero are not, or the address is
// none.
std::optional<SocketId> socket_of(const Request& request);
// Takes both forms: the address in binary (af 4 or 6), and dotted text with af 2, NUL-padded.
std::optional<Address> peer_of(const Request& request);
void name_socket(Request& request, SocketId id);
void name_peer(Request& request, const Address& address);

// ---- messages ----

// Bytes of the whole message that starts with these two; 0 for a signature that is unknown, and for
// one whose length follows it.
size_t message_bytes(uint16_t sig);
// The signature at the start of a message. `bytes` holds at least two.
uint16_t signature_of(std::span<const uint8_t> bytes);

void encode(const Observation& o, std::span<uint8_t, kObservationBytes> out);
void encode(const Request& r, std::span<uint8_t, kRequestBytes> out);
void encode(const Response& r, std::span<uint8_t, kResponseBytes> out);
void encode(const Flow& f, std::span<uint8_t, kFlowBytes> out);

// Errors: peer (another signature, an id where none belongs, an address family that is none).
Result<Observation> decode_observation(std::span<const uint8_t, kObservationBytes> in);
Result<Request> decode_request(std::span<const uint8_t, kRequestBytes> in);
Result<Response> decode_response(std::span<const uint8_t, kResponseBytes> in);
// Takes longer messages too: what a later version adds stands at the end. Errors: peer.
Result<Flow> decode_flow(std::span<const uint8_t> in);

}  // namespace mw::netflow
