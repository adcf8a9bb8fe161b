// exporter.h - observations to flows to IPFIX, Prometheus and JSON lines, on a thread of its own.
//
// INVARIANTS  offer() never waits for a collector, a disk or a reader: what does not fit into the
//             queue is dropped and counted.
// THREADS     Public functions: any one thread. The rest: its own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/exports.h"
#include "netflow/flow_cache.h"
#include "netflow/ipfix.h"
#include "netflow/json_lines.h"
#include "netflow/prometheus.h"

namespace mw::netflow {

class Exporter {
 public:
  static constexpr size_t kQueue = 65536;  // observations

  // `repairs`: how many lost wake-ups the stacks have repaired so far; asked from the exporter's
  // thread. Errors: limit (an address that is none, or not on this host), sys.
  static Result<std::unique_ptr<Exporter>> start(const ExportOptions& options,
                                                 std::function<uint64_t()> repairs);
  // Tells every flow as ended.
  ~Exporter();
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  void offer(std::span<const ExtendedObservation> observations);
  // Observations that were lost before they came here.
  void count_missed(uint64_t observations) { missed_ += observations; }
  // The INS and all its sockets are gone.
  void end_all();

  // "" if none is served.
  std::string prometheus_address() const { return prometheus_ ? prometheus_->address() : ""; }

 private:
  Exporter(const ExportOptions& options, std::function<uint64_t()> repairs);
  void run();
  void ring();
  void take_queue();
  void tell(const FlowRecord& r);
  void flush(const Instant& now);
  std::string metrics() const;

  const std::function<uint64_t()> repairs_;
  std::unique_ptr<IpfixExport> ipfix_;
  std::unique_ptr<JsonLinesExport> json_lines_;
  std::unique_ptr<PrometheusServer> prometheus_;

  UniqueFd bell_;
  std::mutex lock_;
  std::vector<ExtendedObservation> queue_;
  bool ended_ = false;  // under lock_: the sockets of what stands in queue_ are gone
  std::atomic<uint64_t> missed_{0};
  std::atomic<uint64_t> dropped_{0};
  std::atomic<bool> stop_{false};

  // From here on the thread's own.
  FlowCache cache_;
  uint64_t observations_ = 0;
  MetricsText::Histogram durations_;
  uint64_t flushed_ns_ = 0;
  std::vector<ExtendedObservation> taken_;
  std::thread thread_;  // last: everything above is there when it starts
};

}  // namespace mw::netflow
