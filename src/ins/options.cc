#include "ins/options.h"

#include <linux/filter.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

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

uint32_t granted_rcvbuf(int fd) {
  uint32_t value = 0;
  socklen_t len = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, &len) == 0 ? value / 2 : 0;
}

}  // namespace mw
