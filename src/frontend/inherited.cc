#include "frontend/inherited.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/socket_option.h"

namespace mw {
namespace {

constexpr int kUdpLite = 136;  // IPPROTO_UDPLITE
constexpr uint8_t kTcpClose = 7;
constexpr uint8_t kTcpListen = 10;

const sockaddr_in& v4_of(const sockaddr_storage& a) {
  return reinterpret_cast<const sockaddr_in&>(a);
}
const sockaddr_in6& v6_of(const sockaddr_storage& a) {
  return reinterpret_cast<const sockaddr_in6&>(a);
}

bool is_mapped(const sockaddr_storage& a) {
  return a.ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6_of(a).sin6_addr);
}

// The IPv4 address, of a socket of either family; nothing if it is one of IPv6.
std::optional<uint32_t> address4(const sockaddr_storage& a) {
  if (a.ss_family == AF_INET) return ntohl(v4_of(a).sin_addr.s_addr);
  if (!is_mapped(a)) return std::nullopt;
  uint32_t wire = 0;
  std::memcpy(&wire, v6_of(a).sin6_addr.s6_addr + 12, sizeof wire);
  return ntohl(wire);
}

void set_address4(sockaddr_storage* a, uint32_t address) {
  const uint32_t wire = htonl(address);
  if (a->ss_family == AF_INET)
    reinterpret_cast<sockaddr_in*>(a)->sin_addr.s_addr = wire;
  else
    std::memcpy(reinterpret_cast<sockaddr_in6*>(a)->sin6_addr.s6_addr + 12, &wire, sizeof wire);
}

bool is_wildcard(const sockaddr_storage& a) {
  if (const auto v4 = address4(a)) return *v4 == INADDR_ANY;
  return IN6_IS_ADDR_UNSPECIFIED(&v6_of(a).sin6_addr);
}

bool is_loopback4(uint32_t address) {
  return address >> 24 == 127;
}

bool is_option_on(const SocketCopy& c, int level, int name) {
  for (const CopiedOption& o : c.options)
    if (o.level == level && o.name == name)
      return o.value.find_first_not_of('\0') != std::string::npos;
  return false;
}

// The network namespace that a socket belongs to; nothing if the kernel does not say.
std::optional<uint64_t> network_of(int fd) {
  uint64_t cookie = 0;
  socklen_t len = sizeof cookie;
  if (::getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) < 0) return std::nullopt;
  return cookie;
}

// Whether nobody has its address any more; errno.
bool can_bind(const SocketCopy& c) {
  const UniqueFd fd{::socket(c.domain, c.type | SOCK_CLOEXEC, c.protocol)};
  const int on = 1;
  const int only = is_option_on(c, IPPROTO_IPV6, IPV6_V6ONLY) ? 1 : 0;
  if (c.domain == AF_INET6)
    (void)::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
  // Old connections are no obstacle; for datagrams the same option would let two have the address.
  if (c.type == SOCK_STREAM) (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const socklen_t len = c.domain == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&c.address), len) == 0;
}

// The address of all machines of a network that this host is on.
bool is_broadcast(const SocketCopy& c) {
  if (c.address.ss_family != AF_INET) return false;
  const in_addr_t address = v4_of(c.address).sin_addr.s_addr;
  if (address == INADDR_BROADCAST) return true;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) < 0) return false;
  bool found = false;
  const auto number = [](const sockaddr* a) {
    return reinterpret_cast<const sockaddr_in*>(a)->sin_addr.s_addr;
  };
  for (const ifaddrs* a = list; a != nullptr; a = a->ifa_next) {
    if (a->ifa_addr == nullptr || a->ifa_addr->sa_family != AF_INET || a->ifa_netmask == nullptr ||
        (a->ifa_flags & IFF_BROADCAST) == 0 || number(a->ifa_addr) == address)
      continue;
    const bool whole_network = (number(a->ifa_addr) | ~number(a->ifa_netmask)) == address;
    const bool said = a->ifa_broadaddr != nullptr && number(a->ifa_broadaddr) == address;
    found = found || whole_network || said;
  }
  ::freeifaddrs(list);
  return found;
}

bool is_multicast(const SocketCopy& c) {
  if (!c.is_bound()) return false;
  if (const auto v4 = address4(c.address)) return IN_MULTICAST(*v4);
  return IN6_IS_ADDR_MULTICAST(&v6_of(c.address).sin6_addr);
}

// Whether it has, or had, a peer.
bool is_connection(int fd) {
  sockaddr_storage peer{};
  socklen_t len = sizeof peer;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &len) == 0) return true;
  tcp_info info{};
  len = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) return false;  // datagrams
  if (info.tcpi_state == kTcpListen) return false;
  return info.tcpi_state != kTcpClose || info.tcpi_segs_in + info.tcpi_segs_out != 0;
}

