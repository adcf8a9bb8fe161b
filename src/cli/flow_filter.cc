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
    else if (words[k] == "peer" && parse_address(value))
      peer_ = *parse_address(value);
    else
      return false;
    ++k;
  }
  return true;
}

bool FlowFilter::takes(const std::string& type, const Endpoint& local, const Endpoint& remote,
                       uint32_t pid) const {
  return (types_.empty() || types_.count(type) != 0) &&
         (!port_ || local.port == *port_ || remote.port == *port_) && (!pid_ || pid == *pid_) &&
         (!peer_ || remote.address == *peer_);
}

}  // namespace mw
