#include "ins/report/sampler.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.h"

namespace mw {
namespace {

// How long a slice may keep a call waiting, and after how many sockets the clock is looked at.
constexpr int64_t kSliceNs = 150'000;
constexpr uint32_t kSocketsPerLook = 16;
constexpr uint64_t kQuietMs = 2'000;
constexpr uint64_t kStuckMs = 1'000;
constexpr uint64_t kSpreadMs = 64;  // so that not all are asked in the same round

// Set in SampledState::named, beside the state in which the names were asked for.
constexpr uint32_t kNamed = uint32_t{1} << 31;

uint32_t age_of(uint64_t then_ms, uint64_t now_ms) {
  if (then_ms == 0) return MW_NEVER;
  return static_cast<uint32_t>(
      std::min<uint64_t>(now_ms > then_ms ? now_ms - then_ms : 0, MW_NEVER - 1));
}

// Changes whenever the connection gets on.
std::array<uint64_t, 5> progress_of(const mw_sample_row& row) {
  return {row.bytes_acked, row.bytes_received, row.snd_wnd, row.notsent, row.total_retrans};
}

}  // namespace

void Sampler::attach(std::shared_ptr<TelemetryChannel> channel) {
  channel_ = std::move(channel);
  rows_ = SampleRowWriter(channel_->memory.base(), worker_, workers_);
  heard_.clear();
  round_ = 0;
}

bool Sampler::slice(uint32_t round) {
  if (round_ != round) {
    round_ = round;
    at_ = worker_;
  }
  const uint32_t end = slots_.used_end(worker_);
  heard_.resize(std::max<size_t>(heard_.size(), (end + workers_ - 1) / workers_));
  const int64_t until = monotonic_ns() + kSliceNs;
  for (uint32_t n = 0; at_ < end; at_ += workers_) {
    const SlotRef s = slots_.find(at_);
    if (!s || s->fd < 0) continue;
    if (n++ % kSocketsPerLook == 0) {
      const int64_t now = monotonic_ns();
      if (now >= until) return true;
    }
    sample(s, round, coarse_monotonic_ms());
  }
  rows_.finish(round, end);
  const uint64_t one = 1;
  (void)!::write(channel_->bell.get(), &one, sizeof one);  // a full counter wakes as well
  return false;
}

void Sampler::sample(SlotRef s, uint32_t round, uint64_t now_ms) {
  Heard& h = heard_[s.index / workers_];
  mw_sample_row& row = h.row;
  SampledState& own = s->sampled;
  if (h.gen != s->gen) {
    h = {};
    h.gen = s->gen;
    own.named = 0;
  }
  constexpr uint32_t kNaming = MW_ST_CONNECTING | MW_ST_CONNECTED | MW_ST_LISTENING;
  if (own.named != (kNamed | (s->state & kNaming))) {
    name(*s, row);
    own.named = kNamed | (s->state & kNaming);
  }
  row.gen = s->gen;
  row.round = round;
  row.flags = (s->listener != nullptr ? MW_ROW_LISTENER : 0) |
              ((s->flags & kAccepted) != 0 ? MW_ROW_INBOUND : 0) |
              (s->kind == SockKind::dgram ? MW_ROW_DATAGRAM : 0) |
              ((s->flags & kPaced) != 0 ? MW_ROW_PACED : 0);
  if (s->limits != nullptr) {
    if (s->limits->paused != 0) row.flags |= MW_ROW_PAUSED;
    if (s->limits->in.rule.rate != 0 || s->limits->out.rule.rate != 0) row.flags |= MW_ROW_MIN_RATE;
  }
  fill_rings(s, row);
  if (s->listener != nullptr) {
    fill_listener(*s, row);
  } else if (s->kind == SockKind::stream && (s->state & MW_ST_CONNECTED) != 0) {
    const bool moved = h.bytes_in != s->bytes_in || h.bytes_out != s->bytes_out ||
                       h.state != s->state || h.unsent != row.unsent;
    const uint64_t since = now_ms - h.at_ms;
    if (moved || since >= h.rest_ms) {
      const auto before = progress_of(row);
      if (!fill_tcp(s->fd, row)) return;
      const bool idle = row.unacked == 0 && row.notsent == 0 && row.probes == 0 && row.backoff == 0;
      const bool stuck = h.at_ms != 0 && progress_of(row) == before;
      const uint64_t spread = s.index % 8 * kSpreadMs;
      h.rest_ms = idle ? kQuietMs + spread : stuck ? kStuckMs + spread : 0;
      h.bytes_in = s->bytes_in;
      h.bytes_out = s->bytes_out;
      h.state = s->state;
      h.unsent = row.unsent;
      h.at_ms = now_ms;
    }
    row.flags |= MW_ROW_TCP;
    row.unsent += row.notsent;
  }
  // Traffic from before anybody listened: the kernel knows when the last of it was.
  const bool tcp = (row.flags & MW_ROW_TCP) != 0;
  if (s->bytes_in != 0 && own.last_in_ms == 0)
    own.last_in_ms = tcp ? now_ms - row.last_data_recv : own.first_in_ms;
  if (s->bytes_out != 0 && own.last_out_ms == 0)
    own.last_out_ms = tcp ? now_ms - row.last_data_sent : own.first_out_ms;
  row.bytes_in = s->bytes_in;
  row.bytes_out = s->bytes_out;
  row.calls_in = own.calls_in;
  row.calls_out = own.calls_out;
  row.age = age_of(own.made_ms, now_ms);
  row.first_in = age_of(own.first_in_ms, now_ms);
  row.last_in = age_of(own.last_in_ms, now_ms);
  row.first_out = age_of(own.first_out_ms, now_ms);
  row.last_out = age_of(own.last_out_ms, now_ms);
  mw_sample_row out = row;
  if (const auto since = static_cast<uint32_t>(now_ms - h.at_ms); h.at_ms != 0 && since != 0) {
    out.last_data_recv += since;
    out.last_data_sent += since;
    out.last_ack_recv += since;
  }
  rows_.write(s.index, out);
}

void Sampler::name(const Sock& s, mw_sample_row& row) {
  sockaddr_storage a{};
  socklen_t len = sizeof a;
  if (::getsockname(s.fd, reinterpret_cast<sockaddr*>(&a), &len) < 0) len = 0;
  row.local = telemetry_endpoint_of(reinterpret_cast<sockaddr*>(&a), len, s.domain);
  len = sizeof a;
  if (::getpeername(s.fd, reinterpret_cast<sockaddr*>(&a), &len) < 0) len = 0;
  row.remote = telemetry_endpoint_of(reinterpret_cast<sockaddr*>(&a), len, row.local.family);
}

// What waits in the rings, and in the kernel if the receive ring is full: else it holds nothing.
void Sampler::fill_rings(SlotRef s, mw_sample_row& row) const {
  const uint32_t rx_bytes = ch_.rx(s.index).capacity();
  mw_slot& shared = ch_.slot(s.index);
  row.unread = row.unsent = 0;
  // An index out of its window is dealt with where the ring is used.
  if (auto room = ring_room(rx_bytes, s->rx_tail, shared.rx_head)) row.unread = rx_bytes - *room;
  if (auto left = ring_ready(ch_.tx(s.index).capacity(), s->tx_head, shared.tx_tail))
    row.unsent = *left;
  int below = 0;
  if ((s->flags & kRxWait) != 0 && ::ioctl(s->fd, SIOCINQ, &below) == 0 && below > 0)
    row.unread += static_cast<uint32_t>(below);
}

// Connections wait in the kernel, and as records on the placeholder.
void Sampler::fill_listener(const Sock& s, mw_sample_row& row) const {
  tcp_info info{};
  socklen_t len = sizeof info;
  row.queue = ::getsockopt(s.fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 ? info.tcpi_unacked : 0;
  row.queue += accepts_.queued(s);
  row.backlog = static_cast<uint32_t>(std::max(s.backlog, 0));
  row.tcp_state = info.tcpi_state;
}

bool Sampler::fill_tcp(int fd, mw_sample_row& row) {
  tcp_info t{};
  socklen_t len = sizeof t;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &t, &len) < 0) return false;
  row.tcp_state = t.tcpi_state;
  row.rtt_us = t.tcpi_rtt;
  row.rttvar_us = t.tcpi_rttvar;
  row.min_rtt_us = t.tcpi_min_rtt;
  row.snd_wnd = t.tcpi_snd_wnd;
  row.notsent = t.tcpi_notsent_bytes;
  row.unacked = t.tcpi_unacked;
  row.total_retrans = t.tcpi_total_retrans;
  row.probes = t.tcpi_probes;
  row.backoff = t.tcpi_backoff;
  row.last_data_recv = t.tcpi_last_data_recv;
  row.last_data_sent = t.tcpi_last_data_sent;
  row.last_ack_recv = t.tcpi_last_ack_recv;
  row.bytes_acked = t.tcpi_bytes_acked;
  row.bytes_received = t.tcpi_bytes_received;
  row.bytes_retrans = t.tcpi_bytes_retrans;
  row.busy_us = t.tcpi_busy_time;
  row.rwnd_limited_us = t.tcpi_rwnd_limited;
  row.sndbuf_limited_us = t.tcpi_sndbuf_limited;
  row.delivery_rate = t.tcpi_delivery_rate;
  return true;
}

}  // namespace mw
