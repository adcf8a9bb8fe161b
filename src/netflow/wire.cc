#include "netflow/wire.h"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstring>

namespace mw::netflow {
namespace {

constexpr uint64_t kSocketTag = 0x53;
constexpr uint32_t kOldTextFamily = 2;
constexpr size_t kFixedAt = 8;  // behind signature, length and the length of the fixed part

// Writes one integer after the other, big-endian.
class Writer {
 public:
  explicit Writer(std::span<uint8_t> out) : out_(out) {}
  template <std::unsigned_integral T>
  Writer& put(T value) {
    if constexpr (std::endian::native == std::endian::little && sizeof(T) > 1) {
      if constexpr (sizeof(T) == 2) value = __builtin_bswap16(value);
      if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
      if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
    }
    std::memcpy(out_.data(), &value, sizeof value);
    out_ = out_.subspan(sizeof value);
    return *this;
  }
  Writer& put(std::span<const uint8_t> bytes) {
    std::memcpy(out_.data(), bytes.data(), bytes.size());
    out_ = out_.subspan(bytes.size());
    return *this;
  }
  Writer& put(int64_t value) { return put(static_cast<uint64_t>(value)); }
  Writer& put_text(std::string_view text) {
    return put(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  }
  Writer& put(const std::array<char, 16>& text) {
    return put(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  }
  Writer& put(ObservationKind kind) { return put(static_cast<uint16_t>(kind)); }
  Writer& put(const Timestamp& t) { return put(t.seconds).put(t.nanoseconds); }
  Writer& put(const Address& a) { return put(a.af).put(std::span<const uint8_t>(a.bytes)); }
  Writer& put(const Endpoint& e) { return put(e.address).put(e.port); }

 private:
  std::span<uint8_t> out_;
};

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> in) : in_(in) {}
  template <std::unsigned_integral T>
  T take() {
    T value{};
    std::memcpy(&value, in_.data(), sizeof value);
    in_ = in_.subspan(sizeof value);
    if constexpr (std::endian::native == std::endian::little && sizeof(T) > 1) {
      if constexpr (sizeof(T) == 2) value = __builtin_bswap16(value);
      if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
      if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
    }
    return value;
  }
  template <size_t N>
  std::array<uint8_t, N> take_bytes() {
    std::array<uint8_t, N> bytes;
    std::memcpy(bytes.data(), in_.data(), N);
    in_ = in_.subspan(N);
    return bytes;
  }
  template <std::unsigned_integral T>
  void take(T& value) {
    value = take<T>();
  }
  void take(int64_t& value) { value = static_cast<int64_t>(take<uint64_t>()); }
  void take(std::array<char, 16>& text) {
    const auto bytes = take_bytes<16>();
    std::memcpy(text.data(), bytes.data(), bytes.size());
  }
  void take(Endpoint& e) { e = take_endpoint(); }
  void take(Timestamp& t) { t = take_timestamp(); }
  void take(ObservationKind& kind) { kind = static_cast<ObservationKind>(take<uint16_t>()); }
  Timestamp take_timestamp() {
    const auto seconds = take<uint64_t>();
    return {seconds, take<uint64_t>()};
  }
  std::string take_text(size_t bytes) {
    std::string text(reinterpret_cast<const char*>(in_.data()), bytes);
    in_ = in_.subspan(bytes);
    return text;
  }
  void skip(size_t bytes) { in_ = in_.subspan(bytes); }
  size_t left() const { return in_.size(); }
  Endpoint take_endpoint() {
    Endpoint e;
    e.address.af = take<uint32_t>();
    e.address.bytes = take_bytes<16>();
    e.port = take<uint16_t>();
    return e;
  }

