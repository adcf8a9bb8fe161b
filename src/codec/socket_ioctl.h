// socket_ioctl.h - the device requests of ioctl() on a socket that are executed in the INS: which
// bytes of their argument the kernel reads, and which it writes.
#pragma once

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace mw {

struct SocketIoctl {
  uint32_t request;
  uint8_t bytes;  // of the whole argument
  uint8_t in_at, in_bytes;
  uint8_t out_at, out_bytes;
};

// struct ifreq: a name of 16 bytes, then what the request is about. struct arpreq: 68 bytes.
constexpr uint32_t kIfreqBytes = 40;
constexpr uint32_t kIfNameBytes = 16;
constexpr uint32_t kMostIoctlBytes = 68;
constexpr SocketIoctl kSocketIoctls[] = {
    {SIOCATMARK, 4, 0, 0, 0, 4},         {SIOCINQ, 4, 0, 0, 0, 4},
    {SIOCOUTQ, 4, 0, 0, 0, 4},           {SIOCOUTQNSD, 4, 0, 0, 0, 4},
    {SIOCGIFNAME, 40, 16, 4, 0, 16},     {SIOCGIFFLAGS, 40, 0, 16, 16, 2},
    {SIOCGIFADDR, 40, 0, 16, 16, 16},    {SIOCGIFDSTADDR, 40, 0, 16, 16, 16},
    {SIOCGIFBRDADDR, 40, 0, 16, 16, 16}, {SIOCGIFNETMASK, 40, 0, 16, 16, 16},
    {SIOCGIFMETRIC, 40, 0, 16, 16, 4},   {SIOCGIFMTU, 40, 0, 16, 16, 4},
    {SIOCGIFHWADDR, 40, 0, 16, 16, 16},  {SIOCGIFINDEX, 40, 0, 16, 16, 4},
    {SIOCGIFTXQLEN, 40, 0, 16, 16, 4},   {SIOCGIFMAP, 40, 0, 16, 16, 21},
    {SIOCGARP, 68, 0, 68, 0, 68},
};

constexpr const SocketIoctl* socket_ioctl(uint32_t request) {
  for (const SocketIoctl& row : kSocketIoctls)
    if (row.request == request) return &row;
  return nullptr;
}

// The questions of SIOCETHTOOL whose answer has a fixed size: that, or 0 if it is none of them.
constexpr uint32_t ethtool_bytes(uint32_t command) {
  switch (command) {
    case 0x01:  // GSET
    case 0x41:  // GET_TS_INFO
      return 44;
    case 0x03:  // GDRVINFO
      return 196;
    case 0x0e:  // GCOALESCE
      return 92;
    case 0x10:  // GRINGPARAM
    case 0x3c:  // GCHANNELS
      return 36;
    case 0x12:  // GPAUSEPARAM
      return 16;
    case 0x44:  // GEEE
      return 40;
    case 0x07:  // one number each: GMSGLVL, GLINK, and what is offloaded
    case 0x0a:
    case 0x14:
    case 0x16:
    case 0x18:
    case 0x1e:
    case 0x21:
    case 0x23:
    case 0x25:
    case 0x27:
    case 0x2b:
      return 8;
    default:
      return 0;
  }
}

}  // namespace mw
