// publish.h - what an INS says about itself in its registry directory (names: docs/protocol.md 6
// and the outside tools that watch them).
//
// Files are opened before the sandbox and rewritten in place with one pwrite() each, newline
// included, then cut to length: a reader takes the first line, which is always whole.
// Values: ip_addrs and listening_ports are lists with a space between; network_stats is, in
// hexadecimal, max_sockets:open:bytes_recv:bytes_sent; sockopts lists
// port:level:name=value-in-hexadecimal for the options of each listener; repairs counts the lost
// wake-ups of the session that a worker's beat repaired (beat.cc).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

class Publisher {
 public:
  // Makes `registry`/mw/`id` and the files in it. Errors: sys.
  static Result<Publisher> open(const std::string& registry, uint32_t id);

  // Binds `channel` in that directory and listens; it appears when it is ready. Once: the directory is
  // closed then. Errors: sys.
  Result<UniqueFd> listen_channel();

  void set(const std::string& name, const std::string& value);
  void heartbeat(uint32_t count) { set("heartbeat", std::to_string(count)); }

 private:
  struct File {
    UniqueFd fd;
    std::string last;
  };
  UniqueFd dir_;
  std::map<std::string, File> files_;
  bool complained_ = false;
};

// The addresses of this network namespace, loopback excepted, separated by spaces.
struct OwnAddresses {
  std::string text;
  bool v4 = false;
  bool v6 = false;
};
OwnAddresses own_addresses();

}  // namespace mw
