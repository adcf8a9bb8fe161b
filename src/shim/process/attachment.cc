#include "shim/process/attachment.h"

#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>

#include "base/log.h"
#include "shim/process/descriptors.h"
#include "shim/process/file_limit.h"
#include "shim/process/shared_lock.h"
#include "transport/local/namespace.h"

namespace mw::shim {

constinit Attachment attachment;

namespace {

char session_name[160];
uint8_t session_token[16];
uint64_t home = 0;  // the session's network namespace; 0: not known
bool complained = false;
uint32_t attach_lock = 0;

// A driver that hangs must not hang the application with it for ever, but its successor is to be waited
// for.
constexpr timeval kDriverPatience{15, 0};

void complain(const char* what) {
  if (complained) return;
  complained = true;
  log_line("mwshim", "%s", what);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The length of the address that is the session's name and, if there is one, a letter behind it.
socklen_t driver_address(sockaddr_un& a, char suffix) {
  a = {};
  a.sun_family = AF_UNIX;
  const size_t n = strlen(session_name);
  if (n == 0 || n + 2 > sizeof a.sun_path) return 0;
  memcpy(a.sun_path + 1, session_name, n);
  a.sun_path[1 + n] = suffix;
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + n + (suffix != 0 ? 1 : 0));
}

int connect_to(int fd, const sockaddr_un& a, socklen_t len) {
  int rc = 0;
  do {
    rc = libc.connect(fd, reinterpret_cast<const sockaddr*>(&a), len);
  } while (rc < 0 && errno == EINTR);
  return rc;
}

int connect_to_driver() {
  sockaddr_un a;
  const socklen_t len = driver_address(a, 0);
  if (len == 0) return -1;
  const int fd =
      beyond_limit([] { return libc.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0); });
  if (fd < 0) return -1;
  const int rc = connect_to(fd, a, len);
  libc.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kDriverPatience, sizeof kDriverPatience);
  if (rc < 0) {
    libc.close(fd);
    return -1;
  }
  return hide(fd);
}

// The regions, whose descriptors stay open: more of them is mapped when it is used.
Status join(UniqueFd& channel, UniqueFd& region_b, const mw_geometry& geometry) {
  auto a = check_sealed(channel.get());
  auto b = check_sealed(region_b.get());
  if (!a || !b) return a ? b.error() : a.error();
  a->fd = hide(channel.release());
  b->fd = hide(region_b.release());
  Status joined = stacks.add(*a, geometry);
  if (joined) {
    joined = process.session.open(*b, geometry);
    if (!joined) stacks.close();
  }
  if (!joined)
    for (const int fd : {a->fd, b->fd}) unhide_and_close(fd);
  return joined;
}

AttachRequest request_for(AttachType what) {
  AttachRequest request{};
  request.type = what;
  request.version = MW_PROTOCOL_VERSION;
  memcpy(request.token, session_token, sizeof session_token);
  return request;
}

// As connect_to_driver(), for a process that cannot reach its address but has a connection of the
// process that it is a copy of.
int be_introduced() {
  int pair[2];
  if (attachment.fd < 0 ||
      libc.syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return -1;
  const AttachRequest request = request_for(AttachType::introduce);
  const int fds[] = {pair[1]};
  const auto sent = send_message(attachment.fd, bytes_of(request), fds, 0);
  libc.close(pair[1]);
  libc.setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &kDriverPatience, sizeof kDriverPatience);
  if (sent) return hide(pair[0]);
  libc.close(pair[0]);
  return -1;
}

int reach_driver() {
  const int fd = connect_to_driver();
  return fd < 0 && is_abroad() ? be_introduced() : fd;
}

constexpr const char* kNoMemory =
    "the session's memory cannot be mapped; network sockets fail with ENETDOWN. Raise the limit of "
    "address space (RLIMIT_AS, ulimit -v).";
constexpr const char* kNoFit =
    "the session's memory does not fit its geometry; network sockets fail with ENETDOWN.";

