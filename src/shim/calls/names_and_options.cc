// names_and_options.cc - socket calls that are not bytes: creation, names, options, connect, shutdown.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>

#include <algorithm>

#include "codec/socket_ioctl.h"
#include "shim/calls/ancillary.h"
#include "shim/calls/epoll.h"
#include "shim/calls/loopback_order.h"
#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"
#include "shim/socket/call_cells.h"
#include "shim/socket/epoll_group.h"
#include "shim/socket/from_stack.h"
#include "transport/local/fd_message.h"
#include "transport/local/privileged.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

int plain(const CallRequest& r) {
  const CallAnswer a = call(r, nullptr, 0);
  return a.ret < 0 ? -a.err : a.ret;
}

void set_flag(const Sock& s, uint32_t flag, bool on) {
  if (on)
    A::fetch_or(s.mine.flags, flag);
  else
    A::fetch_and(s.mine.flags, ~flag);
}

constexpr int kTcpInq = 36;  // TCP_INQ, and the type of its message

// An address argument as the kernel takes it: 0, -EINVAL or -EFAULT.
int check_address(const sockaddr* a, socklen_t len) {
  if (len > sizeof(sockaddr_storage)) return -EINVAL;
  return is_memory(a, len) ? 0 : -EFAULT;
}

bool is_listener(const Sock& s) {
  return (state_of(s) & MW_ST_LISTENING) != 0;
}

}  // namespace

int give_name(const void* name, socklen_t n, void* to, socklen_t* len) {
  if (!is_room(len, sizeof *len)) return -EFAULT;
  const int room = std::min(static_cast<int>(*len), static_cast<int>(n));
  if (room < 0) return -EINVAL;
  *len = n;
  if (!is_room(to, static_cast<size_t>(room))) return -EFAULT;
  memcpy(to, name, static_cast<size_t>(room));
  return 0;
}

