// kernel_in_memory.cc - kernel.h without a kernel: the system calls of the code under test end here.
//
// The linker sends the C library's names to __wrap_NAME (tests/fuzz/CMakeLists.txt has the list), and
// src/base/raw_syscall.h asks mw_stand_in_syscall() first. Descriptors from kFirstFd on are ours; all
// others are the real kernel's, so the fuzzer's own calls pass through.
//
// INVARIANTS  No allocation and no real system call between begin() and the input's end. Every pool
//             is bounded; when one is used up a call fails as the real one does without memory.
//             What differs from Linux: a socket's queue holds kShortQueue messages, or kLongQueue
//             after SO_SNDBUFFORCE; epoll reports in the order of registration; a stream keeps the
//             bounds of what was sent at once.
// THREADS     One. Compiled without sanitizers and without coverage, as it is not what is tested;
//             buffers of the code under test are checked by hand (check()).
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sanitizer/asan_interface.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "abi/mw_types.h"
#include "kernel.h"

namespace mw::fuzz::kernel {
namespace {

constexpr int kFirstFd = 1 << 20;
constexpr uint32_t kFds = 1024;
constexpr uint32_t kDescriptions = 2048;
constexpr uint32_t kMessages = 2048;
constexpr uint32_t kMessageBytes = 2304;
constexpr uint32_t kMessageFds = 32;
constexpr uint32_t kShortQueue = 16;
constexpr uint32_t kLongQueue = 512;
constexpr uint32_t kNodes = 128;
constexpr uint32_t kNameBytes = 72;
constexpr uint32_t kTextBytes = 128;
constexpr uint32_t kEpolls = 64;
constexpr uint32_t kRegistrations = 512;
constexpr uint32_t kFiles = 16;  // sealed ones
constexpr uint64_t kFileRoom = 8u << 20;
constexpr uint32_t kFolderReaders = 4;
constexpr uint32_t kWatches = 32;
constexpr uint32_t kNews = 64;  // of inotify
constexpr uint32_t kWritten = 1024;
constexpr int kDriverPid = 1000;
constexpr int kFirstPeerPid = 2000;
constexpr const char* kFolder = "/mw-fuzz";
constexpr uint64_t kNetwork = 77;

[[noreturn]] void give_up(const char* what) {
  std::printf("kernel_in_memory: %s\n", what);
  std::fflush(stdout);
  std::abort();
}

// ---- what there is ----

enum class Kind : uint8_t {
  none,
  socket,
  event,
  timer,
  process,
  inotify,
  epoll,
  pipe_read,
  pipe_write,
  sealed,
  node,
  text,
  device
};

struct Description;

struct Message {
  Message* next;
  uint32_t bytes;
  uint32_t fd_count;
  Description* fds[kMessageFds];
  std::byte data[kMessageBytes];
};

struct Queue {
  Message* first;
  Message* last;
  uint32_t count;
};

struct Node {
  bool used;
  bool linked;
  mode_t kind;  // S_IF*
  uint32_t refs;
  uint32_t uid;
  Node* parent;
  Description* listener;
  uint32_t size;
  char name[kNameBytes];
  char text[kTextBytes];
};

struct Registration {
  int fd;
  Description* what;
  uint32_t events;
  uint64_t data;
};
struct Epoll {
  uint32_t count;
  Registration all[kRegistrations];
};

struct SealedFile {
  uint64_t size;
  bool sealed;
  std::byte* base;
};

struct News {
  int watch;
  uint32_t mask;
  char name[kNameBytes];
};
struct Inotify {
  uint32_t watches;
  struct {
    Node* node;
    int number;
  } of[kWatches];
  int next;
  uint32_t count;
  News news[kNews];
};

struct Description {
  Kind kind;
  uint32_t refs;
  int flags;  // O_ACCMODE and O_NONBLOCK
  uint32_t in_epolls;
  // socket
  int domain, type;
  Description* peer;
  bool paired;  // had a peer once
  bool listening;
  uint32_t backlog, waiting;
  Description* next_waiting;  // in the listener's line
  Description *first_waiting, *last_waiting;
  uint32_t most;  // messages in `in`
  Queue in;
  ucred theirs;  // SO_PEERCRED
  ucred ours;
  uint64_t network;
  uint32_t name_bytes;
  char name[108];
  // others
  uint64_t count;  // eventfd; timer: none
  int64_t due_ms, every_ms;
  uint32_t pid;
  Description* other_end;  // pipe: any description of the other kind that lives
  uint32_t pipe;           // number of the pipe
  Epoll* epoll;
  Inotify* inotify;
  SealedFile* file;
  Node* node;
  char text[1024];
  uint32_t text_bytes, text_at;
};

struct Process {
  uint32_t pid, uid;
  bool alive;
  char name[16];
};

struct FolderReader {
  int fd;
  uint32_t at;
  bool used;
  dirent entry;
};

struct State {
  bool active;
  Description* fd[kFds];
  uint32_t fd_limit, fds_used, first_free;
  uint32_t descriptions, free_descriptions;
  uint32_t free_description[kDescriptions];
  uint32_t messages;
  Message* free_messages;
  uint32_t nodes, epolls, inotifies, files, pipes;
  int64_t now_ms;
  uint64_t outcome;
  Process driver, peer[kPeers];
  const Process* actor;
  int next_pid;
  struct {
    std::byte* at;
    size_t bytes;
  } written[kWritten];
  uint32_t written_count;
};

State g;
Description description_pool[kDescriptions];
Message message_pool[kMessages];
Node node_pool[kNodes];
Epoll epoll_pool[kEpolls];
Inotify inotify_pool[4];
SealedFile file_pool[kFiles];
FolderReader reader_pool[kFolderReaders];
uint32_t readers_of_pipe[kDescriptions], writers_of_pipe[kDescriptions];
std::byte* sealed_memory;

void note(const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  uint64_t h = g.outcome;
  for (; bytes >= 8; at += 8, bytes -= 8) {
    uint64_t word = 0;
    std::memcpy(&word, at, 8);
    h = (h ^ word) * 0x9e3779b97f4a7c15ull;
    h ^= h >> 29;
  }
  for (; bytes > 0; ++at, --bytes) h = (h ^ *at) * 0x100000001b3ull;
  g.outcome = h;
}

// What the sanitizer's own versions of these calls would find.
void check(const void* at, size_t bytes) {
  if (bytes != 0 && __asan_region_is_poisoned(const_cast<void*>(at), bytes) != nullptr)
    give_up("a system call got memory that is not the caller's");
}

int fail(int error) {
  errno = error;
  return -1;
}

// ---- descriptors ----

bool is_ours(int fd) {
  return fd >= kFirstFd;
}

// Null: not open.
Description* at(int fd) {
  const auto i = static_cast<uint32_t>(fd - kFirstFd);
  return fd >= kFirstFd && i < kFds ? g.fd[i] : nullptr;
}
Description* at(int fd, Kind kind) {
  Description* d = at(fd);
  return d != nullptr && d->kind == kind ? d : nullptr;
}

Description* make(Kind kind, int flags) {
  uint32_t i = 0;
  if (g.free_descriptions > 0)
    i = g.free_description[--g.free_descriptions];
  else if (g.descriptions < kDescriptions)
    i = g.descriptions++;
  else
    return nullptr;
  Description* d = &description_pool[i];
  std::memset(static_cast<void*>(d), 0, offsetof(Description, text));
  d->kind = kind;
  d->refs = 1;
  d->flags = flags & (O_ACCMODE | O_NONBLOCK);
  d->most = kShortQueue;
  d->network = kNetwork;
  d->text_bytes = d->text_at = 0;
  return d;
}

void unref(Description* d);

void free_message(Message* m) {
  for (uint32_t i = 0; i < m->fd_count; ++i) unref(m->fds[i]);
  m->next = g.free_messages;
  g.free_messages = m;
}

void unref_node(Node* n) {
  if (--n->refs == 0 && !n->linked) n->used = false;
}

void unref(Description* d) {
  if (--d->refs != 0) return;
  if (d->in_epolls != 0) {
    for (uint32_t e = 0; e < g.epolls; ++e) {
      Epoll& all = epoll_pool[e];
      uint32_t kept = 0;
      for (uint32_t i = 0; i < all.count; ++i)
        if (all.all[i].what != d) all.all[kept++] = all.all[i];
      all.count = kept;
    }
  }
  if (d->epoll != nullptr) {
    for (uint32_t i = 0; i < d->epoll->count; ++i) --d->epoll->all[i].what->in_epolls;
    d->epoll->count = 0;
  }
  if (d->peer != nullptr) d->peer->peer = nullptr;
  for (Message* m = d->in.first; m != nullptr;) {
    Message* const next = m->next;
    free_message(m);
    m = next;
  }
  for (Description* w = d->first_waiting; w != nullptr;) {
    Description* const next = w->next_waiting;
    unref(w);
    w = next;
  }
  if (d->kind == Kind::pipe_read) --readers_of_pipe[d->pipe];
  if (d->kind == Kind::pipe_write) --writers_of_pipe[d->pipe];
  if (d->listening && d->node != nullptr) d->node->listener = nullptr;
  if (d->node != nullptr) unref_node(d->node);
  d->kind = Kind::none;
  g.free_description[g.free_descriptions++] = static_cast<uint32_t>(d - description_pool);
}

// Takes the reference over. -1 and EMFILE if there is no number left; the reference is gone then.
int install(Description* d) {
  if (d == nullptr) return fail(ENFILE);
  if (g.fds_used < g.fd_limit) {
    for (uint32_t i = g.first_free; i < kFds; ++i) {
      if (g.fd[i] != nullptr) continue;
      g.fd[i] = d;
      g.first_free = i + 1;
      ++g.fds_used;
      return kFirstFd + static_cast<int>(i);
    }
  }
  unref(d);
  return fail(EMFILE);
}

int close_fd(int fd);

// Nothing stands in `fds` if it fails.
int install_both(Description* a, Description* b, int* fds) {
  const int first = install(a);
  if (first < 0) {
    unref(b);
    return fail(EMFILE);
  }
  const int second = install(b);
  if (second < 0) {
    close_fd(first);
    return fail(EMFILE);
  }
  fds[0] = first;
  fds[1] = second;
  return 0;
}

int close_fd(int fd) {
  Description* d = at(fd);
  if (d == nullptr) return fail(EBADF);
  const auto i = static_cast<uint32_t>(fd - kFirstFd);
  // A descriptor that is closed leaves an epoll set only with its last copy: as in Linux.
  g.fd[i] = nullptr;
  g.first_free = std::min(g.first_free, i);
  --g.fds_used;
  unref(d);
  return 0;
}

// ---- readiness ----

const Process* process_of(uint32_t pid) {
  if (pid == g.driver.pid) return &g.driver;
  for (const Process& p : g.peer)
    if (p.pid == pid) return &p;
  return nullptr;
}

bool is_alive(uint32_t pid) {
  const Process* p = process_of(pid);
  return p != nullptr && p->alive;
}

uint32_t readiness(const Description& d) {
  constexpr uint32_t kIn = EPOLLIN;
  switch (d.kind) {
    case Kind::socket: {
      if (d.listening) return d.first_waiting != nullptr ? kIn : 0;
      if (!d.paired) return EPOLLOUT | EPOLLHUP;
      const uint32_t bits = d.in.count != 0 ? kIn : 0;
      if (d.peer == nullptr) return bits | EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP;
      return bits | (d.peer->in.count < d.peer->most ? EPOLLOUT : 0u);
    }
    case Kind::event:
      return d.count != 0 ? EPOLLIN | EPOLLOUT : EPOLLOUT;
    case Kind::timer:
      return d.due_ms != 0 && d.due_ms <= g.now_ms ? kIn : 0;
    case Kind::process:
      return is_alive(d.pid) ? 0 : kIn;
    case Kind::inotify:
      return d.inotify->count != 0 ? kIn : 0;
    case Kind::pipe_read:
      return writers_of_pipe[d.pipe] == 0 ? uint32_t{EPOLLHUP} : 0;
    case Kind::pipe_write:
      return readers_of_pipe[d.pipe] == 0 ? EPOLLOUT | EPOLLERR : EPOLLOUT;
    default:
      return 0;
  }
}

// ---- files ----

Node* make_node(Node* parent, std::string_view name, mode_t kind) {
  if (name.size() >= kNameBytes) return nullptr;
  for (uint32_t i = 0; i < kNodes; ++i) {
    Node& n = node_pool[i];
    if (i < g.nodes && n.used) continue;
    g.nodes = std::max(g.nodes, i + 1);
    std::memset(static_cast<void*>(&n), 0, sizeof n);
    n.used = n.linked = true;
    n.kind = kind;
    n.uid = g.actor->uid;
    n.parent = parent;
    std::memcpy(n.name, name.data(), name.size());
    return &n;
  }
  return nullptr;
}

Node* child(const Node* folder, std::string_view name) {
  for (uint32_t i = 0; i < g.nodes; ++i) {
    Node& n = node_pool[i];
    if (n.used && n.linked && n.parent == folder && name == n.name) return &n;
  }
  return nullptr;
}

void tell(const Node* folder, uint32_t mask, const char* name) {
  for (uint32_t k = 0; k < g.inotifies; ++k) {
    Inotify& all = inotify_pool[k];
    for (uint32_t w = 0; w < all.watches; ++w) {
      if (all.of[w].node != folder) continue;
      if (all.count + 1 == kNews) {
        all.news[all.count++] = {-1, IN_Q_OVERFLOW, ""};
      } else if (all.count < kNews) {
        News& n = all.news[all.count++];
        n.watch = all.of[w].number;
        n.mask = mask;
        std::memcpy(n.name, name, std::strlen(name) + 1);
      }
    }
  }
}

void forget_watches(const Node* gone) {
  for (uint32_t k = 0; k < g.inotifies; ++k) {
    Inotify& all = inotify_pool[k];
    for (uint32_t w = 0; w < all.watches; ++w) {
      if (all.of[w].node != gone) continue;
      if (all.count < kNews) all.news[all.count++] = {all.of[w].number, IN_IGNORED, ""};
      all.of[w] = all.of[--all.watches];
      --w;
    }
  }
}

void unlink_node(Node* n) {
  n->linked = false;
  tell(n->parent, IN_DELETE, n->name);
  forget_watches(n);
  if (n->refs == 0) n->used = false;
}

int open_node(Node* n, int flags) {
  Description* d = make(Kind::node, flags);
  if (d == nullptr) return fail(ENFILE);
  d->node = n;
  ++n->refs;
  if ((flags & O_TRUNC) != 0) n->size = 0;
  return install(d);
}

int open_text(const char* text, size_t bytes) {
  Description* d = make(Kind::text, O_RDONLY);
  if (d == nullptr) return fail(ENFILE);
  d->text_bytes = static_cast<uint32_t>(std::min(bytes, sizeof d->text));
  std::memcpy(d->text, text, d->text_bytes);
  return install(d);
}

// The descriptor in "/proc/self/fd/N" and what stands behind it; -1: another path.
int fd_of_path(std::string_view path, std::string_view prefix, std::string_view* rest) {
  if (!path.starts_with(prefix)) return -1;
  path.remove_prefix(prefix.size());
  int fd = 0;
  size_t n = 0;
  while (n < path.size() && path[n] >= '0' && path[n] <= '9') fd = fd * 10 + (path[n++] - '0');
  *rest = path.substr(n);
  return n == 0 ? -1 : fd;
}

int open_description_of(const Description& epoll) {
  char text[1024];
  size_t n = 0;
  for (uint32_t i = 0; i < epoll.epoll->count && n + 100 < sizeof text; ++i) {
    const Registration& r = epoll.epoll->all[i];
    n += static_cast<size_t>(std::snprintf(
        text + n, sizeof text - n, "tfd: %8d events: %8x data: %16llx  pos:0 ino:1 sdev:1\n", r.fd,
        r.events, static_cast<unsigned long long>(r.data)));
  }
  return open_text(text, n);
}

int open_path(const char* path, int flags) {
  const std::string_view p = path;
  std::string_view rest;
  if (p == "/dev/null") return install(make(Kind::device, flags));
  if (p.starts_with(kFolder)) {
    const Node* folder = &node_pool[0];
    std::string_view name = p.substr(std::strlen(kFolder));
    if (!name.starts_with("/")) return fail(ENOENT);
    Node* n = child(folder, name.substr(1));
    return n == nullptr ? fail(ENOENT) : open_node(n, flags);
  }
  if (const int fd = fd_of_path(p, "/proc/self/fd/", &rest); fd >= 0) {
    const Description* d = at(fd);
    if (d == nullptr || !rest.empty()) return fail(ENOENT);
    if (d->kind != Kind::pipe_write || (flags & O_ACCMODE) != O_RDONLY) return fail(ENXIO);
    Description* end = make(Kind::pipe_read, flags);
    if (end == nullptr) return fail(ENFILE);
    end->pipe = d->pipe;
    ++readers_of_pipe[d->pipe];
    return install(end);
  }
  if (const int fd = fd_of_path(p, "/proc/self/fdinfo/", &rest); fd >= 0) {
    const Description* d = at(fd);
    if (d == nullptr) return fail(ENOENT);
    return d->kind == Kind::epoll ? open_description_of(*d) : open_text("pos:\t0\n", 7);
  }
  if (const int pid = fd_of_path(p, "/proc/", &rest); pid >= 0 && rest == "/comm") {
    const Process* who = process_of(static_cast<uint32_t>(pid));
    if (who == nullptr || !who->alive) return fail(ENOENT);
    char text[17];
    const size_t n = ::strnlen(who->name, sizeof who->name);
    std::memcpy(text, who->name, n);
    text[n] = '\n';
    return open_text(text, n + 1);
  }
  return fail(ENOENT);
}

int open_at(int folder, const char* name, int flags) {
  const Description* d = at(folder, Kind::node);
  if (d == nullptr) return fail(EBADF);
  if (!S_ISDIR(d->node->kind)) return fail(ENOTDIR);
  if (std::string_view(name) == ".") return open_node(d->node, flags);
  Node* n = d->node->linked ? child(d->node, name) : nullptr;
  if (n == nullptr) {
    if ((flags & O_CREAT) == 0 || !d->node->linked) return fail(ENOENT);
    n = make_node(d->node, name, S_IFREG);
    if (n == nullptr) return fail(ENOSPC);
    tell(d->node, IN_CREATE, n->name);
    return open_node(n, flags);
  }
  if ((flags & O_DIRECTORY) != 0 && !S_ISDIR(n->kind)) return fail(ENOTDIR);
  if (S_ISSOCK(n->kind) && (flags & O_PATH) == 0) return fail(ENXIO);
  if (S_ISLNK(n->kind)) return fail(ELOOP);
  if (S_ISDIR(n->kind) && (flags & O_ACCMODE) != O_RDONLY) return fail(EISDIR);
  return open_node(n, flags);
}

// ---- sockets ----

ucred credentials() {
  return {static_cast<pid_t>(g.actor->pid), g.actor->uid, g.actor->uid};
}

Description* make_socket(int domain, int type) {
  Description* d = make(Kind::socket, O_RDWR | (type & SOCK_NONBLOCK));
  if (d == nullptr) return nullptr;
  d->domain = domain;
  d->type = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
  d->ours = credentials();
  return d;
}

void join(Description* a, Description* b) {
  a->peer = b;
  b->peer = a;
  a->paired = b->paired = true;
}

Description* listener_at(const sockaddr* address, socklen_t bytes, int* error) {
  const auto* a = reinterpret_cast<const sockaddr_un*>(address);
  *error = ECONNREFUSED;
  if (a->sun_path[0] == 0) {
    const uint32_t n = bytes - static_cast<uint32_t>(offsetof(sockaddr_un, sun_path));
    for (uint32_t i = 0; i < g.descriptions; ++i) {
      Description& d = description_pool[i];
      if (d.kind == Kind::socket && d.listening && d.name_bytes == n &&
          std::memcmp(d.name, a->sun_path, n) == 0)
        return &d;
    }
    return nullptr;
  }
  std::string_view rest;
  const int fd = fd_of_path(a->sun_path, "/proc/self/fd/", &rest);
  const Description* folder = at(fd, Kind::node);
  *error = ENOENT;
  if (folder == nullptr || !rest.starts_with("/")) return nullptr;
  Node* n = child(folder->node, rest.substr(1));
  if (n == nullptr) return nullptr;
  *error = ECONNREFUSED;
  return n->listener;
}

int bind_socket(Description& d, const sockaddr* address, socklen_t bytes) {
  const auto* a = reinterpret_cast<const sockaddr_un*>(address);
  if (a->sun_path[0] == 0) {
    d.name_bytes = bytes - static_cast<uint32_t>(offsetof(sockaddr_un, sun_path));
    std::memcpy(d.name, a->sun_path, d.name_bytes);
    return 0;
  }
  std::string_view rest;
  const int fd = fd_of_path(a->sun_path, "/proc/self/fd/", &rest);
  const Description* folder = at(fd, Kind::node);
  if (folder == nullptr || !rest.starts_with("/") || !folder->node->linked) return fail(ENOENT);
  if (child(folder->node, rest.substr(1)) != nullptr) return fail(EADDRINUSE);
  Node* n = make_node(folder->node, rest.substr(1), S_IFSOCK);
  if (n == nullptr) return fail(ENOSPC);
  n->refs = 1;
  n->listener = &d;
  d.node = n;
  tell(folder->node, IN_CREATE, n->name);
  return 0;
}

int connect_socket(Description& d, const sockaddr* address, socklen_t bytes) {
  int error = 0;
  Description* l = listener_at(address, bytes, &error);
  if (l == nullptr || !l->listening) return fail(l == nullptr ? error : ECONNREFUSED);
  if (l->type != d.type) return fail(EPROTOTYPE);
  if (l->waiting > l->backlog) return fail(EAGAIN);
  Description* theirs = make_socket(AF_UNIX, l->type);
  if (theirs == nullptr) return fail(ENOMEM);
  join(&d, theirs);
  theirs->theirs = credentials();
  d.theirs = l->ours;
  (l->first_waiting == nullptr ? l->first_waiting : l->last_waiting->next_waiting) = theirs;
  l->last_waiting = theirs;
  ++l->waiting;
  return 0;
}

int accept_socket(Description& l, int flags) {
  Description* d = l.first_waiting;
  if (!l.listening) return fail(EINVAL);
  if (g.fds_used >= g.fd_limit) return fail(EMFILE);
  if (d == nullptr) return fail(EAGAIN);
  l.first_waiting = d->next_waiting;
  --l.waiting;
  d->next_waiting = nullptr;
  d->flags = O_RDWR | (flags & SOCK_NONBLOCK);
  return install(d);
}

long send_to(Description* d, const msghdr& m) {
  if (d == nullptr || d->kind != Kind::socket) return fail(ENOTSOCK);
  if (!d->paired) return fail(ENOTCONN);
  if (d->peer == nullptr) return fail(EPIPE);
  const size_t bytes = m.msg_iov[0].iov_len;
  check(m.msg_iov[0].iov_base, bytes);
  if (bytes > kMessageBytes) return fail(EMSGSIZE);
  if (d->peer->in.count >= d->peer->most) return fail(EAGAIN);
  Message* message = g.free_messages;
  if (message != nullptr)
    g.free_messages = message->next;
  else if (g.messages < kMessages)
    message = &message_pool[g.messages++];
  else
    return fail(EAGAIN);
  message->next = nullptr;
  message->bytes = static_cast<uint32_t>(bytes);
  message->fd_count = 0;
  std::memcpy(message->data, m.msg_iov[0].iov_base, bytes);
  auto* head = const_cast<msghdr*>(&m);
  for (cmsghdr* c = CMSG_FIRSTHDR(head); c != nullptr; c = CMSG_NXTHDR(head, c)) {
    for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      Description* passed = at(fd);
      if (passed == nullptr || message->fd_count == kMessageFds) {
        free_message(message);
        return fail(passed == nullptr ? EBADF : EINVAL);
      }
      ++passed->refs;
      message->fds[message->fd_count++] = passed;
    }
  }
  Queue& q = d->peer->in;
  (q.first == nullptr ? q.first : q.last->next) = message;
  q.last = message;
  ++q.count;
  note(message->data, message->bytes);
  note(&message->fd_count, sizeof message->fd_count);
  return static_cast<long>(bytes);
}

long receive_from(Description* d, msghdr& m, int flags) {
  if (d == nullptr || d->kind != Kind::socket) return fail(ENOTSOCK);
  if (!d->paired) return fail(ENOTCONN);
  Message* message = d->in.first;
  m.msg_flags = 0;
  const size_t room = m.msg_controllen;
  m.msg_controllen = 0;
  if (message == nullptr) return d->peer == nullptr ? 0 : fail(EAGAIN);
  const size_t n = std::min<size_t>(message->bytes, m.msg_iov[0].iov_len);
  check(m.msg_iov[0].iov_base, n);
  std::memcpy(m.msg_iov[0].iov_base, message->data, n);
  if (n < message->bytes) m.msg_flags |= MSG_TRUNC;
  if (message->fd_count != 0) {
    auto* c = static_cast<cmsghdr*>(m.msg_control);
    uint32_t passed = 0;
    for (; passed < message->fd_count && CMSG_LEN((passed + 1) * sizeof(int)) <= room; ++passed) {
      ++message->fds[passed]->refs;
      const int fd = install(message->fds[passed]);
      if (fd < 0) break;
      std::memcpy(CMSG_DATA(c) + passed * sizeof fd, &fd, sizeof fd);
    }
    if (passed < message->fd_count) m.msg_flags |= MSG_CTRUNC;
    if (passed != 0) {
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(passed * sizeof(int));
      m.msg_controllen = std::min(room, CMSG_SPACE(passed * sizeof(int)));
    }
  }
  if ((flags & MSG_PEEK) == 0) {
    d->in.first = message->next;
    --d->in.count;
    free_message(message);
  }
  return static_cast<long>(n);
}

int get_option(const Description& d, int level, int name, void* value, socklen_t* bytes) {
  const auto give = [&](const void* from, size_t n) {
    *bytes = static_cast<socklen_t>(std::min<size_t>(n, *bytes));
    check(value, *bytes);
    std::memcpy(value, from, *bytes);
    return 0;
  };
  if (d.kind != Kind::socket) return fail(ENOTSOCK);
  if (level != SOL_SOCKET) return give("cubic", 6);
  switch (name) {
    case SO_PEERCRED:
      return give(&d.theirs, sizeof d.theirs);
    case SO_DOMAIN:
      return give(&d.domain, sizeof d.domain);
    case SO_TYPE:
      return give(&d.type, sizeof d.type);
    case SO_NETNS_COOKIE:
      return give(&d.network, sizeof d.network);
    default: {
      const int number = 4096;
      return give(&number, sizeof number);
    }
  }
}

// ---- sealed files ----

bool is_sealed_memory(const void* address) {
  const auto* a = static_cast<const std::byte*>(address);
  return sealed_memory != nullptr && a >= sealed_memory && a < sealed_memory + kFiles * kFileRoom;
}

void clear(SealedFile& f, uint64_t from, uint64_t bytes) {
  if (from >= std::min(f.size, kClearedBytes)) return;  // wrote() covers the rest
  std::memset(f.base + from, 0, std::min(bytes, kClearedBytes - from));
}

// The end of the hole, or of the data, that begins here.
off_t seek_in(const SealedFile& f, off_t from, bool for_data) {
  const uint64_t end = std::min(f.size, kClearedBytes);
  auto page = static_cast<uint64_t>(from) / MW_PAGE * MW_PAGE;
  for (; page < end; page += MW_PAGE) {
    const auto* words = reinterpret_cast<const uint64_t*>(f.base + page);
    bool data = false;
    for (uint32_t i = 0; i < MW_PAGE / 8 && !data; ++i) data = words[i] != 0;
    if (data == for_data) return std::max(from, static_cast<off_t>(page));
  }
  if (!for_data) return std::max(from, static_cast<off_t>(end));
  return fail(ENXIO);
}

}  // namespace

