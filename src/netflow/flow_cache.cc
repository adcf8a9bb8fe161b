#include "netflow/flow_cache.h"

#include <algorithm>

namespace mw::netflow {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint16_t kStream = 1;  // ExtendedObservation::type

uint64_t ns_of(const Timestamp& t) {
  return t.seconds * kSecond + t.nanoseconds;
}

// Zeek's letter is upper case if the originator did it.
void note(FlowRecord& r, char what, bool by_originator) {
  const char letter = by_originator ? what : static_cast<char>(what - 'A' + 'a');
  if (r.history.find(letter) == std::string::npos) r.history += letter;
}

// Of a connection that was established.
const char* state_after_handshake(const FlowRecord& r) {
  const uint16_t orig_fin = r.inbound ? kConnPeerFin : kConnOurFin;
  const uint16_t resp_fin = r.inbound ? kConnOurFin : kConnPeerFin;
  if ((r.conn & (r.inbound ? kConnPeerRst : kConnOurRst)) != 0) return "RSTO";
  if ((r.conn & (r.inbound ? kConnOurRst : kConnPeerRst)) != 0) return "RSTR";
  if ((r.conn & orig_fin) != 0 && (r.conn & resp_fin) != 0) return "SF";
  if ((r.conn & orig_fin) != 0) return "S2";
  return (r.conn & resp_fin) != 0 ? "S3" : "S1";
}

}  // namespace

const char* state_of(const FlowRecord& r) {
  if (r.protocol == Protocol::udp) return "OTH";
  if ((r.conn & kConnEstablished) != 0) return state_after_handshake(r);
  if (!r.history.starts_with('S')) return "OTH";
  return (r.conn & kConnPeerRst) != 0 ? "REJ" : "S0";
}

FlowCache::FlowCache(const FlowTimeouts& timeouts, Sink sink, size_t max_flows)
    : active_ns_(timeouts.active_s * kSecond),
      idle_ns_(timeouts.idle_s * kSecond),
      tell_beginning_(timeouts.tell_beginning),
      sink_(std::move(sink)),
      max_flows_(max_flows) {}

void FlowCache::take(const ExtendedObservation& o) {
  switch (o.kind) {
    case ObservationKind::accept:
      // It was told of as open, perhaps, before this came.
      if (flows_.count(static_cast<int64_t>(o.extra)) == 0)
        tell_begun(begin(static_cast<int64_t>(o.extra), o, true, "ShA"));
      return;
    case ObservationKind::connect:
      return on_connect(o);
    case ObservationKind::recv:
    case ObservationKind::send:
      return on_bytes(o);
    case ObservationKind::close:
      return on_close(o);
    case ObservationKind::none:
      return on_change(o);
    default:
      return;  // no peer yet: no flow
  }
}

// An attempt is an end of what was before it, unless a stream's only collects the outcome, or a
// datagram socket's names the peer that it has: it was told of as open, perhaps, before this came.
void FlowCache::on_connect(const ExtendedObservation& o) {
  const auto found = flows_.find(o.socket);
  const bool stream = o.type == kStream;
  if (found != flows_.end()) {
    FlowRecord& r = found->second.next;
    name(r, o);
    const bool same = stream ? (r.conn & o.flags & kConnEstablished) != 0 : r.remote == o.remote;
    if (same) return stand(r, o.flags);
    if (stream) end(o.socket, ns_of(o.now), FlowEnd::end_of_flow);
  }
  if (stream && o.remote.port == 0) return;  // dissolved
  tell_begun(begin(o.socket, o, false, stream ? "S" : ""));
}

void FlowCache::on_change(const ExtendedObservation& o) {
  const auto found = flows_.find(o.socket);
  if (found != flows_.end()) {
    name(found->second.next, o);
    return stand(found->second.next, o.flags);
  }
  // An attempt that was over when the call returned.
  constexpr uint16_t kBegun = kConnInbound | kConnEstablished;
  if (o.remote.port != 0 && (o.flags & (kBegun | kConnPeerRst)) == kConnPeerRst)
    tell_begun(begin(o.socket, o, false, "S"));
}

