// fastopen.cc - MSG_FASTOPEN: connect() and the first bytes in one call.
//
// The INS connects, then the bytes take their ordinary way. That is what the kernel does with a peer
// that has not given it a cookie, in the same order of errors.
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cstring>

#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"
#include "shim/socket/call_cells.h"

namespace mw::shim {
namespace {

// What the kernel that connects says to TCP_FASTOPEN_CONNECT: -EOPNOTSUPP if its clients are not to
// use fast open at all (net.ipv4.tcp_fastopen), else something else.
int ask_for_fast_open(const Sock& s) {
  const int off = 0;
  const CallAnswer a =
      call(about_option(s, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, {&off, sizeof off}), nullptr, 0);
  return a.ret < 0 ? -a.err : 0;
}

// connect() without an address.
int connect_to_nowhere(const Sock& s) {
  const uint32_t state = state_of(s);
  if ((state & MW_ST_CONNECTING) != 0) return -EALREADY;
  return (state & (MW_ST_CONNECTED | MW_ST_LISTENING)) != 0 ? -EISCONN : -EINVAL;
}

}  // namespace

ssize_t fastopen_send(const Sock& s, const msghdr* m, int flags) {
  if (m->msg_iovlen > IOV_MAX) return -EMSGSIZE;
  if (!is_buffer(m->msg_iov, m->msg_iovlen * sizeof *m->msg_iov)) return -EFAULT;
  const auto* to = static_cast<const sockaddr*>(m->msg_name);
  const socklen_t len = to != nullptr ? m->msg_namelen : 0;
  if (len > sizeof(sockaddr_storage)) return -EINVAL;
  if (!is_buffer(to, len)) return -EFAULT;
  sa_family_t family = AF_INET;
  if (len >= sizeof family) std::memcpy(&family, to, sizeof family);
  if (family == AF_UNSPEC || ask_for_fast_open(s) == -EOPNOTSUPP) return -EOPNOTSUPP;
  const int rc = to != nullptr ? sock_connect(s, to, len, flags) : connect_to_nowhere(s);
  return rc < 0 ? rc : sock_sendmsg(s, m, flags & ~MSG_FASTOPEN);
}

}  // namespace mw::shim