// ---- kernel.h ----

void begin() {
  if (sealed_memory == nullptr) {
    void* room = ::mmap(nullptr, kFiles * kFileRoom, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) give_up("no memory");
    sealed_memory = static_cast<std::byte*>(room);
  }
  for (uint32_t i = 0; i < g.files; ++i)
    std::memset(file_pool[i].base, 0, std::min(file_pool[i].size, kClearedBytes));
  for (uint32_t i = 0; i < g.written_count; ++i)
    std::memset(g.written[i].at, 0, g.written[i].bytes);
  for (uint32_t i = 0; i < g.epolls; ++i) epoll_pool[i].count = 0;
  std::memset(static_cast<void*>(inotify_pool), 0, sizeof inotify_pool);
  std::memset(static_cast<void*>(reader_pool), 0, sizeof reader_pool);
  std::fill_n(readers_of_pipe, g.pipes, 0u);
  std::fill_n(writers_of_pipe, g.pipes, 0u);
  for (uint32_t i = 0; i < g.nodes; ++i) node_pool[i].used = false;
  std::fill_n(g.fd, kFds, nullptr);
  g.fd_limit = kFds;
  g.fds_used = g.first_free = 0;
  g.descriptions = g.free_descriptions = g.messages = 0;
  g.free_messages = nullptr;
  g.nodes = g.epolls = g.inotifies = g.files = g.pipes = g.written_count = 0;
  g.now_ms = 1'000'000;
  g.outcome = 0xcbf29ce484222325ull;
  g.driver = {kDriverPid, 0, true, "mwcommsd"};
  g.next_pid = kFirstPeerPid;
  for (uint32_t i = 0; i < kPeers; ++i)
    g.peer[i] = {static_cast<uint32_t>(g.next_pid++), i % 2 == 0 ? 0u : 1000u + i, true, "program"};
  g.actor = &g.driver;
  g.active = true;
  (void)make_node(nullptr, "root", S_IFDIR);
}

