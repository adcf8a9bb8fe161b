#include "shim/process.h"

#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cstring>

#include "base/received_fds.h"
#include "shim/epoll.h"
#include "shim/epoll_group.h"
#include "shim/exec.h"
#include "shim/memory.h"
#include "shim/registrations.h"
#include "shim/stdio.h"
#include "shim/stock.h"
#include "shim/taker.h"
#include "transport/local/namespace.h"

extern "C" {
[[gnu::visibility("hidden"), gnu::tls_model("initial-exec")]] thread_local int mw_in_vfork = 0;
[[gnu::visibility("hidden")]] uint32_t mw_descriptor_copies = 1;
[[gnu::visibility("hidden")]] uint32_t mw_copying = 0;  // how many threads are at it
[[gnu::visibility("hidden")]] void mw_set_errno(int error) {
  errno = error;
}
}

namespace mw::shim {

constinit Process process;  // the constructor below runs before any dynamic initialiser would

namespace {

// fd -> Entry in one word: kind (4 bits) | slot (20 bits) | gen (32 bits).
uint64_t* table = nullptr;
uint32_t slots_named = 0;  // by at least one descriptor
// What this process knows of a slot.
struct SlotUse {
  uint64_t gen_and_count;  // of the newest socket there that we saw: gen << 32 | descriptors
  uint32_t origin;         // descriptor_copies() when it came to be; 0: others may have it
};
SlotUse* slot_use = nullptr;
int highest_epoll = -1;

char own_library_name[4096];
char session_env[256];
char uncovered_env[kMaxAllowedBytes + 32] = "MWCOMMS_UNCOVERED=";
char session_name[160];
uint8_t session_token[16];
bool complained = false;
uint32_t attach_lock = 0;
uint32_t limits_raised = 0;  // threads that have raised RLIMIT_NOFILE for a moment

constexpr int kHiddenBase = 1100;  // above what select() can name
// A driver that hangs must not hang the application with it for ever, but its successor is to be waited
// for.
constexpr timeval kDriverPatience{15, 0};
constexpr suseconds_t kIdentityMark = 500000;
constexpr suseconds_t kListenerMark = 600000;
constexpr unsigned kIdentitySlotBits = 18;
static_assert(MW_MAX_SLOTS <= 1u << kIdentitySlotBits);

// One less. It is 0 already in the child of a signal handler's fork, once that returns to what it
// interrupted.
void count_down(uint32_t& count) {
  uint32_t n = StdAtomics::load_relaxed(count);
  while (n != 0 && !std::atomic_ref(count).compare_exchange_weak(n, n - 1)) {
  }
}

uint64_t pack(Entry e) {
  return static_cast<uint64_t>(e.kind) << 60 | static_cast<uint64_t>(e.slot) << 32 | e.gen;
}
Entry unpack(uint64_t w) {
  return {static_cast<Kind>(w >> 60), static_cast<uint32_t>(w >> 32 & 0xfffff),
          static_cast<uint32_t>(w)};
}

void count_reference(const Entry& e, int delta) {
  if (e.kind == Kind::epoll && e.slot != 0) group_count_reference(e.slot - 1, delta);
  if (e.kind != Kind::socket || slot_use == nullptr) return;
  std::atomic_ref word(slot_use[e.slot].gen_and_count);
  uint64_t old = word.load(std::memory_order_relaxed);
  for (;;) {
    const auto gen = static_cast<uint32_t>(old >> 32);
    const bool same = gen == e.gen;
    // A descriptor of an earlier socket there.
    if (!same && (delta < 0 || (gen != 0 && static_cast<int32_t>(e.gen - gen) < 0))) return;
    const uint64_t fresh =
        (same ? old : uint64_t{e.gen} << 32) + static_cast<uint64_t>(int64_t{delta});
    if (!word.compare_exchange_weak(old, fresh, std::memory_order_relaxed)) continue;
    const bool was_named = static_cast<uint32_t>(old) != 0;
    const bool is_named = static_cast<uint32_t>(fresh) != 0;
    if (was_named == is_named) return;
    StdAtomics::fetch_add(slots_named, is_named ? 1u : ~0u);
    if (!is_named) process.channel.rings().trim();
    return;
  }
}

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

// MWCOMMS_SESSION = <abstract name>:<32 hex digits>
bool parse_session(const char* value) {
  const char* colon = strrchr(value, ':');
  if (colon == nullptr || strlen(colon + 1) != 32) return false;
  const auto n = static_cast<size_t>(colon - value);
  if (n == 0 || n >= sizeof session_name) return false;
  memcpy(session_name, value, n);
  for (int i = 0; i < 16; ++i) {
    const int hi = hex_digit(colon[1 + 2 * i]);
    const int lo = hex_digit(colon[2 + 2 * i]);
    if (hi < 0 || lo < 0) return false;
    session_token[i] = static_cast<uint8_t>(hi << 4 | lo);
  }
  // Behind the name's last '-': the network namespace in which it can be reached.
  if (const char* home = strrchr(session_name, '-'); home != nullptr && !strchr(home, '/'))
    process.home = ::strtoull(home + 1, nullptr, 16);
  return true;
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
  const int fd = len != 0 ? libc.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) : -1;
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
Status join(UniqueFd& channel, UniqueFd& session, const mw_geometry& geometry) {
  auto a = check_sealed(channel.get());
  auto b = check_sealed(session.get());
  if (!a || !b) return a ? b.error() : a.error();
  a->fd = hide(channel.release());
  b->fd = hide(session.release());
  Status joined = process.channel.open(*a, geometry);
  if (joined) {
    joined = process.session.open(*b, geometry);
    if (!joined) process.channel.close();
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
  if (process.attach_fd < 0 ||
      libc.syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return -1;
  const AttachRequest request = request_for(AttachType::introduce);
  const int fds[] = {pair[1]};
  const auto sent = send_message(process.attach_fd, bytes_of(request), fds, 0);
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
  process.drop_fd = hide(answer->fds[2].release());
  for (uint32_t i = 0; i < reply.geometry.workers; ++i)
    process.bells[i] = hide(answer->fds[3 + i].release());
  process.attach_fd = fd;
  process.attach_pid = process.pid;
  StdAtomics::fence();
  process.attached = true;
  return true;
}

// What stands in a placeholder.
struct Identity {
  uint32_t slot = 0;
  uint64_t gen = 0;
  bool is_listener = false;
};

// 0: it is one. Else errno; ENOENT: it is another socket.
int read_identity(int fd, Identity& id) {
  timeval t{};
  socklen_t len = sizeof t;
  // The raw call: `fd` may be anything, and this must not recurse into our own getsockopt.
  if (libc.syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &t, &len) < 0) return errno;
  id.slot = static_cast<uint32_t>(t.tv_sec & ((1 << kIdentitySlotBits) - 1));
  id.gen = static_cast<uint64_t>(t.tv_sec) >> kIdentitySlotBits;
  id.is_listener = t.tv_usec == kListenerMark;
  if ((t.tv_usec != kIdentityMark && !id.is_listener) || id.gen == 0 || id.gen > UINT32_MAX)
    return ENOENT;
  int domain = 0;
  len = sizeof domain;
  if (libc.syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 ||
      domain != AF_UNIX)
    return ENOENT;
  return 0;
}

// Asks the kernel object what it is.
Entry probe(int fd) {
  const Entry ordinary{Kind::kernel, 0, 0};
  if (session_name[0] == 0) return ordinary;
  Identity id;
  switch (read_identity(fd, id)) {
    case 0:
      break;
    case EBADF:
      return Entry{};
    case ENOTSOCK:
      return epoll_is_instance(fd) ? epoll_find(fd) : ordinary;
    default:
      return ordinary;
  }
  const Entry lost{Kind::lost, id.is_listener ? 1u : 0u, 0};
  if (!attach()) return lost;
  if (id.slot >= process.channel.geometry().slots) return ordinary;
  if (!has_slot(id.slot)) return lost;
  note_origin(id.slot, 0);
  // Where this program does not know the socket yet, our first thread cannot be waiting for it: it
  // was when it became this program by exec, and has kept its number.
  if (references(id.slot, static_cast<uint32_t>(id.gen)) == 0)
    end_turn_of(process.session.slot(id.slot).taker, process.pid);
  return {Kind::socket, id.slot, static_cast<uint32_t>(id.gen)};
}

// A list that is too long for its place allows nothing.
void keep_uncovered_list() {
  const char* const list = ::getenv("MWCOMMS_UNCOVERED");
  const size_t n = strlen(uncovered_env);
  if (list != nullptr && strlen(list) < sizeof uncovered_env - n) ::strcpy(uncovered_env + n, list);
}

[[gnu::constructor(101)]] void start() {
  resolve_libc_calls();
  process.pid = static_cast<uint32_t>(::getpid());
  for (int& bell : process.bells) bell = -1;
  const size_t table_bytes = kTableSize * sizeof(uint64_t);
  void* memory = ::mmap(nullptr, table_bytes + MW_MAX_SLOTS * sizeof(SlotUse),
                        PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    log_line("mwshim", "no memory for the descriptor table; the program is not protected");
    ::_exit(126);  // never fall back to the host's stack
  }
  slot_use = reinterpret_cast<SlotUse*>(static_cast<char*>(memory) + table_bytes);
  if (const char* s = ::getenv("MWCOMMS_SESSION"); s != nullptr && parse_session(s))
    snprintf(session_env, sizeof session_env, "MWCOMMS_SESSION=%s", s);
  keep_uncovered_list();
  if (const char* p = ::getenv("LD_PRELOAD"))
    if (const PreloadWord own = find_own_library(p); own.length < sizeof own_library_name)
      memcpy(own_library_name, own.text, own.length);
  table = static_cast<uint64_t*>(memory);
  ::pthread_atfork(begin_copying, end_copying, after_fork_in_child);
  adopt_standard_streams();
}

}  // namespace

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
  if (process.home == 0) return false;
  const int saved = errno;
  const uint64_t here = network_namespace_of(socket);
  errno = saved;
  return here != 0 && here != process.home;
}

bool is_abroad() {
  if (process.home == 0) return false;
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
  if (process.attach_pid == process.pid) return true;
  SharedLock lock(attach_lock);
  if (process.attach_pid == process.pid) return true;
  int fd = reach_driver();
  if (fd < 0) return false;
  AttachReply reply{};
  if (!ask_to_attach(fd, reply)) {
    unhide_and_close(fd);
    return false;
  }
  const int old = process.attach_fd;
  process.attach_fd = fd;
  process.attach_pid = process.pid;
  if (old >= 0) unhide_and_close(old);
  return true;
}

Entry peek(int fd) {
  if (fd < 0 || fd >= kTableSize || table == nullptr) return {Kind::kernel, 0, 0};
  return unpack(std::atomic_ref(table[fd]).load(std::memory_order_acquire));
}

Entry look_up(int fd) {
  const Entry e = peek(fd);
  if (e.kind != Kind::unknown && (e.kind != Kind::lost || !process.attached)) [[likely]]
    return e;
  const int saved = errno;
  const Entry found = probe(fd);
  if (found.kind != Kind::unknown) set_entry(fd, found);
  errno = saved;
  return found.kind == Kind::unknown ? Entry{Kind::kernel, 0, 0} : found;
}

void set_entry(int fd, Entry e) {
  if (fd < 0 || fd >= kTableSize || table == nullptr) return;
  if (e.kind == Kind::epoll && fd > StdAtomics::load_relaxed(highest_epoll))
    StdAtomics::store_relaxed(highest_epoll, fd);
  const uint64_t old = std::atomic_ref(table[fd]).exchange(pack(e), std::memory_order_acq_rel);
  count_reference(e, 1);
  count_reference(unpack(old), -1);
}

void copy_entry(int old, int fresh) {
  const Entry e = look_up(old);
  if (e.kind == Kind::hidden) return;
  set_entry(fresh, e);
}

void forget(int fd) {
  const Entry e = peek(fd);
  if (e.kind == Kind::unknown || e.kind == Kind::kernel) return;
  if (e.kind == Kind::socket && references(e.slot, e.gen) == 1) epoll_last_close(fd, e);
  if (e.kind == Kind::epoll) epoll_closed(fd, e);
  set_entry(fd, Entry{});
}

bool take_entry(int fd, const Entry& e) {
  // What another thread still does with the number is between it and the kernel.
  uint64_t old = pack(e);
  if (!std::atomic_ref(table[fd]).compare_exchange_strong(old, pack({Kind::kernel, 0, 0})))
    return false;
  count_reference(e, -1);
  return true;
}

uint32_t references(uint32_t slot, uint32_t gen) {
  const uint64_t use = StdAtomics::load_relaxed(slot_use[slot].gen_and_count);
  return use >> 32 == gen ? static_cast<uint32_t>(use) : 0;
}

uint32_t references(uint32_t slot) {
  return static_cast<uint32_t>(StdAtomics::load_relaxed(slot_use[slot].gen_and_count));
}
uint32_t sockets_in_use() {
  return StdAtomics::load_relaxed(slots_named);
}
bool has_slot(uint32_t slot) {
  const auto both = [slot] {
    return process.channel.has_slot(slot) && process.session.has_slot(slot);
  };
  return both() || (process.channel.rings().drop_unused() && both());
}

int highest_epoll_fd() {
  return StdAtomics::load_relaxed(highest_epoll);
}

uint32_t descriptor_copies() {
  return StdAtomics::load_acquire(mw_descriptor_copies);
}
void note_origin(uint32_t slot, uint32_t then) {
  StdAtomics::store_relaxed(slot_use[slot].origin, then);
}
bool is_nobody_elses(uint32_t slot) {
  return !is_copying() && StdAtomics::load_relaxed(slot_use[slot].origin) == descriptor_copies();
}

void begin_copying() {
  StdAtomics::fetch_add(mw_copying, 1u);
  // A raised limit must not be inherited. A signal handler that forks may have interrupted whoever
  // raised it, so this ends.
  constexpr int kMostWaits = 1000;
  for (int k = 0; k < kMostWaits && StdAtomics::load_seq(limits_raised) != 0; ++k) ::sched_yield();
}
// Counted after the fact: what appeared before it, in any thread, counts as copied.
void end_copying() {
  StdAtomics::fetch_add(mw_descriptor_copies, 1u);
  count_down(mw_copying);
}
bool is_copying() {
  return StdAtomics::load_acquire(mw_copying) != 0;
}

void after_fork_in_child() {
  StdAtomics::fetch_add(mw_descriptor_copies, 1u);
  mw_copying = 0;
  limits_raised = 0;
  process.pid = static_cast<uint32_t>(::getpid());
  cached_tid = 0;
  attach_lock = 0;
  process.locks_memory = false;
  stock_after_fork();
  epoll_after_fork();
}

void note_passed(const msghdr* m) {
  if (!is_buffer(m, sizeof *m) || m->msg_control == nullptr || m->msg_controllen == 0 ||
      !is_buffer(m->msg_control, m->msg_controllen))
    return;
  each_passed_fd(*m, [](int fd) {
    const Entry e = look_up(fd);
    if (e.kind == Kind::socket) note_origin(e.slot, 0);
    if (e.kind == Kind::epoll) epoll_leaves(fd, e);
  });
}

static Result<ReceivedMessage> exchange(int connection, const AttachRequest& request,
                                        std::span<const int> fds, AttachReply& reply) {
  if (auto sent = send_message(connection, bytes_of(request), fds, 0); !sent) return sent.error();
  auto answer = receive_message(connection, writable_bytes_of(reply), 0);
  if (!answer) return answer.error();
  if (answer->bytes != sizeof reply || reply.type != request.type)
    return Error{Fault::peer, 0, "answer of the driver"};
  if (reply.status != 0) return Error{Fault::sys, static_cast<int>(reply.status), "driver"};
  return answer;
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

int hide(int fd) {
  if (fd < 0) return -1;
  int high = beyond_limit([fd] { return libc.fcntl(fd, F_DUPFD_CLOEXEC, kHiddenBase); });
  if (high < 0) high = libc.fcntl(fd, F_DUPFD_CLOEXEC, 64);  // a small hard limit
  if (high < 0) {
    // No room at all out of the way: it stays where it is.
    set_entry(fd, {Kind::hidden, 0, 0});
    return fd;
  }
  libc.close(fd);
  set_entry(high, {Kind::hidden, 0, 0});
  return high;
}

int hidden_copy(int fd) {
  const int high = beyond_limit([fd] { return libc.fcntl(fd, F_DUPFD_CLOEXEC, kHiddenBase); },
                                FileLimit::Raise::unless_copying);
  if (high >= 0) set_entry(high, {Kind::hidden, 0, 0});
  return high;
}

void unhide_and_close(int fd) {
  set_entry(fd, Entry{});
  libc.close(fd);
}

FileLimit::FileLimit(Raise raise) {
  // Either whoever begins to copy sees this, or we see that he has begun.
  StdAtomics::fetch_add(limits_raised, 1u);
  if (raise == Raise::unless_copying && StdAtomics::load_seq(mw_copying) != 0) return;
  const int saved = errno;
  if (::getrlimit(RLIMIT_NOFILE, &was_) == 0 && was_.rlim_cur < was_.rlim_max) {
    const rlimit most{was_.rlim_max, was_.rlim_max};
    raised_ = ::setrlimit(RLIMIT_NOFILE, &most) == 0;
  }
  errno = saved;
}

FileLimit::~FileLimit() {
  const int saved = errno;
  if (raised_) ::setrlimit(RLIMIT_NOFILE, &was_);
  count_down(limits_raised);
  errno = saved;
}

bool in_vfork_child() {
  return mw_in_vfork != 0;
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

int identify(int fd, uint32_t slot, uint32_t gen, bool listener) {
  // The send timeout of the placeholder means nothing to us, as nobody sends on it; it is 64 bits
  // that live and travel with the kernel object, and only its holders can change them.
  timeval t{};
  t.tv_sec = static_cast<time_t>(static_cast<uint64_t>(gen) << kIdentitySlotBits | slot);
  t.tv_usec = listener ? kListenerMark : kIdentityMark;
  return libc.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t) < 0 ? -errno : 0;
}

int lost_call() {
  const timespec pause{0, 10'000'000};
  ::nanosleep(&pause, nullptr);
  errno = ENETDOWN;
  return -1;
}

void become_confined() {
  if (process.attached && !process.confined) {
    process.channel.map_all();
    process.session.map_all();
    map_registrations();
  }
  process.confined = true;
}

const char* own_library() {
  return own_library_name[0] != 0 ? own_library_name : nullptr;
}
const char* session_setting() {
  return session_env[0] != 0 ? session_env : nullptr;
}
const char* uncovered_setting() {
  return uncovered_env;
}
bool is_placeholder(int fd) {
  const int saved = errno;
  Identity id;
  const bool is_one = read_identity(fd, id) == 0;
  errno = saved;
  return is_one;
}

void poison(const char* where) {
  if (is_poisoned()) return;
  const int saved = errno;
  const uint32_t epoch = StdAtomics::load_acquire(process.session.header().epoch);
  process.poisoned_epoch = epoch;
  process.poisoned = true;
  log_line("mwshim", "the network stack broke the channel protocol (%s): all its sockets are reset",
           where);
  // Over a connection of its own: ours may be a forked parent's, or that of a driver which died.
  if (const int fd = reach_driver(); fd >= 0) {
    AttachRequest report = request_for(AttachType::violation);
    report.epoch = epoch;
    (void)send_message(fd, bytes_of(report), {}, MSG_DONTWAIT);
    unhide_and_close(fd);
  }
  errno = saved;
}

bool still_poisoned() {
  if (StdAtomics::load_acquire(process.session.header().epoch) == process.poisoned_epoch)
    return true;
  process.poisoned = false;
  return false;
}

void ring_bell(int fd) {
  const int saved = errno;
  const uint64_t one = 1;
  libc.syscall(SYS_write, fd, &one, sizeof one);
  errno = saved;
}

long raw_futex(uint32_t* word, int op, uint32_t value, const timespec* timeout) {
  return libc.syscall(SYS_futex, word, op, value, timeout, nullptr, 0);
}

bool is_thread_gone(uint32_t tid) {
  return libc.syscall(SYS_tkill, tid, 0) < 0 && errno == ESRCH;
}

void free_left_lock(uint32_t& word, uint32_t& lost) {
  constexpr int kMostYields = 16;
  uint32_t owner = 0;
  for (int k = 0; (owner = StdAtomics::load_acquire(word)) != 0 && k < kMostYields; ++k)
    ::sched_yield();
  if (owner == 0) return;
  if (!is_thread_gone(owner & ~kWaiters)) StdAtomics::exchange(lost, 1u);
  StdAtomics::exchange(word, 0u);
}

void SharedLock::lock_slow(uint32_t me) {
  const int saved = errno;
  constexpr timespec kPatience{0, kPatienceNs};
  std::atomic_ref word(word_);
  for (;;) {
    uint32_t seen = word.load(std::memory_order_relaxed);
    if (seen == 0) {
      // With kWaiters, as others may sleep: at worst one wake too many.
      if (word.compare_exchange_weak(seen, me | kWaiters, std::memory_order_acquire)) break;
      continue;
    }
    if ((seen & kWaiters) == 0 &&
        !word.compare_exchange_weak(seen, seen | kWaiters, std::memory_order_relaxed))
      continue;
    seen |= kWaiters;
    if (raw_futex(&word_, FUTEX_WAIT, seen, &kPatience) < 0 && errno == ETIMEDOUT &&
        is_thread_gone(seen & ~kWaiters) &&
        word.compare_exchange_strong(seen, me | kWaiters, std::memory_order_acquire))
      break;  // its owner died holding it
  }
  errno = saved;
}

}  // namespace mw::shim
