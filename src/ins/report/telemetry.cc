#include "ins/report/telemetry.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "ins/policy/peer_address.h"

namespace mw {
namespace {

constexpr uint32_t kIntroducedPerTurn = 32;

mw_telemetry_endpoint endpoint_of(const mw_addr& a, uint16_t family) {
  sockaddr_storage ss{};
  std::memcpy(&ss, a.bytes, sizeof a.bytes);
  return telemetry_endpoint_of(reinterpret_cast<const sockaddr*>(&ss), a.len, family);
}

}  // namespace

mw_telemetry_endpoint telemetry_endpoint_of(const sockaddr* a, socklen_t len, uint16_t family) {
  const PeerAddress address = peer_address_of(a, len);
  mw_telemetry_endpoint out{};
  out.family = address.family == 0 ? family : address.family;
  std::memcpy(out.address, address.bytes.data(), sizeof out.address);
  if (address.family == 0) return out;
  // The port stands at the same place in both families.
  sockaddr_in in{};
  std::memcpy(&in, a, sizeof in);
  out.port = ntohs(in.sin_port);
  return out;
}

void Telemetry::attach(std::shared_ptr<TelemetryChannel> channel) {
  channel_ = std::move(channel);
  writer_ = telemetry_end<TelemetryWriter>(channel_->memory.base(), worker_);
  scanned_epoch_ = scan_epoch_ = 0;
}

bool Telemetry::push_who(SlotRef s, const mw_telemetry_endpoint& local,
                         const mw_telemetry_endpoint& remote) {
  mw_telemetry_record r{};
  r.kind = MW_TEL_WHO;
  r.slot = s.index;
  r.gen = s->gen;
  r.extra = (s->kind == SockKind::dgram ? MW_TEL_WHO_DATAGRAM : 0) |
            (s->listener != nullptr ? MW_TEL_WHO_LISTENER : 0);
  r.now = s->made_ns;
  r.u.who.local = local;
  r.u.who.remote = remote;
  return writer_.push(r);
}

bool Telemetry::push_event(uint32_t kind, SlotRef s, uint32_t extra) {
  mw_telemetry_record r;
  r.kind = kind;
  r.slot = s.index;
  r.gen = s->gen;
  r.extra = extra;
  r.now = realtime_ns();
  r.u.event.bytes_in = s->bytes_in;
  r.u.event.bytes_out = s->bytes_out;
  r.u.event.conn = s->conn;
  std::memset(r.u.event.pad, 0, sizeof r.u.event.pad);
  return writer_.push(r);
}

// Says who the socket is, as the kernel says it now; while it connects, `to` is its peer.
bool Telemetry::introduce(SlotRef s, uint32_t epoch, const mw_telemetry_endpoint* to) {
  sockaddr_storage local{};
  sockaddr_storage remote{};
  socklen_t local_len = sizeof local;
  socklen_t remote_len = sizeof remote;
  if (s->fd < 0 || ::getsockname(s->fd, reinterpret_cast<sockaddr*>(&local), &local_len) < 0)
    local_len = 0;
  if (s->fd < 0 || ::getpeername(s->fd, reinterpret_cast<sockaddr*>(&remote), &remote_len) < 0)
    remote_len = 0;
  const auto l = telemetry_endpoint_of(reinterpret_cast<sockaddr*>(&local), local_len, s->domain);
  auto r = telemetry_endpoint_of(reinterpret_cast<sockaddr*>(&remote), remote_len, s->domain);
  if (remote_len == 0 && to != nullptr) r = *to;
  if (remote_len == 0 && to == nullptr) r.family = l.family;
  if (!push_who(s, l, r)) return false;
  s->told = epoch;
  return true;
}

void Telemetry::report(uint32_t kind, SlotRef s) {
  const uint32_t epoch = writer_.epoch();
  if (kind == MW_TEL_RECV) {
    ++s->sampled.calls_in;
    s->sampled.last_in_ms = coarse_monotonic_ms();
  } else if (kind == MW_TEL_SEND) {
    ++s->sampled.calls_out;
    s->sampled.last_out_ms = coarse_monotonic_ms();
  }
  if ((kind == MW_TEL_RECV || kind == MW_TEL_SEND) && writer_.muted()) {
    writer_.drop();
    return;
  }
  if (kind == MW_TEL_BIND) s->told = s->sampled.named = 0;  // an endpoint changed
  if (s->told != epoch && !introduce(s, epoch)) {
    writer_.drop();
    return;
  }
  push_event(kind, s, kind == MW_TEL_CLOSE && s->limits != nullptr ? s->limits->cut : 0);
  // Another worker's ring may be read before ours: it introduces the socket again.
  if (s.index % workers_ != worker_) s->told = 0;
}

void Telemetry::report_connecting(uint32_t kind, SlotRef s, const sockaddr* to, socklen_t len) {
  const auto peer = telemetry_endpoint_of(to, len, s->domain);
  s->sampled.named = 0;
  if (introduce(s, writer_.epoch(), &peer))
    push_event(kind, s, 0);
  else
    writer_.drop();
}

void Telemetry::report_accepted(SlotRef listener, SlotRef s, const mw_addr& local,
                                const mw_addr& peer) {
  const uint32_t epoch = writer_.epoch();
  if ((listener->told != epoch && !introduce(listener, epoch)) ||
      !push_who(s, endpoint_of(local, s->domain), endpoint_of(peer, s->domain))) {
    writer_.drop();
    return;
  }
  push_event(MW_TEL_ACCEPT, listener, s->gen);
  if (s.index % workers_ == worker_) s->told = epoch;
}

bool Telemetry::do_turn(uint32_t tick) {
  const uint32_t epoch = writer_.epoch();
  bool more = false;
  if (epoch == 0)
    scanned_epoch_ = 0;
  else if (epoch != scanned_epoch_)
    more = scan(tick);
  if (writer_.unannounced() && writer_.need_ring()) {
    const uint64_t one = 1;
    // A full counter wakes as well.
    (void)!::write(channel_->bell.get(), &one, sizeof one);
  }
  return more;
}

bool Telemetry::scan(uint32_t tick) {
  const uint32_t epoch = writer_.epoch();
  if (scan_epoch_ != epoch) {
    scan_epoch_ = epoch;
    scan_at_ = worker_;
    scan_pause_ = 0;
  }
  if (scan_pause_ == tick) return false;
  const uint32_t end = slots_.used_end(worker_);
  for (uint32_t n = 0; scan_at_ < end && n < kIntroducedPerTurn; scan_at_ += workers_) {
    const SlotRef s = slots_.find(scan_at_);
    if (!s || s->fd < 0 || s->told == epoch) continue;
    ++n;
    if (introduce(s, epoch) && push_event(MW_TEL_TOTALS, s, 0)) continue;
    scan_pause_ = tick;  // the driver is behind: no reason to hurry
    return false;
  }
  if (scan_at_ < end) return true;
  mw_telemetry_record told{};
  told.kind = MW_TEL_ALL_TOLD;
  told.slot = worker_;
  told.gen = epoch;
  if (writer_.push(told))
    scanned_epoch_ = epoch;
  else
    scan_pause_ = tick;
  return false;
}

}  // namespace mw