void end() {
  g.active = false;
}

std::string folder() {
  return kFolder;
}

bool peers_can_be_ended() {
  return true;
}
void act_as_peer(uint32_t peer) {
  g.actor = &g.peer[peer % kPeers];
}
void act_as_driver() {
  g.actor = &g.driver;
}
void end_peer(uint32_t peer) {
  Process& p = g.peer[peer % kPeers];
  // Who holds a pidfd of it learns of its end: no process has this number any more.
  p.pid = static_cast<uint32_t>(g.next_pid++);
}
void name_peer(uint32_t peer, const char* name, size_t bytes) {
  Process& p = g.peer[peer % kPeers];
  std::memset(p.name, 0, sizeof p.name);
  std::memcpy(p.name, name, std::min(bytes, sizeof p.name - 1));
}
uint32_t pid_of(uint32_t peer) {
  return g.peer[peer % kPeers].pid;
}
void pass_ms(uint32_t ms) {
  g.now_ms += ms;
}
void limit_descriptors(uint32_t more) {
  g.fd_limit = more == 0 ? kFds : std::min(kFds, g.fds_used + more);
}
void wrote(const void* at, size_t bytes) {
  if (g.written_count == kWritten) give_up("too many writes in one input");
  g.written[g.written_count++] = {static_cast<std::byte*>(const_cast<void*>(at)), bytes};
}
uint64_t outcome() {
  for (uint32_t i = 0; i < g.files; ++i)
    note(file_pool[i].base, std::min(file_pool[i].size, kClearedBytes));
  return g.outcome;
}

}  // namespace mw::fuzz::kernel

