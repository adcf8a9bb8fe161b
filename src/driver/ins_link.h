// ins_link.h - the control connection to one INS, from hello to its death.
//
// TRUST       The INS faces the attacker: every message is checked for size, type, phase and ids
//             before it means anything; one that does not fit ends the connection.
// INVARIANTS  A message that does not fit the socket's buffer waits in order, with copies of its
//             descriptors; the queue is bounded.
// THREADS     The driver's only thread. Never blocks.
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "driver/poller.h"
#include "driver/process_info.h"
#include "registry/local_registry.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"

namespace mw {

class InsLink {
 public:
  enum class Phase { greeting, replaying, serving, lost };

  // Connects to R/mw/<id>/channel. Errors: would_block (not listening yet), peer (a stranger's),
  // sys.
  static Result<InsLink> connect(LocalRegistry& registry, uint32_t id, Poller& poller);

  uint32_t id() const { return id_; }
  const ProcessInfo& who() const { return who_; }
  int control() const { return control_.get(); }
  Phase phase() const { return phase_; }
  void set_phase(Phase p) { phase_ = p; }
  std::string name() const { return "INS " + std::to_string(id_) + ", " + describe(who_); }

  // Queues a message. Errors: limit (the INS does not read), sys, shutdown.
  Status send(std::span<const std::byte> data, std::span<const int> fds);
  // When the connection can take more.
  Status flush();

  // Stops to listen to it.
  void disconnect();

  std::set<uint32_t> awaiting_replay;  // slots
  uint32_t features = 0;               // agreed in the hello
  bool ends_itself = false;            // it said so, and gets a moment to do it

 private:
  struct Waiting {
    std::vector<std::byte> data;
    std::vector<UniqueFd> fds;
  };
  InsLink(uint32_t id, Poller& poller) : id_(id), poller_(&poller) {}

  uint32_t id_;
  Poller* poller_;
  UniqueFd control_;
  ProcessInfo who_;
  Phase phase_ = Phase::greeting;
  std::deque<Waiting> waiting_;
};

}  // namespace mw
