#include "frontend/socket_copy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>

#include <charconv>
#include <cstring>
#include <sstream>

#include "base/socket_option.h"

namespace mw {
namespace {

constexpr int kUdpLite = 136;  // IPPROTO_UDPLITE
constexpr socklen_t kLongestValue = 64;
constexpr size_t kMostNumbers = 1024;

struct KnownOption {
  int level;
  int name;
  const char* text;
};
#define MW_OPTION(level, name) \
  { level, name, #name }
// In the order in which they are set: IP_TOS changes SO_PRIORITY.
constexpr KnownOption kKnown[] = {
    MW_OPTION(IPPROTO_IPV6, IPV6_V6ONLY),
    MW_OPTION(SOL_SOCKET, SO_REUSEADDR),
    MW_OPTION(SOL_SOCKET, SO_REUSEPORT),
    MW_OPTION(SOL_SOCKET, SO_BINDTODEVICE),
    MW_OPTION(SOL_SOCKET, SO_KEEPALIVE),
    MW_OPTION(SOL_SOCKET, SO_BROADCAST),
    MW_OPTION(SOL_SOCKET, SO_DONTROUTE),
    MW_OPTION(SOL_SOCKET, SO_OOBINLINE),
    MW_OPTION(SOL_SOCKET, SO_LINGER),
    MW_OPTION(SOL_SOCKET, SO_RCVLOWAT),
    MW_OPTION(SOL_SOCKET, SO_RCVTIMEO),
    MW_OPTION(SOL_SOCKET, SO_SNDTIMEO),
    MW_OPTION(SOL_SOCKET, SO_RCVBUF),
    MW_OPTION(SOL_SOCKET, SO_SNDBUF),
    MW_OPTION(SOL_SOCKET, SO_NO_CHECK),
    MW_OPTION(SOL_SOCKET, SO_MARK),
    MW_OPTION(SOL_SOCKET, SO_TIMESTAMP),
    MW_OPTION(SOL_SOCKET, SO_TIMESTAMPNS),
    MW_OPTION(SOL_SOCKET, SO_RXQ_OVFL),
    MW_OPTION(SOL_SOCKET, SO_MAX_PACING_RATE),
    MW_OPTION(IPPROTO_IP, IP_TOS),
    MW_OPTION(IPPROTO_IP, IP_TTL),
    MW_OPTION(IPPROTO_IP, IP_MTU_DISCOVER),
    MW_OPTION(IPPROTO_IP, IP_MINTTL),
    MW_OPTION(IPPROTO_IP, IP_FREEBIND),
    MW_OPTION(IPPROTO_IP, IP_TRANSPARENT),
    MW_OPTION(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT),
    MW_OPTION(IPPROTO_IP, IP_PKTINFO),
    MW_OPTION(IPPROTO_IP, IP_RECVTTL),
    MW_OPTION(IPPROTO_IP, IP_RECVTOS),
    MW_OPTION(IPPROTO_IP, IP_RECVERR),
    MW_OPTION(IPPROTO_IP, IP_RECVORIGDSTADDR),
    MW_OPTION(IPPROTO_IP, IP_MULTICAST_TTL),
    MW_OPTION(IPPROTO_IP, IP_MULTICAST_LOOP),
    MW_OPTION(IPPROTO_IP, IP_MULTICAST_ALL),
    MW_OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS),
    MW_OPTION(IPPROTO_IPV6, IPV6_MTU_DISCOVER),
    MW_OPTION(IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    MW_OPTION(IPPROTO_IPV6, IPV6_FREEBIND),
    MW_OPTION(IPPROTO_IPV6, IPV6_TRANSPARENT),
    MW_OPTION(IPPROTO_IPV6, IPV6_TCLASS),
    MW_OPTION(IPPROTO_IPV6, IPV6_DONTFRAG),
    MW_OPTION(IPPROTO_IPV6, IPV6_RECVPKTINFO),
    MW_OPTION(IPPROTO_IPV6, IPV6_RECVHOPLIMIT),
    MW_OPTION(IPPROTO_IPV6, IPV6_RECVTCLASS),
    MW_OPTION(IPPROTO_IPV6, IPV6_RECVERR),
    MW_OPTION(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR),
    MW_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_HOPS),
    MW_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_LOOP),
    MW_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_ALL),
    MW_OPTION(IPPROTO_TCP, TCP_NODELAY),
    MW_OPTION(IPPROTO_TCP, TCP_MAXSEG),
    MW_OPTION(IPPROTO_TCP, TCP_KEEPIDLE),
    MW_OPTION(IPPROTO_TCP, TCP_KEEPINTVL),
    MW_OPTION(IPPROTO_TCP, TCP_KEEPCNT),
    MW_OPTION(IPPROTO_TCP, TCP_SYNCNT),
    MW_OPTION(IPPROTO_TCP, TCP_LINGER2),
    MW_OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT),
    MW_OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT),
    MW_OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    MW_OPTION(IPPROTO_TCP, TCP_SAVE_SYN),
    MW_OPTION(IPPROTO_TCP, TCP_FASTOPEN),
    MW_OPTION(IPPROTO_TCP, TCP_CONGESTION),
    MW_OPTION(IPPROTO_UDP, UDP_SEGMENT),
    MW_OPTION(IPPROTO_UDP, UDP_GRO),
    MW_OPTION(IPPROTO_UDP, UDP_NO_CHECK6_TX),
    MW_OPTION(IPPROTO_UDP, UDP_NO_CHECK6_RX),
    {kUdpLite, 10, "UDPLITE_SEND_CSCOV"},
    {kUdpLite, 11, "UDPLITE_RECV_CSCOV"},
    MW_OPTION(SOL_SOCKET, SO_PRIORITY),
};
#undef MW_OPTION