// ---- the system calls ----

using namespace mw::fuzz::kernel;

extern "C" {

#define REAL(result, name, ...) result __real_##name(__VA_ARGS__)
REAL(int, open, const char*, int, ...);
REAL(int, openat, int, const char*, int, ...);
REAL(int, close, int);
REAL(ssize_t, read, int, void*, size_t);
REAL(ssize_t, write, int, const void*, size_t);
REAL(ssize_t, pwrite, int, const void*, size_t, off_t);
REAL(ssize_t, recv, int, void*, size_t, int);
REAL(int, fcntl, int, int, ...);
REAL(int, fstat, int, struct stat*);
REAL(int, stat, const char*, struct stat*);
REAL(int, mkdir, const char*, mode_t);
REAL(int, mkdirat, int, const char*, mode_t);
REAL(int, unlink, const char*);
REAL(int, unlinkat, int, const char*, int);
REAL(int, renameat, int, const char*, int, const char*);
REAL(ssize_t, readlink, const char*, char*, size_t);
REAL(DIR*, opendir, const char*);
REAL(DIR*, fdopendir, int);
REAL(dirent*, readdir, DIR*);
REAL(int, closedir, DIR*);
REAL(int, inotify_init1, int);
REAL(int, inotify_add_watch, int, const char*, uint32_t);
REAL(int, inotify_rm_watch, int, int);
REAL(int, socket, int, int, int);
REAL(int, socketpair, int, int, int, int*);
REAL(int, bind, int, const sockaddr*, socklen_t);
REAL(int, listen, int, int);
REAL(int, connect, int, const sockaddr*, socklen_t);
REAL(int, accept4, int, sockaddr*, socklen_t*, int);
REAL(int, getsockopt, int, int, int, void*, socklen_t*);
REAL(int, setsockopt, int, int, int, const void*, socklen_t);
REAL(int, poll, pollfd*, nfds_t, int);
REAL(int, epoll_create1, int);
REAL(int, epoll_ctl, int, int, int, epoll_event*);
REAL(int, epoll_wait, int, epoll_event*, int, int);
REAL(int, eventfd, unsigned, int);
REAL(int, timerfd_create, int, int);
REAL(int, timerfd_settime, int, int, const itimerspec*, itimerspec*);
REAL(int, pipe2, int*, int);
REAL(int, memfd_create, const char*, unsigned);
REAL(int, ftruncate, int, off_t);
REAL(int, fallocate, int, int, off_t, off_t);
REAL(off_t, lseek, int, off_t, int);
REAL(void*, mmap, void*, size_t, int, int, int, off_t);
REAL(int, munmap, void*, size_t);
REAL(int, madvise, void*, size_t, int);
REAL(int, munlock, const void*, size_t);
REAL(int, mprotect, void*, size_t, int);
REAL(long, syscall, long, ...);
REAL(int, clock_gettime, clockid_t, timespec*);
REAL(pid_t, getpid, void);
REAL(pid_t, getppid, void);
REAL(pid_t, gettid, void);
REAL(uid_t, geteuid, void);
REAL(ssize_t, getrandom, void*, size_t, unsigned);
#undef REAL

int __wrap_open(const char* path, int flags, ...) {
  va_list ap;
  va_start(ap, flags);
  const auto mode = va_arg(ap, mode_t);
  va_end(ap);
  return g.active ? open_path(path, flags) : __real_open(path, flags, mode);
}
int __wrap_openat(int folder, const char* name, int flags, ...) {
  va_list ap;
  va_start(ap, flags);
  const auto mode = va_arg(ap, mode_t);
  va_end(ap);
  return is_ours(folder) ? open_at(folder, name, flags) : __real_openat(folder, name, flags, mode);
}
int __wrap_close(int fd) {
  return is_ours(fd) ? close_fd(fd) : __real_close(fd);
}

ssize_t __wrap_read(int fd, void* data, size_t bytes) {
  if (!is_ours(fd)) return __real_read(fd, data, bytes);
  Description* d = at(fd);
  if (d == nullptr) return fail(EBADF);
  const auto number = [&](uint64_t value) -> ssize_t {
    if (bytes < sizeof value) return fail(EINVAL);
    check(data, sizeof value);
    std::memcpy(data, &value, sizeof value);
    return sizeof value;
  };
  const auto some = [&](const char* from, size_t n) -> ssize_t {
    n = std::min(n, bytes);
    check(data, n);
    std::memcpy(data, from, n);
    return static_cast<ssize_t>(n);
  };
  switch (d->kind) {
    case Kind::event:
      if (d->count == 0) return fail(EAGAIN);
      return number(std::exchange(d->count, 0));
    case Kind::timer:
      if (d->due_ms == 0 || d->due_ms > g.now_ms) return fail(EAGAIN);
      d->due_ms = d->every_ms == 0 ? 0 : g.now_ms + d->every_ms;
      return number(1);
    case Kind::node: {
      if (S_ISDIR(d->node->kind)) return fail(EISDIR);
      const size_t size = std::min<size_t>(d->node->size, kTextBytes);
      const size_t from = std::min<size_t>(d->text_at, size);
      const ssize_t n = some(d->node->text + from, size - from);
      d->text_at += static_cast<uint32_t>(n);
      return n;
    }
    case Kind::text: {
      const ssize_t n = some(d->text + d->text_at, d->text_bytes - d->text_at);
      d->text_at += static_cast<uint32_t>(n);
      return n;
    }
    case Kind::inotify: {
      Inotify& all = *d->inotify;
      if (all.count == 0) return fail(EAGAIN);
      size_t n = 0;
      uint32_t taken = 0;
      for (; taken < all.count; ++taken) {
        const News& news = all.news[taken];
        const size_t length = std::strlen(news.name);
        const size_t padded = length == 0 ? 0 : (length + 16) / 16 * 16;
        if (n + sizeof(inotify_event) + padded > bytes) break;
        check(static_cast<char*>(data) + n, sizeof(inotify_event) + padded);
        const inotify_event event{news.watch, news.mask, 0, static_cast<uint32_t>(padded)};
        std::memcpy(static_cast<char*>(data) + n, &event, sizeof event);
        n += sizeof event;
        std::memset(static_cast<char*>(data) + n, 0, padded);
        std::memcpy(static_cast<char*>(data) + n, news.name, length);
        n += padded;
      }
      std::memmove(all.news, all.news + taken, (all.count - taken) * sizeof all.news[0]);
      all.count -= taken;
      return static_cast<ssize_t>(n);
    }
    case Kind::device:
      return 0;
    default:
      return fail(EAGAIN);
  }
}

static ssize_t write_node(Node& n, size_t from, const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes && from + i < kTextBytes; ++i)
    n.text[from + i] = static_cast<const char*>(data)[i];
  n.size = static_cast<uint32_t>(std::max<size_t>(n.size, from + bytes));
  return static_cast<ssize_t>(bytes);
}

