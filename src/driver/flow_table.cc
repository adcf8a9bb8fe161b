#include "driver/flow_table.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

namespace mw {
namespace {

bool endpoint_of(const mw_telemetry_endpoint& e, netflow::Endpoint& out) {
  if (e.family != AF_INET && e.family != AF_INET6) return false;
  out = {};
  out.port = e.port;
  out.address.af = e.family == AF_INET ? 4 : 6;
  std::memcpy(out.address.bytes.data(), e.address, e.family == AF_INET ? 4 : 16);
  return true;
}

}  // namespace

void FlowTable::Freed::operator()(Flow* p) const {
  std::free(p);
}

FlowTable::FlowTable(uint32_t slots, uint32_t workers, uint16_t ins)
    : slots_(slots),
      workers_(workers),
      ins_(ins),
      flows_(static_cast<Flow*>(std::calloc(slots, sizeof(Flow)))) {
  static_assert(std::is_trivially_destructible_v<Flow> && std::is_trivially_copyable_v<Flow>);
  if (flows_ == nullptr) std::abort();
}

Status FlowTable::introduce(const mw_telemetry_record& r) {
  Flow& flow = flows_[r.slot];
  netflow::Endpoint local;
  netflow::Endpoint remote;
  const auto known = slot_of_.find(r.gen);
  if (!endpoint_of(r.u.who.local, local) || !endpoint_of(r.u.who.remote, remote) ||
      (known != slot_of_.end() && known->second != r.slot))
    return Error{Fault::peer, 0, "a telemetry record's identity"};
  if (flow.gen == 0) {
    if (workers_ > 1 && closed_lately(r.gen)) return Ok{};
    flow = {};
    flow.gen = r.gen;
    slot_of_.emplace(r.gen, r.slot);
  }
  flow.bits = r.extra;
  flow.made_ns = r.now;
  flow.local = local;
  flow.remote = remote;
  return Ok{};
}

void FlowTable::erase(uint32_t slot) {
  slot_of_.erase(flows_[slot].gen);
  buried_[next_buried_++ % kBuried] = flows_[slot].gen;
  flows_[slot].gen = 0;
}

void FlowTable::forget(uint32_t epoch) {
  for (const auto& [number, slot] : slot_of_) flows_[slot].gen = 0;
  slot_of_.clear();
  told_ = 0;
  epoch_ = epoch;
}

const Flow* FlowTable::find(uint32_t number, uint32_t* slot) const {
  const auto it = slot_of_.find(number);
  if (it == slot_of_.end()) return nullptr;
  *slot = it->second;
  return &flows_[it->second];
}

uint16_t wire_flags(const Flow& flow) {
  static_assert(MW_CONN_INBOUND << netflow::kConnShift == netflow::kConnInbound &&
                MW_CONN_CUT << netflow::kConnShift == netflow::kConnCut);
  const uint32_t listener = (flow.bits & MW_TEL_WHO_LISTENER) != 0 ? netflow::kFlowListener : 0;
  return static_cast<uint16_t>(listener | flow.conn << netflow::kConnShift);
}

Seen FlowTable::observation(uint32_t slot, uint32_t kind, uint64_t now_ns) const {
  const Flow& flow = flows_[slot];
  Seen o;
  o.slot = slot;
  o.number = flow.gen;
  o.type = (flow.bits & MW_TEL_WHO_DATAGRAM) != 0 ? 2 : 1;
  o.flags = wire_flags(flow);
  o.kind = static_cast<netflow::ObservationKind>(kind);
  o.session_start = netflow::timestamp_of(flow.made_ns);
  o.now = netflow::timestamp_of(now_ns);
  o.socket = number_of(flow);
  o.local = flow.local;
  o.remote = flow.remote;
  o.bytes_in = flow.bytes_in;
  o.bytes_out = flow.bytes_out;
  return o;
}

// An accept is told of the listener, with the new connection's endpoints, start and state.
void FlowTable::accepted(Seen& o, uint32_t slot) {
  Flow& fresh = flows_[slot];
  fresh.conn |= MW_CONN_INBOUND | MW_CONN_ESTABLISHED;
  o.session_start = netflow::timestamp_of(fresh.made_ns);
  o.local = fresh.local;
  o.remote = fresh.remote;
  o.extra = static_cast<uint64_t>(number_of(fresh));
  o.flags = wire_flags(fresh);
  o.listener_slot = std::exchange(o.slot, slot);
  o.number = fresh.gen;
}

}  // namespace mw
