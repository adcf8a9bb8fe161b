// control_core.h - the control thread's part that is the same however the INS reaches its driver and
// its PVM: what is published, the ticks, lookups, and the driver's questions to the workers.
//
// THREADS     The control thread's; workers are reached by notes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "ins/control/publish.h"
#include "ins/control/resolve.h"
#include "ins/control/worker_threads.h"
#include "ins/worker/context.h"

namespace mw {

// What is told to the driver. Whether there is one is the link's matter: without one nothing is
// told.
class DriverLink {
 public:
  DriverLink() = default;
  DriverLink(const DriverLink&) = delete;
  DriverLink& operator=(const DriverLink&) = delete;
  virtual ~DriverLink() = default;

  virtual void listener_up(const ControlListener& l, int placeholder) = 0;
  virtual void listener_down(uint32_t slot, uint32_t gen) = 0;
  virtual void bypass(uint32_t slot, uint32_t gen) = 0;
  virtual void lent(const ControlOption& option, int socket) = 0;
  virtual void reply(const InsReply& reply) = 0;
};

class ControlCore {
 public:
  ControlCore(InsContext& ins, WorkerThreads& workers, Publisher& publisher, Resolver& resolver,
              DriverLink& driver)
      : ins_(ins), workers_(workers), publisher_(publisher), resolver_(resolver), driver_(driver) {}

  // The workers have notes. False: all is over, as a worker has stopped by itself.
  bool on_notes();
  // Once a second: the heartbeat and the figures.
  void on_tick();
  // The region is ours: there is something to count.
  void on_adopted() { adopted_ = true; }
  bool is_adopted() const { return adopted_; }

  // Tells of all listeners, as a driver that is new needs it.
  void tell_listeners() const;

  // The driver's question for one worker or for all. False: it cannot be.
  bool ask(const InsRequest& r);
  // A driver that was started anew does not wait for the answers.
  void forget_questions() { pending_.clear(); }

  void tell_workers(WorkerNote::Kind kind) const;

 private:
  struct Listener {
    std::unique_ptr<ControlListener> up;
    UniqueFd placeholder;
  };
  // How many workers still owe an answer.
  struct Pending {
    InsOp op{};
    uint32_t left = 0;
    uint32_t cut = 0;  // cut_peer: by all workers that answered
    InsReply reply{};
  };
  void on_reply(const InsReply& reply);
  void publish_repairs();
  void publish_listeners();

  InsContext& ins_;
  WorkerThreads& workers_;
  Publisher& publisher_;
  Resolver& resolver_;
  DriverLink& driver_;
  bool adopted_ = false;
  std::map<uint32_t, Listener> listeners_;
  std::map<uint32_t, Pending> pending_;
};

}  // namespace mw