bool has_filter(int fd) {
  constexpr int kGetFilter = 26;  // SO_GET_FILTER
  socklen_t count = 0;
  // For a filter that is no classic one the kernel gives an error.
  return ::getsockopt(fd, SOL_SOCKET, kGetFilter, nullptr, &count) < 0 ? errno == EACCES
                                                                       : count != 0;
}

bool is_local(int domain) {
  return domain == AF_UNIX || domain == AF_NETLINK || domain == AF_ALG;
}

// Why an INS cannot have a socket of this kind; null: it can.
const char* fault_of_kind(int fd) {
  const int domain = socket_option(fd, SO_DOMAIN);
  const int type = socket_option(fd, SO_TYPE);
  const int protocol = socket_option(fd, SO_PROTOCOL);
  if (domain != AF_INET && domain != AF_INET6)
    return "it is a socket of a family of addresses that an INS does not have";
  if (type == SOCK_RAW) return "it is a raw socket, and an INS has no privilege for one";
  const bool known = (type == SOCK_STREAM && protocol == IPPROTO_TCP) ||
                     (type == SOCK_DGRAM && (protocol == IPPROTO_UDP || protocol == kUdpLite));
  return known ? nullptr : "its protocol is none that an INS has (TCP, UDP, UDP-Lite)";
}

// Why the INS of an isolated session cannot stand for it; null: it can.
const char* fault_of_isolated(const SocketCopy& c) {
  // First: such a socket is bound to the interface of that link as well.
  if (c.address.ss_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6_of(c.address).sin6_addr))
    return "an address of a link does not lead to an isolated INS, which is on another link";
  if (is_option_on(c, SOL_SOCKET, SO_BINDTODEVICE))
    return "it is bound to an interface of the host, which an isolated INS does not have";
  if (!c.is_bound()) return nullptr;
  if (c.protocol == kUdpLite) return "ports of UDP-Lite cannot be published";
  if (is_broadcast(c)) return "broadcasts do not lead to an isolated INS";
  if (address4(c.address)) return nullptr;
  const in6_addr& address = v6_of(c.address).sin6_addr;
  if (IN6_IS_ADDR_LOOPBACK(&address))
    return "the kernel keeps ::1 on the host's loopback interface, so nothing can lead from it to "
           "the INS";
  return nullptr;
}

// Why it cannot be taken over; null: it can.
const char* fault_of(int fd, const SocketCopy& c, bool isolated) {
  if (is_multicast(c))
    return "it is bound to a multicast address, and its memberships cannot be read";
  if (has_filter(fd)) return "a packet filter is attached to it, which an INS does not get";
  return isolated ? fault_of_isolated(c) : nullptr;
}

std::string numbered(int fd) {
  return "descriptor " + std::to_string(fd);
}

const char* const kRemedy =
    "let the server listen by itself (with -p where it is isolated), or do not pass it";

// Isolated: the one address of the host from which its port leads to the INS.
Publish publish_of(const SocketCopy& c) {
  Publish p;
  p.port = p.ins_port = c.port();
  p.protocol = c.type == SOCK_DGRAM ? Protocol::udp : Protocol::tcp;
  sockaddr_storage a = c.address;
  if (const auto v4 = address4(a)) {
    a = {};
    a.ss_family = AF_INET;
    set_address4(&a, *v4);
  } else if (is_wildcard(a) && !is_option_on(c, IPPROTO_IPV6, IPV6_V6ONLY)) {
    return p;
  }
  std::string text = text_of(a);
  text.resize(text.rfind(':'));
  if (text[0] == '[') text = text.substr(1, text.size() - 2);
  p.host = text;
  return p;
}

// The INS has one address of a family: it cannot tell which of the host's a packet was for.
const SocketCopy* rival_of(const SocketCopy& c, const std::vector<SocketCopy>& others) {
  for (const SocketCopy& o : others) {
    if (!o.is_bound() || c.port() == 0 || o.type != c.type || o.protocol != c.protocol ||
        o.port() != c.port() || address4(o.address).has_value() != address4(c.address).has_value())
      continue;
    if (publish_of(o).host != publish_of(c).host) return &o;
  }
  return nullptr;
}

struct Waiting {
  unsigned connections = 0;
  unsigned datagrams = 0;
};

std::string sentence_of(const Waiting& w, const std::string& where) {
  const bool streams = w.connections != 0;
  const unsigned n = streams ? w.connections : w.datagrams;
  const std::string what = streams  ? n == 1 ? "connection" : "connections"
                           : n == 1 ? "datagram"
                                    : "datagrams";
  return std::to_string(n) + " " + what + " that waited at " + where +
         (n == 1 ? " was " : " were ") + (streams ? "reset" : "dropped") +
         ": the host's stack had taken " + (n == 1 ? "it" : "them");
}

