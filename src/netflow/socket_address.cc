#include "netflow/socket_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <charconv>
#include <cstddef>
#include <cstring>

namespace mw::netflow {
namespace {

constexpr const char kUnix[] = "unix:";

template <class T>
SocketAddress wrap(const T& address, size_t length = sizeof(T)) {
  SocketAddress a;
  std::memcpy(&a.bytes, &address, length);
  a.len = static_cast<socklen_t>(length);
  return a;
}

template <class T>
T unwrap(const SocketAddress& a) {
  T address{};
  std::memcpy(&address, &a.bytes, sizeof address);
  return address;
}

std::optional<SocketAddress> unix_address(const std::string& path) {
  sockaddr_un un{};
  if (path.empty() || path[0] != '/' || path.size() >= sizeof un.sun_path) return std::nullopt;
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path, path.data(), path.size());
  return wrap(un, offsetof(sockaddr_un, sun_path) + path.size() + 1);
}

}  // namespace

bool SocketAddress::is_loopback() const {
  if (family() == AF_INET) {
    return ntohl(unwrap<sockaddr_in>(*this).sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  if (family() != AF_INET6) return false;
  const auto in6 = unwrap<sockaddr_in6>(*this);
  return IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr) != 0;
}

std::optional<SocketAddress> parse_socket_address(const std::string& text) {
  if (text.starts_with(kUnix)) return unix_address(text.substr(sizeof kUnix - 1));
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  uint16_t port = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data() + colon + 1, last, port);
  if (error != std::errc{} || end != last) return std::nullopt;
  const std::string host = text.substr(0, colon);
  sockaddr_in in{};
  if (::inet_pton(AF_INET, host.c_str(), &in.sin_addr) == 1) {
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    return wrap(in);
  }
  sockaddr_in6 in6{};
  if (host.size() < 2 || host.front() != '[' || host.back() != ']' ||
      ::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &in6.sin6_addr) != 1) {
    return std::nullopt;
  }
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  return wrap(in6);
}

std::string to_string(const SocketAddress& a) {
  char host[INET6_ADDRSTRLEN] = "?";
  if (a.family() == AF_INET) {
    const auto in = unwrap<sockaddr_in>(a);
    ::inet_ntop(AF_INET, &in.sin_addr, host, sizeof host);
    return std::string(host) + ":" + std::to_string(ntohs(in.sin_port));
  }
  if (a.family() == AF_INET6) {
    const auto in6 = unwrap<sockaddr_in6>(a);
    ::inet_ntop(AF_INET6, &in6.sin6_addr, host, sizeof host);
    return "[" + std::string(host) + "]:" + std::to_string(ntohs(in6.sin6_port));
  }
  const std::string path = unwrap<sockaddr_un>(a).sun_path;
  return path.empty() ? "a local socket" : kUnix + path;
}

}  // namespace mw::netflow
