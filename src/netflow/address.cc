#include "netflow/address.h"

#include <arpa/inet.h>

#include <algorithm>

namespace mw::netflow {

std::string to_string(const Address& a) {
  char text[INET6_ADDRSTRLEN] = "?";
  ::inet_ntop(a.af == 6 ? AF_INET6 : AF_INET, a.bytes.data(), text, sizeof text);
  return text;
}

std::string to_string(const Endpoint& e) {
  const std::string host = to_string(e.address);
  return (e.address.af == 6 ? "[" + host + "]" : host) + ":" + std::to_string(e.port);
}

std::optional<Address> parse_address(const std::string& text) {
  Address a;
  if (::inet_pton(AF_INET, text.c_str(), a.bytes.data()) == 1) return a;
  a.bytes = {};
  a.af = 6;
  if (::inet_pton(AF_INET6, text.c_str(), a.bytes.data()) == 1) return a;
  return std::nullopt;
}

Address unmapped(const Address& a) {
  if (a.af != 6 || !std::equal(kMappedPrefix.begin(), kMappedPrefix.end(), a.bytes.begin()))
    return a;
  Address v4;
  std::copy_n(a.bytes.begin() + kMappedPrefix.size(), 4, v4.bytes.begin());
  return v4;
}

}  // namespace mw::netflow
