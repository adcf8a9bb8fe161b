// constants.cc - the names that scripts use, and their values on this machine.
#include <fcntl.h>
#include <linux/errqueue.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

#include "call.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

namespace sockagent {
namespace {

struct Constant {
  std::string_view name;
  long value;
};

#define MW_NAME(x) \
  { #x, static_cast < long>(x) }
constexpr Constant kConstants[] = {
    MW_NAME(AF_INET),
    MW_NAME(AF_INET6),
    MW_NAME(AF_UNIX),
    MW_NAME(AF_UNSPEC),
    MW_NAME(AF_NETLINK),
    MW_NAME(AF_PACKET),
    MW_NAME(SOCK_STREAM),
    MW_NAME(SOCK_DGRAM),
    MW_NAME(SOCK_RAW),
    MW_NAME(SOCK_SEQPACKET),
    MW_NAME(SOCK_NONBLOCK),
    MW_NAME(SOCK_CLOEXEC),
    MW_NAME(IPPROTO_TCP),
    MW_NAME(IPPROTO_UDP),
    MW_NAME(IPPROTO_IP),
    MW_NAME(IPPROTO_IPV6),
    MW_NAME(IPPROTO_ICMP),
    MW_NAME(IPPROTO_SCTP),
    MW_NAME(SHUT_RD),
    MW_NAME(SHUT_WR),
    MW_NAME(SHUT_RDWR),
    MW_NAME(SOL_SOCKET),
    MW_NAME(SOL_TCP),
    MW_NAME(SOL_IP),
    MW_NAME(SOL_IPV6),
    MW_NAME(SO_REUSEADDR),
    MW_NAME(SO_REUSEPORT),
    MW_NAME(SO_KEEPALIVE),
    MW_NAME(SO_LINGER),
    MW_NAME(SO_SNDBUF),
    MW_NAME(SO_RCVBUF),
    MW_NAME(SO_SNDTIMEO),
    MW_NAME(SO_RCVTIMEO),
    MW_NAME(SO_SNDTIMEO_NEW),
    MW_NAME(SO_RCVTIMEO_NEW),
    MW_NAME(IP_MSFILTER),
    MW_NAME(MCAST_MSFILTER),
    MW_NAME(SO_TIMESTAMPNS),
    MW_NAME(SO_TIMESTAMPING),
    MW_NAME(SO_ERROR),
    MW_NAME(SO_TYPE),
    MW_NAME(SO_DOMAIN),
    MW_NAME(SO_PROTOCOL),
    MW_NAME(SO_ACCEPTCONN),
    MW_NAME(SO_BROADCAST),
    MW_NAME(SO_OOBINLINE),
    MW_NAME(SO_PRIORITY),
    MW_NAME(SO_RCVLOWAT),
    MW_NAME(SO_SNDLOWAT),
    MW_NAME(SO_DONTROUTE),
    MW_NAME(SO_TIMESTAMP),
    MW_NAME(SO_PEERCRED),
    MW_NAME(SO_PASSCRED),
    MW_NAME(SO_MARK),
    MW_NAME(SO_BINDTODEVICE),
    MW_NAME(SO_RCVBUFFORCE),
    MW_NAME(SO_SNDBUFFORCE),
    MW_NAME(SO_INCOMING_CPU),
    MW_NAME(SO_COOKIE),
    MW_NAME(SO_BUSY_POLL),
    MW_NAME(SO_ZEROCOPY),
    MW_NAME(SO_PEERNAME),
    MW_NAME(SO_NO_CHECK),
    MW_NAME(SO_DEBUG),
    MW_NAME(SO_MAX_PACING_RATE),
    MW_NAME(TCP_NODELAY),
    MW_NAME(TCP_MAXSEG),
    MW_NAME(TCP_CORK),
    MW_NAME(TCP_KEEPIDLE),
    MW_NAME(TCP_KEEPINTVL),
    MW_NAME(TCP_KEEPCNT),
    MW_NAME(TCP_SYNCNT),
    MW_NAME(TCP_LINGER2),
    MW_NAME(TCP_DEFER_ACCEPT),
    MW_NAME(TCP_INFO),
    MW_NAME(TCP_QUICKACK),
    MW_NAME(TCP_CONGESTION),
    MW_NAME(TCP_USER_TIMEOUT),
    MW_NAME(TCP_FASTOPEN),
    MW_NAME(TCP_FASTOPEN_CONNECT),
    MW_NAME(TCP_NOTSENT_LOWAT),
    MW_NAME(TCP_ULP),
    MW_NAME(IP_TOS),
    MW_NAME(IP_TTL),
    MW_NAME(IP_PKTINFO),
    MW_NAME(IP_RECVTTL),
    MW_NAME(IP_RECVERR),
    MW_NAME(IP_FREEBIND),
    MW_NAME(IP_TRANSPARENT),
    MW_NAME(IP_MTU_DISCOVER),
    MW_NAME(IP_MULTICAST_TTL),
    MW_NAME(IP_MULTICAST_LOOP),
    MW_NAME(IP_ADD_MEMBERSHIP),
    MW_NAME(IP_BIND_ADDRESS_NO_PORT),
    MW_NAME(IPV6_V6ONLY),
    MW_NAME(IPV6_TCLASS),
    MW_NAME(IPV6_UNICAST_HOPS),
    MW_NAME(IPV6_RECVPKTINFO),
    MW_NAME(IPV6_RECVHOPLIMIT),
    MW_NAME(IPV6_RECVTCLASS),
    MW_NAME(IPV6_RECVERR),
    MW_NAME(IP_RECVTOS),
    MW_NAME(IP_RECVORIGDSTADDR),
    MW_NAME(UDP_CORK),
    MW_NAME(SO_TIMESTAMPNS),
    MW_NAME(SO_TIMESTAMPING),
    MW_NAME(SO_RXQ_OVFL),
    MW_NAME(SIOCGSTAMP),
    MW_NAME(SIOCGSTAMPNS),
    MW_NAME(MSG_PEEK),
    MW_NAME(MSG_WAITALL),
    MW_NAME(MSG_DONTWAIT),
    MW_NAME(MSG_TRUNC),
    MW_NAME(MSG_CTRUNC),
    MW_NAME(MSG_OOB),
    MW_NAME(MSG_NOSIGNAL),
    MW_NAME(MSG_MORE),
    MW_NAME(MSG_ERRQUEUE),
    MW_NAME(MSG_WAITFORONE),
    MW_NAME(MSG_CMSG_CLOEXEC),
    MW_NAME(MSG_EOR),
    MW_NAME(MSG_CONFIRM),
    MW_NAME(MSG_DONTROUTE),
    MW_NAME(MSG_FASTOPEN),
    MW_NAME(MSG_ZEROCOPY),
    MW_NAME(O_NONBLOCK),
    MW_NAME(O_CLOEXEC),
    MW_NAME(O_RDONLY),
    MW_NAME(O_WRONLY),
    MW_NAME(O_RDWR),
    MW_NAME(O_CREAT),
    MW_NAME(O_TRUNC),
    MW_NAME(O_APPEND),
    MW_NAME(O_PATH),
    MW_NAME(O_DIRECTORY),
    MW_NAME(O_ASYNC),
    MW_NAME(FD_CLOEXEC),
    MW_NAME(F_GETFL),
    MW_NAME(F_SETFL),
    MW_NAME(F_GETFD),
    MW_NAME(F_SETFD),
    MW_NAME(F_DUPFD),
    MW_NAME(F_DUPFD_CLOEXEC),
    MW_NAME(F_GETOWN),
    MW_NAME(FIOGETOWN),
    MW_NAME(FIOASYNC),
    MW_NAME(F_SETOWN),
    MW_NAME(F_GETLK),
    MW_NAME(F_GETPIPE_SZ),
    MW_NAME(FIONREAD),
    MW_NAME(FIONBIO),
    MW_NAME(SIOCOUTQ),
    MW_NAME(SIOCATMARK),
    MW_NAME(FIOCLEX),
    MW_NAME(FIONCLEX),
    MW_NAME(TCGETS),
    MW_NAME(SIOCOUTQNSD),
    MW_NAME(TIOCGWINSZ),
    MW_NAME(POLLIN),
    MW_NAME(POLLOUT),
    MW_NAME(POLLPRI),
    MW_NAME(POLLERR),
    MW_NAME(POLLHUP),
    MW_NAME(POLLNVAL),
    MW_NAME(POLLRDHUP),
    MW_NAME(POLLRDNORM),
    MW_NAME(POLLWRNORM),
    MW_NAME(POLLRDBAND),
    MW_NAME(POLLWRBAND),
    MW_NAME(EPOLLIN),
    MW_NAME(EPOLLOUT),
    MW_NAME(EPOLLPRI),
    MW_NAME(EPOLLERR),
    MW_NAME(EPOLLHUP),
    MW_NAME(EPOLLRDHUP),
    MW_NAME(EPOLLRDNORM),
    MW_NAME(EPOLLET),
    MW_NAME(EPOLLONESHOT),
    MW_NAME(EPOLLEXCLUSIVE),
    MW_NAME(EPOLLWAKEUP),
    MW_NAME(EPOLL_CLOEXEC),
    MW_NAME(EPOLL_CTL_ADD),
    MW_NAME(EPOLL_CTL_MOD),
    MW_NAME(EPOLL_CTL_DEL),
    MW_NAME(SIGPIPE),
    MW_NAME(SIGUSR1),
    MW_NAME(SIGUSR2),
    MW_NAME(SIGALRM),
    MW_NAME(SIGTERM),
    MW_NAME(SIGURG),
    MW_NAME(SIGIO),
    MW_NAME(SIGCHLD),
    MW_NAME(CLOSE_RANGE_CLOEXEC),
    MW_NAME(CLOSE_RANGE_UNSHARE),
    MW_NAME(SPLICE_F_NONBLOCK),
    MW_NAME(SPLICE_F_MOVE),
    MW_NAME(SPLICE_F_MORE),
    MW_NAME(SEEK_SET),
    MW_NAME(SEEK_CUR),
    MW_NAME(SEEK_END),
};
#undef MW_NAME

long parse_one(std::string_view word) {
  for (const Constant& constant : kConstants) {
    if (constant.name == word) return constant.value;
  }
  std::string_view digits = word;
  int base = 10;
  bool negative = false;
  if (digits.starts_with("-")) {
    negative = true;
    digits.remove_prefix(1);
  }
  if (digits.starts_with("0x")) {
    base = 16;
    digits.remove_prefix(2);
  }
  unsigned long value = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), value, base);
  if (error != std::errc{} || end != digits.end() || digits.empty()) {
    throw ScriptError("unknown word '" + std::string(word) + "'");
  }
  return negative ? -static_cast<long>(value) : static_cast<long>(value);
}

}  // namespace

