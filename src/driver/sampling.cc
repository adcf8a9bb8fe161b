#include "driver/sampling.h"

#include <sys/socket.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "driver/flow_table.h"

namespace mw {
namespace {

constexpr size_t kSamplesPerBatch = 200;
constexpr double kRateSeconds = 3.0;  // what is older weighs less than a third
// What is read from /proc is no older than this.
constexpr int64_t kProcNs = 900'000'000;
constexpr int64_t kHolderNs = 2'000'000'000;
constexpr uint32_t kLooksPerRound = 32;
constexpr uint64_t kImpossibleUs = uint64_t{1} << 50;

uint16_t flags_of(uint32_t row) {
  constexpr std::pair<uint32_t, uint16_t> kFlags[] = {
      {MW_ROW_LISTENER, netflow::kSampleListener}, {MW_ROW_INBOUND, netflow::kSampleInbound},
      {MW_ROW_TCP, netflow::kSampleTcp},           {MW_ROW_PAUSED, netflow::kSamplePaused},
      {MW_ROW_PACED, netflow::kSamplePaced},       {MW_ROW_MIN_RATE, netflow::kSampleMinRate},
  };
  uint16_t out = 0;
  for (const auto& [bit, flag] : kFlags)
    if ((row & bit) != 0) out |= flag;
  return out;
}

// An address that is none is shown as one that is not known.
netflow::Endpoint endpoint_of(const mw_telemetry_endpoint& e) {
  netflow::Endpoint out;
  out.address.af = e.family == AF_INET6 ? 6 : 4;
  if (e.family != AF_INET && e.family != AF_INET6) return out;
  std::memcpy(out.address.bytes.data(), e.address, e.family == AF_INET ? 4 : 16);
  out.port = e.port;
  return out;
}

template <class Message, size_t N>
void append(netflow::SampledBatches& out, const Message& m) {
  const bool full = out.empty() || out.back().each != N || out.back().messages == kSamplesPerBatch;
  if (full) {
    out.emplace_back();
    out.back().each = N;
    out.back().bytes.reserve(kSamplesPerBatch * N);
  }
  netflow::Batch& b = out.back();
  const size_t at = b.bytes.size();
  b.bytes.resize(at + N);
  netflow::encode(m, std::span<uint8_t, N>(b.bytes.data() + at, N));
  ++b.messages;
}

}  // namespace

void Sampling::Freed::operator()(void* p) const {
  std::free(p);
}

Sampling::Sampling(SessionMemory& memory, std::function<bool(uint32_t)> belongs)
    : memory_(memory),
      belongs_(std::move(belongs)),
      history_(static_cast<History*>(std::calloc(memory.geometry().slots, sizeof(History)))),
      identities_(static_cast<Identity*>(std::calloc(memory.geometry().slots, sizeof(Identity)))) {
  if (history_ == nullptr || identities_ == nullptr) std::abort();
}

void Sampling::process_came(uint32_t pid) {
  const std::lock_guard hold(lock_);
  ++processes_[pid].attached;
}

void Sampling::process_went(uint32_t pid) {
  const std::lock_guard hold(lock_);
  const auto it = processes_.find(pid);
  if (it != processes_.end() && --it->second.attached == 0) processes_.erase(it);
}

netflow::SampledBatches Sampling::collect(InsTelemetry* ins, uint32_t row_round, uint32_t other) {
  const Now now{monotonic_ns(), realtime_ns()};
  netflow::SampledBatches out;
  looks_left_ = kLooksPerRound;
  const uint32_t end = ins == nullptr ? 0 : ins->rows().end();
  mw_sample_row row;
  for (uint32_t slot = 0; slot < end; ++slot) {
    if (!ins->rows().read(slot, row_round, other, row) || row.gen == 0) continue;
    // Its close was told already; a row that nobody introduced is shown nevertheless.
    if (!ins->flows().is_open(slot, row.gen) && ins->flows().closed_lately(row.gen)) continue;
    append<netflow::Sample, netflow::kSampleBytes>(out,
                                                   sample_of(row, slot, ins->flows().ins(), now));
  }
  add_processes(out, now);
  std::erase_if(holders_, [&](const auto& h) { return h.second.until_ns < now.mono_ns; });
  return out;
}

netflow::Sample Sampling::sample_of(const mw_sample_row& r, uint32_t slot, uint16_t ins,
                                    const Now& now) {
  netflow::Sample s;
  s.now_ns = now.real_ns;
  s.mono_ns = static_cast<uint64_t>(now.mono_ns);
  s.socket = netflow::encode(netflow::SocketId{ins, r.gen});
  s.type = (r.flags & MW_ROW_DATAGRAM) != 0 ? 2 : 1;
  s.flags = flags_of(r.flags);
  s.local = endpoint_of(r.local);
  s.remote = endpoint_of(r.remote);
  if (is_allowed && is_allowed(s.remote.address)) s.flags |= netflow::kSampleAllowed;
  s.bytes_in = r.bytes_in;
  s.bytes_out = r.bytes_out;
  s.calls_in = r.calls_in;
  s.calls_out = r.calls_out;
  s.age = r.age;
  s.first_in = r.first_in;
  s.last_in = r.last_in;
  s.first_out = r.first_out;
  s.last_out = r.last_out;
  s.unread = r.unread;
  s.unsent = r.unsent;
  s.queue = r.queue;
  s.backlog = r.backlog;
  History& h = history_[slot];
  if (h.gen != r.gen) {
    h = {};
    h.gen = r.gen;
  }
  add_holder(s, memory_.session().slot(slot), h, now);
  add_rates(s, h, now);
  if ((r.flags & (MW_ROW_TCP | MW_ROW_LISTENER)) != 0) s.tcp_state = r.tcp_state;
  if ((r.flags & MW_ROW_TCP) == 0) return s;
  s.rtt_us = r.rtt_us;
  s.rttvar_us = r.rttvar_us;
  s.min_rtt_us = r.min_rtt_us;
  s.snd_wnd = r.snd_wnd;
  s.notsent = r.notsent;
  s.unacked = r.unacked;
  s.total_retrans = r.total_retrans;
  s.probes = r.probes;
  s.backoff = r.backoff;
  s.last_data_recv = r.last_data_recv;
  s.last_data_sent = r.last_data_sent;
  s.last_ack_recv = r.last_ack_recv;
  s.bytes_acked = r.bytes_acked;
  s.bytes_received = r.bytes_received;
  s.bytes_retrans = r.bytes_retrans;
  s.busy_us = r.busy_us;
  s.rwnd_limited_us = r.rwnd_limited_us;
  s.sndbuf_limited_us = r.sndbuf_limited_us;
  s.delivery_rate = r.delivery_rate;
  return s;
}

void Sampling::add_holder(netflow::Sample& s, SessionSlot& mine, History& h, const Now& now) {
  using A = StdAtomics;
  if (A::load_acquire(mine.gen) != h.gen) return;  // nobody has taken it yet
  const uint32_t owner = A::load_relaxed(mine.owner);
  if (const Holder& who = holder(owner, now.mono_ns); who.ours) {
    s.pid = owner;
    s.uid = who.uid;
    s.command = who.command;
  }
  const SessionWait wait = wait_of(mine, now.mono_ns);
  // Whoever was killed while it waited waits no more.
  if (wait.threads != 0 && !holder(A::load_relaxed(mine.waiter), now.mono_ns).alive) {
    s.worker_us = h.worker_us;
    return;
  }
  s.waiting_threads = wait.threads;
  s.waiting = wait.since_ms;
  if (wait.total_us < kImpossibleUs) h.worker_us = std::max(h.worker_us, wait.total_us);
  s.worker_us = h.worker_us;
}

// As the session names the holder now, or as it was known last.
Sampling::Identity& Sampling::identify(uint32_t slot, uint32_t gen, int64_t now_ns) {
  using A = StdAtomics;
  Identity& known = identities_[slot];
  if (known.gen != gen) {
    known = {};
    known.gen = gen;
  }
  SessionOwner& named = memory_.session().owner(gen);
  if (A::load_acquire(named.gen) != gen) return known;
  const uint32_t owner = A::load_relaxed(named.pid);
  const auto cached = holders_.find(owner);
  // The application may name others for every socket: what that costs us is bounded.
  if ((cached == holders_.end() || cached->second.until_ns < now_ns) && looks_left_ == 0)
    return known;
  if (const Holder& who = holder(owner, now_ns); who.ours)
    known = {gen, owner, who.uid, 0, who.command};
  return known;
}

void Sampling::add_holder(Seen& o) {
  const int64_t now = monotonic_ns();
  if (now >= looks_until_ns_) {
    looks_until_ns_ = now + kProcNs;
    looks_left_ = kLooksPerRound;
    std::erase_if(holders_, [now](const auto& h) { return h.second.until_ns < now; });
  }
  Identity& known = identify(o.slot, o.number, now);
  if (o.kind == netflow::ObservationKind::accept && known.pid == 0) {
    const auto listener = netflow::decode_socket(o.socket);
    const Identity& its = identify(o.listener_slot, listener ? listener->number : 0, now);
    known = {o.number, its.pid, its.uid, 1, its.command};
  }
  o.pid = known.pid;
  o.uid = known.uid;
  o.command = known.command;
  if (known.pid != 0 && known.of_listener != 0) o.flags |= netflow::kListenersHolder;
}

// Bytes a second, those of the last seconds weighing most. The first sample has the mean of the
// socket's life.
void Sampling::add_rates(netflow::Sample& s, History& h, const Now& now) const {
  const auto rate = [](uint64_t fresh, double seconds) {
    return seconds > 0 ? static_cast<double>(fresh) / seconds : 0;
  };
  if (h.at_ns == 0) {
    const double life = s.age == netflow::kNever ? 0 : std::max(s.age, 1000u) / 1e3;
    h.rate_in = rate(s.bytes_in, life);
    h.rate_out = rate(s.bytes_out, life);
  } else {
    const double seconds = static_cast<double>(now.mono_ns - h.at_ns) / 1e9;
    const double weight = 1 - std::exp(-seconds / kRateSeconds);
    const auto grown = [](uint64_t now_bytes, uint64_t then) {
      return now_bytes > then ? now_bytes - then : 0;
    };
    h.rate_in += weight * (rate(grown(s.bytes_in, h.bytes_in), seconds) - h.rate_in);
    h.rate_out += weight * (rate(grown(s.bytes_out, h.bytes_out), seconds) - h.rate_out);
  }
  h.at_ns = now.mono_ns;
  h.bytes_in = s.bytes_in;
  h.bytes_out = s.bytes_out;
  s.rate_in = static_cast<uint64_t>(h.rate_in);
  s.rate_out = static_cast<uint64_t>(h.rate_out);
}

const Sampling::Holder& Sampling::holder(uint32_t pid, int64_t now_ns) {
  const auto [it, fresh] = holders_.try_emplace(pid);
  Holder& h = it->second;
  if (!fresh && h.until_ns >= now_ns) return h;
  h = {};
  h.until_ns = now_ns + kHolderNs;
  if (pid == 0) return h;
  {
    const std::lock_guard hold(lock_);
    h.ours = processes_.count(pid) != 0;
  }
  h.alive = !is_dead(pid);
  // The application may name any process, and any number of them; a look at one costs a little.
  if (h.alive && !h.ours) {
    if (looks_left_ == 0) {
      h.until_ns = now_ns;
      return h;
    }
    --looks_left_;
    h.ours = belongs_(pid);
  }
  h.ours = h.ours && h.alive;
  if (!h.ours) return h;
  {
    // One that never attached, as a child of one that did, is shown as well.
    const std::lock_guard hold(lock_);
    processes_.try_emplace(pid);
  }
  h.uid = uid_of(pid);
  h.command = netflow::command_name(command_of(pid));
  return h;
}

void Sampling::look_at(uint32_t pid, Process& p, int64_t now_ns) {
  if (p.until_ns >= now_ns) return;
  p.use = use_of(pid);
  p.until_ns = now_ns + kProcNs;
}

const std::optional<ProcessUse>& Sampling::use_of_ins(uint32_t pid) {
  if (std::exchange(ins_pid_, pid) != pid) ins_ = {};
  look_at(pid, ins_, monotonic_ns());
  return ins_.use;
}

void Sampling::add_processes(netflow::SampledBatches& out, const Now& now) {
  const std::lock_guard hold(lock_);
  std::erase_if(processes_, [](const auto& p) {
    return p.second.attached == 0 && p.second.until_ns != 0 && !p.second.use;
  });
  for (auto& [pid, p] : processes_) {
    look_at(pid, p, now.mono_ns);
    if (!p.use) continue;
    netflow::ProcessSample s;
    s.pid = pid;
    s.uid = p.use->uid;
    s.command = netflow::command_name(p.use->command);
    s.rss_bytes = p.use->rss_bytes;
    s.cpu_us = p.use->cpu_us;
    s.threads = p.use->threads;
    s.fds = p.use->fds;
    append<netflow::ProcessSample, netflow::kProcessSampleBytes>(out, s);
  }
}

}  // namespace mw
