#include "transport/local/fd_message.h"

#include <cstring>

#include "base/raw_syscall.h"
#include "base/received_fds.h"

namespace mw {
namespace {

Error error_now(const char* where) {
  if (errno == EAGAIN || errno == EWOULDBLOCK) return {Fault::would_block, errno, where};
  if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
    return {Fault::shutdown, errno, where};
  return {Fault::sys, errno, where};
}

}  // namespace

Status send_message(int socket, std::span<const std::byte> data, std::span<const int> fds,
                    int flags) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxMessageFds)];
  iovec iov{const_cast<std::byte*>(data.data()), data.size()};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  if (fds.size() > kMaxMessageFds) return Error{Fault::limit, 0, "too many descriptors"};
  if (!fds.empty()) {
    std::memset(control, 0, sizeof control);
    m.msg_control = control;
    m.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  for (;;) {
    const long n = raw_syscall(SYS_sendmsg, socket, &m, flags | MSG_NOSIGNAL);
    if (n == static_cast<long>(data.size())) return Ok{};
    if (n >= 0) return Error{Fault::sys, EMSGSIZE, "short message"};
    if (errno != EINTR) return error_now("sendmsg");
  }
}

Result<ReceivedMessage> receive_message(int socket, std::span<std::byte> room, int flags) {
  MessageRoom<kMaxMessageFds> message(room.data(), room.size());
  msghdr& m = message.message;
  long n = 0;
  do {
    n = raw_syscall(SYS_recvmsg, socket, &m, flags | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return error_now("recvmsg");
  ReceivedMessage out;
  out.bytes = static_cast<size_t>(n);
  each_passed_fd(m, [&](int fd) {
    UniqueFd owned{fd};
    if (out.fd_count < kMaxMessageFds) out.fds[out.fd_count++] = std::move(owned);
  });
  if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return Error{Fault::peer, 0, "message larger than the protocol allows"};
  if (n == 0 && out.fd_count == 0) return Error{Fault::shutdown, 0, "end of stream"};
  return out;
}

}  // namespace mw