ssize_t __wrap_write(int fd, const void* data, size_t bytes) {
  if (fd == STDERR_FILENO && g.active) {  // the log of the code under test
    note(data, bytes);
    return static_cast<ssize_t>(bytes);
  }
  if (!is_ours(fd)) return __real_write(fd, data, bytes);
  Description* d = at(fd);
  if (d == nullptr) return fail(EBADF);
  check(data, bytes);
  switch (d->kind) {
    case Kind::event: {
      uint64_t add = 0;
      if (bytes < sizeof add) return fail(EINVAL);
      std::memcpy(&add, data, sizeof add);
      if (d->count > UINT64_MAX - 1 - add) return fail(EAGAIN);
      d->count += add;
      return sizeof add;
    }
    case Kind::node:
      d->text_at += static_cast<uint32_t>(bytes);
      return write_node(*d->node, d->text_at - bytes, data, bytes);
    case Kind::pipe_write:
      return readers_of_pipe[d->pipe] == 0 ? fail(EPIPE) : static_cast<ssize_t>(bytes);
    case Kind::device:
      return static_cast<ssize_t>(bytes);
    default:
      return fail(EINVAL);
  }
}
ssize_t __wrap_pwrite(int fd, const void* data, size_t bytes, off_t from) {
  if (!is_ours(fd)) return __real_pwrite(fd, data, bytes, from);
  Description* d = at(fd, Kind::node);
  return d == nullptr ? fail(EBADF) : write_node(*d->node, static_cast<size_t>(from), data, bytes);
}
ssize_t __wrap_recv(int fd, void* data, size_t bytes, int flags) {
  if (!is_ours(fd)) return __real_recv(fd, data, bytes, flags);
  iovec piece{data, bytes};
  msghdr m{};
  m.msg_iov = &piece;
  m.msg_iovlen = 1;
  return receive_from(at(fd), m, flags);
}

