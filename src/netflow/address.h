// address.h - addresses of the NetFlow interface as people write them.
#pragma once

#include <optional>
#include <string>

#include "netflow/wire.h"

namespace mw::netflow {

std::string to_string(const Address& a);
std::string to_string(const Endpoint& e);  // "192.0.2.1:80", "[2001:db8::1]:80"
// "192.0.2.1" or "2001:db8::1".
std::optional<Address> parse_address(const std::string& text);

}  // namespace mw::netflow
