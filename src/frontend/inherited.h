// inherited.h - sockets of the host's network that our caller passes to the application: systemd's
// socket activation, inetd, a supervisor, a shell.
//
// PROBLEM     The application would serve them with the stack of the host, as nothing about them passes
//             through the shim.
// PROMISE     The application gets none of them. Under each one's number stands a socket of the INS that
//             is like it (take_over.h), or the session does not begin, and a sentence says which and why.
// THREADS     The caller must be single-threaded.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"
#include "frontend/plan.h"
#include "frontend/socket_copy.h"

namespace mw {

class InheritedSockets {
 public:
  // Looks for them among these descriptors. `isolated`: the INS will have addresses of its own. Errors:
  // one cannot be taken over.
  static Outcome<InheritedSockets> look_for(const std::vector<int>& descriptors, bool isolated);

  bool empty() const { return copies_.empty(); }
  // Isolated: the ports of the host that have to lead to the INS, each once.
  std::vector<Publish> published() const;
  // Puts /dev/null under their numbers, which stay taken so. Isolated, it gives those that have a port:
  // as long as they are open the port is nobody else's. On the host's network they have to go, so that
  // the INS can have their addresses. Errors: somebody else keeps one open there.
  Outcome<std::vector<UniqueFd>> withdraw();
  // What to make in the INS: with the addresses that it has there. Errors: there is none.
  Outcome<std::vector<SocketCopy>> copies_for(const AddressPlan& plan) const;
  // Sentences, after withdraw().
  std::vector<std::string> report() const;

 private:
  explicit InheritedSockets(bool isolated) : isolated_(isolated) {}
  Outcome<Done> leave_host();

  bool isolated_;
  std::vector<SocketCopy> copies_;
  std::vector<std::string> lost_;  // what waited at one of them
};

// What still comes to sockets of the host that are only held: the application would never see it, so
// that it is refused.
class HeldSockets {
 public:
  // Of these descriptors, those that a peer can reach. They have to live as long as this.
  static Outcome<HeldSockets> among(const std::vector<UniqueFd>& descriptors);
  bool empty() const { return sockets_.empty(); }
  int fd() const { return ready_.get(); }
  // When fd() is readable. Resets the connections that wait, drops the datagrams.
  void refuse();
  // The same for all of them, with a sentence for each where something was.
  std::vector<std::string> refuse_all();

 private:
  UniqueFd ready_;
  std::vector<int> sockets_;
};

}  // namespace mw