int __wrap_fcntl(int fd, int command, ...) {
  va_list ap;
  va_start(ap, command);
  const long argument = va_arg(ap, long);
  va_end(ap);
  if (!is_ours(fd)) return __real_fcntl(fd, command, argument);
  Description* d = at(fd);
  if (d == nullptr) return fail(EBADF);
  switch (command) {
    case F_GETFD:
      return FD_CLOEXEC;
    case F_SETFD:
      return 0;
    case F_GETFL:
      return d->flags;
    case F_SETFL:
      d->flags = (d->flags & O_ACCMODE) | (static_cast<int>(argument) & O_NONBLOCK);
      return 0;
    case F_DUPFD_CLOEXEC:
      ++d->refs;
      return install(d);
    case F_ADD_SEALS:
      if (d->kind != Kind::sealed) return fail(EINVAL);
      d->file->sealed = true;
      return 0;
    case F_GET_SEALS:
      if (d->kind != Kind::sealed) return fail(EINVAL);
      return d->file->sealed ? F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL : 0;
    default:
      give_up("fcntl() with a command that it does not know");
  }
}

static int describe(const Description& d, struct stat* st) {
  std::memset(st, 0, sizeof *st);
  st->st_dev = 1;
  st->st_ino = static_cast<ino_t>(1 + (&d - description_pool));
  switch (d.kind) {
    case Kind::node:
      st->st_mode = d.node->kind | 0700;
      st->st_uid = d.node->uid;
      st->st_size = d.node->size;
      break;
    case Kind::pipe_read:
    case Kind::pipe_write:
      st->st_mode = S_IFIFO | 0600;
      break;
    case Kind::sealed:
      st->st_mode = S_IFREG | 0600;
      st->st_size = static_cast<off_t>(d.file->size);
      st->st_ino = static_cast<ino_t>(10000 + (d.file - file_pool));
      break;
    case Kind::socket:
      st->st_mode = S_IFSOCK | 0600;
      break;
    default:
      st->st_mode = 0600;
  }
  return 0;
}
int __wrap_fstat(int fd, struct stat* st) {
  if (!is_ours(fd)) return __real_fstat(fd, st);
  const Description* d = at(fd);
  return d == nullptr ? fail(EBADF) : describe(*d, st);
}
int __wrap_stat(const char* path, struct stat* st) {
  return g.active ? fail(ENOENT) : __real_stat(path, st);
}

int __wrap_mkdir(const char* path, mode_t mode) {
  if (!g.active) return __real_mkdir(path, mode);
  const std::string_view name = std::string_view(path).substr(std::strlen(kFolder) + 1);
  if (child(&node_pool[0], name) != nullptr) return fail(EEXIST);
  return make_node(&node_pool[0], name, S_IFDIR) == nullptr ? fail(ENOSPC) : 0;
}
int __wrap_mkdirat(int folder, const char* name, mode_t mode) {
  if (!is_ours(folder)) return __real_mkdirat(folder, name, mode);
  const Description* d = at(folder, Kind::node);
  if (d == nullptr || !S_ISDIR(d->node->kind)) return fail(ENOTDIR);
  if (!d->node->linked) return fail(ENOENT);
  if (child(d->node, name) != nullptr) return fail(EEXIST);
  const Node* n = make_node(d->node, name, S_IFDIR);
  if (n == nullptr) return fail(ENOSPC);
  tell(d->node, IN_CREATE, n->name);
  return 0;
}
int __wrap_unlink(const char* path) {
  if (!g.active) return __real_unlink(path);
  std::string_view rest;
  const Description* d = at(fd_of_path(path, "/proc/self/fd/", &rest), Kind::node);
  Node* n = d == nullptr || !rest.starts_with("/") ? nullptr : child(d->node, rest.substr(1));
  if (n == nullptr) return fail(ENOENT);
  if (S_ISDIR(n->kind)) return fail(EISDIR);
  unlink_node(n);
  return 0;
}
int __wrap_unlinkat(int folder, const char* name, int flags) {
  if (!is_ours(folder)) return __real_unlinkat(folder, name, flags);
  const Description* d = at(folder, Kind::node);
  Node* n = d == nullptr ? nullptr : child(d->node, name);
  if (n == nullptr) return fail(ENOENT);
  if (S_ISDIR(n->kind) != (flags == AT_REMOVEDIR)) return fail(flags == 0 ? EISDIR : ENOTDIR);
  for (uint32_t i = 0; S_ISDIR(n->kind) && i < g.nodes; ++i)
    if (node_pool[i].used && node_pool[i].linked && node_pool[i].parent == n)
      return fail(ENOTEMPTY);
  unlink_node(n);
  return 0;
}
int __wrap_renameat(int from, const char* old_name, int to, const char* new_name) {
  if (!is_ours(from)) return __real_renameat(from, old_name, to, new_name);
  const Description* a = at(from, Kind::node);
  const Description* b = at(to, Kind::node);
  Node* n = a == nullptr ? nullptr : child(a->node, old_name);
  if (n == nullptr || b == nullptr || std::strlen(new_name) >= kNameBytes) return fail(ENOENT);
  Node* const there = child(b->node, new_name);
  if (there != nullptr && S_ISDIR(there->kind)) return fail(EISDIR);
  if (there != nullptr) {
    there->linked = false;
    if (there->refs == 0) there->used = false;
  }
  tell(n->parent, IN_MOVED_FROM, n->name);
  n->parent = b->node;
  std::memset(n->name, 0, sizeof n->name);
  std::memcpy(n->name, new_name, std::strlen(new_name));
  tell(n->parent, IN_MOVED_TO, n->name);
  return 0;
}
ssize_t __wrap_readlink(const char* path, char* text, size_t bytes) {
  if (!g.active) return __real_readlink(path, text, bytes);
  std::string_view rest;
  const Description* d = at(fd_of_path(path, "/proc/self/fd/", &rest));
  if (d == nullptr) return fail(ENOENT);
  const std::string_view kind = d->kind == Kind::event ? "anon_inode:[eventfd]" : "something:[1]";
  const size_t n = std::min(bytes, kind.size());
  std::memcpy(text, kind.data(), n);
  return static_cast<ssize_t>(n);
}

static bool is_reader(const DIR* dir) {
  const auto* r = reinterpret_cast<const FolderReader*>(dir);
  return r >= reader_pool && r < reader_pool + kFolderReaders;
}
DIR* __wrap_opendir(const char* path) {
  if (!g.active) return __real_opendir(path);
  errno = ENOENT;
  return nullptr;
}
DIR* __wrap_fdopendir(int fd) {
  if (!is_ours(fd)) return __real_fdopendir(fd);
  for (FolderReader& r : reader_pool) {
    if (r.used) continue;
    r.used = true;
    r.fd = fd;
    r.at = 0;
    return reinterpret_cast<DIR*>(&r);
  }
  errno = ENOMEM;
  return nullptr;
}
dirent* __wrap_readdir(DIR* dir) {
  if (!is_reader(dir)) return __real_readdir(dir);
  auto& r = *reinterpret_cast<FolderReader*>(dir);
  const Description* d = at(r.fd, Kind::node);
  for (; d != nullptr && r.at < g.nodes; ++r.at) {
    const Node& n = node_pool[r.at];
    if (!n.used || !n.linked || n.parent != d->node) continue;
    std::memcpy(r.entry.d_name, n.name, std::strlen(n.name) + 1);
    ++r.at;
    return &r.entry;
  }
  return nullptr;
}
int __wrap_closedir(DIR* dir) {
  if (!is_reader(dir)) return __real_closedir(dir);
  auto& r = *reinterpret_cast<FolderReader*>(dir);
  r.used = false;
  return close_fd(r.fd);
}

