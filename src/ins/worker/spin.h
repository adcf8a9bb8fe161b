// spin.h - waiting awake for what will come within microseconds, because waking up costs more than
// that: from an idle processor tens of them.
//
// A spin lasts as long as lately would have saved a sleep, and only while nobody else wants the
// processor.
//
// THREADS     The worker's.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/unique_fd.h"

namespace mw {

class Spin {
 public:
  // `load`: /proc/loadavg; without it there is no spin.
  Spin(unsigned cpus, const UniqueFd& load) : cpus_(cpus), load_(load) {}

  // Looks until found() or until it has been long enough. False: it was not found.
  template <class Found>
  bool until(Found&& found) {
    if (longest_ns_ < kFirstNs) return false;
    const int64_t from = monotonic_ns();
    if (!processors_free(from)) return false;
    do {
      if (found()) return true;
    } while (monotonic_ns() - from < longest_ns_);
    return false;
  }

  // Sleeps, and learns from how long that was.
  template <class Sleep>
  void observe(Sleep&& sleep) {
    if (cpus_ <= 1) return sleep();
    const int64_t from = monotonic_ns();
    sleep();
    learn(monotonic_ns() - from);
  }

 private:
  // Sleeps shorter than kLongestNs would have been better spent awake; the spin grows from kFirstNs
  // towards it.
  static constexpr int64_t kLongestNs = 100'000;
  static constexpr int64_t kFirstNs = 10'000;

  void learn(int64_t slept_ns);
  bool processors_free(int64_t now);

  const unsigned cpus_;
  const UniqueFd& load_;
  int64_t longest_ns_ = 0;    // how long the next spin may last
  int64_t load_read_at_ = 0;  // when processors_free() looked last
  bool processors_free_ = false;
};

}  // namespace mw
