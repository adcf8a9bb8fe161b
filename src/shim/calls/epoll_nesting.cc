#include "shim/calls/epoll_nesting.h"

#include <errno.h>
#include <poll.h>

#include <algorithm>

#include "shim/calls/epoll.h"
#include "shim/socket/epoll_group.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// An epoll instance that stands in another one. If it has a group, its kernel descriptor is
// readable from a ring until somebody has looked; whoever waits on the outer one gets it only if
// there really is an event.
struct Nesting {
  int outer = -1;
  int inner = -1;
  uint32_t events = 0;
  uint64_t data = 0;
  bool operator==(const Nesting&) const = default;
};
constexpr size_t kMaxNestings = 64;
constinit Nesting nestings[kMaxNestings];
uint32_t nesting_count = 0;
constexpr int kDeepest = 5;  // the kernel nests no deeper

// A listener in the kernel's instance. When it is shut down, what the kernel says of its
// placeholder is not what the socket would say.
struct ListenerWatch {
  int epfd = -1;
  int fd = -1;
  uint32_t events = 0;
  uint64_t data = 0;
  uint32_t slot = 0;
  uint32_t gen = 0;
  bool operator==(const ListenerWatch&) const = default;
};
constexpr size_t kMaxListenerWatches = 64;
constinit ListenerWatch listener_watches[kMaxListenerWatches];
uint32_t listener_watch_count = 0;

// A free place of a table, or the one that `is_it` finds.
template <class T, size_t N, class IsIt>
T* place_in(T (&table)[N], IsIt&& is_it) {
  T* free = nullptr;
  for (T& t : table) {
    if (is_it(t)) return &t;
    if (free == nullptr && t == T{}) free = &t;
  }
  return free;
}

template <class T>
void put_in(T* place, const T& value, uint32_t& count) {
  if (place == nullptr) return;
  const bool was = !(*place == T{});
  const bool is = !(value == T{});
  *place = value;
  A::fetch_add(count, static_cast<uint32_t>(int{is} - int{was}));
}

}  // namespace

bool is_nested(uint32_t group) {
  return (A::load_relaxed(process.session.group(group).flags) & kGroupNested) != 0;
}

void mark_nested(uint32_t group) {
  SessionGroup& shared = process.session.group(group);
  if ((A::fetch_or(shared.flags, kGroupNested) & kGroupNested) != 0) return;
  // The INS rings for every piece of news from now on.
  ReadySet news = stack_of_group().group_news(group);
  news.watch(true);
  news.stay_asleep();
  if (epoll_has_events(group)) ring_bell(instances[group].bell);
}

void forget_notes(int epfd) {
  SharedLock lock(instances_lock);
  if (A::load_relaxed(nesting_count) != 0)
    for (Nesting& n : nestings)
      if (n.outer == epfd || n.inner == epfd) put_in(&n, Nesting{}, nesting_count);
  if (A::load_relaxed(listener_watch_count) != 0)
    for (ListenerWatch& w : listener_watches)
      if (w.epfd == epfd) put_in(&w, ListenerWatch{}, listener_watch_count);
}

bool any_nesting() {
  return A::load_relaxed(nesting_count) != 0;
}

void note_nesting(int outer, int op, int inner, const Entry& e, const epoll_event* event) {
  SharedLock lock(instances_lock);
  Nesting* place =
      place_in(nestings, [&](const Nesting& n) { return n.outer == outer && n.inner == inner; });
  put_in(place,
         op == EPOLL_CTL_DEL ? Nesting{} : Nesting{outer, inner, event->events, event->data.u64},
         nesting_count);
  if (op == EPOLL_CTL_ADD && e.slot != 0) mark_nested(e.slot - 1);
}

bool is_inner(int epfd) {
  return std::any_of(nestings, nestings + kMaxNestings,
                     [epfd](const Nesting& n) { return n.inner == epfd; });
}

void note_listener_watch(int epfd, int op, const Sock& s, const epoll_event* event) {
  SharedLock lock(instances_lock);
  ListenerWatch* place = place_in(
      listener_watches, [&](const ListenerWatch& w) { return w.epfd == epfd && w.fd == s.fd; });
  const ListenerWatch none;
  put_in(place,
         op == EPOLL_CTL_DEL
             ? none
             : ListenerWatch{epfd, s.fd, event->events, event->data.u64, s.index, s.gen},
         listener_watch_count);
}

bool kernel_readable(int epfd) {
  pollfd p{epfd, POLLIN, 0};
  return libc.poll(&p, 1, 0) > 0;
}

void refresh_nested(int outer, int depth) {
  if (A::load_relaxed(nesting_count) == 0 || depth == kDeepest) return;
  for (const Nesting& n : nestings) {
    if (n.outer != outer) continue;
    refresh_nested(n.inner, depth + 1);
    const Entry inner = peek(n.inner);
    if (inner.kind != Kind::epoll || inner.slot == 0) continue;
    // An edge that was reported is not to be made again.
    if (epoll_has_events(inner.slot - 1) && (n.events & EPOLLET) == 0 && !kernel_readable(n.inner))
      ring_bell(instances[inner.slot - 1].bell);
  }
}

int corrected(int epfd, epoll_event* events, int n) {
  if (n <= 0) return n;
  if (A::load_relaxed(nesting_count) != 0) {
    const auto idle = [epfd](const epoll_event& e) {
      for (const Nesting& k : nestings)
        if (k.outer == epfd && k.data == e.data.u64)
          return !epoll_is_readable(k.inner, peek(k.inner));
      return false;
    };
    n = static_cast<int>(std::remove_if(events, events + n, idle) - events);
  }
  if (A::load_relaxed(listener_watch_count) == 0) return n;
  const auto silent = [epfd](epoll_event& e) {
    for (const ListenerWatch& w : listener_watches) {
      if (w.epfd != epfd || w.data != e.data.u64) continue;
      const Sock s = sock_of(w.fd, w.slot, w.gen);
      if (is_dead(s) || (A::load_relaxed(s.mine.flags) & kSlotListener) != 0) continue;
      e.events = poll_mask(s) & epoll_reportable(w.events);
      return e.events == 0;
    }
    return false;
  };
  return static_cast<int>(std::remove_if(events, events + n, silent) - events);
}

}  // namespace mw::shim