// An option's bytes; nothing if this socket does not have it.
std::optional<std::string> read_option(int fd, int level, int name) {
  char value[kLongestValue];
  socklen_t len = sizeof value;
  if (::getsockopt(fd, level, name, value, &len) < 0) return std::nullopt;
  return std::string(value, len);
}

bool set_option(int fd, int level, int name, const std::string& value) {
  return ::setsockopt(fd, level, name, value.data(), static_cast<socklen_t>(value.size())) == 0;
}

bool is_buffer(const CopiedOption& o) {
  return o.level == SOL_SOCKET && (o.name == SO_RCVBUF || o.name == SO_SNDBUF);
}

// The kernel gives twice what it is asked for, and to who may ask for more, more than its limit.
bool set_buffer(int fd, const CopiedOption& o) {
  int wanted = 0;
  std::memcpy(&wanted, o.value.data(), sizeof wanted);
  const int half = wanted / 2;
  const std::string value(reinterpret_cast<const char*>(&half), sizeof half);
  if (!set_option(fd, o.level, o.name, value)) return false;
  if (read_option(fd, o.level, o.name) == o.value) return true;
  return set_option(fd, o.level, o.name == SO_RCVBUF ? SO_RCVBUFFORCE : SO_SNDBUFFORCE, value);
}

const char* name_of(const CopiedOption& o) {
  for (const KnownOption& k : kKnown)
    if (k.level == o.level && k.name == o.name) return k.text;
  return "an unknown option";
}

bool is_known(const CopiedOption& o) {
  for (const KnownOption& k : kKnown)
    if (k.level == o.level && k.name == o.name) return true;
  return false;
}

std::string hex(const void* bytes, size_t n) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < n; ++i) {
    const auto byte = static_cast<const unsigned char*>(bytes)[i];
    out += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return out;
}