int __wrap_inotify_init1(int flags) {
  if (!g.active) return __real_inotify_init1(flags);
  // A driver that starts again in the same input gets another one.
  for (uint32_t i = 0; i < std::size(inotify_pool); ++i) {
    bool used = false;
    for (uint32_t k = 0; k < g.descriptions; ++k)
      used = used || (description_pool[k].kind == Kind::inotify &&
                      description_pool[k].inotify == &inotify_pool[i]);
    if (used) continue;
    Description* d = make(Kind::inotify, flags);
    if (d == nullptr) return fail(ENFILE);
    std::memset(static_cast<void*>(&inotify_pool[i]), 0, sizeof inotify_pool[i]);
    inotify_pool[i].next = 1;
    g.inotifies = std::max(g.inotifies, i + 1);
    d->inotify = &inotify_pool[i];
    return install(d);
  }
  return fail(EMFILE);
}
int __wrap_inotify_add_watch(int fd, const char* path, uint32_t mask) {
  if (!is_ours(fd)) return __real_inotify_add_watch(fd, path, mask);
  Description* d = at(fd, Kind::inotify);
  std::string_view rest;
  const Description* folder = at(fd_of_path(path, "/proc/self/fd/", &rest), Kind::node);
  if (d == nullptr || folder == nullptr || !folder->node->linked) return fail(ENOENT);
  Inotify& all = *d->inotify;
  for (uint32_t w = 0; w < all.watches; ++w)
    if (all.of[w].node == folder->node) return all.of[w].number;
  if (all.watches == kWatches) return fail(ENOSPC);
  all.of[all.watches].node = folder->node;
  all.of[all.watches].number = all.next++;
  return all.of[all.watches++].number;
}
int __wrap_inotify_rm_watch(int fd, int number) {
  if (!is_ours(fd)) return __real_inotify_rm_watch(fd, number);
  Description* d = at(fd, Kind::inotify);
  for (uint32_t w = 0; d != nullptr && w < d->inotify->watches; ++w) {
    if (d->inotify->of[w].number != number) continue;
    d->inotify->of[w] = d->inotify->of[--d->inotify->watches];
    return 0;
  }
  return fail(EINVAL);
}

int __wrap_socket(int domain, int type, int protocol) {
  return g.active ? install(make_socket(domain, type)) : __real_socket(domain, type, protocol);
}
int __wrap_socketpair(int domain, int type, int protocol, int* fds) {
  if (!g.active) return __real_socketpair(domain, type, protocol, fds);
  Description* a = make_socket(domain, type);
  Description* b = make_socket(domain, type);
  if (a == nullptr || b == nullptr) return fail(ENFILE);
  join(a, b);
  a->theirs = b->theirs = credentials();
  return install_both(a, b, fds);
}
int __wrap_bind(int fd, const sockaddr* address, socklen_t bytes) {
  if (!is_ours(fd)) return __real_bind(fd, address, bytes);
  Description* d = at(fd, Kind::socket);
  return d == nullptr ? fail(ENOTSOCK) : bind_socket(*d, address, bytes);
}
int __wrap_listen(int fd, int backlog) {
  if (!is_ours(fd)) return __real_listen(fd, backlog);
  Description* d = at(fd, Kind::socket);
  if (d == nullptr) return fail(ENOTSOCK);
  d->listening = true;
  d->backlog = static_cast<uint32_t>(backlog);
  d->ours = credentials();
  return 0;
}
int __wrap_connect(int fd, const sockaddr* address, socklen_t bytes) {
  if (!is_ours(fd)) return __real_connect(fd, address, bytes);
  Description* d = at(fd, Kind::socket);
  return d == nullptr ? fail(ENOTSOCK) : connect_socket(*d, address, bytes);
}
int __wrap_accept4(int fd, sockaddr* address, socklen_t* bytes, int flags) {
  if (!is_ours(fd)) return __real_accept4(fd, address, bytes, flags);
  Description* d = at(fd, Kind::socket);
  return d == nullptr ? fail(EBADF) : accept_socket(*d, flags);
}
int __wrap_getsockopt(int fd, int level, int name, void* value, socklen_t* bytes) {
  if (!is_ours(fd)) return __real_getsockopt(fd, level, name, value, bytes);
  const Description* d = at(fd);
  return d == nullptr ? fail(EBADF) : get_option(*d, level, name, value, bytes);
}
int __wrap_setsockopt(int fd, int level, int name, const void* value, socklen_t bytes) {
  if (!is_ours(fd)) return __real_setsockopt(fd, level, name, value, bytes);
  Description* d = at(fd, Kind::socket);
  if (d == nullptr) return fail(ENOTSOCK);
  check(value, bytes);
  if (level == SOL_SOCKET && name == SO_SNDBUFFORCE && d->peer != nullptr)
    d->peer->most = kLongQueue;
  return 0;
}

int __wrap_poll(pollfd* fds, nfds_t count, int timeout) {
  if (count == 0 || !is_ours(fds[0].fd)) return __real_poll(fds, count, timeout);
  int ready = 0;
  for (nfds_t i = 0; i < count; ++i) {
    const Description* d = at(fds[i].fd);
    const uint32_t mask = d == nullptr ? EPOLLERR : readiness(*d);
    fds[i].revents =
        static_cast<short>(mask & (static_cast<uint32_t>(fds[i].events) | EPOLLHUP | EPOLLERR));
    ready += fds[i].revents != 0 ? 1 : 0;
  }
  return ready;
}

int __wrap_epoll_create1(int flags) {
  if (!g.active) return __real_epoll_create1(flags);
  for (uint32_t i = 0; i < kEpolls; ++i) {
    bool used = false;
    for (uint32_t k = 0; i < g.epolls && k < g.descriptions; ++k)
      used = used || (description_pool[k].kind == Kind::epoll &&
                      description_pool[k].epoll == &epoll_pool[i]);
    if (used) continue;
    Description* d = make(Kind::epoll, flags);
    if (d == nullptr) return fail(ENFILE);
    d->epoll = &epoll_pool[i];
    d->epoll->count = 0;
    g.epolls = std::max(g.epolls, i + 1);
    return install(d);
  }
  return fail(EMFILE);
}
int __wrap_epoll_ctl(int epfd, int op, int fd, epoll_event* event) {
  if (!is_ours(epfd)) return __real_epoll_ctl(epfd, op, fd, event);
  Description* e = at(epfd, Kind::epoll);
  Description* d = at(fd);
  if (e == nullptr || d == nullptr) return fail(e == nullptr ? EINVAL : EBADF);
  if (d->kind == Kind::node || d->kind == Kind::sealed || d->kind == Kind::device ||
      d->kind == Kind::text)
    return fail(EPERM);
  if (d == e) return fail(EINVAL);
  Epoll& all = *e->epoll;
  uint32_t i = 0;
  while (i < all.count && (all.all[i].fd != fd || all.all[i].what != d)) ++i;
  if (op == EPOLL_CTL_ADD) {
    if (i < all.count) return fail(EEXIST);
    if (all.count == kRegistrations) return fail(ENOSPC);
    all.all[all.count++] = {fd, d, event->events, event->data.u64};
    ++d->in_epolls;
    return 0;
  }
  if (i == all.count) return fail(ENOENT);
  if (op == EPOLL_CTL_MOD) {
    all.all[i].events = event->events;
    all.all[i].data = event->data.u64;
    return 0;
  }
  --d->in_epolls;
  std::memmove(static_cast<void*>(all.all + i), all.all + i + 1,
               (--all.count - i) * sizeof all.all[0]);
  return 0;
}
int __wrap_epoll_wait(int epfd, epoll_event* events, int room, int timeout) {
  if (!is_ours(epfd)) return __real_epoll_wait(epfd, events, room, timeout);
  const Description* e = at(epfd, Kind::epoll);
  if (e == nullptr) return fail(EBADF);
  int n = 0;
  for (uint32_t i = 0; i < e->epoll->count && n < room; ++i) {
    const Registration& r = e->epoll->all[i];
    const uint32_t ready = readiness(*r.what) & (r.events | EPOLLHUP | EPOLLERR);
    if (ready == 0) continue;
    events[n].events = ready;
    events[n++].data.u64 = r.data;
  }
  return n;
}

