// socket_options.h - the socket options that reach a real socket (docs/protocol.md 5).
//
// PROMISE     What may be set is a closed list: it is what the INS's system call filter lets through, and
//             an INS that was taken over can set no more than an application. Left out is what holds a
//             pointer, a descriptor or memory of the caller, a program for the kernel, or keys, what
//             turns a socket into another protocol's, and the tables of packet filters and routers.
//             Whatever else there is comes from a kernel that is newer than this list (Linux 6.18).
// THREADS     Any; constants and pure functions.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <iterator>

namespace mw {

// Their numbers, as the C library's headers lack some of them.
constexpr int kSocketOptions[] = {SO_DEBUG,
                                  SO_REUSEADDR,
                                  SO_DONTROUTE,
                                  SO_BROADCAST,
                                  SO_SNDBUF,
                                  SO_RCVBUF,
                                  SO_KEEPALIVE,
                                  SO_OOBINLINE,
                                  SO_NO_CHECK,
                                  SO_PRIORITY,
                                  SO_LINGER,
                                  SO_BSDCOMPAT,
                                  SO_REUSEPORT,
                                  SO_PASSCRED,
                                  SO_RCVLOWAT,
                                  20 /* SO_RCVTIMEO_OLD */,
                                  21 /* SO_SNDTIMEO_OLD */,
                                  SO_BINDTODEVICE,
                                  SO_DETACH_FILTER,
                                  29 /* SO_TIMESTAMP_OLD */,
                                  SO_SNDBUFFORCE,
                                  SO_RCVBUFFORCE,
                                  SO_PASSSEC,
                                  35 /* SO_TIMESTAMPNS_OLD */,
                                  SO_MARK,
                                  37 /* SO_TIMESTAMPING_OLD */,
                                  SO_RXQ_OVFL,
                                  SO_WIFI_STATUS,
                                  SO_PEEK_OFF,
                                  SO_NOFCS,
                                  SO_LOCK_FILTER,
                                  SO_SELECT_ERR_QUEUE,
                                  SO_BUSY_POLL,
                                  SO_MAX_PACING_RATE,
                                  SO_INCOMING_CPU,
                                  SO_CNX_ADVICE,
                                  61 /* SO_TXTIME */,
                                  62 /* SO_BINDTOIFINDEX */,
                                  63 /* SO_TIMESTAMP_NEW */,
                                  64 /* SO_TIMESTAMPNS_NEW */,
                                  65 /* SO_TIMESTAMPING_NEW */,
                                  66 /* SO_RCVTIMEO_NEW */,
                                  67 /* SO_SNDTIMEO_NEW */,
                                  68 /* SO_DETACH_REUSEPORT_BPF */,
                                  69 /* SO_PREFER_BUSY_POLL */,
                                  70 /* SO_BUSY_POLL_BUDGET */,
                                  72 /* SO_BUF_LOCK */,
                                  73 /* SO_RESERVE_MEM */,
                                  74 /* SO_TXREHASH */,
                                  75 /* SO_RCVMARK */,
                                  82 /* SO_RCVPRIORITY */};

constexpr int kIpOptions[] = {IP_TOS,
                              IP_TTL,
                              IP_OPTIONS,
                              IP_ROUTER_ALERT,
                              IP_RECVOPTS,
                              IP_RETOPTS,
                              IP_PKTINFO,
                              IP_MTU_DISCOVER,
                              IP_RECVERR,
                              IP_RECVTTL,
                              IP_RECVTOS,
                              IP_FREEBIND,
                              IP_PASSSEC,
                              IP_TRANSPARENT,
                              IP_RECVORIGDSTADDR,
                              IP_MINTTL,
                              IP_CHECKSUM,
                              IP_BIND_ADDRESS_NO_PORT,
                              IP_RECVFRAGSIZE,
                              26,  // IP_RECVERR_RFC4884
                              IP_MULTICAST_IF,
                              IP_MULTICAST_TTL,
                              IP_MULTICAST_LOOP,
                              IP_ADD_MEMBERSHIP,
                              IP_DROP_MEMBERSHIP,
                              IP_UNBLOCK_SOURCE,
                              IP_BLOCK_SOURCE,
                              IP_ADD_SOURCE_MEMBERSHIP,
                              IP_DROP_SOURCE_MEMBERSHIP,
                              IP_MSFILTER,
                              MCAST_JOIN_GROUP,
                              MCAST_BLOCK_SOURCE,
                              MCAST_UNBLOCK_SOURCE,
                              MCAST_LEAVE_GROUP,
                              MCAST_JOIN_SOURCE_GROUP,
                              MCAST_LEAVE_SOURCE_GROUP,
                              MCAST_MSFILTER,
                              IP_MULTICAST_ALL,
                              IP_UNICAST_IF,
                              51};  // IP_LOCAL_PORT_RANGE

constexpr int kIpv6Options[] = {IPV6_ADDRFORM,
                                IPV6_2292PKTINFO,
                                IPV6_2292HOPOPTS,
                                IPV6_2292DSTOPTS,
                                IPV6_2292RTHDR,
                                IPV6_2292PKTOPTIONS,
                                IPV6_2292HOPLIMIT,
                                11,  // IPV6_FLOWINFO
                                IPV6_UNICAST_HOPS,
                                IPV6_MULTICAST_IF,
                                IPV6_MULTICAST_HOPS,
                                IPV6_MULTICAST_LOOP,
                                IPV6_ADD_MEMBERSHIP,
                                IPV6_DROP_MEMBERSHIP,
                                IPV6_ROUTER_ALERT,
                                IPV6_MTU_DISCOVER,
                                IPV6_MTU,
                                IPV6_RECVERR,
                                IPV6_V6ONLY,
                                IPV6_JOIN_ANYCAST,
                                IPV6_LEAVE_ANYCAST,
                                IPV6_MULTICAST_ALL,
                                IPV6_ROUTER_ALERT_ISOLATE,
                                31,  // IPV6_RECVERR_RFC4884
                                32,  // IPV6_FLOWLABEL_MGR
                                33,  // IPV6_FLOWINFO_SEND
                                MCAST_JOIN_GROUP,
                                MCAST_BLOCK_SOURCE,
                                MCAST_UNBLOCK_SOURCE,
                                MCAST_LEAVE_GROUP,
                                MCAST_JOIN_SOURCE_GROUP,
                                MCAST_LEAVE_SOURCE_GROUP,
                                MCAST_MSFILTER,
                                IPV6_RECVPKTINFO,
                                IPV6_PKTINFO,
                                IPV6_RECVHOPLIMIT,
                                IPV6_HOPLIMIT,
                                IPV6_RECVHOPOPTS,
                                IPV6_HOPOPTS,
                                IPV6_RTHDRDSTOPTS,
                                IPV6_RECVRTHDR,
                                IPV6_RTHDR,
                                IPV6_RECVDSTOPTS,
                                IPV6_DSTOPTS,
                                IPV6_RECVPATHMTU,
                                IPV6_DONTFRAG,
                                IPV6_RECVTCLASS,
                                IPV6_TCLASS,
                                IPV6_AUTOFLOWLABEL,
                                IPV6_ADDR_PREFERENCES,
                                IPV6_MINHOPCOUNT,
                                IPV6_RECVORIGDSTADDR,
                                IPV6_TRANSPARENT,
                                IPV6_UNICAST_IF,
                                IPV6_RECVFRAGSIZE,
                                IPV6_FREEBIND};

constexpr int kTcpOptions[] = {TCP_NODELAY,
                               TCP_MAXSEG,
                               TCP_CORK,
                               TCP_KEEPIDLE,
                               TCP_KEEPINTVL,
                               TCP_KEEPCNT,
                               TCP_SYNCNT,
                               TCP_LINGER2,
                               TCP_DEFER_ACCEPT,
                               TCP_WINDOW_CLAMP,
                               TCP_QUICKACK,
                               TCP_CONGESTION,
                               TCP_THIN_LINEAR_TIMEOUTS,
                               TCP_THIN_DUPACK,
                               TCP_USER_TIMEOUT,
                               TCP_FASTOPEN,
                               TCP_TIMESTAMP,
                               TCP_NOTSENT_LOWAT,
                               TCP_SAVE_SYN,
                               TCP_FASTOPEN_CONNECT,
                               TCP_FASTOPEN_KEY,
                               TCP_FASTOPEN_NO_COOKIE,
                               TCP_INQ,
                               TCP_TX_DELAY,
                               44,   // TCP_RTO_MAX_MS
                               45,   // TCP_RTO_MIN_US
                               46};  // TCP_DELACK_MAX_US

constexpr int kUdpOptions[] = {UDP_CORK, UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX, UDP_SEGMENT, UDP_GRO};

constexpr int kUdpLiteOptions[] = {UDP_CORK,
                                   10,  // UDPLITE_SEND_CSCOV
                                   11,  // UDPLITE_RECV_CSCOV
                                   UDP_NO_CHECK6_TX,
                                   UDP_NO_CHECK6_RX,
                                   UDP_SEGMENT,
                                   UDP_GRO};

struct OptionLevel {
  int level;
  const int* names;
  size_t count;
};
constexpr OptionLevel kSettableOptions[] = {
    {SOL_SOCKET, kSocketOptions, std::size(kSocketOptions)},
    {IPPROTO_IP, kIpOptions, std::size(kIpOptions)},
    {IPPROTO_IPV6, kIpv6Options, std::size(kIpv6Options)},
    {IPPROTO_TCP, kTcpOptions, std::size(kTcpOptions)},
    {IPPROTO_UDP, kUdpOptions, std::size(kUdpOptions)},
    {IPPROTO_UDPLITE, kUdpLiteOptions, std::size(kUdpLiteOptions)}};

constexpr bool option_is_settable(int level, int name) {
  for (const OptionLevel& l : kSettableOptions)
    if (l.level == level) return std::find(l.names, l.names + l.count, name) != l.names + l.count;
  return false;
}

// What setsockopt() says to an option that is not settable, with a value of `len` bytes: ENOPROTOOPT, or
// what the kernel says before it looks at the name, or to whoever has no privilege.
constexpr int errno_of_unsettable(bool stream, bool inet6, int level, int name, uint32_t len) {
  constexpr int kFirstOfRouting = 200;  // MRT_BASE, MRT6_BASE
  constexpr int kLastOfRouting = 212;
  const bool ip = level == IPPROTO_IP;
  const bool ipv6 = inet6 && level == IPPROTO_IPV6;
  const bool own = level == SOL_SOCKET || (stream && level == IPPROTO_TCP) ||
                   (!stream && (level == IPPROTO_UDP || level == IPPROTO_UDPLITE));
  if (own && len < sizeof(int)) return EINVAL;
  if ((ip || ipv6) && name >= kFirstOfRouting && name <= kLastOfRouting) return EOPNOTSUPP;
  if (ip && (name == IP_IPSEC_POLICY || name == IP_XFRM_POLICY)) return EPERM;
  if (ipv6 && (name == IPV6_IPSEC_POLICY || name == IPV6_XFRM_POLICY)) return EPERM;
  return ENOPROTOOPT;
}

// For getsockopt(): answered ENOPROTOOPT without asking the kernel, as its argument holds a pointer or
// memory of the caller, or its answer a program.
constexpr bool option_is_hidden(int level, int name) {
  switch (level) {
    case SOL_SOCKET:
      switch (name) {
        case SO_ATTACH_FILTER:  // SO_GET_FILTER
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
        case TCP_REPAIR:
        case TCP_REPAIR_QUEUE:
        case TCP_REPAIR_OPTIONS:
        case TCP_REPAIR_WINDOW:
        case TCP_ULP:
        case TCP_ZEROCOPY_RECEIVE:
          return true;
        default:
          return false;
      }
    default:
      return false;
  }
}

}  // namespace mw
