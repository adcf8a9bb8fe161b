// front_end.h - watches the session's front end (`mw run`), and finds it a successor if it dies.
//
// While it lives it would replace us and the INS; nobody replaces it. So we hold all descriptors
// that it holds, start `mw adopt SESSION` when it is gone, and hand them over to that one, or to
// one that a user starts. Until then the application and the INS go on as they are.
//
// TRUST       Our folder in the registry is private to our user; who connects there shows root's or
//             our user's credentials all the same, and gets nothing while the front end lives.
// INVARIANTS  One front end at a time: whoever was handed the session is watched from then on.
//             Successors that fail are started with growing delays and a limited number of times.
// THREADS     The driver's only thread. Never blocks.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>

#include "base/line_limit.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "driver/options.h"
#include "driver/poller.h"
#include "registry/local_registry.h"

namespace mw {

class FrontEnd {
 public:
  FrontEnd(Poller& poller, const DriverOptions& options) : poller_(poller), options_(options) {}

  // Without a front end in the options: does nothing. Errors: sys, shutdown.
  Status open(LocalRegistry& registry);
  void on_connect();
  void on_death();
  void on_adopter_end();
  void on_timer();
  // A pidfd of the one that there is, or -1.
  int pidfd() const { return death_ ? death_.get() : -1; }
  // Another one has the session now.
  std::function<void()> on_successor = [] {};

  static constexpr unsigned kMostFailures = 5;

 private:
  using Clock = std::chrono::steady_clock;

  Status listen(LocalRegistry& registry);
  // False: it is gone already.
  bool watch(uint32_t pid);
  void start_adopter();
  void forget_adopter();
  void adopter_failed();
  void start_after(std::chrono::milliseconds delay);
  Status hand_over_to(int connection) const;

  Poller& poller_;
  const DriverOptions& options_;
  UniqueFd listener_;
  UniqueFd timer_;
  UniqueFd death_;  // of the front end; none: it has died
  uint32_t pid_ = 0;
  UniqueFd adopter_death_;
  pid_t adopter_ = 0;
  Clock::time_point started_{};
  unsigned failures_ = 0;
  LineLimit refusals_{"mwcommsd"};
};

}  // namespace mw