int __wrap_eventfd(unsigned count, int flags) {
  if (!g.active) return __real_eventfd(count, flags);
  Description* d = make(Kind::event, O_RDWR | flags);
  if (d != nullptr) d->count = count;
  return install(d);
}
int __wrap_timerfd_create(int clock, int flags) {
  return g.active ? install(make(Kind::timer, O_RDWR | flags))
                  : __real_timerfd_create(clock, flags);
}
int __wrap_timerfd_settime(int fd, int flags, const itimerspec* to, itimerspec* old) {
  if (!is_ours(fd)) return __real_timerfd_settime(fd, flags, to, old);
  Description* d = at(fd, Kind::timer);
  if (d == nullptr) return fail(EINVAL);
  const auto ms = [](const timespec& t) { return t.tv_sec * 1000 + t.tv_nsec / 1'000'000; };
  const int64_t first = ms(to->it_value);
  d->due_ms = first == 0 ? 0 : g.now_ms + first;
  d->every_ms = ms(to->it_interval);
  return 0;
}
int __wrap_pipe2(int* fds, int flags) {
  if (!g.active) return __real_pipe2(fds, flags);
  Description* r = make(Kind::pipe_read, O_RDONLY | flags);
  Description* w = make(Kind::pipe_write, O_WRONLY | flags);
  if (r == nullptr || w == nullptr || g.pipes == kDescriptions) return fail(ENFILE);
  r->pipe = w->pipe = g.pipes++;
  readers_of_pipe[r->pipe] = writers_of_pipe[r->pipe] = 1;
  return install_both(r, w, fds);
}

int __wrap_memfd_create(const char* name, unsigned flags) {
  if (!g.active) return __real_memfd_create(name, flags);
  Description* d = make(Kind::sealed, O_RDWR);
  if (d == nullptr || g.files == kFiles) return fail(ENFILE);
  d->file = &file_pool[g.files];
  *d->file = {0, false, sealed_memory + g.files * kFileRoom};
  ++g.files;
  return install(d);
}
int __wrap_ftruncate(int fd, off_t bytes) {
  if (!is_ours(fd)) return __real_ftruncate(fd, bytes);
  Description* d = at(fd, Kind::sealed);
  if (d == nullptr || d->file->sealed) return fail(d == nullptr ? EINVAL : EPERM);
  if (static_cast<uint64_t>(bytes) > kFileRoom) give_up("a file of that size");
  d->file->size = static_cast<uint64_t>(bytes);
  return 0;
}
int __wrap_fallocate(int fd, int mode, off_t from, off_t bytes) {
  if (!is_ours(fd)) return __real_fallocate(fd, mode, from, bytes);
  Description* d = at(fd, Kind::sealed);
  if (d == nullptr) return fail(EBADF);
  clear(*d->file, static_cast<uint64_t>(from), static_cast<uint64_t>(bytes));
  return 0;
}
off_t __wrap_lseek(int fd, off_t from, int whence) {
  if (!is_ours(fd)) return __real_lseek(fd, from, whence);
  const Description* d = at(fd, Kind::sealed);
  return d == nullptr ? fail(EINVAL) : seek_in(*d->file, from, whence == SEEK_DATA);
}
void* __wrap_mmap(void* wish, size_t bytes, int protection, int flags, int fd, off_t from) {
  if (!is_ours(fd)) return __real_mmap(wish, bytes, protection, flags, fd, from);
  const Description* d = at(fd, Kind::sealed);
  if (d == nullptr || static_cast<uint64_t>(from) + bytes > kFileRoom) {
    errno = EACCES;
    return MAP_FAILED;
  }
  return d->file->base + from;
}
int __wrap_munmap(void* at_address, size_t bytes) {
  return is_sealed_memory(at_address) ? 0 : __real_munmap(at_address, bytes);
}
int __wrap_madvise(void* at_address, size_t bytes, int advice) {
  return is_sealed_memory(at_address) ? 0 : __real_madvise(at_address, bytes, advice);
}
int __wrap_munlock(const void* at_address, size_t bytes) {
  return is_sealed_memory(at_address) ? 0 : __real_munlock(at_address, bytes);
}
int __wrap_mprotect(void* at_address, size_t bytes, int protection) {
  return is_sealed_memory(at_address) ? 0 : __real_mprotect(at_address, bytes, protection);
}

long __wrap_syscall(long number, ...) {
  long w[6];
  va_list ap;
  va_start(ap, number);
  for (long& word : w) word = va_arg(ap, long);
  va_end(ap);
  if (g.active && number == SYS_futex) return 0;
  if (g.active && number == SYS_pidfd_open) {
    if (!is_alive(static_cast<uint32_t>(w[0]))) return fail(ESRCH);
    Description* d = make(Kind::process, O_RDWR);
    if (d != nullptr) d->pid = static_cast<uint32_t>(w[0]);
    return install(d);
  }
  if (g.active && number == SYS_pidfd_send_signal) {
    const Description* d = at(static_cast<int>(w[0]), Kind::process);
    if (d == nullptr) return fail(EBADF);
    if (!is_alive(d->pid)) return fail(ESRCH);
    for (uint32_t i = 0; i < kPeers; ++i)
      if (g.peer[i].pid == d->pid && w[1] == SIGKILL) end_peer(i);
    return 0;
  }
  return __real_syscall(number, w[0], w[1], w[2], w[3], w[4], w[5]);
}

int __wrap_clock_gettime(clockid_t clock, timespec* t) {
  // The fuzzer's own watch over an input that takes too long reads the other clock.
  if (!g.active || clock != CLOCK_MONOTONIC) return __real_clock_gettime(clock, t);
  *t = {g.now_ms / 1000, g.now_ms % 1000 * 1'000'000};
  return 0;
}
pid_t __wrap_getpid() {
  return g.active ? static_cast<pid_t>(g.driver.pid) : __real_getpid();
}
pid_t __wrap_getppid() {
  return g.active ? 1 : __real_getppid();
}
pid_t __wrap_gettid() {
  return g.active ? static_cast<pid_t>(g.driver.pid) : __real_gettid();
}
uid_t __wrap_geteuid() {
  return g.active ? 0 : __real_geteuid();
}
ssize_t __wrap_getrandom(void* data, size_t bytes, unsigned flags) {
  if (!g.active) return __real_getrandom(data, bytes, flags);
  std::memset(data, 0x5a, bytes);
  return static_cast<ssize_t>(bytes);
}
// std::chrono::steady_clock::now(), whose answer is one number of nanoseconds.
int64_t __wrap__ZNSt6chrono3_V212steady_clock3nowEv() {
  return g.now_ms * 1'000'000;
}

// What does not go by the C library (src/base/raw_syscall.h).
bool mw_stand_in_syscall(long number, const long* w, long* result) {
  const auto fd = static_cast<int>(w[0]);
  if (!is_ours(fd)) return false;
  switch (number) {
    case SYS_sendmsg:
      *result = send_to(at(fd), *reinterpret_cast<const msghdr*>(w[1]));
      return true;
    case SYS_recvmsg:
      *result = receive_from(at(fd), *reinterpret_cast<msghdr*>(w[1]), static_cast<int>(w[2]));
      return true;
    case SYS_fstat:
      *result = __wrap_fstat(fd, reinterpret_cast<struct stat*>(w[1]));
      return true;
    case SYS_getsockopt:
      *result =
          __wrap_getsockopt(fd, static_cast<int>(w[1]), static_cast<int>(w[2]),
                            reinterpret_cast<void*>(w[3]), reinterpret_cast<socklen_t*>(w[4]));
      return true;
    default:
      return false;
  }
}

}  // extern "C"