// The answer to a request to attach. If the driver died with the question, its successor is asked: it
// finds us in the queue. `fd` is another one then, or -1.
Result<ReceivedMessage> ask_to_attach(int& fd, AttachReply& reply) {
  auto answer = ask_driver(fd, AttachType::attach, {}, reply);
  if (answer || answer.error().err == EAGAIN) return answer;
  unhide_and_close(fd);
  fd = connect_to_driver();
  if (fd < 0) return answer;
  return ask_driver(fd, AttachType::attach, {}, reply);
}

bool attach_locked() {
  if (process.attached) return true;
  if (session_name[0] == 0) {
    complain(
        "no session: MWCOMMS_SESSION is not set. Start the program with `mw run -- PROGRAM`; until "
        "then its network sockets fail with ENETDOWN.");
    return false;
  }
  int fd = connect_to_driver();
  if (fd < 0 && is_abroad()) {
    complain(
        "a socket of the session came to a program that was started in another network namespace; "
        "it cannot be used there.");
    return false;
  }
  if (fd < 0) {
    complain(
        "the session's driver does not answer, so network sockets fail with ENETDOWN. Start the "
        "program with `mw run -- PROGRAM`.");
    return false;
  }
  AttachReply reply{};
  auto answer = ask_to_attach(fd, reply);
  if (!answer || answer->fd_count < 4 || answer->fd_count != 3 + reply.geometry.workers ||
      reply.geometry.workers > MW_MAX_WORKERS) {
    unhide_and_close(fd);
    complain("the driver refused this process; network sockets fail with ENETDOWN.");
    return false;
  }
  if (Status joined = join(answer->fds[0], answer->fds[1], reply.geometry); !joined) {
    unhide_and_close(fd);
    complain(joined.error().fault == Fault::sys ? kNoMemory : kNoFit);
    return false;
  }
  int bells[MW_MAX_WORKERS];
  for (uint32_t i = 0; i < reply.geometry.workers; ++i)
    bells[i] = hide(answer->fds[3 + i].release());
  stacks.begin()->use(hide(answer->fds[2].release()), {bells, reply.geometry.workers});
  attachment = {fd, process.pid};
  StdAtomics::fence();
  process.attached = true;
  return true;
}

Result<ReceivedMessage> exchange(int connection, const AttachRequest& request,
                                 std::span<const int> fds, AttachReply& reply) {
  if (auto sent = send_message(connection, bytes_of(request), fds, 0); !sent) return sent.error();
  auto answer = receive_message(connection, writable_bytes_of(reply), 0);
  if (!answer) return answer.error();
  if (answer->bytes != sizeof reply || reply.type != request.type)
    return Error{Fault::peer, 0, "answer of the driver"};
  if (reply.status != 0) return Error{Fault::sys, static_cast<int>(reply.status), "driver"};
  return answer;
}

}  // namespace

bool note_session(const char* setting) {
  const char* colon = strrchr(setting, ':');
  if (colon == nullptr || strlen(colon + 1) != 32) return false;
  const auto n = static_cast<size_t>(colon - setting);
  if (n == 0 || n >= sizeof session_name) return false;
  for (int i = 0; i < 16; ++i) {
    const int hi = hex_digit(colon[1 + 2 * i]);
    const int lo = hex_digit(colon[2 + 2 * i]);
    if (hi < 0 || lo < 0) return false;
    session_token[i] = static_cast<uint8_t>(hi << 4 | lo);
  }
  memcpy(session_name, setting, n);
  // Behind the name's last '-': the network namespace in which it can be reached.
  if (const char* dash = strrchr(session_name, '-'); dash != nullptr && !strchr(dash, '/'))
    home = ::strtoull(dash + 1, nullptr, 16);
  return true;
}

bool is_in_session() {
  return session_name[0] != 0;
}

void attachment_after_fork() {
  attach_lock = 0;
}

bool attach() {
  if (process.attached) [[likely]]
    return true;
  const int saved = errno;
  SharedLock lock(attach_lock);
  const bool ok = attach_locked();
  errno = saved;
  return ok;
}

