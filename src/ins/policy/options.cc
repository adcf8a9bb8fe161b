#include "ins/policy/options.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>

namespace mw {

int errno_of_ioctl(uint32_t request, bool inet6, bool argument, bool device) {
  constexpr uint32_t kDeviceType = 0x89;
  if ((request >> 8 & 0xff) != kDeviceType) return ENOTTY;
  const int of_device = !argument ? EFAULT : device ? EOPNOTSUPP : ENODEV;
  const int unknown = argument ? ENOTTY : EFAULT;
  const int forbidden = argument ? EPERM : EFAULT;
  switch (request) {
    case SIOCADDRT:
    case SIOCDELRT:
    case SIOCSIFFLAGS:
    case SIOCSIFMETRIC:
    case SIOCSIFMTU:
    case SIOCSIFNAME:
    case SIOCSIFHWADDR:
    case SIOCSIFHWBROADCAST:
    case SIOCSIFSLAVE:
    case SIOCADDMULTI:
    case SIOCDELMULTI:
    case SIOCSIFTXQLEN:
    case SIOCSIFMAP:
    case SIOCGMIIPHY:
    case SIOCGMIIREG:
    case SIOCSMIIREG:
    case SIOCBONDENSLAVE:
    case SIOCBONDRELEASE:
    case SIOCBONDSETHWADDR:
    case SIOCBONDCHANGEACTIVE:
    case SIOCSHWTSTAMP:
      return forbidden;
    // These look at nothing before they refuse.
    case SIOCGSKNS:
    case SIOCBRADDBR:
    case SIOCBRDELBR:
    case SIOCBRADDIF:
    case SIOCBRDELIF:
      return EPERM;
    case SIOCSIFADDR:
      return inet6 ? EPERM : forbidden;
    case SIOCSIFDSTADDR:
      return inet6 ? ENODEV : forbidden;
    case SIOCSIFBRDADDR:
    case SIOCSIFNETMASK:
      return inet6 ? unknown : forbidden;
    case SIOCDIFADDR:
      return inet6 ? EPERM : unknown;
    case SIOCDARP:
    case SIOCSARP:
      return inet6 ? unknown : EPERM;
    case SIOCRTMSG:
      return inet6 ? unknown : EINVAL;
    case SIOCSIFPFLAGS:
    case SIOCGIFPFLAGS:
      return inet6 || !argument ? unknown : EINVAL;
    case SIOCGIFSLAVE:
      return argument && device ? EINVAL : of_device;
    case SIOCGIFBR:
    case SIOCSIFBR:
      return argument ? EOPNOTSUPP : EFAULT;
    case SIOCGIFVLAN:
    case SIOCSIFVLAN:
      return ENOPKG;
    case SIOCWANDEV:
    case SIOCBONDSLAVEINFOQUERY:
    case SIOCBONDINFOQUERY:
    case SIOCGHWTSTAMP:
      return of_device;
    default:
      return request >= SIOCDEVPRIVATE && request <= SIOCDEVPRIVATE + 15 ? of_device : unknown;
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

bool reuse_address(int fd) {
  int value = 0;
  socklen_t len = sizeof value;
  if (::getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, &len) < 0 || value != 0) return false;
  value = 1;
  return ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value) == 0;
}

uint32_t granted_rcvbuf(int fd) {
  uint32_t value = 0;
  socklen_t len = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, &len) == 0 ? value / 2 : 0;
}

}  // namespace mw