void FlowCache::on_bytes(const ExtendedObservation& o) {
  const bool in = o.kind == ObservationKind::recv;
  const auto found = flows_.find(o.socket);
  const bool fresh = found == flows_.end();
  // Of datagrams, whoever is seen to speak first counts as the originator.
  const bool inbound = o.type == kStream ? (o.flags & kConnInbound) != 0 : in;
  Flow& flow = fresh ? begin(o.socket, o, inbound, "") : found->second;
  ++(in ? flow.next.calls_in : flow.next.calls_out);
  name(flow.next, o);
  // The handshake was before the bytes, an end comes after them.
  stand(flow.next, o.flags & (kConnInbound | kConnEstablished));
  carry(flow, o);
  stand(flow.next, o.flags);
  if (fresh) tell_begun(flow);
}

void FlowCache::on_close(const ExtendedObservation& o) {
  const auto found = flows_.find(o.socket);
  if (found == flows_.end()) return;
  name(found->second.next, o);
  carry(found->second, o);
  stand(found->second.next, o.flags);
  const bool unseen = (o.flags & kCloseUnseen) != 0;
  end(o.socket, ns_of(o.now), unseen ? FlowEnd::forced_end : FlowEnd::end_of_flow);
}

void FlowCache::open(const netflow::Flow& f, uint64_t now_ns) {
  ExtendedObservation o;
  o.now = timestamp_of(now_ns);
  o.session_start = f.session_start;
  o.socket = f.socket;
  o.local = f.local;
  o.remote = f.remote;
  o.type = f.type;
  o.flags = f.flags;
  o.pid = f.pid;
  o.uid = f.uid;
  o.command = f.command;
  Flow& flow = begin(f.socket, o, (f.flags & kConnInbound) != 0, "");
  FlowRecord& r = flow.next;
  r.total_in = f.bytes_in;
  r.total_out = f.bytes_out;
  r.last_bytes_ns = std::max(ns_of(f.last), ns_of(f.session_start));
  tell_begun(flow);
}

// Who holds it; what is not known now stays as it was known.
void FlowCache::name(FlowRecord& r, const ExtendedObservation& o) {
  if (o.pid == 0) return;
  r.pid = o.pid;
  r.uid = o.uid;
  r.command = o.command;
}

// How the connection stands now. What is not in the history goes there.
void FlowCache::stand(FlowRecord& r, uint16_t flags) {
  const uint16_t fresh = flags & kConnBits & ~r.conn;
  r.conn |= fresh;
  r.fresh |= fresh;
  if ((fresh & kConnEstablished) != 0 && r.history == "S") r.history += "hA";
  if ((fresh & kConnPeerFin) != 0) note(r, 'F', r.inbound);
  if ((fresh & kConnOurFin) != 0) note(r, 'F', !r.inbound);
  if ((fresh & kConnPeerRst) != 0) note(r, 'R', r.inbound);
  if ((fresh & kConnOurRst) != 0) note(r, 'R', !r.inbound);
}

FlowCache::Flow& FlowCache::begin(int64_t socket, const ExtendedObservation& o, bool inbound,
                                  const char* history) {
  const uint64_t now = ns_of(o.now);
  end(socket, now, FlowEnd::forced_end);  // a datagram socket that connects again
  if (flows_.size() >= max_flows_) make_room(now);
  Flow& flow = flows_[socket];
  FlowRecord& r = flow.next;
  r.socket = socket;
  r.protocol = o.type == kStream ? Protocol::tcp : Protocol::udp;
  r.inbound = inbound;
  r.local = o.local;
  r.remote = o.remote;
  r.session_start_ns = ns_of(o.session_start);
  r.start_ns = r.last_bytes_ns = flow.told_ns = now;
  r.history = history;
  name(r, o);
  stand(r, o.flags);
  ++counts_.started;
  schedule(flow);
  return flow;
}

