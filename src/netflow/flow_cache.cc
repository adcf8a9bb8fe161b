#include "netflow/flow_cache.h"

#include <algorithm>

namespace mw::netflow {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

uint64_t ns_of(const Timestamp& t) {
  return t.seconds * kSecond + t.nanoseconds;
}

// Zeek's letter is upper case if the originator did it.
void note(FlowRecord& r, char what, bool by_originator) {
  const char letter = by_originator ? what : static_cast<char>(what - 'A' + 'a');
  if (r.history.find(letter) == std::string::npos) r.history += letter;
}

}  // namespace

FlowCache::FlowCache(const FlowTimeouts& timeouts, Sink sink, size_t max_flows)
    : active_ns_(timeouts.active_s * kSecond),
      idle_ns_(timeouts.idle_s * kSecond),
      sink_(std::move(sink)),
      max_flows_(max_flows) {}

void FlowCache::take(const Observation& o, Protocol protocol) {
  switch (o.kind) {
    case ObservationKind::accept:
      begin(static_cast<int64_t>(o.extra), o, protocol, true, "ShA");
      return;
    case ObservationKind::connect:
      begin(o.socket, o, protocol, false, protocol == Protocol::tcp ? "ShA" : "");
      return;
    case ObservationKind::recv:
    case ObservationKind::send: {
      const bool in = o.kind == ObservationKind::recv;
      const auto found = flows_.find(o.socket);
      // Of a socket that was there before us, whoever speaks first counts as its originator.
      Flow& flow = found != flows_.end() ? found->second : begin(o.socket, o, protocol, in, "");
      ++(in ? flow.next.calls_in : flow.next.calls_out);
      carry(flow, o);
      return;
    }
    case ObservationKind::close:
      if (const auto found = flows_.find(o.socket); found != flows_.end()) {
        carry(found->second, o);
        note(found->second.next, 'F', !found->second.next.inbound);
        end(o.socket, ns_of(o.now), FlowEnd::end_of_flow);
      }
      return;
    default:
      return;  // no peer yet: no flow
  }
}

FlowCache::Flow& FlowCache::begin(int64_t socket, const Observation& o, Protocol protocol,
                                  bool inbound, const char* history) {
  const uint64_t now = ns_of(o.now);
  end(socket, now, FlowEnd::forced_end);  // a datagram socket that connects again
  if (flows_.size() >= max_flows_) make_room(now);
  Flow& flow = flows_[socket];
  FlowRecord& r = flow.next;
  r.socket = socket;
  r.protocol = protocol;
  r.inbound = inbound;
  r.local = o.local;
  r.remote = o.remote;
  r.session_start_ns = ns_of(o.session_start);
  r.start_ns = r.last_bytes_ns = flow.told_ns = now;
  r.history = history;
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

void FlowCache::tell(Flow& flow, uint64_t now_ns, FlowEnd reason) {
  FlowRecord& r = flow.next;
  r.reason = reason;
  r.end_ns = std::max(r.start_ns, reason == FlowEnd::idle_timeout ? r.last_bytes_ns : now_ns);
  sink_(r);
  ++r.number;
  r.start_ns = r.end_ns;
  r.bytes_in = r.bytes_out = r.calls_in = r.calls_out = 0;
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
