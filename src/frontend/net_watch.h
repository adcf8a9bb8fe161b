// net_watch.h - what others change in the host's network while a session runs.
//
// PROBLEM     `flush ruleset`, with which every reload of nftables.conf begins, takes the session's rules
//             away: its ports lead nowhere, and the forwarding that was turned on is guarded by nobody.
//             An interface that comes later is not forwarded.
// PROMISE     What touches the session's table, interfaces that come and go, and packets that the table
//             refuses are told; nothing is polled. What the kernel could not tell counts as a change of everything.
// THREADS     One.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"

namespace mw {

// The interfaces of our network namespace. (/sys/class/net shows those of whoever mounted it.)
std::vector<std::string> link_names();

class NetWatch {
 public:
  struct News {
    bool rules = false;     // something of the session's table was deleted
    bool links = false;     // the host's interfaces are others than before
    bool refusals = false;  // something that the INS sent was refused, for the first time since the
                            // quota that counts it was reset
  };

  static Outcome<NetWatch> open(const std::string& table);

  // Readable when take() has something to say.
  int fd() const { return epoll_.get(); }
  News take();
  // Forgets what was told so far: our own changes.
  void forget();
  // fd() becomes readable after this time, and take() says that the rules are to be looked at.
  void look_again_in(int milliseconds);
  // The same for the refusals.
  void tell_refusals_in(int milliseconds);

 private:
  bool rules_changed();
  bool links_changed();

  std::string table_;
  UniqueFd epoll_;
  UniqueFd rules_;
  UniqueFd links_;
  UniqueFd timer_;
  UniqueFd refusals_timer_;
  bool refusals_ = false;
  std::map<std::string, unsigned> host_links_;
};

}  // namespace mw
