#include "netflow/exporter.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/clock.h"

namespace mw::netflow {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr int kTickMs = 250;

Instant now() {
  return {realtime_ns(), static_cast<uint64_t>(monotonic_ms()) * 1'000'000};
}

}  // namespace

Result<std::unique_ptr<Exporter>> Exporter::start(const ExportOptions& options,
                                                  std::function<uint64_t()> repairs) {
  std::unique_ptr<Exporter> e{new Exporter(options, std::move(repairs))};
  e->bell_ = UniqueFd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!e->bell_) return Error{Fault::sys, errno, "eventfd for exports"};
  if (!options.ipfix.collector.empty()) {
    auto made = IpfixExport::make(options.ipfix);
    if (!made) return made.error();
    e->ipfix_ = std::move(*made);
  }
  if (!options.json_lines.file.empty()) {
    auto made = JsonLinesExport::make(options.json_lines);
    if (!made) return made.error();
    e->json_lines_ = std::move(*made);
  }
  Exporter* const self = e.get();
  if (!options.prometheus.listen.empty()) {
    auto made = PrometheusServer::make(options.prometheus, [self] { return self->metrics(); });
    if (!made) return made.error();
    e->prometheus_ = std::move(*made);
  }
  e->thread_ = std::thread([self] { self->run(); });
  return e;
}

Exporter::Exporter(const ExportOptions& options, std::function<uint64_t()> repairs)
    : repairs_(std::move(repairs)),
      cache_(options.timeouts, [this](const FlowRecord& r) { tell(r); }) {}

Exporter::~Exporter() {
  if (!thread_.joinable()) return;
  stop_ = true;
  ring();
  thread_.join();
}

// ---- the caller's thread ----

void Exporter::ring() {
  const uint64_t one = 1;
  (void)!::write(bell_.get(), &one, sizeof one);  // a full counter wakes as well
}

void Exporter::offer(std::span<const ExtendedObservation> observations) {
  bool wake = false;
  {
    const std::lock_guard hold(lock_);
    wake = queue_.empty();
    const size_t taken = std::min(observations.size(), kQueue - queue_.size());
    queue_.insert(queue_.end(), observations.begin(), observations.begin() + taken);
    dropped_ += observations.size() - taken;
  }
  if (wake) ring();
}

void Exporter::end_all() {
  {
    const std::lock_guard hold(lock_);
    ended_ = true;
  }
  ring();
}

// ---- its own ----

void Exporter::run() {
  flush(now());  // templates, a connection: before the first record
  while (!stop_) {
    pollfd fds[] = {{bell_.get(), POLLIN, 0},
                    {ipfix_ ? ipfix_->fd() : -1, ipfix_ ? ipfix_->events() : short{0}, 0},
                    {prometheus_ ? prometheus_->event_fd() : -1, POLLIN, 0}};
    (void)::poll(fds, std::size(fds), kTickMs);
    if (fds[0].revents != 0) {
      uint64_t rings = 0;
      (void)!::read(bell_.get(), &rings, sizeof rings);
      take_queue();
    }
    const Instant at = now();
    if (fds[1].revents != 0) ipfix_->handle_events(at);
    if (fds[2].revents != 0) prometheus_->handle_events(at.monotonic_ns);
    cache_.expire(at.realtime_ns);
    if (at.monotonic_ns - flushed_ns_ >= kSecond) flush(at);
  }
  take_queue();
  const Instant at = now();
  cache_.end_all(at.realtime_ns);
  flush(at);
}

void Exporter::take_queue() {
  bool ended = false;
  {
    const std::lock_guard hold(lock_);
    taken_.swap(queue_);
    ended = std::exchange(ended_, false);
  }
  for (const ExtendedObservation& o : taken_) cache_.take(o);
  observations_ += taken_.size();
  taken_.clear();
  if (ended) cache_.end_all(realtime_ns());
}

void Exporter::tell(const FlowRecord& r) {
  const Instant at = now();
  if (ipfix_) ipfix_->put(r, at);
  if (json_lines_) json_lines_->put(r, at);
  if (r.final() && r.end_ns >= r.session_start_ns)
    durations_.observe((r.end_ns - r.session_start_ns) / 1'000'000);
}

void Exporter::flush(const Instant& at) {
  flushed_ns_ = at.monotonic_ns;
  if (ipfix_) ipfix_->flush(at);
  if (json_lines_) json_lines_->flush();
  if (prometheus_) prometheus_->drop_slow(at.monotonic_ns);
}

std::string Exporter::metrics() const {
  MetricsText m;
  const FlowCache::Counts& flows = cache_.counts();
  m.gauge("flows_open", "Connections that are open.", cache_.size());
  m.counter("flows_started_total", "Connections that were begun.", flows.started);
  m.counter("flows_ended_total", "Connections that ended.", flows.ended);
  m.counter("flows_evicted_total", "Connections forgotten for lack of room.", flows.evicted);
  m.counters("flow_bytes_total", "Payload, seen from the application.", "direction",
             {{"in", flows.bytes_in}, {"out", flows.bytes_out}});
  m.histogram("flow_duration_seconds", "How long the connections lasted that ended.", durations_);
  m.counter("observations_total", "Observations that became flows.", observations_);
  m.counters("observations_lost_total", "Observations that did not, by where they were lost.",
             "where", {{"telemetry", missed_}, {"export_queue", dropped_}});
  m.counter("repairs_total", "Lost wake-ups that a stack found by the clock: a fault to report.",
            repairs_());
  if (ipfix_) {
    const IpfixExport::Counts& c = ipfix_->counts();
    m.counter("ipfix_records_total", "Flow records sent to the collector.", c.records);
    m.counter("ipfix_messages_total", "Messages sent to the collector.", c.messages);
    m.counter("ipfix_dropped_total", "Flow records that could not be sent.", c.dropped);
  }
  if (json_lines_) {
    const JsonLinesExport::Counts& c = json_lines_->counts();
    m.counter("json_lines_records_total", "Flow records written.", c.records);
    m.counter("json_lines_dropped_total", "Flow records that could not be written.", c.dropped);
  }
  return m.text();
}

}  // namespace mw::netflow
