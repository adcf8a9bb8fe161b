// address.h - addresses of the NetFlow interface as people write them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "netflow/wire.h"

namespace mw::netflow {

std::string to_string(const Address& a);
std::string to_string(const Endpoint& e);  // "192.0.2.1:80", "[2001:db8::1]:80"
// "192.0.2.1" or "2001:db8::1".
std::optional<Address> parse_address(const std::string& text);

// What IPv6 puts before an IPv4 address: ::ffff:192.0.2.1.
inline constexpr std::array<uint8_t, 12> kMappedPrefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
// The IPv4 address of a peer that a listener of both families sees so; else the address itself.
Address unmapped(const Address& a);

}  // namespace mw::netflow
