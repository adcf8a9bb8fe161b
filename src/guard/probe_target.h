// probe_target.h - what the availability probe asks, as people write it.
#pragma once

#include <optional>
#include <string>

#include "netflow/socket_address.h"

namespace mw::guard {

struct ProbeTarget {
  netflow::SocketAddress address;
  bool http = false;  // else a connection that is made and closed
  std::string host;   // of the request's Host line
  std::string path = "/";
};

// "192.0.2.1:80", "[::1]:80", "http://192.0.2.1/path", "http://[::1]:8080". Names are not looked
// up, so that the probe measures the service and nothing else.
std::optional<ProbeTarget> parse_target(const std::string& text);
std::string to_string(const ProbeTarget& target);

}  // namespace mw::guard
