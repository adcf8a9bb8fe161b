#include "shim/session_end.h"

#include <errno.h>
#include <poll.h>

#include "base/clock.h"
#include "base/log.h"
#include "shim/epoll.h"
#include "shim/epoll_group.h"
#include "shim/process.h"
#include "shim/socket.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

constexpr int64_t kLookNs = 1'000'000'000;

// As for an INS that broke the protocol, but for good.
void end_session() {
  if (A::exchange(process.over, uint32_t{1}) != 0) return;
  process.poisoned_epoch = A::load_acquire(process.session.header().epoch);
  process.poisoned = true;
  log_line("mwshim", "the session's INS, mwcommsd and mw run are gone: its sockets are reset");
}

// Once in each process.
void announce_all() {
  if (A::exchange(process.over_told, uint32_t{1}) != 0) return;
  for (uint32_t i = 0; i < process.channel.geometry().slots; ++i) {
    if (references(i) == 0 || !has_slot(i)) continue;
    SessionSlot& mine = process.session.slot(i);
    epoll_add_news(sock_of(-1, {Kind::socket, i, A::load_relaxed(mine.gen)}));
  }
  for (const Instance& one : instances)
    if (one.bell >= 0) ring_bell(one.bell);
}

}  // namespace

bool is_deserted() {
  if (process.over != 0) return true;
  if (!process.attached || in_vfork_child()) return false;
  const int saved = errno;
  // Its driver has died, or it did once: a successor has no connection to us.
  pollfd p{process.attach_fd, 0, 0};
  const bool lost = libc.poll(&p, 1, 0) > 0 && (p.revents & POLLHUP) != 0;
  // Who may not connect, or cannot reach the address, has the end of a life pipe as the only sign.
  const bool alone =
      lost && (process.confined || is_abroad() ? A::load_relaxed(process.life_ended) != 0
                                               : is_address_free());
  errno = saved;
  return alone;
}

void see_end_of_ins() {
  if (process.over == 0 && is_deserted()) end_session();
}

void note_end_of_life() {
  if (A::exchange(process.life_ended, uint32_t{1}) == 0)
    A::store_relaxed(process.life_ended_at, monotonic_ns());
}

int64_t see_desertion() {
  if (A::load_relaxed(process.life_ended) == 0) return -1;
  if (!is_deserted()) {
    A::store_relaxed(process.life_ended, 0u);
    return -1;
  }
  const int64_t since = monotonic_ns() - A::load_relaxed(process.life_ended_at);
  if (process.over == 0 && since > kLongestLeft) end_session();
  if (process.over != 0) announce_all();
  return kLookNs;
}

}  // namespace mw::shim
