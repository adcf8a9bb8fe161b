// messages.cc - sendmsg() and recvmsg(): which part a message is for.
#include <algorithm>
#include <cerrno>

#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"

namespace mw::shim {

ssize_t sock_recvmsg(const Sock& s, msghdr* m, int flags) {
  if (m->msg_name != nullptr && static_cast<int>(m->msg_namelen) < 0) return -EINVAL;
  if ((flags & MSG_ERRQUEUE) != 0) return special_recv(s, m, flags);
  if (s.datagram()) return dgram_recv(s, m, flags);
  if ((flags & MSG_OOB) != 0) return special_recv(s, m, flags);
  const ssize_t n = stream_recv(s, m->msg_iov, m->msg_iovlen, flags);
  if (n >= 0) {
    if (m->msg_name != nullptr) m->msg_namelen = 0;
    m->msg_flags = 0;
    give_stream_control(s, m);
  }
  return n;
}

ssize_t sock_sendmsg(const Sock& s, const msghdr* m, int flags) {
  if (m->msg_name != nullptr) {
    if (static_cast<int>(m->msg_namelen) < 0) return -EINVAL;
    // Streams take a name too, and make nothing of it.
    const size_t n = std::min<size_t>(m->msg_namelen, sizeof(sockaddr_storage));
    if (!is_memory(m->msg_name, n)) return -EFAULT;
  }
  if (s.datagram()) return message_send(s, m, flags);
  if ((flags & (MSG_OOB | MSG_FASTOPEN)) != 0) [[unlikely]]
    return (flags & MSG_FASTOPEN) != 0 ? fastopen_send(s, m, flags) : message_send(s, m, flags);
  if (m->msg_controllen != 0)
    if (const int rc = check_stream_control(*m); rc < 0) return rc;
  return stream_send(s, m->msg_iov, m->msg_iovlen, flags);
}

}  // namespace mw::shim