 private:
  std::span<const uint8_t> in_;
};

bool is_address(const Address& a) {
  return a.af == 6 || (a.af == 4 && std::all_of(a.bytes.begin() + 4, a.bytes.end(),
                                                [](uint8_t b) { return b == 0; }));
}

// ---- each message's members in the order of its bytes, for both directions ----

template <class S, class Each>
requires std::same_as<std::remove_const_t<S>, ExtendedObservation>
void each_member(S& s, Each&& each) {
  each(s.sequence, s.kind, s.session_start, s.now, s.socket, s.local, s.remote, s.bytes_in,
       s.bytes_out, s.extra, s.type, s.flags, s.pid, s.uid, s.command);
}

template <class S, class Each>
requires std::same_as<std::remove_const_t<S>, Sample>
void each_member(S& s, Each&& each) {
  each(s.sequence, s.now_ns, s.mono_ns, s.socket, s.type, s.flags, s.local, s.remote, s.pid, s.uid,
       s.command, s.bytes_in, s.bytes_out, s.calls_in, s.calls_out, s.age, s.first_in, s.last_in,
       s.first_out, s.last_out, s.rate_in, s.rate_out, s.unread, s.unsent, s.waiting_threads,
       s.waiting, s.worker_us, s.queue, s.backlog, s.tcp_state, s.rtt_us, s.rttvar_us, s.min_rtt_us,
       s.snd_wnd, s.notsent, s.unacked, s.total_retrans, s.probes, s.backoff, s.last_data_recv,
       s.last_data_sent, s.last_ack_recv, s.bytes_acked, s.bytes_received, s.bytes_retrans,
       s.busy_us, s.rwnd_limited_us, s.sndbuf_limited_us, s.delivery_rate);
}

template <class S, class Each>
requires std::same_as<std::remove_const_t<S>, ProcessSample>
void each_member(S& s, Each&& each) {
  each(s.sequence, s.pid, s.uid, s.command, s.rss_bytes, s.cpu_us, s.threads, s.fds);
}

template <class S, class Each>
requires std::same_as<std::remove_const_t<S>, Round>
void each_member(S& s, Each&& each) {
  each(s.sequence, s.now_ns, s.mono_ns, s.round, s.sockets, s.processes, s.missed, s.ins, s.ins_pid,
       s.heartbeat, s.slots, s.ins_rss_bytes, s.ins_cpu_us, s.ins_fds, s.ins_restarts,
       s.telemetry_dropped);
}

template <class Message, size_t N>
void encode_members(uint16_t sig, const Message& m, std::span<uint8_t, N> out) {
  Writer to(out);
  to.put(sig).put(static_cast<uint32_t>(N));
  each_member(m, [&](const auto&... member) { (to.put(member), ...); });
}

// Errors: peer (another signature, too short, or not as long as it says).
template <class Message>
Result<Message> decode_members(uint16_t sig, size_t least, std::span<const uint8_t> bytes) {
  if (bytes.size() < least) return Error{Fault::peer, 0, "a message that is too short"};
  Reader from(bytes);
  if (from.take<uint16_t>() != sig) return Error{Fault::peer, 0, "another message"};
  if (from.take<uint32_t>() != bytes.size()) return Error{Fault::peer, 0, "a message's length"};
  Message m;
  each_member(m, [&](auto&... member) { (from.take(member), ...); });
  return m;
}

// "192.0.2.1", exactly: four numbers without leading zeros, then NULs to the end.
std::optional<Address> address_of_text(const std::array<uint8_t, 16>& text) {
  Address a;
  size_t at = 0;
  for (size_t part = 0; part < 4; ++part) {
    if (part != 0 && (at >= text.size() || text[at++] != '.')) return std::nullopt;
    const size_t first = at;
    unsigned value = 0;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9' && at - first < 3)
      value = value * 10 + (text[at++] - '0');
    const size_t digits = at - first;
    if (digits == 0 || value > 255 || (digits > 1 && text[first] == '0')) return std::nullopt;
    a.bytes[part] = static_cast<uint8_t>(value);
  }
  for (; at < text.size(); ++at)
    if (text[at] != 0) return std::nullopt;
  return a;
}

// The head of a message with texts. Returns what follows the fixed part of `known` bytes that we
// know: the bytes of it that a later version added. Errors: peer.
Result<size_t> check_head(std::span<const uint8_t> bytes, uint16_t sig, size_t known) {
  if (bytes.size() < known) return Error{Fault::peer, 0, "a message that is too short"};
  Reader in(bytes);
  if (in.take<uint16_t>() != sig) return Error{Fault::peer, 0, "another signature"};
  if (in.take<uint32_t>() != bytes.size()) return Error{Fault::peer, 0, "a message's length"};
  const size_t fixed = in.take<uint16_t>();
  if (fixed < known || fixed > bytes.size())
    return Error{Fault::peer, 0, "the length of a message's fixed part"};
  return fixed - known;
}

std::string_view cut(const std::string& text) {
  return std::string_view(text).substr(0, kMaxReason);
}

}  // namespace

int64_t encode(SocketId id) {
  return static_cast<int64_t>(kSocketTag << 56 | uint64_t{id.ins} << 40 | id.number);
}

std::optional<SocketId> decode_socket(int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  if (bits >> 56 != kSocketTag || (bits >> 32 & 0xff) != 0) return std::nullopt;
  return SocketId{static_cast<uint16_t>(bits >> 40), static_cast<uint32_t>(bits)};
}

std::optional<SocketId> socket_of(const Request& request) {
  Reader in(request.identity);
  const auto value = static_cast<int64_t>(in.take<uint64_t>());
  for (const uint8_t byte : in.take_bytes<12>())
    if (byte != 0) return std::nullopt;
  return decode_socket(value);
}

std::optional<Address> peer_of(const Request& request) {
  Reader in(request.identity);
  Address a;
  a.af = in.take<uint32_t>();
  a.bytes = in.take_bytes<16>();
  if (a.af == kOldTextFamily) return address_of_text(a.bytes);
  if (!is_address(a)) return std::nullopt;
  return a;
}

void name_socket(Request& request, SocketId id) {
  request.flags |= kRequestBySocket;
  request.identity = {};
  Writer(request.identity).put(static_cast<uint64_t>(encode(id)));
}

void name_peer(Request& request, const Address& address) {
  request.flags |= kRequestByPeer;
  Writer(request.identity).put(address);
}

Request write_request(Feature feature, uint64_t value0, uint64_t value1) {
  Request r;
  r.flags = kRequestWrite;
  r.name = static_cast<uint16_t>(feature);
  r.value0 = value0;
  r.value1 = value1;
  return r;
}

Request write_request(Feature feature, SocketId socket, uint64_t value0) {
  Request r = write_request(feature, value0);
  name_socket(r, socket);
  return r;
}

size_t message_bytes(uint16_t sig) {
  switch (sig) {
    case kSigObservation:
      return kObservationBytes;
    case kSigRequest:
      return kRequestBytes;
    case kSigResponse:
      return kResponseBytes;
    default:
      return 0;
  }
}

bool has_length(uint16_t sig) {
  return sig == kSigExtendedRequest || (sig >= kSigFlow && sig <= kSigExtendedObservation);
}

uint16_t signature_of(std::span<const uint8_t> bytes) {
  return Reader(bytes).take<uint16_t>();
}

uint32_t stated_bytes(std::span<const uint8_t> bytes) {
  return Reader(bytes.subspan(2)).take<uint32_t>();
}

bool is_plain_text(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto first = static_cast<uint8_t>(text[at++]);
    if (first < 0x80) {
      if (first < 0x20 || first == 0x7f) return false;
      continue;
    }
    const size_t more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    if (first < 0xc2 || first > 0xf4 || text.size() - at < more) return false;
    uint32_t code = first & (0x3fu >> more);
    for (size_t k = 0; k < more; ++k) {
      const auto next = static_cast<uint8_t>(text[at++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3f);
    }
    constexpr uint32_t kShortest[] = {0, 0x80, 0x800, 0x10000};
    if (code < kShortest[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ||
        code < 0xa0)  // C1 controls: terminals obey them
      return false;
  }
  return true;
}

void encode(const Observation& o, std::span<uint8_t, kObservationBytes> out) {
  Writer(out)
      .put(kSigObservation)
      .put(uint32_t{0})
      .put(static_cast<uint16_t>(o.kind))
      .put(o.session_start)
      .put(o.now)
      .put(static_cast<uint64_t>(o.socket))
      .put(o.local)
      .put(o.remote)
      .put(o.bytes_in)
      .put(o.bytes_out)
      .put(o.extra);
}

void encode(const Request& r, std::span<uint8_t, kRequestBytes> out) {
  Writer(out)
      .put(kSigRequest)
      .put(r.id)
      .put(r.flags)
      .put(r.name)
      .put(r.value0)
      .put(r.value1)
      .put(std::span<const uint8_t>(r.identity));
}

void encode(const Response& r, std::span<uint8_t, kResponseBytes> out) {
  Writer(out).put(kSigResponse).put(r.id).put(r.status).put(r.value0).put(r.value1);
}

void encode(const Flow& f, std::span<uint8_t, kFlowBytes> out) {
  std::array<uint8_t, 16> command;
  std::memcpy(command.data(), f.command.data(), command.size());
  Writer(out)
      .put(kSigFlow)
      .put(static_cast<uint32_t>(kFlowBytes))
      .put(f.sequence)
      .put(static_cast<uint64_t>(f.socket))
      .put(f.type)
      .put(f.flags)
      .put(f.session_start)
      .put(f.last)
      .put(f.local)
      .put(f.remote)
      .put(f.bytes_in)
      .put(f.bytes_out)
      .put(f.pid)
      .put(f.uid)
      .put(std::span<const uint8_t>(command));
}

std::vector<uint8_t> encoded(const ExtendedRequest& r) {
  const std::string_view reason = cut(r.reason);
  std::vector<uint8_t> bytes(kExtendedRequestBytes + reason.size());
  Writer(bytes)
      .put(kSigExtendedRequest)
      .put(static_cast<uint32_t>(bytes.size()))
      .put(static_cast<uint16_t>(kExtendedRequestBytes))
      .put(r.request.id)
      .put(r.request.flags)
      .put(r.request.name)
      .put(r.request.value0)
      .put(r.request.value1)
      .put(std::span<const uint8_t>(r.request.identity))
      .put(r.ttl_s)
      .put(r.options)
      .put_text(reason);
  return bytes;
}

Result<ExtendedRequest> decode_extended_request(std::span<const uint8_t> bytes) {
  auto added = check_head(bytes, kSigExtendedRequest, kExtendedRequestBytes);
  if (!added) return added.error();
  Reader in(bytes.subspan(kFixedAt));
  ExtendedRequest r;
  r.request.id = in.take<uint32_t>();
  r.request.flags = in.take<uint16_t>();
  r.request.name = in.take<uint16_t>();
  r.request.value0 = in.take<uint64_t>();
  r.request.value1 = in.take<uint64_t>();
  r.request.identity = in.take_bytes<20>();
  r.ttl_s = in.take<uint32_t>();
  r.options = in.take<uint32_t>();
  in.skip(*added);
  if (in.left() > kMaxReason) return Error{Fault::peer, 0, "a reason that is too long"};
  r.reason = in.take_text(in.left());
  return r;
}

std::vector<uint8_t> encoded(const Rule& r) {
  const std::string_view engine = cut(r.engine);
  const std::string_view reason = cut(r.reason);
  std::vector<uint8_t> bytes(kRuleBytes + 2 + engine.size() + 2 + reason.size());
  Writer(bytes)
      .put(kSigRule)
      .put(static_cast<uint32_t>(bytes.size()))
      .put(static_cast<uint16_t>(kRuleBytes))
      .put(r.sequence)
      .put(r.id)
      .put(r.name)
      .put(r.flags)
      .put(r.state)
      .put(r.value0)
      .put(r.value1)
      .put(static_cast<uint64_t>(r.socket))
      .put(r.peer)
      .put(r.since)
      .put(r.until)
      .put(r.hits)
      .put(static_cast<uint16_t>(engine.size()))
      .put_text(engine)
      .put(static_cast<uint16_t>(reason.size()))
      .put_text(reason);
  return bytes;
}

Result<Rule> decode_rule(std::span<const uint8_t> bytes) {
  auto added = check_head(bytes, kSigRule, kRuleBytes);
  if (!added) return added.error();
  Reader in(bytes.subspan(kFixedAt));
  Rule r;
  r.sequence = in.take<uint64_t>();
  r.id = in.take<uint32_t>();
  r.name = in.take<uint16_t>();
  r.flags = in.take<uint16_t>();
  r.state = in.take<uint16_t>();
  r.value0 = in.take<uint64_t>();
  r.value1 = in.take<uint64_t>();
  r.socket = static_cast<int64_t>(in.take<uint64_t>());
  r.peer = in.take_endpoint();
  r.since = in.take_timestamp();
  r.until = in.take_timestamp();
  r.hits = in.take<uint32_t>();
  in.skip(*added);
  for (std::string* text : {&r.engine, &r.reason}) {
    const size_t length = in.left() < 2 ? SIZE_MAX : in.take<uint16_t>();
    if (length > in.left()) return Error{Fault::peer, 0, "a rule's text"};
    *text = in.take_text(length);
  }
  if (!is_address(r.peer.address)) return Error{Fault::peer, 0, "a rule's address is none"};
  return r;
}

Result<Flow> decode_flow(std::span<const uint8_t> bytes) {
  if (bytes.size() < kFlowBytes) return Error{Fault::peer, 0, "a flow that is too short"};
  Reader in(bytes);
  if (in.take<uint16_t>() != kSigFlow) return Error{Fault::peer, 0, "not a flow"};
  if (in.take<uint32_t>() != bytes.size()) return Error{Fault::peer, 0, "a flow's length"};
  Flow f;
  f.sequence = in.take<uint64_t>();
  f.socket = static_cast<int64_t>(in.take<uint64_t>());
  f.type = in.take<uint16_t>();
  f.flags = in.take<uint16_t>();
  f.session_start = in.take_timestamp();
  f.last = in.take_timestamp();
  f.local = in.take_endpoint();
  f.remote = in.take_endpoint();
  f.bytes_in = in.take<uint64_t>();
  f.bytes_out = in.take<uint64_t>();
  f.pid = in.take<uint32_t>();
  f.uid = in.take<uint32_t>();
  const auto command = in.take_bytes<16>();
  std::memcpy(f.command.data(), command.data(), command.size());
  if (!is_address(f.local.address) || !is_address(f.remote.address))
    return Error{Fault::peer, 0, "a flow's address is none"};
  return f;
}

void encode(const Sample& s, std::span<uint8_t, kSampleBytes> out) {
  encode_members(kSigSample, s, out);
}

void encode(const ProcessSample& s, std::span<uint8_t, kProcessSampleBytes> out) {
  encode_members(kSigProcessSample, s, out);
}

void encode(const Round& r, std::span<uint8_t, kRoundBytes> out) {
  encode_members(kSigRound, r, out);
}

void encode(const ExtendedObservation& o, std::span<uint8_t, kExtendedObservationBytes> out) {
  encode_members(kSigExtendedObservation, o, out);
}

Result<ExtendedObservation> decode_extended_observation(std::span<const uint8_t> bytes) {
  auto o = decode_members<ExtendedObservation>(kSigExtendedObservation, kExtendedObservationBytes,
                                               bytes);
  if (o && (!is_address(o->local.address) || !is_address(o->remote.address)))
    return Error{Fault::peer, 0, "an observation's address is none"};
  return o;
}

Result<Sample> decode_sample(std::span<const uint8_t> bytes) {
  auto s = decode_members<Sample>(kSigSample, kSampleBytes, bytes);
  if (s && (!is_address(s->local.address) || !is_address(s->remote.address)))
    return Error{Fault::peer, 0, "a sample's address is none"};
  return s;
}

Result<ProcessSample> decode_process_sample(std::span<const uint8_t> bytes) {
  return decode_members<ProcessSample>(kSigProcessSample, kProcessSampleBytes, bytes);
}

Result<Round> decode_round(std::span<const uint8_t> bytes) {
  return decode_members<Round>(kSigRound, kRoundBytes, bytes);
}

Result<Observation> decode_observation(std::span<const uint8_t, kObservationBytes> bytes) {
  Reader in(bytes);
  if (in.take<uint16_t>() != kSigObservation) return Error{Fault::peer, 0, "not an observation"};
  if (in.take<uint32_t>() != 0) return Error{Fault::peer, 0, "an observation with an id"};
  Observation o;
  o.kind = static_cast<ObservationKind>(in.take<uint16_t>());
  o.session_start = in.take_timestamp();
  o.now = in.take_timestamp();
  o.socket = static_cast<int64_t>(in.take<uint64_t>());
  o.local = in.take_endpoint();
  o.remote = in.take_endpoint();
  o.bytes_in = in.take<uint64_t>();
  o.bytes_out = in.take<uint64_t>();
  o.extra = in.take<uint64_t>();
  if (!is_address(o.local.address) || !is_address(o.remote.address))
    return Error{Fault::peer, 0, "an observation's address is none"};
  return o;
}

Result<Request> decode_request(std::span<const uint8_t, kRequestBytes> bytes) {
  Reader in(bytes);
  if (in.take<uint16_t>() != kSigRequest) return Error{Fault::peer, 0, "not a request"};
  Request r;
  r.id = in.take<uint32_t>();
  r.flags = in.take<uint16_t>();
  r.name = in.take<uint16_t>();
  r.value0 = in.take<uint64_t>();
  r.value1 = in.take<uint64_t>();
  r.identity = in.take_bytes<20>();
  return r;
}

Result<Response> decode_response(std::span<const uint8_t, kResponseBytes> bytes) {
  Reader in(bytes);
  if (in.take<uint16_t>() != kSigResponse) return Error{Fault::peer, 0, "not a response"};
  Response r;
  r.id = in.take<uint32_t>();
  r.status = in.take<uint32_t>();
  r.value0 = in.take<uint64_t>();
  r.value1 = in.take<uint64_t>();
  return r;
}

}  // namespace mw::netflow
