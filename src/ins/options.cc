#include "ins/options.h"

#include <linux/filter.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>

namespace mw {

bool option_is_refused(int level, int name, bool set) {
  switch (level) {
    case SOL_SOCKET:
      switch (name) {
        case SO_ATTACH_FILTER:  // also SO_GET_FILTER
        case SO_ATTACH_BPF:
        case SO_ATTACH_REUSEPORT_CBPF:
        case SO_ATTACH_REUSEPORT_EBPF:
        case SO_ZEROCOPY:
          return true;
        default:
          return false;
      }
    case IPPROTO_TCP:
      switch (name) {
        case 19:  // TCP_REPAIR
        case 20:  // TCP_REPAIR_QUEUE
        case 22:  // TCP_REPAIR_OPTIONS
        case 29:  // TCP_REPAIR_WINDOW
        case 31:  // TCP_ULP
        case 35:  // TCP_ZEROCOPY_RECEIVE
          return true;
        case 21:  // TCP_QUEUE_SEQ
          return set;
        default:
          return false;
      }
    default:
      return false;
  }
}

uint32_t ioctl_size(uint32_t request) {
  switch (request) {
    case SIOCATMARK:
    case FIONREAD:
    case SIOCOUTQ:
    case SIOCOUTQNSD:
      return sizeof(int);
    case SIOCGIFNAME:
    case SIOCGIFINDEX:
    case SIOCGIFFLAGS:
    case SIOCGIFADDR:
    case SIOCGIFDSTADDR:
    case SIOCGIFBRDADDR:
    case SIOCGIFNETMASK:
    case SIOCGIFMETRIC:
    case SIOCGIFMTU:
    case SIOCGIFHWADDR:
    case SIOCGIFTXQLEN:
    case SIOCGIFMAP:
      return sizeof(ifreq);
    default:
      return 0;
  }
}

namespace {

struct Wanted {
  int level;
  int name;
};
constexpr Wanted kWanted[] = {
    {IPPROTO_IP, IP_PKTINFO},         {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},         {IPPROTO_IP, IP_RECVORIGDSTADDR},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO}, {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},  {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR},
};
// SO_TIMESTAMP_NEW and SO_TIMESTAMPNS_NEW.
constexpr int kTimestampNew = 63;
constexpr int kTimestampNsNew = 64;

// A kernel that does not know one has nothing to say about it.
void want(int fd, int level, int name) {
  const int on = 1;
  (void)::setsockopt(fd, level, name, &on, sizeof on);
}

}  // namespace

void want_control_messages(int fd, int domain) {
  for (const Wanted& w : kWanted)
    if (w.level == IPPROTO_IP || domain == AF_INET6) want(fd, w.level, w.name);
}

void keep_control_messages(int fd, int level, int name) {
  for (const Wanted& w : kWanted)
    if (w.level == level && w.name == name) want(fd, level, name);
  // Once anybody has asked for times, every record has them, in one form.
  if (level == SOL_SOCKET && (name == SO_TIMESTAMP || name == SO_TIMESTAMPNS ||
                              name == kTimestampNew || name == kTimestampNsNew))
    want(fd, SOL_SOCKET, SO_TIMESTAMPNS);
}

uint32_t datagrams_ahead(int fd) {
  // The kernel holds twice what it grants, and an eighth more hardly shows.
  constexpr uint32_t kShare = 4;
  return std::max(1u, granted_rcvbuf(fd) / kShare);
}

uint32_t granted_rcvbuf(int fd) {
  uint32_t value = 0;
  socklen_t len = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, &len) == 0 ? value / 2 : 0;
}

}  // namespace mw
