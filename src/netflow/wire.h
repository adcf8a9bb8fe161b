// wire.h - the NetFlow interface's messages: structures <-> bytes. Spec:
// docs/netflow.md.
//
// Every integer is big-endian and every structure packed; a message's length follows from its first
// two bytes, or stands behind them (version 2). Nothing here does input or output or reads a clock.
//
// TRUST       A request's bytes are an engine's: any pattern is decoded into something or refused,
//             and what was decoded is still to be checked for meaning by whoever executes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "netflow/command_name.h"

namespace mw::netflow {

constexpr uint16_t kSigObservation = 0xd310;
constexpr uint16_t kSigRequest = 0xd320;
constexpr uint16_t kSigResponse = 0xd32f;

// Version 2: sent only by and to an engine that asks for it; the length follows the signature.
constexpr uint16_t kSigExtendedRequest = 0xd321;
constexpr uint16_t kSigFlow = 0xd341;
constexpr uint16_t kSigSample = 0xd342;
constexpr uint16_t kSigProcessSample = 0xd343;
constexpr uint16_t kSigRound = 0xd344;
constexpr uint16_t kSigRule = 0xd345;
constexpr uint16_t kSigExtendedObservation = 0xd346;

constexpr size_t kObservationBytes = 116;
constexpr size_t kRequestBytes = 46;
constexpr size_t kResponseBytes = 26;
constexpr size_t kFlowBytes = 142;
constexpr size_t kSampleBytes = 310;
constexpr size_t kProcessSampleBytes = 62;
constexpr size_t kRoundBytes = 102;
constexpr size_t kExtendedObservationBytes = 152;
// Up to their texts; what a later version adds stands before those.
constexpr size_t kExtendedRequestBytes = 60;
constexpr size_t kRuleBytes = 108;
// No engine's message is longer, whatever version it speaks.
constexpr size_t kMaxRequestBytes = 512;

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

// Flow::flags and ExtendedObservation::flags. From bit 8 on, how a connection stands: what is known
// to have happened to it.
constexpr uint16_t kFlowListener = 1;
constexpr uint16_t kListenersHolder = 2;  // nobody took it yet: the process is its listener's
constexpr uint16_t kCloseUnseen = 4;      // the INS died, or its report of the close was lost
constexpr uint16_t kConnShift = 8;
constexpr uint16_t kConnInbound = 0x0100;  // it was accepted
constexpr uint16_t kConnEstablished = 0x0200;
constexpr uint16_t kConnPeerFin = 0x0400;
constexpr uint16_t kConnOurFin = 0x0800;
constexpr uint16_t kConnPeerRst = 0x1000;  // without kConnEstablished: the attempt was refused
constexpr uint16_t kConnOurRst = 0x2000;
constexpr uint16_t kConnCut = 0x4000;  // by a request or a rule, and not by the application
constexpr uint16_t kConnBits = 0x7f00;

// An observation as an engine gets it that asked for version 2 (Feature::observations). In one of
// version 1 the members beyond are as they are here.
struct ExtendedObservation : Observation {
  uint64_t sequence = 0;
  uint16_t type = 1;  // 1 stream, 2 datagram
  uint16_t flags = 0;
  uint32_t pid = 0;  // of the process that made or accepted it; 0: not known
  uint32_t uid = 0;
  CommandName command{};  // NUL-padded
  bool operator==(const ExtendedObservation&) const = default;
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
  sampling = 0x0201,
  rules = 0x0202,
  undo = 0x0203,
  observations = 0x0204,
  is_open = 0x0101,
  owner_running = 0x0102,
  sndbuf = 0x0109,
  rcvbuf = 0x010a,
  sndtimeo = 0x010b,
  rcvtimeo = 0x010c,
  sndlowat = 0x010d,
  rcvlowat = 0x010e,
  error = 0x010f,
  min_rate_in = 0x0310,
  min_rate_out = 0x0311,
  pause = 0x0312,
  pacing = 0x0313,
  congestion = 0x1101,
  delack_ticks = 0x1102,
  address_block = 0x1103,
  peer_cap = 0x1314,
  allow = 0x1315,
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
  CommandName command{};  // NUL-padded
  bool operator==(const Flow&) const = default;
};

// ---- version 2: what is sampled ----

constexpr uint32_t kNever = 0xffffffff;  // an age: it never happened

// Sample::flags
constexpr uint16_t kSampleListener = 1;
constexpr uint16_t kSampleInbound = 2;  // it was accepted; else the application connected it
constexpr uint16_t kSampleTcp = 4;      // the members from tcp_state to delivery_rate are true
constexpr uint16_t kSamplePaused = 8;
constexpr uint16_t kSamplePaced = 16;
constexpr uint16_t kSampleMinRate = 32;
constexpr uint16_t kSampleAllowed = 64;  // its peer is on the allow list

// A socket as it stands. The members are encoded in this order. Ages are milliseconds before `now`.
struct Sample {
  uint64_t sequence = 0;
  uint64_t now_ns = 0;   // CLOCK_REALTIME
  uint64_t mono_ns = 0;  // CLOCK_MONOTONIC, the same moment
  int64_t socket = 0;
  uint16_t type = 1;  // 1 stream, 2 datagram
  uint16_t flags = 0;
  Endpoint local;
  Endpoint remote;
  uint32_t pid = 0;  // of the process that made or accepted it; 0: not known
  uint32_t uid = 0;
  CommandName command{};  // NUL-padded
  // What the stack has taken from the network, `unread` included, and given to it. Ages and calls
  // are of these bytes.
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint32_t calls_in = 0;  // modulo 2^32, since an engine is connected
  uint32_t calls_out = 0;
  uint32_t age = kNever;  // since it was accepted, connected or made
  uint32_t first_in = kNever;
  uint32_t last_in = kNever;
  uint32_t first_out = kNever;
  uint32_t last_out = kNever;
  uint64_t rate_in = 0;  // bytes a second, weighed over the last seconds
  uint64_t rate_out = 0;
  uint32_t unread = 0;  // bytes that came and the application has not taken
  uint32_t unsent = 0;  // bytes that the application wrote and that have not left this host
  // What it costs: threads that wait for this socket now, since when the first of them does, and
  // the time that threads have waited for it in all.
  uint32_t waiting_threads = 0;
  uint32_t waiting = 0;  // milliseconds
  uint64_t worker_us = 0;
  // Listeners.
  uint32_t queue = 0;  // connections that wait to be accepted
  uint32_t backlog = 0;
  // From the kernel's TCP_INFO.
  uint32_t tcp_state = 0;
  uint32_t rtt_us = 0;
  uint32_t rttvar_us = 0;
  uint32_t min_rtt_us = 0;
  uint32_t snd_wnd = 0;
  uint32_t notsent = 0;
  uint32_t unacked = 0;  // segments
  uint32_t total_retrans = 0;
  uint32_t probes = 0;
  uint32_t backoff = 0;
  uint32_t last_data_recv = 0;  // milliseconds
  uint32_t last_data_sent = 0;
  uint32_t last_ack_recv = 0;
  uint64_t bytes_acked = 0;
  uint64_t bytes_received = 0;
  uint64_t bytes_retrans = 0;
  uint64_t busy_us = 0;
  uint64_t rwnd_limited_us = 0;
  uint64_t sndbuf_limited_us = 0;
  uint64_t delivery_rate = 0;  // bytes a second
  bool operator==(const Sample&) const = default;
};

// A process of the session.
struct ProcessSample {
  uint64_t sequence = 0;
  uint32_t pid = 0;
  uint32_t uid = 0;
  CommandName command{};
  uint64_t rss_bytes = 0;
  uint64_t cpu_us = 0;  // user and system, since it began
  uint32_t threads = 0;
  uint32_t fds = 0;
  bool operator==(const ProcessSample&) const = default;
};

// The end of a round, and the INS's health.
struct Round {
  uint64_t sequence = 0;
  uint64_t now_ns = 0;   // CLOCK_REALTIME
  uint64_t mono_ns = 0;  // CLOCK_MONOTONIC
  uint64_t round = 0;
  uint32_t sockets = 0;  // samples in this round
  uint32_t processes = 0;
  uint64_t missed = 0;  // messages that this engine was not sent, since it connected
  uint32_t ins = 0;
  uint32_t ins_pid = 0;
  uint32_t heartbeat = kNever;  // age of its last sign of life
  uint32_t slots = 0;           // sockets that there may be
  uint64_t ins_rss_bytes = 0;
  uint64_t ins_cpu_us = 0;
  uint32_t ins_fds = 0;
  uint32_t ins_restarts = 0;       // in this session
  uint64_t telemetry_dropped = 0;  // reports that it could not hand over
  bool operator==(const Round&) const = default;
};

// ---- version 2: what is changed ----

// ExtendedRequest::options
constexpr uint32_t kDryRun = 1;
constexpr uint32_t kEndsWithConnection = 2;
constexpr uint32_t kRequestOptions = kDryRun | kEndsWithConnection;
constexpr size_t kMaxReason = 160;

struct ExtendedRequest {
  Request request;
  uint32_t ttl_s = 0;  // 0: until it is undone
  uint32_t options = 0;
  std::string reason;  // UTF-8 without control characters
  bool operator==(const ExtendedRequest&) const = default;
};

// Rule::state
constexpr uint16_t kRuleInForce = 1;
constexpr uint16_t kRuleExpired = 2;
constexpr uint16_t kRuleUndone = 3;
constexpr uint16_t kRuleSocketGone = 4;
constexpr uint16_t kRuleDone = 5;  // it was one act, like a close

struct Rule {
  uint64_t sequence = 0;
  uint32_t id = 0;
  uint16_t name = 0;   // a Feature
  uint16_t flags = 0;  // of its request: what it is about
  uint16_t state = kRuleInForce;
  uint64_t value0 = 0;
  uint64_t value1 = 0;
  int64_t socket = 0;
  Endpoint peer;  // of the socket, or the address alone
  Timestamp since;
  Timestamp until;     // when it ended or will end; 0: for ever
  uint32_t hits = 0;   // connections that it has cut
  std::string engine;  // who made it; u16 bytes, then the text
  std::string reason;  // u16 bytes, then the text
  bool operator==(const Rule&) const = default;
};

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
// A request that sets a feature of the connection or the whole INS; the other one, of a socket.
Request write_request(Feature feature, uint64_t value0 = 0, uint64_t value1 = 0);
Request write_request(Feature feature, SocketId socket, uint64_t value0 = 0);

// ---- messages ----

// Bytes of the whole message that starts with these two; 0 for a signature that is unknown, and for
// one whose length follows it.
size_t message_bytes(uint16_t sig);
// A message of version 2: a u32 behind the signature is its length.
bool has_length(uint16_t sig);
// The signature at the start of a message. `bytes` holds at least two.
uint16_t signature_of(std::span<const uint8_t> bytes);
// The length that stands behind a version 2 signature. `bytes` holds at least six.
uint32_t stated_bytes(std::span<const uint8_t> bytes);
// UTF-8 as it has to be, without control characters: it can be shown on a terminal.
bool is_plain_text(std::string_view text);

void encode(const Observation& o, std::span<uint8_t, kObservationBytes> out);
void encode(const Request& r, std::span<uint8_t, kRequestBytes> out);
void encode(const Response& r, std::span<uint8_t, kResponseBytes> out);
void encode(const Flow& f, std::span<uint8_t, kFlowBytes> out);
void encode(const Sample& s, std::span<uint8_t, kSampleBytes> out);
void encode(const ProcessSample& s, std::span<uint8_t, kProcessSampleBytes> out);
void encode(const Round& r, std::span<uint8_t, kRoundBytes> out);
void encode(const ExtendedObservation& o, std::span<uint8_t, kExtendedObservationBytes> out);
// Texts that are too long are cut.
std::vector<uint8_t> encoded(const ExtendedRequest& r);
std::vector<uint8_t> encoded(const Rule& r);

// Errors: peer (another signature, an id where none belongs, an address family that is none).
Result<Observation> decode_observation(std::span<const uint8_t, kObservationBytes> in);
Result<Request> decode_request(std::span<const uint8_t, kRequestBytes> in);
Result<Response> decode_response(std::span<const uint8_t, kResponseBytes> in);
// Those of version 2 take longer messages too: what a later version adds stands at the end. Errors:
// peer.
Result<Flow> decode_flow(std::span<const uint8_t> in);
Result<Sample> decode_sample(std::span<const uint8_t> in);
Result<ProcessSample> decode_process_sample(std::span<const uint8_t> in);
Result<Round> decode_round(std::span<const uint8_t> in);
Result<ExtendedObservation> decode_extended_observation(std::span<const uint8_t> in);
// The same, where a later version adds before the texts.
Result<ExtendedRequest> decode_extended_request(std::span<const uint8_t> in);
Result<Rule> decode_rule(std::span<const uint8_t> in);

}  // namespace mw::netflow
