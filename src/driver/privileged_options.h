// privileged_options.h - socket options that only a privileged process may set, for the processes of
// a session that have the right. The INS, whose sockets these are, has none.
//
// TRUST       A process shows its right by a socket of the kernel's own, of the session's network
//             namespace, on which it has set the option itself: so the kernel has judged it, and what is set is
//             what that socket has. What /proc says of a process would be another program's by the
//             time it is read. The INS is asked for the real socket: whatever descriptor it hands
//             over gets no more than one option of a closed list.
// INVARIANTS  Each question is answered once: when the option is set, or when the INS is gone. What
//             was set on a listener is set again when a successor has it. Both are bounded.
// THREADS     The driver's only thread. Never blocks.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "transport/local/control.h"

namespace mw {

class PrivilegedOptions {
 public:
  // `network`: the namespace of the session's processes (transport/local/namespace.h).
  explicit PrivilegedOptions(uint64_t network) : network_(network) {}

  // Sends a message to the INS.
  std::function<void(const ControlOption&)> on_ask;
  // Answers a process's question (`id` of ask()): 0 or errno.
  std::function<void(uint32_t id, uint32_t status)> on_answer;

  // A process asks for an option of a socket. 0: it is being seen to. Else errno: no.
  uint32_t ask(uint32_t id, const SocketOption& wanted, int proof);
  // The INS's answer. False: nobody asked for it.
  bool on_lent(const ControlOption& said, UniqueFd socket);
  // The INS has this listener of its predecessor again, or the listener is closed.
  void on_replayed(uint32_t slot, uint32_t gen);
  void on_listener_down(uint32_t slot);
  void ins_gone();
  bool waits_for_ins() const { return !asked_.empty(); }

  static constexpr size_t kMaxAsked = 256;
  static constexpr size_t kMaxKept = 1024;

 private:
  static constexpr uint32_t kNobody = 0;
  struct Asked {
    uint32_t id;  // kNobody: we set it again
    SocketOption option;
  };
  struct Kept {
    uint32_t gen = 0;
    std::vector<ReplayOption> options;
  };
  void send(ControlType type, const SocketOption& o) const;
  void keep(const SocketOption& o);

  const uint64_t network_;
  std::deque<Asked> asked_;        // the INS has been asked for their sockets
  std::map<uint32_t, Kept> kept_;  // by slot
};

}  // namespace mw
