// socket_calls.h - the calls of a program on one protected socket.
//
// Functions return what the system call would, with -errno for failures. Which file has them stands
// above each part.
//
// THREADS     Any.
#pragma once

#include "shim/socket/call_cells.h"
#include "shim/socket/socket.h"

namespace mw::shim {

// ---- stream.cc ----
ssize_t stream_recv(const Sock& s, const iovec* iov, size_t count, int flags);
// Sends the first `most` bytes.
ssize_t stream_send(const Sock& s, const iovec* iov, size_t count, int flags,
                    size_t most = SIZE_MAX);
// Waits until a send would take bytes. 0, or what a send would say instead (-EAGAIN if not
// blocking).
int stream_await_room(const Sock& s, bool blocking, Timeout& timeout);
// Copies from a file straight into the send ring.
ssize_t stream_send_file(const Sock& s, int file, off_t* offset, size_t count);
// What came for an earlier connection of the same socket.
void forget_unread(const Sock& s);
int raise_sigpipe(int flags);

// ---- dgram.cc ----
ssize_t dgram_recv(const Sock& s, msghdr* m, int flags);
ssize_t message_send(const Sock& s, const msghdr* m, int flags);
ssize_t special_recv(const Sock& s, msghdr* m, int flags);
uint32_t first_datagram_bytes(const Sock& s);
// The longest datagram that the socket can send.
size_t most_data(const Sock& s);

// ---- fastopen.cc ----
ssize_t fastopen_send(const Sock& s, const msghdr* m, int flags);

// ---- names_and_options.cc ----
int sock_create(int domain, int type, int protocol);
int sock_bind(const Sock& s, const sockaddr* a, socklen_t len);
int sock_listen(const Sock& s, int backlog);
// flags: MSG_DONTWAIT counts.
int sock_connect(const Sock& s, const sockaddr* a, socklen_t len, int flags = 0);
int sock_shutdown(const Sock& s, int how);
int sock_getsockopt(const Sock& s, int level, int name, void* value, socklen_t* len);
int sock_setsockopt(const Sock& s, int level, int name, const void* value, socklen_t len);
int sock_name(const Sock& s, bool peer, sockaddr* a, socklen_t* len);
int sock_fcntl(const Sock& s, int command, long arg);
int sock_ioctl(const Sock& s, unsigned long request, void* arg);
// What a stream's recvmsg() tells beside the bytes: TCP_INQ, if the program wants it.
void give_stream_control(const Sock& s, msghdr* m);
// The control messages of a stream's sendmsg(): 0 or -errno. None of them does anything here.
int check_stream_control(const msghdr& m);
struct AwaitedClose {
  bool is_due = false;
  uint32_t linger_s = 0;
};
// Says, before a close(), whether await_close() has to follow it. It is due if the program may look
// for the effect as soon as close() returns: a peer that is reset, an address that is free again, or
// datagrams that reach nobody any more; and with SO_LINGER and a time, a peer that has everything.
// Otherwise never of an accepted connection, nor of one whose port the kernel chose.
AwaitedClose prepare_close(const Sock& s);
// Waits until the INS has seen that a descriptor of the socket is gone; with linger_s, also until the
// peer has acknowledged what was sent, that time is over, or a signal comes. errno is preserved.
void await_close(const Sock& s, const AwaitedClose& awaited);
// Copies a name out as the kernel does when the rest of a call is done: truncated to *len, *len set
// to the true length. 0, -EINVAL or -EFAULT.
int give_name(const void* name, socklen_t n, void* to, socklen_t* len);

// A placeholder pair; type: SOCK_CLOEXEC and SOCK_NONBLOCK count. The INS's end, pair[1], is gone
// at once, so only the application's counts against the limit. 0 or -errno.
int make_placeholder(int type, int pair[2]);
// The same, or with the last free descriptor connect_placeholder(), whose pair[1] is -1; the request
// says which. 0 or -errno.
int open_placeholder(int type, int pair[2], CallRequest& r);

// ---- accept.cc ----
int sock_accept(const Sock& s, sockaddr* a, socklen_t* len, int flags);
// close() of a descriptor that names a socket; returns what the system call does, with errno.
int sock_close(int fd, const Entry& e);
// Drops what stands in a listener's queue: tokens, and connections that nobody accepted.
void empty_queue(const Sock& s);
// Asks the INS for a token on a listener's placeholder. While the socket is no listener any more,
// whoever takes it in accept() asks for the next: so all who sleep there come to know.
void pass_on_end(const Sock& s);

// ---- messages.cc ----
ssize_t sock_recvmsg(const Sock& s, msghdr* m, int flags);
ssize_t sock_sendmsg(const Sock& s, const msghdr* m, int flags);

}  // namespace mw::shim
