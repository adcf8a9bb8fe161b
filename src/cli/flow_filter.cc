#include "cli/flow_filter.h"

#include <cstdlib>

#include "netflow/address.h"

namespace mw {

using namespace netflow;

bool FlowFilter::parse(const std::vector<std::string>& words, std::string* wrong) {
  for (size_t k = 0; k < words.size(); ++k) {
    *wrong = words[k];
    if (words[k] == "listen" || words[k] == "tcp" || words[k] == "udp") {
      types_.insert(words[k]);
      continue;
    }
    if (k + 1 == words.size()) return false;
    const std::string& value = words[k + 1];
    char* end = nullptr;
    const unsigned long n = std::strtoul(value.c_str(), &end, 10);
    const bool is_number = !value.empty() && *end == 0;
    if (words[k] == "port" && is_number && n <= 65535)
      port_ = static_cast<uint16_t>(n);
    else if (words[k] == "pid" && is_number)
      pid_ = static_cast<uint32_t>(n);
    else if (words[k] == "uid" && is_number)
      uid_ = static_cast<uint32_t>(n);
    else if (words[k] == "command")
      command_ = value;
    else if (words[k] == "peer" && parse_address(value))
      peer_ = *parse_address(value);
    else
      return false;
    ++k;
  }
  return true;
}

bool FlowFilter::takes(const Filtered& one) const {
  // Whose process is not known is nobody's.
  const bool known = one.pid != 0;
  return (types_.empty() || types_.count(one.type) != 0) &&
         (!port_ || one.local.port == *port_ || one.remote.port == *port_) &&
         (!pid_ || one.pid == *pid_) && (!uid_ || (known && one.uid == *uid_)) &&
         (!command_ || (known && one.command == *command_)) &&
         (!peer_ || one.remote.address == *peer_);
}

}  // namespace mw
