#include "netflow/peer.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>

#include "base/unique_fd.h"
#include "netflow/wire.h"

namespace mw::netflow {
namespace {

struct DiagRequest {
  nlmsghdr head;
  inet_diag_req_v2 body;
};

bool fill_end(const sockaddr_storage& a, __be16& port, __be32 (&address)[4]) {
  if (a.ss_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, &a, sizeof in);
    port = in.sin_port;
    address[0] = in.sin_addr.s_addr;
    return true;
  }
  if (a.ss_family != AF_INET6) return false;
  sockaddr_in6 in6{};
  std::memcpy(&in6, &a, sizeof in6);
  port = in6.sin6_port;
  std::memcpy(address, &in6.sin6_addr, sizeof address);
  return true;
}

// The owner of the socket that this request names exactly, if it is established.
std::optional<uint32_t> ask(int netlink, const DiagRequest& request) {
  if (::send(netlink, &request, sizeof request, 0) != static_cast<ssize_t>(sizeof request))
    return std::nullopt;
  alignas(nlmsghdr) char answer[1024];
  const ssize_t n = ::recv(netlink, answer, sizeof answer, 0);
  nlmsghdr head{};
  inet_diag_msg found{};
  if (n < static_cast<ssize_t>(NLMSG_HDRLEN + sizeof found)) return std::nullopt;
  std::memcpy(&head, answer, sizeof head);
  if (head.nlmsg_type != SOCK_DIAG_BY_FAMILY) return std::nullopt;
  std::memcpy(&found, answer + NLMSG_HDRLEN, sizeof found);
  if (found.idiag_state != TCP_ESTABLISHED) return std::nullopt;
  return found.idiag_uid;
}

}  // namespace

std::optional<uint32_t> peer_uid(int socket) {
  sockaddr_storage ours{};
  sockaddr_storage theirs{};
  socklen_t len = sizeof ours;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&ours), &len) < 0) return std::nullopt;
  if (ours.ss_family == AF_UNIX) {
    ucred who{};
    len = sizeof who;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0) return std::nullopt;
    return who.uid;
  }
  len = sizeof theirs;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&theirs), &len) < 0) return std::nullopt;
  DiagRequest request{};
  request.head.nlmsg_len = sizeof request;
  request.head.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.head.nlmsg_flags = NLM_F_REQUEST;
  request.body.sdiag_family = static_cast<__u8>(theirs.ss_family);
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.idiag_states = ~0u;
  request.body.id.idiag_cookie[0] = INET_DIAG_NOCOOKIE;
  request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  if (!fill_end(theirs, request.body.id.idiag_sport, request.body.id.idiag_src) ||
      !fill_end(ours, request.body.id.idiag_dport, request.body.id.idiag_dst))
    return std::nullopt;
  const UniqueFd netlink{::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)};
  if (!netlink) return std::nullopt;
  // A socket that is being closed has no owner any more and says 0, which is root. That it was
  // established when it was asked the second time means that the first answer is true.
  const auto uid = ask(netlink.get(), request);
  if (!uid || ask(netlink.get(), request) != uid) return std::nullopt;
  return uid;
}

std::string peer_process(int socket) {
  ucred who{};
  socklen_t len = sizeof who;
  int domain = 0;
  socklen_t domain_len = sizeof domain;
  if (::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &domain_len) < 0 || domain != AF_UNIX ||
      ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
    return "";
  std::string command;
  std::getline(std::ifstream("/proc/" + std::to_string(who.pid) + "/comm"), command);
  // A process calls itself what it likes.
  if (command.empty() || !is_plain_text(command)) command = "?";
  return command + "[" + std::to_string(who.pid) + "]";
}

}  // namespace mw::netflow
