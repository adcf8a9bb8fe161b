#include "shim/process/identity.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <cerrno>

#include "abi/mw_region.h"
#include "shim/process/attachment.h"
#include "shim/process/copies.h"
#include "shim/process/stack.h"

namespace mw::shim {
namespace {

constexpr suseconds_t kIdentityMark = 500000;
constexpr suseconds_t kListenerMark = 600000;
constexpr unsigned kIdentitySlotBits = 18;
static_assert(MW_MAX_SLOTS <= 1u << kIdentitySlotBits);

constinit IdentityHooks hooks{};

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
  if (!is_in_session()) return ordinary;
  Identity id;
  switch (read_identity(fd, id)) {
    case 0:
      break;
    case EBADF:
      return Entry{};
    case ENOTSOCK:
      return hooks.find_other(fd);
    default:
      return ordinary;
  }
  const Entry lost{Kind::lost, id.is_listener ? 1u : 0u, 0};
  if (!attach()) return lost;
  if (id.slot >= stacks.slots()) return ordinary;
  if (!has_slot(id.slot)) return lost;
  note_origin(id.slot, 0);
  if (references(id.slot, static_cast<uint32_t>(id.gen)) == 0) hooks.on_found(id.slot);
  return {Kind::socket, id.slot, static_cast<uint32_t>(id.gen)};
}

}  // namespace

void set_hooks(const IdentityHooks& all) {
  hooks = all;
}

Entry look_up_slowly(int fd) {
  const int saved = errno;
  const Entry found = probe(fd);
  if (found.kind != Kind::unknown) set_entry(fd, found);
  errno = saved;
  return found.kind == Kind::unknown ? Entry{Kind::kernel, 0, 0} : found;
}

void copy_entry(int old, int fresh) {
  const Entry e = look_up(old);
  if (e.kind == Kind::hidden) return;
  set_entry(fresh, e);
}

int identify(int fd, uint32_t slot, uint32_t gen, bool listener) {
  timeval t{};
  t.tv_sec = static_cast<time_t>(static_cast<uint64_t>(gen) << kIdentitySlotBits | slot);
  t.tv_usec = listener ? kListenerMark : kIdentityMark;
  return libc.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t) < 0 ? -errno : 0;
}

bool is_placeholder(int fd) {
  const int saved = errno;
  Identity id;
  const bool is_one = read_identity(fd, id) == 0;
  errno = saved;
  return is_one;
}

int lost_call() {
  const timespec pause{0, 10'000'000};
  ::nanosleep(&pause, nullptr);
  errno = ENETDOWN;
  return -1;
}

}  // namespace mw::shim
