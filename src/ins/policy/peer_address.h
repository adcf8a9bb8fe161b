// peer_address.h - an address without its port, as blocks name it: an IPv4-mapped one is IPv4.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>

namespace mw {

struct PeerAddress {
  uint16_t family = 0;
  std::array<uint8_t, 16> bytes{};
  auto operator<=>(const PeerAddress&) const = default;
};

inline PeerAddress peer_address_of(const sockaddr* a, socklen_t len) {
  PeerAddress out;
  if (len >= sizeof(sockaddr_in) && a->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, a, sizeof in);
    out.family = AF_INET;
    std::memcpy(out.bytes.data(), &in.sin_addr, sizeof in.sin_addr);
  } else if (len >= sizeof(sockaddr_in6) && a->sa_family == AF_INET6) {
    sockaddr_in6 in6{};
    std::memcpy(&in6, a, sizeof in6);
    const bool mapped = IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr);
    out.family = mapped ? AF_INET : AF_INET6;
    std::memcpy(out.bytes.data(), in6.sin6_addr.s6_addr + (mapped ? 12 : 0), mapped ? 4 : 16);
  }
  return out;
}

}  // namespace mw
