#include "ins/policy/loopback_hint.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <sstream>

#include "base/log.h"

namespace mw {

LoopbackTarget loopback_target(const sockaddr* address, socklen_t len) {
  if (len >= sizeof(sockaddr_in) && address->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof in);
    const uint32_t host = ntohl(in.sin_addr.s_addr);
    if (host == 0) return {htonl(INADDR_LOOPBACK), in.sin_port};  // this host, to who connects
    return host >> 24 == 127 ? LoopbackTarget{in.sin_addr.s_addr, in.sin_port} : LoopbackTarget{};
  }
  if (len < sizeof(sockaddr_in6) || address->sa_family != AF_INET6) return {};
  sockaddr_in6 in6{};
  std::memcpy(&in6, address, sizeof in6);
  const in6_addr& a = in6.sin6_addr;
  if (IN6_IS_ADDR_LOOPBACK(&a) || IN6_IS_ADDR_UNSPECIFIED(&a)) return {0, in6.sin6_port};
  if (!IN6_IS_ADDR_V4MAPPED(&a) || a.s6_addr[12] != 127) return {};
  LoopbackTarget out{0, in6.sin6_port};
  std::memcpy(&out.v4, a.s6_addr + 12, sizeof out.v4);
  return out;
}

bool LoopbackHint::init(const std::string& led) {
  wanted_ = true;
  if (led == "none") return true;
  std::istringstream words(led);
  for (std::string word; std::getline(words, word, ',');) {
    Led one{};
    const char* const end = word.data() + word.size();
    const auto got = std::from_chars(word.data(), end, one.port);
    one.is_udp = std::string(got.ptr, end) == "/udp";
    if (got.ec != std::errc{} || one.port == 0 || (got.ptr != end && !one.is_udp)) return false;
    led_.push_back(one);
  }
  return !led_.empty();
}

void LoopbackHint::refused(bool is_udp, const LoopbackTarget& target) {
  if (!wanted_ || target.port == 0 || said_.load(std::memory_order_relaxed)) return;
  const uint16_t port = ntohs(target.port);
  const bool usual = target.v4 == htonl(INADDR_LOOPBACK);
  const auto is_it = [&](const Led& one) { return one.port == port && one.is_udp == is_udp; };
  if (usual && std::any_of(led_.begin(), led_.end(), is_it)) return;
  if (said_.exchange(true)) return;
  char address[INET_ADDRSTRLEN] = "::1";
  const in_addr v4{target.v4};
  if (target.v4 != 0) ::inet_ntop(AF_INET, &v4, address, sizeof address);
  // "mwins: hint:" is what the front end knows it by, so that a successor does not say it again.
  log_line("mwins",
           "hint: a connection to %s port %u is refused: %s is the INS's own; --to-host %u%s lets "
           "the program "
           "reach the host's port%s",
           address, port, address, port, is_udp ? "/udp" : "", usual ? "" : ", under 127.0.0.1");
}

}  // namespace mw
