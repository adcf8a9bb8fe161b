#include "shim/socket/from_stack.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <cstddef>
#include <cstring>
#include <iterator>

namespace mw::shim {
namespace {

constexpr int kUdpGro = 104;
constexpr int kTimestampingNew = 65;
constexpr int kTimestampingPacketInfo = 58;
constexpr int kRetOpts = 7;
constexpr int kPacketOptions = 9;
constexpr int kPacketOptions6 = 6;
constexpr int kFlowInfo = 11;
constexpr int kOriginalDestination = 80;

constexpr uint32_t kIpOptions = 40;    // of an IPv4 header, at most
constexpr uint32_t kExtension = 2048;  // of IPv6: at most 256 units of eight bytes
constexpr uint32_t kExtendedError = 16;
constexpr uint32_t kTimestamps = 48;
constexpr uint32_t kNoAddress = UINT32_MAX;

struct Message {
  int level;
  int type;
  uint32_t least, most;              // bytes of its data
  uint32_t unit = 1;                 // they are `least` and a multiple of it
  uint32_t address_at = kNoAddress;  // it holds an address of its level's family
  bool may_be_unspecified = false;   // that has the family AF_UNSPEC if it is not known
};

constexpr uint32_t kOptStats = 1024;  // attributes of a netlink message
constexpr int kTimestampNsNew = 64;
constexpr int kTimestampingStats = 54;
constexpr int kWifiStatus = 41;
constexpr int kSecurity = 3;
constexpr int kPidfd = 4;

constexpr Message number(int level, int type) {
  return {level, type, 4, 4};
}
constexpr Message extension(int type) {
  return {IPPROTO_IPV6, type, 8, kExtension, 8};
}
constexpr Message kMessages[] = {
    {IPPROTO_IP, IP_PKTINFO, sizeof(in_pktinfo), sizeof(in_pktinfo)},
    number(IPPROTO_IP, IP_TTL),
    {IPPROTO_IP, IP_TOS, 1, 4, 3},  // one byte, or as a value of IP_PKTOPTIONS four
    {IPPROTO_IP, IP_ORIGDSTADDR, sizeof(sockaddr_in), sizeof(sockaddr_in), 1, 0},
    {IPPROTO_IP, IP_RECVOPTS, 0, kIpOptions},
    {IPPROTO_IP, kRetOpts, 0, kIpOptions},
    number(IPPROTO_IP, IP_CHECKSUM),
    number(IPPROTO_IP, IP_RECVFRAGSIZE),
    {IPPROTO_IP, IP_RECVERR, kExtendedError + sizeof(sockaddr_in),
     kExtendedError + sizeof(sockaddr_in), 1, kExtendedError, true},
    {IPPROTO_IPV6, IPV6_PKTINFO, sizeof(in6_pktinfo), sizeof(in6_pktinfo)},
    {IPPROTO_IPV6, IPV6_2292PKTINFO, sizeof(in6_pktinfo), sizeof(in6_pktinfo)},
    number(IPPROTO_IPV6, IPV6_HOPLIMIT),
    number(IPPROTO_IPV6, IPV6_2292HOPLIMIT),
    number(IPPROTO_IPV6, IPV6_TCLASS),
    number(IPPROTO_IPV6, kFlowInfo),
    number(IPPROTO_IPV6, IPV6_RECVFRAGSIZE),
    {IPPROTO_IPV6, IPV6_ORIGDSTADDR, sizeof(sockaddr_in6), sizeof(sockaddr_in6), 1, 0},
    {IPPROTO_IPV6, IPV6_PATHMTU, sizeof(ip6_mtuinfo), sizeof(ip6_mtuinfo), 1, 0},
    {IPPROTO_IPV6, IPV6_RECVERR, kExtendedError + sizeof(sockaddr_in6),
     kExtendedError + sizeof(sockaddr_in6), 1, kExtendedError, true},
    extension(IPV6_HOPOPTS),
    extension(IPV6_RTHDR),
    extension(IPV6_DSTOPTS),
    extension(IPV6_2292HOPOPTS),
    extension(IPV6_2292RTHDR),
    extension(IPV6_2292DSTOPTS),
    number(IPPROTO_UDP, kUdpGro),
    // Of SOL_SOCKET nothing but numbers and times.
    {SOL_SOCKET, SO_TIMESTAMPNS, 16, 16},
    {SOL_SOCKET, kTimestampNsNew, 16, 16},
    {SOL_SOCKET, kTimestampingStats, 0, kOptStats, 4},
    number(SOL_SOCKET, kWifiStatus),
    {SOL_SOCKET, SO_TIMESTAMPING, kTimestamps, kTimestamps},
    {SOL_SOCKET, kTimestampingNew, kTimestamps, kTimestamps},
    {SOL_SOCKET, kTimestampingPacketInfo, 16, 16},
    number(SOL_SOCKET, SO_RXQ_OVFL),
    number(SOL_SOCKET, SO_MARK),
    number(SOL_SOCKET, SO_PRIORITY),
};

const Message* message_of(int level, int type) {
  for (const Message& m : kMessages)
    if (m.level == level && m.type == type) return &m;
  return nullptr;
}

// Of the address at `from`, of which so many bytes are there.
sa_family_t family_at(const void* from) {
  sa_family_t family = 0;
  std::memcpy(&family, from, sizeof family);
  return family;
}

// Descriptors, credentials and their kin: what comes from a sender, not from a kernel's clock.
bool brings_rights(const cmsghdr& h) {
  return h.cmsg_level == SOL_SOCKET &&
         (h.cmsg_type == SCM_RIGHTS || h.cmsg_type == SCM_CREDENTIALS || h.cmsg_type == kSecurity ||
          h.cmsg_type == kPidfd);
}

bool is_name(const char* from, size_t room) {
  return std::memchr(from, 0, room) != nullptr;
}

}  // namespace

bool is_address_of(int domain, const void* name, uint32_t len) {
  const uint32_t exact = domain == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  return len == exact && family_at(name) == domain;
}

bool follow_address_form(int domain, void* name, uint32_t* len) {
  if (is_address_of(AF_INET, name, *len)) return true;
  if (!is_address_of(AF_INET6, name, *len)) return false;
  if (domain == AF_INET6) return true;  // the option is on its way
  sockaddr_in6 before{};
  std::memcpy(&before, name, sizeof before);
  sockaddr_in now{};
  now.sin_family = AF_INET;
  now.sin_port = before.sin6_port;
  if (IN6_IS_ADDR_V4MAPPED(&before.sin6_addr))
    std::memcpy(&now.sin_addr, before.sin6_addr.s6_addr + 12, sizeof now.sin_addr);
  std::memcpy(name, &now, sizeof now);
  *len = sizeof now;
  return true;
}

bool are_addresses_of(int domain, const mw_addr& local, const mw_addr& peer) {
  return is_address_of(domain, peer.bytes, peer.len) &&
         (local.len == 0 || is_address_of(domain, local.bytes, local.len));
}

Verdict judge_control_message(int domain, const cmsghdr& h, const char* data, bool cut) {
  const Message* m = message_of(h.cmsg_level, h.cmsg_type);
  if (m == nullptr) return brings_rights(h) ? Verdict::lie : Verdict::drop;
  // Of before IPV6_ADDRFORM.
  if (h.cmsg_level == IPPROTO_IPV6 && domain != AF_INET6) return Verdict::drop;
  const size_t n = h.cmsg_len - sizeof h;
  if (cut && n < m->most && (n < m->least || (n - m->least) % m->unit != 0)) return Verdict::drop;
  if (n < m->least || n > m->most || (n - m->least) % m->unit != 0) return Verdict::lie;
  if (m->address_at == kNoAddress) return Verdict::give;
  const int family = family_at(data + m->address_at);
  const int expected = h.cmsg_level == IPPROTO_IP ? AF_INET : AF_INET6;
  const bool fits = family == expected || (m->may_be_unspecified && family == AF_UNSPEC);
  return fits ? Verdict::give : Verdict::lie;
}

bool is_ethtool_answer(uint32_t command, const char* answer, uint32_t len) {
  constexpr uint32_t kDriverInfo = 0x03;
  constexpr uint32_t kStrings = 5;
  constexpr uint32_t kString = 32;
  constexpr uint32_t kFirst = 4;
  if (command != kDriverInfo) return true;
  if (len < kFirst + kStrings * kString) return false;
  for (uint32_t k = 0; k < kStrings; ++k)
    if (!is_name(answer + kFirst + k * kString, kString)) return false;
  return true;
}

bool is_device_answer(uint32_t request, const char* answer, uint32_t len) {
  switch (request) {
    case SIOCGIFNAME:
      return is_name(answer, len);
    case SIOCGIFADDR:
    case SIOCGIFDSTADDR:
    case SIOCGIFBRDADDR:
    case SIOCGIFNETMASK:
      return len >= sizeof(sockaddr) && family_at(answer) == AF_INET;
    case SIOCGARP:
      return len == sizeof(arpreq) && family_at(answer + offsetof(arpreq, arp_pa)) == AF_INET &&
             is_name(answer + offsetof(arpreq, arp_dev), sizeof arpreq{}.arp_dev);
    default:
      return true;
  }
}

bool are_interface_entries(const char* entries, uint32_t len) {
  if (len % sizeof(ifreq) != 0) return false;
  for (uint32_t at = 0; at < len; at += sizeof(ifreq)) {
    const char* address = entries + at + offsetof(ifreq, ifr_addr);
    if (!is_name(entries + at, IFNAMSIZ) || family_at(address) != AF_INET) return false;
  }
  return true;
}

bool is_option_value(int domain, int level, int name, const void* value, uint32_t len) {
  if (len < sizeof(sa_family_t)) return true;
  const auto* text = static_cast<const char*>(value);
  constexpr uint32_t kCongestionName = 16;
  if (level == SOL_SOCKET && name == SO_BINDTODEVICE) return is_name(text, len);
  if (level == IPPROTO_TCP && name == TCP_CONGESTION)
    return len < kCongestionName || is_name(text, len);
  if (level == SOL_SOCKET && name == SO_PEERNAME) return family_at(value) == domain;
  if (level == IPPROTO_IP && name == kOriginalDestination) return family_at(value) == AF_INET;
  if (level == IPPROTO_IPV6 && name == kOriginalDestination) return family_at(value) == AF_INET6;
  return true;
}

bool is_row_of_messages(int level, int name) {
  return (level == IPPROTO_IP && name == kPacketOptions) ||
         (level == IPPROTO_IPV6 && name == kPacketOptions6);
}

}  // namespace mw::shim