std::optional<std::string> from_hex(const std::string& text) {
  if (text.size() % 2 != 0) return std::nullopt;
  std::string out;
  for (size_t i = 0; i < text.size(); i += 2) {
    unsigned byte = 0;
    const char* const end = text.data() + i + 2;
    const auto read = std::from_chars(text.data() + i, end, byte, 16);
    if (read.ec != std::errc{} || read.ptr != end) return std::nullopt;
    out += static_cast<char>(byte);
  }
  return out;
}

bool parse_int(const std::string& text, int* out) {
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, *out);
  return read.ec == std::errc{} && read.ptr == end;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string one; std::getline(in, one, at);) out.push_back(one);
  return out;
}

socklen_t length_of(const sockaddr_storage& a) {
  return a.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
}

const char* protocol_text(const SocketCopy& c) {
  if (c.protocol == kUdpLite) return "/udplite";
  return c.type == SOCK_STREAM ? "/tcp" : "/udp";
}

}  // namespace

std::string text_of(const sockaddr_storage& a) {
  char text[INET6_ADDRSTRLEN] = "?";
  const auto* in = reinterpret_cast<const sockaddr_in*>(&a);
  const auto* in6 = reinterpret_cast<const sockaddr_in6*>(&a);
  if (a.ss_family != AF_INET6) {
    (void)::inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(in->sin_port));
  }
  (void)::inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof text);
  std::string scope;
  if (in6->sin6_scope_id != 0) scope = "%" + std::to_string(in6->sin6_scope_id);
  return "[" + std::string(text) + scope + "]:" + std::to_string(ntohs(in6->sin6_port));
}

uint16_t SocketCopy::port() const {
  const auto* in = reinterpret_cast<const sockaddr_in*>(&address);
  const auto* in6 = reinterpret_cast<const sockaddr_in6*>(&address);
  return ntohs(address.ss_family == AF_INET6 ? in6->sin6_port : in->sin_port);
}

std::string SocketCopy::text() const {
  std::string out = numbers.size() > 1 ? "descriptors" : "descriptor";
  for (const int number : numbers)
    out += (number == numbers[0] ? " " : ", ") + std::to_string(number);
  return out + ", " + (is_bound() ? text_of(address) : "unbound ") + protocol_text(*this);
}

Outcome<SocketCopy> describe_socket(int fd) {
  const auto failed = [fd](const char* what) {
    return Failure{"look at descriptor " + std::to_string(fd),
                   std::string(what) + ": " + errno_text(errno), ""};
  };
  SocketCopy out;
  out.domain = socket_option(fd, SO_DOMAIN);
  out.type = socket_option(fd, SO_TYPE);
  out.protocol = socket_option(fd, SO_PROTOCOL);
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return failed("fcntl");
  out.nonblocking = (flags & O_NONBLOCK) != 0;
  socklen_t len = sizeof out.address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&out.address), &len) < 0)
    return failed("getsockname");
  sockaddr_storage unbound{};
  unbound.ss_family = static_cast<sa_family_t>(out.domain);
  if (std::memcmp(&unbound, &out.address, sizeof unbound) == 0) out.address.ss_family = AF_UNSPEC;
  if (socket_option(fd, SO_ACCEPTCONN) == 1) {
    tcp_info info{};
    len = sizeof info;
    if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) return failed("TCP_INFO");
    out.backlog = static_cast<int>(info.tcpi_sacked);  // so the kernel has it for a listener
  }
  for (const KnownOption& k : kKnown) {
    // Of an IPv4 socket, the other family's options are no options.
    if (k.level == IPPROTO_IPV6 && out.domain != AF_INET6) continue;
    auto value = read_option(fd, k.level, k.name);
    if (value) out.options.push_back({k.level, k.name, std::move(*value)});
  }
  return out;
}

std::string encode(const SocketCopy& c) {
  std::string out;
  for (const int number : c.numbers) out += (out.empty() ? "" : ",") + std::to_string(number);
  for (const int value : {c.domain, c.type, c.protocol, int{c.nonblocking}, c.backlog})
    out += ";" + std::to_string(value);
  out += ";" + (c.is_bound() ? hex(&c.address, length_of(c.address)) : "");
  for (const CopiedOption& o : c.options)
    out += ";" + std::to_string(o.level) + "," + std::to_string(o.name) + "," +
           hex(o.value.data(), o.value.size());
  return out;
}

