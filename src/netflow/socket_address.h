// socket_address.h - "127.0.0.1:4739", "[::1]:0" and "unix:/run/x" as the kernel takes them.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>

namespace mw::netflow {

struct SocketAddress {
  sockaddr_storage bytes{};
  socklen_t len = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&bytes); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&bytes); }
  int family() const { return bytes.ss_family; }
  bool is_loopback() const;
};

// Nothing if it is none; names are not looked up. A path of a socket is absolute.
std::optional<SocketAddress> parse_socket_address(const std::string& text);
std::string to_string(const SocketAddress& address);

}  // namespace mw::netflow
