// flow_filter.h - the words that choose among sockets: listen | tcp | udp | port N | peer ADDRESS |
// pid N, all of which have to hold.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "netflow/wire.h"

namespace mw {

class FlowFilter {
 public:
  // False: `wrong` is a word that is none.
  bool parse(const std::vector<std::string>& words, std::string* wrong);
  // type: listen, tcp or udp.
  bool takes(const std::string& type, const netflow::Endpoint& local,
             const netflow::Endpoint& remote, uint32_t pid) const;

 private:
  std::set<std::string> types_;
  std::optional<uint16_t> port_;
  std::optional<uint32_t> pid_;
  std::optional<netflow::Address> peer_;
};

}  // namespace mw
