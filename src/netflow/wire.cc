#include "netflow/wire.h"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstring>

namespace mw::netflow {
namespace {

constexpr uint64_t kSocketTag = 0x53;
constexpr uint32_t kOldTextFamily = 2;

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
  Timestamp take_timestamp() {
    const auto seconds = take<uint64_t>();
    return {seconds, take<uint64_t>()};
  }
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

uint16_t signature_of(std::span<const uint8_t> bytes) {
  return Reader(bytes).take<uint16_t>();
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