int make_placeholder(int type, int pair[2]) {
  const int flags = SOCK_STREAM | (type & (SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (libc.syscall(SYS_socketpair, AF_UNIX, flags, 0, pair) == 0) return 0;
  if (errno != EMFILE) return -errno;
  const FileLimit limit;
  if (libc.syscall(SYS_socketpair, AF_UNIX, flags, 0, pair) < 0) return -errno;
  if (!limit.exceeds(pair[0])) return 0;
  libc.close(pair[0]);
  libc.close(pair[1]);
  return -EMFILE;
}

namespace {
int kernel_socket(int domain, int type, int protocol) {
  const int fd = libc.socket(domain, type, protocol);
  if (fd < 0) return -errno;
  if (!in_vfork_child()) set_entry(fd, {Kind::kernel, 0, 0});
  return fd;
}
}  // namespace

int open_placeholder(int type, int pair[2], CallRequest& r) {
  const int rc = make_placeholder(type, pair);
  r.placeholder = rc == 0 ? pair[1] : -1;
  if (rc != -EMFILE) return rc;
  pair[0] = connect_placeholder(type);
  pair[1] = -1;
  r.single_placeholder = pair[0];
  return std::min(pair[0], 0);
}

int sock_create(int domain, int type, int protocol) {
  constexpr int kTypeMask = 0xf;
  constexpr int kTypes = 11;  // SOCK_MAX of the kernel
  if ((type & ~(kTypeMask | SOCK_CLOEXEC | SOCK_NONBLOCK)) != 0 || (type & kTypeMask) >= kTypes)
    return -EINVAL;
  // Not even a word to the driver, who is not to be reached from there.
  if (!process.attached && is_abroad()) return kernel_socket(domain, type, protocol);
  if (!attach()) return -ENETDOWN;
  prepare_group();
  const uint32_t then = descriptor_copies();
  int pair[2];
  CallRequest r;
  if (const int rc = open_placeholder(type, pair, r); rc < 0) return rc;
  if (is_abroad(pair[0])) {
    libc.close(pair[0]);
    if (pair[1] >= 0) libc.close(pair[1]);
    return kernel_socket(domain, type, protocol);
  }
  Stack& stack = stack_for_new();
  r.op = MW_OP_SOCKET;
  r.slot = stack.first();
  r.arg[0] = domain;
  r.arg[1] = type & ~(SOCK_CLOEXEC | SOCK_NONBLOCK);
  r.arg[2] = protocol;
  mw_new_socket made{};
  const CallAnswer a = call(r, &made, sizeof made);
  if (pair[1] >= 0) libc.close(pair[1]);
  int rc = a.ret < 0 ? -a.err : 0;
  if (rc == 0 && (a.len != sizeof made || made.slot >= stack.geometry().slots || made.gen == 0)) {
    poison(stack, "answer to socket");
    rc = -ENETDOWN;
  }
  if (rc == 0) {
    rc = adopt_socket(pair[0], stack.number_of(made.slot), made.gen, domain, r.arg[1], protocol,
                      (type & SOCK_NONBLOCK) != 0 ? kSlotNonblock : 0, then);
  }
  if (rc < 0) {
    libc.close(pair[0]);
    return rc;
  }
  return pair[0];
}

int sock_bind(const Sock& s, const sockaddr* a, socklen_t len) {
  if (const int rc = check_address(a, len); rc < 0) return rc;
  CallRequest r = about(s, MW_OP_BIND);
  r.in[0] = {a, len};
  const int rc = plain(r);
  if (rc == 0) set_flag(s, kSlotHasPort, true);
  return rc;
}

int sock_listen(const Sock& s, int backlog) {
  CallRequest r = about(s, MW_OP_LISTEN);
  r.arg[0] = backlog;
  if ((A::load_relaxed(s.mine.flags) & kSlotListener) == 0) {
    empty_queue(s);
    A::store_relaxed(s.slot.accept_flags, 0u);
  }
  const int rc = plain(r);
  if (rc == 0) {
    A::fetch_or(s.mine.flags, kSlotListener | kSlotOdd);
    if (!process.confined) identify(s.fd, s.index, s.gen, true);
    sockaddr_in6 local{};  // the port stands at the same place in both families
    socklen_t local_len = sizeof local;
    if (sock_name(s, false, reinterpret_cast<sockaddr*>(&local), &local_len) == 0)
      note_listening_port(local.sin6_port);
    epoll_socket_became_listener(s);
  }
  return rc;
}

namespace {
// accept() in other threads and processes returns EINVAL; the socket is no listener any more.
void end_listening(const Sock& s) {
  set_flag(s, kSlotListener, false);
  if (!process.confined) identify(s.fd, s.index, s.gen);
  empty_queue(s);
  pass_on_end(s);
}
}  // namespace

int sock_connect(const Sock& s, const sockaddr* a, socklen_t len, int flags) {
  const bool blocking = !s.nonblocking() && (flags & MSG_DONTWAIT) == 0;
  if (const int rc = check_address(a, len); rc < 0) return rc;
  CallRequest r = about(s, MW_OP_CONNECT);
  r.arg[0] = blocking ? 1 : 0;
  r.in[0] = {a, len};
  s.mine.local.len = 0;
  const int rc = plain(r);
  if (rc == 0 || rc == -EINPROGRESS) note_connection(s, a, len);
  if (rc == 0 && s.datagram()) set_flag(s, kSlotHasPort, true);
  // The INS has collected the outcome of the attempt before this one; nobody has told the program
  // yet.
  if (rc == -ECONNABORTED)
    if (const int error = take_error(s); error != 0) return -error;
  if (rc == 0 && a->sa_family == AF_UNSPEC && !s.datagram()) {
    // As new: neither direction is shut, and what came and was not read is gone.
    set_flag(s, kSlotShutRd | kSlotShutWr, false);
    forget_unread(s);
    if ((A::load_relaxed(s.mine.flags) & kSlotListener) != 0) end_listening(s);
  }
  if (s.datagram() || !blocking) return rc;
  if (rc != -EINPROGRESS && rc != -EALREADY) return rc;
  const int64_t deadline = deadline_after_us(s.mine.sndtimeo_us);
  const int waited = wait_for(s, POLLOUT, deadline, [&] {
    return (state_of(s) & MW_ST_CONNECTING) == 0 || error_pending(s);
  });
  if (waited == -EAGAIN) return -EINPROGRESS;
  if (waited < 0) return waited;
  if (const int error = take_error(s); error != 0) return -error;
  return (state_of(s) & MW_ST_CONNECTED) != 0 ? 0 : -ECONNABORTED;
}

namespace {
// Ending the sending side of a connection that stands: nobody needs to wait for the answer.
bool cannot_fail_to_shut(const Sock& s) {
  constexpr uint32_t kEnds = MW_ST_CONNECTING | MW_ST_LISTENING | MW_ST_CLOSED | MW_ST_SND_SHUT;
  return !s.datagram() && (state_of(s) & (MW_ST_CONNECTED | kEnds)) == MW_ST_CONNECTED &&
         !error_pending(s);
}
}  // namespace

int sock_shutdown(const Sock& s, int how) {
  if (how < SHUT_RD || how > SHUT_RDWR) return -EINVAL;
  CallRequest r = about(s, MW_OP_SHUTDOWN);
  r.arg[0] = how;
  if (how == SHUT_WR && cannot_fail_to_shut(s)) {
    set_flag(s, kSlotShutWr, true);
    if (held_slot == s.index + 1) held_slot = 0;  // it sends what is held back
    post(r);
    return 0;
  }
  const bool listener = is_listener(s);
  uint8_t given_up = 0;
  const CallAnswer answer = call(r, &given_up, sizeof given_up);
  if (answer.ret < 0) return -answer.err;
  if (answer.len != 0) return 0;  // it was connecting, and is as new now
  if (listener) {
    if (how == SHUT_WR) return 0;
    end_listening(s);
    return 0;
  }
  if (how != SHUT_WR) set_flag(s, kSlotShutRd, true);
  if (how != SHUT_RD) set_flag(s, kSlotShutWr, true);
  // Those who wait on this socket look again.
  announce(s);
  return 0;
}

namespace {

// The few options whose answer depends on what stands in its place, and how much of that counts:
// the rest of an output buffer is the program's own business.
uint32_t bytes_asked_with(int level, int name) {
  constexpr int kTcpAoInfo = 40;
  constexpr int kTcpAoGetKeys = 41;
  constexpr int kSolMptcp = 284;
  constexpr int kMptcpTcpinfo = 2;
  constexpr int kMptcpSubflowAddresses = 3;
  constexpr int kFlowLabelManager = 32;  // IPV6_FLOWLABEL_MGR
  switch (level) {
    case IPPROTO_IP:
      if (name == IP_MSFILTER) return IP_MSFILTER_SIZE(0);
      return name == MCAST_MSFILTER ? GROUP_FILTER_SIZE(0) : 0;
    case IPPROTO_IPV6:
      if (name == kFlowLabelManager) return 32;
      return name == MCAST_MSFILTER ? GROUP_FILTER_SIZE(0) : 0;
    case IPPROTO_TCP:
      return name == kTcpAoInfo || name == kTcpAoGetKeys ? 160 : 0;
    case kSolMptcp:
      return name == kMptcpTcpinfo || name == kMptcpSubflowAddresses ? 16 : 0;
    default:
      return 0;
  }
}

bool is_timeout(int name) {
  return name == SO_RCVTIMEO_OLD || name == SO_RCVTIMEO_NEW || name == SO_SNDTIMEO_OLD ||
         name == SO_SNDTIMEO_NEW;
}

int64_t& timeout_of(const Sock& s, int name) {
  return name == SO_RCVTIMEO_OLD || name == SO_RCVTIMEO_NEW ? s.mine.rcvtimeo_us
                                                            : s.mine.sndtimeo_us;
}

// What the real socket says. `room` is at most MW_CALL_PAYLOAD; bytes or -errno.
int ask_option(const Sock& s, int level, int name, Bytes in, void* room, uint32_t room_len) {
  CallRequest r = about(s, MW_OP_GETSOCKOPT);
  r.arg[0] = level;
  r.arg[1] = name;
  r.arg[2] = static_cast<int32_t>(room_len);
  r.in[0] = in;
  const CallAnswer a = call(r, room, room_len);
  return a.ret < 0 ? -a.err : static_cast<int>(a.len);
}

// The control messages that an option's value consists of, as many as there is room for.
template <class Give>
int row_of_messages(const Sock& s, int level, int name, socklen_t room, Give&& give) {
  char answer[MW_CALL_PAYLOAD];
  const int n = ask_option(s, level, name, {}, answer, sizeof answer);
  if (n < 0) return n;
  char chosen[MW_CALL_PAYLOAD];
  size_t used = std::min<size_t>(room, sizeof chosen);
  // Whether the stack had room for all cannot be told.
  if (give_control(s, answer, static_cast<uint32_t>(n), true, chosen, &used) < 0) {
    poison(s.stack, "value of an option");
    return -ECONNRESET;
  }
  return give(chosen, used);
}

}  // namespace

int sock_getsockopt(const Sock& s, int level, int name, void* value, socklen_t* len) {
  if (!is_buffer(len, sizeof *len)) return -EFAULT;
  const socklen_t room = *len;  // often the length of nothing in particular
  if (static_cast<int>(room) < 0) return -EINVAL;
  const auto give = [&](const void* from, size_t n) {
    const size_t k = std::min<size_t>(room, n);
    if (!is_room(value, k)) return -EFAULT;
    memcpy(value, from, k);
    if (!is_room(len, sizeof *len)) return -EFAULT;
    *len = static_cast<socklen_t>(k);
    return 0;
  };
  if (level == SOL_SOCKET) {
    if (name == SO_ERROR) {
      const int error = error_told(s) ? take_error(s) : 0;
      if (error != 0) return give(&error, sizeof error);
    } else if (is_timeout(name)) {
      const int64_t us = A::load_relaxed(timeout_of(s, name));
      const timeval t{us > 0 ? us / 1'000'000 : 0, us > 0 ? us % 1'000'000 : 0};
      if (us <= kLongestTimeoutUs) return give(&t, sizeof t);
    } else if (name == SO_TYPE) {
      const int type = s.mine.type;
      return give(&type, sizeof type);
    } else if (name == SO_DOMAIN) {
      const int domain = s.mine.domain;
      return give(&domain, sizeof domain);
    }
  }
  if (int own = 0; s.datagram() && own_answer(s, level, name, own)) return give(&own, sizeof own);
  if (level == IPPROTO_TCP && name == TCP_CORK && !s.datagram()) {
    const int on = (A::load_relaxed(s.mine.flags) & kSlotCorked) != 0 ? 1 : 0;
    return give(&on, sizeof on);
  }
  const uint32_t asked_with = std::min<uint32_t>(room, bytes_asked_with(level, name));
  if (!is_buffer(value, asked_with)) return -EFAULT;
  if (is_row_of_messages(level, name)) return row_of_messages(s, level, name, room, give);
  uint8_t answer[MW_CALL_PAYLOAD];
  const int n = ask_option(s, level, name, {value, asked_with}, answer,
                           std::min<uint32_t>(room, sizeof answer));
  if (n < 0) return n;
  if (!is_option_value(s.mine.domain, level, name, answer, static_cast<uint32_t>(n))) {
    poison(s.stack, "value of an option");
    return -ECONNRESET;
  }
  if (s.datagram() && !is_asked(s, level, name)) memset(answer, 0, sizeof answer);
  return give(answer, static_cast<uint32_t>(n));
}

namespace {

// Options whose set cannot fail on a TCP socket once the argument is well-formed, and whose order
// with the bytes that follow does not matter (TCP_CORK's does): nobody needs to wait.
bool never_fails(const Sock& s, int level, int name, socklen_t len) {
  if (len < sizeof(int) || s.datagram() || is_dead(s)) return false;
  if (level == IPPROTO_TCP) return name == TCP_NODELAY || name == TCP_QUICKACK;
  return level == SOL_SOCKET && (name == SO_KEEPALIVE || name == SO_REUSEADDR);
}

// How much of a value of `len` bytes goes to the INS. The kernel reads what an option has, however
// long a buffer the program says it is, so only that much has to be there.
uint32_t bytes_of_value(int level, int name, const void* value, socklen_t len) {
  constexpr int kTcpMd5sigExt = 32;
  constexpr int kTcpAddAoKey = 38;
  uint32_t n = std::min<uint32_t>(len, MW_CALL_PAYLOAD);
  const bool key = name == TCP_MD5SIG || name == kTcpMd5sigExt || name >= kTcpAddAoKey;
  if (level == SOL_SOCKET) n = std::min<uint32_t>(n, IFNAMSIZ);  // none has more
  if (level == IPPROTO_TCP && !key) n = std::min<uint32_t>(n, 64);
  const auto to_page_end =
      static_cast<uint32_t>(MW_PAGE - reinterpret_cast<uintptr_t>(value) % MW_PAGE);
  return is_buffer(value, n)                                ? n
         : to_page_end < n && is_buffer(value, to_page_end) ? to_page_end
                                                            : 0;
}

// A timeout that the real socket has taken, in its own steps. Natively a negative one means "at
// once" and reads back as 0, as one that never ends does.
void keep_timeout(const Sock& s, int name, const timeval& given) {
  timeval t{};
  int64_t us = 0;
  if (given.tv_sec < 0) {
    us = -1;
  } else if (ask_option(s, SOL_SOCKET, name, {}, &t, sizeof t) == sizeof t && t.tv_sec >= 0 &&
             t.tv_usec >= 0 && t.tv_usec < 1'000'000) {
    us = t.tv_sec > kLongestTimeoutUs / 1'000'000 - 1 ? kLongestTimeoutUs + 1
                                                      : t.tv_sec * 1'000'000 + t.tv_usec;
  }
  A::store_relaxed(timeout_of(s, name), us);
}

// A socket of the kernel's own that shows that this process may set the option; or -errno, which is
// what the kernel says of the option.
int make_proof(int level, int name, const void* value, uint32_t n) {
  const int type = type_of_proof(level, name);
  const int fd =
      hide(libc.socket(AF_INET, type | SOCK_CLOEXEC, type == SOCK_RAW ? IPPROTO_RAW : 0));
  if (fd < 0) return -errno;
  if (type == SOCK_RAW || libc.setsockopt(fd, level, name, value, n) == 0) return fd;
  const int error = errno;
  unhide_and_close(fd);
  return -error;
}

// The INS has no right to this option. Whoever has it gets it from the driver.
int set_as_privileged(const Sock& s, int level, int name, const void* value, uint32_t n) {
  if (type_of_proof(level, name) == 0 || process.confined || in_vfork_child()) return -EPERM;
  SocketOption wanted{s.index, s.gen, {level, name, 0, {}}};
  wanted.option.len = std::min<uint32_t>(n, sizeof wanted.option.value);  // names are shorter
  memcpy(wanted.option.value, value, wanted.option.len);
  const int saved = errno;
  const int proof = make_proof(level, name, value, n);
  const int rc = proof < 0 ? proof : set_by_driver(wanted, proof);
  if (proof >= 0) unhide_and_close(proof);
  errno = saved;
  return rc;
}

}  // namespace

int sock_setsockopt(const Sock& s, int level, int name, const void* value, socklen_t len) {
  if (static_cast<int>(len) < 0) return -EINVAL;
  constexpr int kNothing = 0;
  if (level == IPPROTO_IPV6 && value == nullptr) {
    // There the kernel takes no value for 0.
    value = &kNothing;
    len = std::min<socklen_t>(len, sizeof kNothing);
  }
  const uint32_t n = bytes_of_value(level, name, value, len);
  if (n < std::min<uint32_t>(len, sizeof(int))) return -EFAULT;
  if (level == IPPROTO_TCP && name == TCP_CORK && !s.datagram() && len >= sizeof(int)) {
    int on = 0;
    memcpy(&on, value, sizeof on);
    set_flag(s, kSlotCorked, on != 0);
    if (on == 0) {
      if ((A::fetch_and(s.mine.flags, ~kSlotCorkedBelow) & kSlotCorkedBelow) != 0) {
        return plain(about_option(s, level, name, {value, n}));
      }
      if (unsent_bytes(s) != 0 || (A::load_relaxed(s.slot.want) & MW_WANT_HOLD) != 0)
        announce_held(s);
    }
    return 0;
  }
  // Before the stack does it: its addresses have the other form from then on.
  if (level == IPPROTO_IPV6 && name == IPV6_ADDRFORM) set_flag(s, kSlotWas6, true);
  const CallRequest r = about_option(s, level, name, {value, n});
  if (never_fails(s, level, name, n)) {
    // In the kernel it pushes out what a cork holds back at that moment.
    if (level == IPPROTO_TCP && name == TCP_NODELAY && unsent_bytes(s) != 0) announce_held(s);
    post(r);
    return 0;
  }
  int rc = plain(r);
  if (rc == -EPERM) rc = set_as_privileged(s, level, name, value, n);
  if (rc == 0 && s.datagram()) note_asked(s, level, name, value, n);
  if (rc == 0 && level == IPPROTO_IPV6 && name == IPV6_ADDRFORM) {
    s.mine.domain = AF_INET;  // it takes no other value
    (void)follow_address_form(AF_INET, s.mine.local.bytes, &s.mine.local.len);
  }
  if (rc == 0 && level == IPPROTO_TCP && name == kTcpInq && n >= sizeof(int)) {
    int on = 0;
    memcpy(&on, value, sizeof on);
    set_flag(s, kSlotInq, on != 0);
  }
  if (rc < 0 || level != SOL_SOCKET) return rc;
  if (is_timeout(name) && n >= sizeof(timeval)) {
    timeval t{};
    memcpy(&t, value, sizeof t);
    keep_timeout(s, name, t);
  } else if ((name == SO_SNDBUF || name == SO_SNDBUFFORCE) && n >= sizeof(int)) {
    int granted = 0;
    socklen_t granted_len = sizeof granted;
    if (sock_getsockopt(s, level, name, &granted, &granted_len) == 0 && granted > 0)
      A::store_relaxed(s.mine.sndbuf, static_cast<uint32_t>(granted) / 2);  // half is overhead
  } else if (name == SO_LINGER && n >= sizeof(linger)) {
    linger l{};
    memcpy(&l, value, sizeof l);
    set_flag(s, kSlotResets, l.l_onoff != 0 && l.l_linger == 0);
    A::store_relaxed(s.mine.linger_s, l.l_onoff != 0 ? static_cast<uint32_t>(l.l_linger) : 0);
  } else if (name == SO_RCVLOWAT && n >= sizeof(int)) {
    int low = 0;
    memcpy(&low, value, sizeof low);
    // More than the ring holds could never be satisfied.
    const uint32_t most = s.stack.geometry().rx_ring / 2;
    s.mine.rcvlowat = std::min(low < 0 ? most : static_cast<uint32_t>(low), most);
  }
  return rc;
}

int sock_name(const Sock& s, bool peer, sockaddr* a, socklen_t* len) {
  // A connection's own name does not change. Whether there still is a peer does, and the kernel
  // knows it before the channel does.
  if (!peer && s.mine.local.len != 0)
    return give_name(s.mine.local.bytes, s.mine.local.len, a, len);
  mw_addr got{};
  const CallAnswer answer =
      call(about(s, peer ? MW_OP_GETPEERNAME : MW_OP_GETSOCKNAME), got.bytes, sizeof got.bytes);
  if (answer.ret < 0) return -answer.err;
  got.len = answer.len;
  if (!is_name_of(s, got.bytes, &got.len)) {
    poison(s.stack, "address of a socket");
    return -ECONNRESET;
  }
  return give_name(got.bytes, got.len, a, len);
}

AwaitedClose prepare_close(const Sock& s) {
  const uint32_t flags = A::load_relaxed(s.mine.flags);
  const uint32_t linger_s = s.datagram() ? 0 : A::load_relaxed(s.mine.linger_s);
  if ((flags & (kSlotResets | kSlotListener | kSlotHasPort)) == 0 && linger_s == 0) return {};
  if (is_dead(s)) return {};
  if ((flags & (kSlotResets | kSlotListener)) != 0) return {.is_due = true};
  if (references(s.index, s.gen) > 1 || process.confined) return {};
  const uint32_t state = state_of(s);
  if (linger_s != 0 && (state & MW_ST_CONNECTED) != 0) return {true, linger_s};
  if ((flags & kSlotHasPort) == 0) return {};
  // A connection that stands keeps its port beyond its close().
  constexpr uint32_t kOver = MW_ST_RCV_SHUT | MW_ST_EOF | MW_ST_CLOSED;
  return {.is_due = s.datagram() || (state & (MW_ST_CONNECTED | kOver)) != MW_ST_CONNECTED};
}

namespace {

// Waits until the INS has freed the slot of a socket that nobody has any more.
void await_freed_slot(const Sock& s, int64_t until_ns) {
  constexpr int64_t kLookNs = 1'000'000'000;  // each second, whether the INS is still there
  for (;;) {
    A::fetch_or(s.slot.want, MW_WANT_CLOSED);
    A::fence();  // pairs with the INS's between the state of a free slot and its look at the wish
    const uint32_t state = A::load_acquire(s.slot.state);
    const bool free = (state & MW_ST_OPEN) == 0 || A::load_relaxed(s.slot.gen) != s.gen;
    const int64_t left = until_ns - monotonic_ns();
    if (free || left <= 0 || is_dead(s) || !s.stack.is_up()) return;
    const timespec look{left < kLookNs ? 0 : 1, left < kLookNs ? left : 0};
    if (raw_futex(&s.slot.state, FUTEX_WAIT, state, &look) < 0 && errno == EINTR) return;
  }
}

}  // namespace

void await_close(const Sock& s, const AwaitedClose& awaited) {
  if (!s.stack.is_up()) return;
  const int saved = errno;
  const int64_t until_ns = monotonic_ns() + int64_t{awaited.linger_s} * 1'000'000'000;
  const int rc = plain(about(s, MW_OP_CLOSED));
  if (rc == -EINPROGRESS && awaited.linger_s != 0) await_freed_slot(s, until_ns);
  errno = saved;
}

int sock_fcntl(const Sock& s, int command, long arg) {
  const int rc = libc.fcntl(s.fd, command, arg);
  if (rc < 0) return -errno;
  if (command == F_SETFL) set_flag(s, kSlotNonblock, (arg & O_NONBLOCK) != 0);
  constexpr long kPlainFlags = O_NONBLOCK | O_ACCMODE;
  const bool plain = command == F_GETFL || command == F_GETFD || command == F_SETFD ||
                     command == F_DUPFD || command == F_DUPFD_CLOEXEC ||
                     (command == F_SETFL && (arg & ~kPlainFlags) == 0);
  if (!plain) set_flag(s, kSlotOdd, true);
  if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && !in_vfork_child()) copy_entry(s.fd, rc);
  return rc;
}

namespace {

// A device request: what the kernel would read of the argument goes to the INS, what it would write
// comes back.
int device_ioctl(const Sock& s, uint32_t request, void* arg) {
  const SocketIoctl* row = socket_ioctl(request);
  CallRequest r = about(s, MW_OP_IOCTL);
  memcpy(&r.arg[0], &request, sizeof request);
  auto* const bytes = static_cast<char*>(arg);
  if (is_buffer(arg, row != nullptr ? row->bytes : kIfreqBytes))
    r.in[0] =
        row != nullptr ? Bytes{bytes + row->in_at, row->in_bytes} : Bytes{bytes, kIfNameBytes};
  char answer[kMostIoctlBytes];
  const CallAnswer a = call(r, answer, sizeof answer);
  if (a.ret < 0) return -a.err;
  if (row == nullptr || a.len != row->out_bytes || !is_device_answer(request, answer, a.len)) {
    poison(s.stack, "answer to ioctl");
    return -ECONNRESET;
  }
  if (request == SIOCOUTQ || request == SIOCOUTQNSD) {
    int n = 0;
    memcpy(&n, answer, sizeof n);
    n += static_cast<int>(unsent_bytes(s));
    memcpy(answer, &n, sizeof n);
  }
  if (!is_room(bytes + row->out_at, a.len)) return -EFAULT;
  memcpy(bytes + row->out_at, answer, a.len);
  return 0;
}

// The addresses of all interfaces, at a place that the argument names.
int interface_list(const Sock& s, void* arg) {
  ifconf list{};
  if (!is_buffer(arg, sizeof list)) return -EFAULT;
  memcpy(&list, arg, sizeof list);
  CallRequest r = about(s, MW_OP_IOCTL);
  r.arg[0] = SIOCGIFCONF;
  r.arg[2] = list.ifc_len;
  r.arg[3] = list.ifc_buf != nullptr ? 1 : 0;
  char piece[MW_CALL_PAYLOAD];
  int total = 0;
  CallAnswer a;
  do {
    r.arg[1] = total;
    a = call(r, piece, sizeof piece);
    if (a.ret < 0) return -a.err;
    if (list.ifc_buf == nullptr) {
      memcpy(&total, piece, std::min<size_t>(a.len, sizeof total));
      break;
    }
    if (!are_interface_entries(piece, a.len)) {
      poison(s.stack, "answer to ioctl");
      return -ECONNRESET;
    }
    // No more than there is room for, whatever the INS says.
    const auto n = std::min<uint32_t>(
        a.len, static_cast<uint32_t>(std::max(list.ifc_len, 0)) - static_cast<uint32_t>(total));
    if (!is_room(list.ifc_buf + total, n)) return -EFAULT;
    memcpy(list.ifc_buf + total, piece, n);
    total += static_cast<int>(n);
  } while (a.len != 0 && total < list.ifc_len);
  if (!is_room(arg, sizeof list.ifc_len)) return -EFAULT;
  memcpy(arg, &total, sizeof total);
  return 0;
}

int ethtool(const Sock& s, void* arg) {
  ifreq device{};
  uint32_t command = 0;
  if (!is_buffer(arg, sizeof device)) return -EFAULT;
  memcpy(&device, arg, sizeof device);
  if (!is_buffer(device.ifr_data, sizeof command)) return -EFAULT;
  memcpy(&command, device.ifr_data, sizeof command);
  CallRequest r = about(s, MW_OP_IOCTL);
  r.arg[0] = SIOCETHTOOL;
  r.in[0] = {device.ifr_name, kIfNameBytes};
  r.in[1] = {&command, sizeof command};
  char answer[256];
  const CallAnswer a = call(r, answer, sizeof answer);
  if (a.ret < 0) return -a.err;
  const uint32_t n = std::min(a.len, ethtool_bytes(command));
  if (!is_ethtool_answer(command, answer, n)) {
    poison(s.stack, "answer to ioctl");
    return -ECONNRESET;
  }
  if (!is_room(device.ifr_data, n)) return -EFAULT;
  memcpy(device.ifr_data, answer, n);
  return 0;
}

}  // namespace

int sock_ioctl(const Sock& s, unsigned long whole_request, void* arg) {
  constexpr uint32_t kDeviceType = 0x89;
  constexpr uint32_t kWirelessType = 0x8b;
  const auto request = static_cast<uint32_t>(whole_request);  // what the kernel looks at
  const uint32_t type = request >> 8 & 0xff;
  switch (request) {
    case FIONBIO: {
      if (libc.ioctl(s.fd, request, arg) < 0) return -errno;
      int on = 0;
      memcpy(&on, arg, sizeof on);
      set_flag(s, kSlotNonblock, on != 0);
      return 0;
    }
    case FIONREAD: {
      if (is_listener(s)) return -EINVAL;
      if (!is_room(arg, sizeof(int))) return -EFAULT;
      const int n = static_cast<int>(s.datagram() ? first_datagram_bytes(s) : readable_bytes(s));
      memcpy(arg, &n, sizeof n);
      return 0;
    }
    case SIOCGSTAMP_OLD:
    case SIOCGSTAMPNS_OLD:
    case SIOCGSTAMP_NEW:
    case SIOCGSTAMPNS_NEW: {
      const int64_t ns = last_stamp(s);
      if (ns < 0) return static_cast<int>(ns);
      const bool micro = request == SIOCGSTAMP_OLD || request == SIOCGSTAMP_NEW;
      const int64_t parts[] = {ns / 1'000'000'000, ns % 1'000'000'000 / (micro ? 1000 : 1)};
      if (!is_room(arg, sizeof parts)) return -EFAULT;
      memcpy(arg, parts, sizeof parts);
      return 0;
    }
    case SIOCATMARK:
    case SIOCOUTQNSD:
      if (s.datagram()) return is_buffer(arg, kIfreqBytes) ? -ENOTTY : -EFAULT;
      return device_ioctl(s, request, arg);
    case SIOCOUTQ:
      return device_ioctl(s, request, arg);
    case SIOCGIFCONF:
      return interface_list(s, arg);
    case SIOCETHTOOL:
      return ethtool(s, arg);
    case FIOASYNC:
    case FIOSETOWN:
    case FIOGETOWN:
    case SIOCSPGRP:
    case SIOCGPGRP:
      set_flag(s, kSlotOdd, true);
      break;
    case FIOCLEX:
    case FIONCLEX:
      break;
    default:
      if (type == kDeviceType) return device_ioctl(s, request, arg);
      if (type == kWirelessType) return -ENOTTY;  // the INS's network has no such device
      break;
  }
  // What is about the descriptor, or about no socket: any socket says the same.
  const int rc = libc.ioctl(s.fd, request, arg);
  return rc < 0 ? -errno : rc;
}

void give_stream_control(const Sock& s, msghdr* m) {
  const size_t room = m->msg_control != nullptr ? m->msg_controllen : 0;
  m->msg_controllen = 0;
  if ((A::load_relaxed(s.mine.flags) & kSlotInq) == 0) [[likely]]
    return;
  uint32_t left = readable_bytes(s);
  // The ring may not hold everything: the INS's own socket has the rest.
  if (left > s.stack.geometry().rx_ring / 2 ||
      (A::load_relaxed(s.slot.want) & MW_WANT_RX_ROOM) != 0) {
    CallRequest r = about(s, MW_OP_IOCTL);
    r.arg[0] = FIONREAD;
    int below = 0;
    if (call(r, &below, sizeof below).ret == 0 && below > 0)
      left += std::min(static_cast<uint32_t>(below), uint32_t{INT_MAX} - left);
  }
  // "Go on reading", at the end.
  if (left == 0 && (state_of(s) & MW_ST_RCV_SHUT) != 0) left = 1;
  alignas(cmsghdr) char message[CMSG_SPACE(sizeof(int))] = {};
  auto* const head = reinterpret_cast<cmsghdr*>(message);
  head->cmsg_level = IPPROTO_TCP;
  head->cmsg_type = kTcpInq;
  head->cmsg_len = std::min(room, CMSG_LEN(sizeof(int)));
  const auto value = static_cast<int>(left);
  memcpy(CMSG_DATA(head), &value, sizeof value);
  if (room < CMSG_LEN(sizeof(int))) m->msg_flags |= MSG_CTRUNC;
  if (room < sizeof(cmsghdr) || !is_room(m->msg_control, head->cmsg_len)) return;
  memcpy(m->msg_control, message, head->cmsg_len);
  m->msg_controllen = std::min(room, sizeof message);
}

int check_stream_control(const msghdr& m) {
  if (m.msg_controllen > INT_MAX) return -ENOBUFS;
  if (!is_buffer(m.msg_control, m.msg_controllen)) return -EFAULT;
  const auto* const bytes = static_cast<const char*>(m.msg_control);
  for (size_t at = 0; m.msg_controllen - at >= sizeof(cmsghdr);) {
    cmsghdr head;
    memcpy(&head, bytes + at, sizeof head);
    if (head.cmsg_len < sizeof head || head.cmsg_len > m.msg_controllen - at) return -EINVAL;
    const bool ignored = head.cmsg_level != SOL_SOCKET || head.cmsg_type == SCM_RIGHTS ||
                         head.cmsg_type == SCM_CREDENTIALS;
    if (!ignored) return -EINVAL;
    const size_t step = CMSG_ALIGN(head.cmsg_len);
    if (step > m.msg_controllen - at) break;
    at += step;
  }
  return 0;
}

}  // namespace mw::shim