long parse_number(std::string_view words) {
  long value = 0;
  bool first = true;
  while (first || !words.empty()) {
    const std::size_t bar = words.find('|');
    const long one = parse_one(words.substr(0, bar));
    value = first ? one : (value | one);
    first = false;
    if (bar == std::string_view::npos) break;
    words.remove_prefix(bar + 1);
  }
  return value;
}

const char* constant_name_of_errno(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "E?";
}

std::string describe_poll_bits(unsigned bits) {
  static constexpr Constant kBits[] = {
      {"IN", POLLIN},         {"PRI", POLLPRI},       {"OUT", POLLOUT},
      {"ERR", POLLERR},       {"HUP", POLLHUP},       {"NVAL", POLLNVAL},
      {"RDNORM", POLLRDNORM}, {"RDBAND", POLLRDBAND}, {"WRNORM", POLLWRNORM},
      {"WRBAND", POLLWRBAND}, {"RDHUP", POLLRDHUP},
  };
  std::string text;
  for (const Constant& bit : kBits) {
    if ((bits & static_cast<unsigned>(bit.value)) == 0) continue;
    if (!text.empty()) text += '|';
    text += bit.name;
    bits &= ~static_cast<unsigned>(bit.value);
  }
  if (bits != 0) text += "|" + std::to_string(bits);
  return text.empty() ? "0" : text;
}

}  // namespace sockagent
