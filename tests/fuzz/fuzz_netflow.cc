// fuzz_netflow.cc - the NetFlow interface's decoders, fed with what an engine (or, for the client,
// a server) may send.
//
// Input: one byte that chooses how the rest is cut into pieces, then the stream.
#include <vector>

#include "fuzz_input.h"
#include "netflow/framing.h"
#include "netflow/wire.h"

namespace mw::netflow {
namespace {

using fuzz::require;

struct Outcome {
  std::vector<Asking> requests;
  bool broken = false;
  bool operator==(const Outcome&) const = default;
};

Outcome read_stream(std::span<const uint8_t> bytes, size_t piece) {
  Outcome out;
  RequestStream stream;
  while (!bytes.empty() && !out.broken) {
    const size_t n = std::min(piece, bytes.size());
    auto used = stream.feed(bytes.first(n), [&](const Asking& asking) {
      out.requests.push_back(asking);
      return true;
    });
    out.broken = !used;
    if (used) require(*used == n);
    bytes = bytes.subspan(n);
  }
  return out;
}

// What was decoded is encoded to the same bytes again: no bit of a message is ignored.
void round_trip(const Asking& asking) {
  const Request& request = asking.request.request;
  if (asking.extended) {
    auto same = decode_extended_request(encoded(asking.request));
    require(same && *same == asking.request);
  }
  std::array<uint8_t, kRequestBytes> bytes;
  encode(request, bytes);
  auto back = decode_request(bytes);
  require(back && *back == request);
  if (const auto id = socket_of(request)) {
    Request named = request;
    name_socket(named, *id);
    require(named.identity == request.identity);
  }
  if (const auto peer = peer_of(request)) {
    Request named = request;
    name_peer(named, *peer);
    require(peer_of(named) == peer);
  }
}

template <size_t N, class Decode>
void decode_and_encode(std::span<const uint8_t> bytes, Decode&& decode) {
  if (bytes.size() < N) return;
  auto message = decode(bytes.first<N>());
  if (!message) return;
  std::array<uint8_t, N> again;
  encode(*message, again);
  require(std::equal(again.begin(), again.end(), bytes.begin()));
}

void run(const uint8_t* data, size_t size) {
  if (size < 2) return;
  const std::span<const uint8_t> bytes(data + 1, size - 1);
  const Outcome whole = read_stream(bytes, bytes.size());
  require(read_stream(bytes, 1 + data[0] % 64) == whole);
  require(read_stream(bytes, 1) == whole);
  for (const Asking& asking : whole.requests) round_trip(asking);
  require(whole.requests.size() <= bytes.size() / kRequestBytes);
  decode_and_encode<kObservationBytes>(bytes, decode_observation);
  decode_and_encode<kRequestBytes>(bytes, decode_request);
  decode_and_encode<kResponseBytes>(bytes, decode_response);
  decode_and_encode<kFlowBytes>(bytes, decode_flow);
  decode_and_encode<kSampleBytes>(bytes, decode_sample);
  decode_and_encode<kProcessSampleBytes>(bytes, decode_process_sample);
  decode_and_encode<kRoundBytes>(bytes, decode_round);
  decode_and_encode<kExtendedObservationBytes>(bytes, decode_extended_observation);
  // A rule with bytes that a later version added is encoded without them.
  if (auto rule = decode_rule(bytes); rule && rule->engine.size() <= kMaxReason) {
    auto again = decode_rule(encoded(*rule));
    require(again && again->reason == rule->reason.substr(0, kMaxReason));
    again->reason = rule->reason;
    require(*again == *rule);
  }
}

}  // namespace
}  // namespace mw::netflow

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::netflow::run(data, size);
  return 0;
}
