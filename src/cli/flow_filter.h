// flow_filter.h - the words that choose among sockets: listen | tcp | udp | port N | peer ADDRESS |
// pid N | uid N | command NAME, all of which have to hold.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "netflow/wire.h"

namespace mw {

// What a filter looks at.
struct Filtered {
  std::string type;  // listen, tcp or udp
  netflow::Endpoint local;
  netflow::Endpoint remote;
  uint32_t pid = 0;
  uint32_t uid = 0;
  std::string command;
};

class FlowFilter {
 public:
  // False: `wrong` is a word that is none.
  bool parse(const std::vector<std::string>& words, std::string* wrong);
  bool takes(const Filtered& one) const;

 private:
  std::set<std::string> types_;
  std::optional<uint16_t> port_;
  std::optional<uint32_t> pid_;
  std::optional<uint32_t> uid_;
  std::optional<std::string> command_;
  std::optional<netflow::Address> peer_;
};

}  // namespace mw