bool is_abroad(int socket) {
  if (home == 0) return false;
  const int saved = errno;
  const uint64_t here = network_namespace_of(socket);
  errno = saved;
  return here != 0 && here != home;
}

bool is_abroad() {
  if (home == 0) return false;
  const int saved = errno;
  const int fd = beyond_limit([] {
    return static_cast<int>(libc.syscall(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  });
  const bool abroad = fd >= 0 && is_abroad(fd);
  if (fd >= 0) libc.syscall(SYS_close, fd);
  errno = saved;
  return abroad;
}

bool is_address_free() {
  sockaddr_un a;
  const socklen_t len = driver_address(a, 0);
  const int fd = beyond_limit([] {
    return static_cast<int>(
        libc.syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  });
  if (fd < 0) return false;
  // A queue that is full has somebody who holds it.
  const bool free = connect_to(fd, a, len) < 0 && errno == ECONNREFUSED;
  libc.syscall(SYS_close, fd);
  return free;
}

bool attach_as_this_process() {
  if (!attach()) return false;
  if (attachment.pid == process.pid) return true;
  SharedLock lock(attach_lock);
  if (attachment.pid == process.pid) return true;
  int fd = reach_driver();
  if (fd < 0) return false;
  AttachReply reply{};
  if (!ask_to_attach(fd, reply)) {
    unhide_and_close(fd);
    return false;
  }
  const int old = attachment.fd;
  attachment.fd = fd;
  attachment.pid = process.pid;
  if (old >= 0) unhide_and_close(old);
  return true;
}

Result<ReceivedMessage> ask_driver(int connection, AttachType what, std::span<const int> fds,
                                   AttachReply& reply) {
  return exchange(connection, request_for(what), fds, reply);
}

int set_by_driver(const SocketOption& wanted, int proof) {
  // A connection of its own: another thread may wait for an answer on the process's.
  const int fd = reach_driver();
  if (fd < 0) return -ENETDOWN;
  AttachRequest request = request_for(AttachType::option);
  request.option = wanted;
  AttachReply reply{};
  const int fds[] = {proof};
  const auto answer = exchange(fd, request, fds, reply);
  unhide_and_close(fd);
  if (answer) return 0;
  return answer.error().fault == Fault::sys ? -answer.error().err : -ENETDOWN;
}

int connect_placeholder(int type) {
  sockaddr_un a;
  const socklen_t len = driver_address(a, kPlaceholderSuffix);
  // Without SOCK_NONBLOCK, as the connection has to wait for a driver that is busy.
  const int fd = libc.socket(AF_UNIX, SOCK_STREAM | (type & SOCK_CLOEXEC), 0);
  if (fd < 0) return -errno;
  if (is_abroad(fd)) return fd;  // the caller sees that too
  // A driver that hangs must not hang the application. identify() sets another time later.
  libc.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kDriverPatience, sizeof kDriverPatience);
  if (len == 0 || connect_to(fd, a, len) < 0) {
    libc.close(fd);
    return -EMFILE;
  }
  if ((type & SOCK_NONBLOCK) != 0) libc.fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

bool say_whose_placeholder(int fd, const mw_drop_record& record) {
  PlaceholderRequest request{};
  request.version = MW_PROTOCOL_VERSION;
  memcpy(request.token, session_token, sizeof session_token);
  request.record = record;
  return libc.send(fd, &request, sizeof request, MSG_NOSIGNAL) ==
         static_cast<ssize_t>(sizeof request);
}

void poison(Stack& stack, const char* where) {
  if (!stack.poison()) return;
  const int saved = errno;
  log_line("mwshim", "the network stack broke the channel protocol (%s): all its sockets are reset",
           where);
  // Over a connection of its own: ours may be a forked parent's, or that of a driver which died.
  if (const int fd = reach_driver(); fd >= 0) {
    AttachRequest report = request_for(AttachType::violation);
    report.epoch = stack.poisoned_epoch();
    (void)send_message(fd, bytes_of(report), {}, MSG_DONTWAIT);
    unhide_and_close(fd);
  }
  errno = saved;
}

}  // namespace mw::shim
