// driver_requests.h - what the driver wants of a socket, or of all (docs/protocol.md 9). Each answer
// is given after the wish is in force, and carries what the kernel then says.
//
// TRUST       The driver's; a request that cannot be is answered with an error.
// THREADS     The worker's.
#pragma once

#include "ins/policy/wishes.h"
#include "ins/worker/ending.h"
#include "ins/worker/limit_clock.h"
#include "ins/worker/news.h"
#include "ins/worker/option_effects.h"
#include "ins/worker/scope.h"

namespace mw {

class DriverRequests {
 public:
  DriverRequests(const WorkerScope& scope, News& news, LimitClock& limits, Ending& ending,
                 OptionEffects& options, Wishes& wishes)
      : scope_(scope),
        news_(news),
        limits_(limits),
        ending_(ending),
        options_(options),
        wishes_(wishes) {}

  InsReply execute(const InsRequest& r);

 private:
  void of_one(const InsRequest& r, InsReply& reply);
  int set_and_read(SlotRef s, const InsRequest& r, InsReply& reply);
  void answer_option(SlotRef s, const InsRequest& r, InsReply& reply);
  void option_of_all(const InsRequest& r, InsReply& reply);
  void cut_peer(const InsRequest& r, InsReply& reply);

  const WorkerScope& scope_;
  News& news_;
  LimitClock& limits_;
  Ending& ending_;
  OptionEffects& options_;
  Wishes& wishes_;
};

}  // namespace mw