void FlowCache::carry(Flow& flow, const Observation& o) {
  FlowRecord& r = flow.next;
  const uint64_t in = o.bytes_in > r.total_in ? o.bytes_in - r.total_in : 0;
  const uint64_t out = o.bytes_out > r.total_out ? o.bytes_out - r.total_out : 0;
  if (in == 0 && out == 0) return;
  const uint64_t now = ns_of(o.now);
  if (flow.idle) {
    flow.idle = false;
    r.start_ns = flow.told_ns = r.last_bytes_ns = now;
    schedule(flow);
  }
  r.last_bytes_ns = std::max(r.last_bytes_ns, now);
  if (in != 0) note(r, 'D', r.inbound);
  if (out != 0) note(r, 'D', !r.inbound);
  r.bytes_in += in;
  r.bytes_out += out;
  r.total_in += in;
  r.total_out += out;
  counts_.bytes_in += in;
  counts_.bytes_out += out;
}

void FlowCache::tell_begun(Flow& flow) {
  if (tell_beginning_) tell(flow, flow.next.start_ns, FlowEnd::begun);
}

void FlowCache::tell(Flow& flow, uint64_t now_ns, FlowEnd reason) {
  FlowRecord& r = flow.next;
  r.reason = reason;
  r.end_ns = std::max(r.start_ns, reason == FlowEnd::idle_timeout ? r.last_bytes_ns : now_ns);
  sink_(r);
  ++r.number;
  r.start_ns = r.end_ns;
  r.bytes_in = r.bytes_out = r.calls_in = r.calls_out = 0;
  r.fresh = 0;
  flow.told_ns = now_ns;
}

void FlowCache::end(int64_t socket, uint64_t now_ns, FlowEnd reason) {
  const auto found = flows_.find(socket);
  if (found == flows_.end()) return;
  tell(found->second, now_ns, reason);
  flows_.erase(found);
  ++counts_.ended;
}

uint64_t FlowCache::due_ns(const Flow& flow) const {
  const uint64_t active = flow.told_ns + active_ns_;
  return flow.idle ? active : std::min(active, flow.next.last_bytes_ns + idle_ns_);
}

void FlowCache::schedule(Flow& flow) {
  flow.queued_ns = due_ns(flow);
  if (due_.size() > 2 * max_flows_) {
    // Many short connections leave more void entries than there are flows.
    due_ = {};
    for (const auto& [socket, each] : flows_) due_.push({each.queued_ns, socket});
    return;
  }
  due_.push({flow.queued_ns, flow.next.socket});
}

void FlowCache::expire(uint64_t now_ns) {
  while (!due_.empty() && due_.top().at_ns <= now_ns) {
    const Due due = due_.top();
    due_.pop();
    const auto found = flows_.find(due.socket);
    if (found == flows_.end() || found->second.queued_ns != due.at_ns) continue;
    Flow& flow = found->second;
    // Its bytes did not touch the queue.
    if (due_ns(flow) <= now_ns) {
      // One that has been idle for longer is told as idle again.
      flow.idle = flow.next.last_bytes_ns + idle_ns_ <= now_ns;
      tell(flow, now_ns, flow.idle ? FlowEnd::idle_timeout : FlowEnd::active_timeout);
    }
    schedule(flow);
  }
}

void FlowCache::make_room(uint64_t now_ns) {
  while (!due_.empty()) {
    const int64_t socket = due_.top().socket;
    due_.pop();
    if (flows_.count(socket) == 0) continue;
    end(socket, now_ns, FlowEnd::lack_of_resources);
    ++counts_.evicted;
    return;
  }
}

void FlowCache::end_all(uint64_t now_ns) {
  while (!flows_.empty()) end(flows_.begin()->first, now_ns, FlowEnd::forced_end);
  due_ = {};
}

}  // namespace mw::netflow
