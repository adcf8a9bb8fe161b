// probe.h - asks the service for something again and again, as a client does, and tells how long it
// takes. Probes overlap: one that hangs does not keep the next from starting.
//
// TRUST       The answer is whatever the service sends; of it only the status line is looked at.
// THREADS     A thread of its own does the asking, so that what the owner does delays no probe and
//             distorts none. A probe during which that thread itself was late is forgotten.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "guard/availability.h"
#include "guard/probe_target.h"

namespace mw::guard {

class Prober {
 public:
  // Errors: sys (no descriptor is left).
  static Result<std::unique_ptr<Prober>> start(const ProbeTarget& target, const ProbeRules& rules);
  ~Prober();

  // What became known since the last time, in that order.
  std::vector<ProbeResult> take();
  // Readable when there is something to take.
  int fd() const { return news_.get(); }
  void hurry(bool yes) { hurry_ = yes; }

 private:
  struct Probe {
    UniqueFd socket;
    int64_t begun_ns = 0;
    bool connected = false;
    bool late = false;
    std::string answer;
  };

  Prober(const ProbeTarget& target, const ProbeRules& rules, UniqueFd news, UniqueFd end);
  void run();
  void begin(int64_t now_ns);
  // True if it is over.
  bool advance(Probe& p, short events, int64_t now_ns);
  bool overdue(Probe& p, int64_t now_ns);
  void tell(const Probe& p, Fate fate, int64_t now_ns);
  bool finish(const Probe& p, bool good, int64_t now_ns);
  int64_t next_due(int64_t next_begin_ns) const;

  const ProbeTarget target_;
  const ProbeRules rules_;
  const std::string request_;
  UniqueFd news_;
  UniqueFd end_;
  std::atomic<bool> hurry_{false};
  std::mutex mutex_;
  std::vector<ProbeResult> results_;
  std::vector<Probe> running_;  // of the thread
  std::jthread thread_;
};

}  // namespace mw::guard