// At most so many at a time: the supervisor has other work.
constexpr unsigned kMostRefused = 256;
constexpr int kMostTurns = 256;  // as long as a queue may be

Waiting refuse_connections(int fd) {
  Waiting out;
  // Whoever else has this socket may be quicker. Its mode is theirs too, so that it is put back.
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return out;
  while (out.connections < kMostRefused) {
    const UniqueFd connection{::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC)};
    if (!connection) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      break;
    }
    const linger reset{1, 0};
    (void)::setsockopt(connection.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    ++out.connections;
  }
  (void)::fcntl(fd, F_SETFL, flags);
  return out;
}

Waiting drop_datagrams(int fd) {
  Waiting out;
  char byte = 0;
  unsigned errors = 0;
  while (out.datagrams < kMostRefused && errors < kMostRefused) {
    if (::recv(fd, &byte, sizeof byte, MSG_DONTWAIT) >= 0) {
      ++out.datagrams;
      continue;
    }
    if (errno == EAGAIN) break;
    ++errors;  // an ICMP error that waited
  }
  return out;
}

Waiting refuse_at(int fd) {
  return socket_option(fd, SO_TYPE) == SOCK_DGRAM ? drop_datagrams(fd) : refuse_connections(fd);
}

unsigned connections_at(int fd) {
  tcp_info info{};
  socklen_t len = sizeof info;
  const bool listens = socket_option(fd, SO_ACCEPTCONN) == 1;
  if (!listens || ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) return 0;
  return info.tcpi_unacked;  // so the kernel has it for a listener
}

bool has_datagrams(int fd) {
  int bytes = 0;  // of the first one
  return socket_option(fd, SO_TYPE) == SOCK_DGRAM && ::ioctl(fd, FIONREAD, &bytes) == 0 &&
         bytes != 0;
}

}  // namespace

Outcome<InheritedSockets> InheritedSockets::look_for(const std::vector<int>& descriptors,
                                                     bool isolated) {
  InheritedSockets out(isolated);
  const UniqueFd ours{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  const auto here = network_of(ours.get());
  std::vector<ino_t> seen;
  for (const int fd : descriptors) {
    const int domain = socket_option(fd, SO_DOMAIN);
    if (domain < 0 || is_local(domain)) continue;
    const std::string step = "take over " + numbered(fd);
    if (const char* fault = fault_of_kind(fd)) return Failure{step, fault, kRemedy};
    struct stat st {};
    if (::fstat(fd, &st) < 0) return Failure{step, "fstat: " + errno_text(errno), ""};
    const auto again = std::find(seen.begin(), seen.end(), st.st_ino);
    if (again != seen.end()) {
      out.copies_[static_cast<size_t>(again - seen.begin())].numbers.push_back(fd);
      continue;
    }
    auto copy = describe_socket(fd);
    if (!copy) return copy.error();
    copy->numbers = {fd};
    const std::string named = "take over " + copy->text();
    if (!here || network_of(fd) != here)
      return Failure{named,
                     here ? "it belongs to another network namespace"
                          : "this kernel does not tell which network namespace it belongs to "
                            "(Linux 5.14 does)",
                     kRemedy};
    if (is_connection(fd))
      return Failure{named, "it is a connection, whose bytes pass through the host's stack",
                     "pass the listening socket (inetd: wait, systemd: Accept=no)"};
    if (const char* fault = fault_of(fd, *copy, isolated)) return Failure{named, fault, kRemedy};
    if (isolated && copy->is_bound()) {
      if (const SocketCopy* rival = rival_of(*copy, out.copies_))
        return Failure{named,
                       "its port leads to the INS from another address already, that of " +
                           rival->text() + ", and the INS has one address for both",
                       kRemedy};
    }
    seen.push_back(st.st_ino);
    out.copies_.push_back(std::move(*copy));
  }
  return out;
}

std::vector<Publish> InheritedSockets::published() const {
  std::vector<Publish> out;
  if (!isolated_) return out;
  for (const SocketCopy& c : copies_) {
    if (!c.is_bound() || c.port() == 0) continue;
    const Publish p = publish_of(c);
    // Sockets that share a port (SO_REUSEPORT) share its rule.
    const auto same = [&p](const Publish& o) {
      return o.host == p.host && o.port == p.port && o.protocol == p.protocol;
    };
    if (std::none_of(out.begin(), out.end(), same)) out.push_back(p);
  }
  return out;
}

Outcome<std::vector<UniqueFd>> InheritedSockets::withdraw() {
  const auto failed = [](const char* what) {
    return Failure{"put the inherited sockets away", std::string(what) + ": " + errno_text(errno),
                   "raise the limit of open files"};
  };
  std::vector<UniqueFd> held;
  const UniqueFd null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
  if (!null) return failed("open /dev/null");
  for (const SocketCopy& c : copies_) {
    const int fd = c.numbers[0];
    if (isolated_ && c.is_bound() && c.port() != 0) {
      UniqueFd kept{::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1)};
      if (!kept) return failed("fcntl");
      held.push_back(std::move(kept));
    } else if (const unsigned waiting = connections_at(fd); waiting != 0) {
      lost_.push_back(sentence_of({waiting, 0}, text_of(c.address)));
    } else if (has_datagrams(fd)) {
      lost_.push_back("datagrams that waited at " + text_of(c.address) + " were dropped");
    }
    for (const int number : c.numbers) {
      if (::dup2(null.get(), number) < 0) return failed("dup2");
    }
  }
  if (!isolated_) {
    if (auto left = leave_host(); !left) return left.error();
  }
  return held;
}