std::optional<SocketCopy> decode_socket(const std::string& word) {
  constexpr size_t kFixed = 7;
  const std::vector<std::string> fields = split(word + ";", ';');
  if (fields.size() < kFixed) return std::nullopt;
  SocketCopy c;
  for (const std::string& text : split(fields[0], ',')) {
    int number = -1;
    if (!parse_int(text, &number) || number < 0 || c.numbers.size() == kMostNumbers)
      return std::nullopt;
    c.numbers.push_back(number);
  }
  int nonblocking = 0;
  if (c.numbers.empty() || !parse_int(fields[1], &c.domain) || !parse_int(fields[2], &c.type) ||
      !parse_int(fields[3], &c.protocol) || !parse_int(fields[4], &nonblocking) ||
      !parse_int(fields[5], &c.backlog))
    return std::nullopt;
  c.nonblocking = nonblocking != 0;
  const auto address = from_hex(fields[6]);
  if ((c.domain != AF_INET && c.domain != AF_INET6) || !address) return std::nullopt;
  if (!address->empty()) {
    c.address.ss_family = static_cast<sa_family_t>(c.domain);
    if (address->size() != length_of(c.address)) return std::nullopt;
    std::memcpy(&c.address, address->data(), address->size());
    if (c.address.ss_family != c.domain) return std::nullopt;
  }
  for (size_t i = kFixed; i < fields.size(); ++i) {
    const std::vector<std::string> parts = split(fields[i] + ",", ',');
    CopiedOption o;
    if (parts.size() != 3 || !parse_int(parts[0], &o.level) || !parse_int(parts[1], &o.name))
      return std::nullopt;
    auto value = from_hex(parts[2]);
    if (!value || value->size() > kLongestValue || !is_known(o)) return std::nullopt;
    if (is_buffer(o) && value->size() != sizeof(int)) return std::nullopt;
    o.value = std::move(*value);
    c.options.push_back(std::move(o));
  }
  return c;
}

Outcome<UniqueFd> make_socket(const SocketCopy& c) {
  const auto failed = [&c](const std::string& what, const std::string& remedy = "") {
    return Failure{"take over " + c.text(), what + ": " + errno_text(errno), remedy};
  };
  UniqueFd fd{::socket(c.domain, c.type | SOCK_CLOEXEC, c.protocol)};
  if (!fd) return failed("socket");
  for (const CopiedOption& o : c.options) {
    if (read_option(fd.get(), o.level, o.name) == o.value) continue;
    const bool set =
        is_buffer(o) ? set_buffer(fd.get(), o) : set_option(fd.get(), o.level, o.name, o.value);
    if (!set) return failed(std::string("set ") + name_of(o) + " as it has it");
  }
  // One option may change another one.
  for (const CopiedOption& o : c.options) {
    if (read_option(fd.get(), o.level, o.name) == o.value) continue;
    return Failure{"take over " + c.text(),
                   std::string("it has a value of ") + name_of(o) + " that cannot be had", ""};
  }
  if (c.is_bound() &&
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&c.address), length_of(c.address)) < 0) {
    const bool low = errno == EACCES;
    return failed("bind " + text_of(c.address),
                  low ? "on the host's network an INS has no port below "
                        "net.ipv4.ip_unprivileged_port_start; run it as root, isolated"
                      : "");
  }
  if (c.listens() && ::listen(fd.get(), c.backlog) < 0) return failed("listen");
  if (c.nonblocking && ::fcntl(fd.get(), F_SETFL, O_NONBLOCK) < 0) return failed("O_NONBLOCK");
  return fd;
}

}  // namespace mw
