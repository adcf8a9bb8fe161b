#include "shim/socket/session_end.h"

#include <errno.h>
#include <poll.h>

#include "base/clock.h"
#include "base/log.h"
#include "shim/process/attachment.h"
#include "shim/process/descriptors.h"
#include "shim/process/stack.h"
#include "shim/socket/epoll_group.h"
#include "shim/socket/news.h"
#include "shim/socket/socket.h"

namespace mw::shim {

uint32_t session_over = 0;

namespace {

using A = StdAtomics;

constexpr int64_t kLookNs = 1'000'000'000;

uint32_t over_told = 0;   // all sockets of this process have become events
uint32_t life_ended = 0;  // a life pipe has no holder any more
int64_t life_ended_at = 0;

// As for an INS that broke the protocol, but for good.
void end_session() {
  if (A::exchange(session_over, uint32_t{1}) != 0) return;
  for (Stack& stack : stacks) (void)stack.poison();
  log_line("mwshim", "the session's INS, mwcommsd and mw run are gone: its sockets are reset");
}

// Once in each process.
void announce_all() {
  if (A::exchange(over_told, uint32_t{1}) != 0) return;
  for (uint32_t i = 0; i < stacks.slots(); ++i)
    if (references(i) != 0 && has_slot(i)) epoll_add_news(sock_of(i));
  for (const Instance& one : instances)
    if (one.bell >= 0) ring_bell(one.bell);
}

}  // namespace

bool is_deserted() {
  if (is_session_over()) return true;
  if (!process.attached || in_vfork_child()) return false;
  const int saved = errno;
  // Its driver has died, or it did once: a successor has no connection to us.
  pollfd p{attachment.fd, 0, 0};
  const bool lost = libc.poll(&p, 1, 0) > 0 && (p.revents & POLLHUP) != 0;
  // Who may not connect, or cannot reach the address, has the end of a life pipe as the only sign.
  const bool alone = lost && (process.confined || is_abroad() ? A::load_relaxed(life_ended) != 0
                                                              : is_address_free());
  errno = saved;
  return alone;
}

void see_end_of_ins() {
  if (!is_session_over() && is_deserted()) end_session();
}

void note_end_of_life() {
  if (A::exchange(life_ended, uint32_t{1}) == 0) A::store_relaxed(life_ended_at, monotonic_ns());
}

int64_t see_desertion() {
  if (A::load_relaxed(life_ended) == 0) return -1;
  if (!is_deserted()) {
    A::store_relaxed(life_ended, 0u);
    return -1;
  }
  const int64_t since = monotonic_ns() - A::load_relaxed(life_ended_at);
  if (!is_session_over() && since > kLongestLeft) end_session();
  if (is_session_over()) announce_all();
  return kLookNs;
}

}  // namespace mw::shim