// Whether all of them are gone.
Outcome<Done> InheritedSockets::leave_host() {
  for (const SocketCopy& c : copies_) {
    if (!c.is_bound() || c.port() == 0 || can_bind(c) || errno != EADDRINUSE) continue;
    return Failure{"take over " + c.text(),
                   "its address is still in use: whoever passed it keeps it open too, as systemd "
                   "does",
                   "as root, isolated, the INS has addresses of its own"};
  }
  return Done{};
}

Outcome<std::vector<SocketCopy>> InheritedSockets::copies_for(const AddressPlan& plan) const {
  std::vector<SocketCopy> out = copies_;
  if (!isolated_) return out;
  in_addr ins4{};
  (void)::inet_pton(AF_INET, plan.ins4.c_str(), &ins4);
  for (SocketCopy& c : out) {
    if (!c.is_bound() || is_wildcard(c.address)) continue;
    if (const auto v4 = address4(c.address)) {
      // The program finds at 127.0.0.1 what it listens on there, too.
      set_address4(&c.address, is_loopback4(*v4) ? INADDR_ANY : ntohl(ins4.s_addr));
      continue;
    }
    auto& in6 = reinterpret_cast<sockaddr_in6&>(c.address);
    if (::inet_pton(AF_INET6, plan.ins6.c_str(), &in6.sin6_addr) != 1)
      return Failure{"take over " + c.text(), "the session has no IPv6", kRemedy};
    in6.sin6_scope_id = 0;
  }
  return out;
}

std::vector<std::string> InheritedSockets::report() const {
  std::vector<std::string> out;
  for (const SocketCopy& c : copies_) {
    std::string line = "took over " + c.text();
    if (isolated_ && c.is_bound() && c.port() != 0)
      line += ": published " + to_string(publish_of(c));
    out.push_back(line);
  }
  out.insert(out.end(), lost_.begin(), lost_.end());
  return out;
}

Outcome<HeldSockets> HeldSockets::among(const std::vector<UniqueFd>& descriptors) {
  HeldSockets out;
  out.ready_.reset(::epoll_create1(EPOLL_CLOEXEC));
  for (const UniqueFd& fd : descriptors) {
    const int domain = socket_option(fd.get(), SO_DOMAIN);
    if (domain != AF_INET && domain != AF_INET6) continue;
    if (socket_option(fd.get(), SO_TYPE) != SOCK_DGRAM &&
        socket_option(fd.get(), SO_ACCEPTCONN) != 1)
      continue;
    epoll_event event{};
    // Told once: somebody else may have made of it what is readable for ever.
    event.events = EPOLLIN | EPOLLET;
    event.data.fd = fd.get();
    if (::epoll_ctl(out.ready_.get(), EPOLL_CTL_ADD, fd.get(), &event) < 0)
      return Failure{"watch the host's sockets", "epoll_ctl: " + errno_text(errno), ""};
    out.sockets_.push_back(fd.get());
  }
  return out;
}

void HeldSockets::refuse() {
  epoll_event event{};
  if (::epoll_wait(ready_.get(), &event, 1, 0) != 1) return;
  const Waiting w = refuse_at(event.data.fd);
  if (w.connections + w.datagrams < kMostRefused) return;
  // There may be more, which is no news to it.
  event.events = EPOLLIN | EPOLLET;
  (void)::epoll_ctl(ready_.get(), EPOLL_CTL_MOD, event.data.fd, &event);
}

std::vector<std::string> HeldSockets::refuse_all() {
  std::vector<std::string> out;
  for (const int fd : sockets_) {
    Waiting all;
    for (int turn = 0; turn < kMostTurns; ++turn) {
      const Waiting w = refuse_at(fd);
      all.connections += w.connections;
      all.datagrams += w.datagrams;
      if (w.connections + w.datagrams < kMostRefused) break;
    }
    sockaddr_storage own{};
    socklen_t len = sizeof own;
    (void)::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &len);
    if (all.connections + all.datagrams != 0) out.push_back(sentence_of(all, text_of(own)));
  }
  return out;
}

}  // namespace mw
