#include "shim/epoll.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>

#include "shim/epoll_group.h"
#include "shim/epoll_nesting.h"
#include "shim/memory.h"
#include "shim/settle.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// A socket that this process has closed while others may have it, and that is registered in an
// instance which we use. `set` holds its placeholder; see epoll.h.
struct Witness {
  uint32_t slot = 0;
  uint32_t gen = 0;
  int set = -1;
};
constexpr size_t kMaxWitnesses = 256;
constinit Witness witnesses[kMaxWitnesses];
uint32_t witness_count = 0;
uint32_t witnesses_lock = 0;

// A registration of an instance that is closed by now counts as none.
bool is_live(const SessionWatch& w) {
  return w.group != 0 && w.group <= process.channel.geometry().groups &&
         A::load_relaxed(process.session.group(w.group - 1).serial) == w.serial;
}
bool is_of(const SessionWatch& w, uint32_t group) {
  return w.group == group + 1 && is_live(w);
}

SessionWatches watches_of(const Sock& s) {
  return process.session.watches(s.index);
}

void publish_watches(const Sock& s) {
  constexpr uint32_t kWords = MW_MAX_WATCHES / MW_WATCHES_IN_WORD;
  uint64_t packed[kWords] = {};
  uint32_t i = 0;
  for (const SessionWatch& w : watches_of(s)) {
    const uint32_t shift = 16 * (i % MW_WATCHES_IN_WORD);
    if (is_live(w)) packed[i / MW_WATCHES_IN_WORD] |= uint64_t{w.group & 0xffff} << shift;
    ++i;
  }
  for (uint32_t word = 0; word < kWords; ++word)
    if (A::load_relaxed(s.slot.watches[word]) != packed[word])
      A::exchange(s.slot.watches[word], packed[word]);
  A::fence();  // pairs with the INS's fence between publication and its look at watches
}

// Room for one more registration, or null.
SessionWatch* free_watch(const Sock& s) {
  const SessionWatches all = watches_of(s);
  uint32_t i = 0;
  while (i < all.size() && is_live(all[i])) ++i;
  if (i == MW_MAX_WATCHES) return nullptr;
  if (i == all.size()) A::store_relaxed(s.mine.watch_end, static_cast<uint16_t>(i + 1));
  return &all[i];
}

void add_news(uint32_t group, uint32_t slot) {
  if (process.channel.group_news(group).add(slot) && instances[group].bell >= 0)
    ring_bell(instances[group].bell);
}

// The events of one registration now; asks the INS for an OUT event where one is wanted and
// missing.
uint32_t events_of(const Sock& s, uint32_t wanted) {
  wanted = epoll_reportable(wanted);
  uint32_t mask = poll_mask(s);
  if ((wanted & EPOLLOUT) != 0 && (mask & EPOLLOUT) == 0) {
    A::fetch_or(s.slot.want, MW_WANT_OUT_EVENT);
    A::fence();
    mask = poll_mask(s);
  }
  return mask & wanted;
}

SessionWatch* find_watch(const Sock& s, uint32_t group, int fd) {
  for (SessionWatch& w : watches_of(s))
    if (is_of(w, group) && w.fd == fd) return &w;
  return nullptr;
}

int watch_ctl(const Sock& s, uint32_t group, int op, int fd, const epoll_event* event) {
  {
    SharedLock lock(s.mine.watch_lock);
    SessionWatch* w = find_watch(s, group, fd);
    if (op == EPOLL_CTL_ADD) {
      if (w != nullptr) return -EEXIST;
      w = free_watch(s);
      if (w == nullptr) return -ENOSPC;
    } else if (w == nullptr) {
      return -ENOENT;
    }
    if (op == EPOLL_CTL_DEL) {
      *w = SessionWatch{};
      publish_watches(s);
      return 0;
    }
    if (op == EPOLL_CTL_MOD && (w->events & EPOLLEXCLUSIVE) != 0) return -EINVAL;
    *w = {group + 1, fd, event->events, 0, instances[group].serial, event->data.u64};
    publish_watches(s);
  }
  // Registered first, then asked: what becomes ready in between is announced by the INS.
  if (events_of(s, event->events) != 0) add_news(group, s.index);
  return 0;
}

// Under witnesses_lock: false if the socket of a witness is gone; the witness is dismissed then.
bool is_there(Witness& w) {
  epoll_event e{};
  const int saved = errno;
  const int n = libc.epoll_wait(w.set, &e, 1, 0);
  errno = saved;
  if (n != 0) return true;
  unhide_and_close(w.set);
  w = Witness{};
  --witness_count;
  return false;
}

// Keeps a witness of a socket that is about to be closed here. False: there is no room for one.
bool leave_witness(int fd, uint32_t slot, uint32_t gen) {
  SharedLock lock(witnesses_lock);
  Witness* place = nullptr;
  for (int round = 0; round < 2 && place == nullptr; ++round)
    for (Witness& w : witnesses) {
      if (round == 1 && w.set >= 0) (void)is_there(w);
      if (w.set >= 0 && w.slot == slot && w.gen == gen) return true;
      if (w.set < 0) place = &w;
    }
  if (place == nullptr) return false;
  const int set = hide(libc.epoll_create1(EPOLL_CLOEXEC));
  if (set < 0) return false;
  epoll_event writable{EPOLLOUT, {}};
  if (libc.epoll_ctl(set, EPOLL_CTL_ADD, fd, &writable) < 0) {
    unhide_and_close(set);
    return false;
  }
  *place = {slot, gen, set};
  ++witness_count;
  return true;
}

// Whether anybody still has the socket of a registration.
bool is_open(const Sock& s) {
  if (references(s.index, s.gen) != 0) return true;
  if (!is_dead(s)) {
    // Its slot was given back, or serves another one by now.
    if ((A::load_acquire(s.slot.state) & MW_ST_OPEN) == 0) return false;
    if (A::load_acquire(s.slot.gen) != s.gen) return false;
  }
  if (A::load_relaxed(witness_count) == 0) return true;
  SharedLock lock(witnesses_lock);
  for (Witness& w : witnesses)
    if (w.set >= 0 && w.slot == s.index && w.gen == s.gen) return is_there(w);
  return true;
}

void remove_watches(const Sock& s) {
  for (SessionWatch& w : watches_of(s)) w = SessionWatch{};
  publish_watches(s);
  A::store_relaxed(s.mine.watch_end, uint16_t{0});
}

// Calls visit(watch, events) for each registration in the group of the socket at `index` that has
// something to report, until it returns false.
template <class Visit>
void each_ready(uint32_t group, uint32_t index, Visit&& visit) {
  SessionSlot& mine = process.session.slot(index);
  const Sock s{-1, index, A::load_relaxed(mine.gen), process.channel.slot(index), mine};
  SharedLock lock(mine.watch_lock);
  for (SessionWatch& w : watches_of(s)) {
    if (!is_of(w, group) || (w.state & kWatchFired) != 0) continue;
    const uint32_t events = events_of(s, w.events);
    if (events == 0) continue;
    if (!is_open(s)) return remove_watches(s);
    if (!visit(w, events)) return;
  }
}

// Takes the group's news and turns them into events.
int harvest(uint32_t group, epoll_event* out, int max) {
  int n = 0;
  ReadySet news = process.channel.group_news(group);
  if (is_nested(group)) news.clear_rung();
  news.drain([&](uint32_t index) {
    if (n >= max) return false;
    bool again = false;
    each_ready(group, index, [&](SessionWatch& w, uint32_t events) {
      if (n >= max) {
        again = true;
        return false;
      }
      out[n].events = events;
      out[n].data.u64 = w.data;
      ++n;
      if ((w.events & EPOLLONESHOT) != 0)
        w.state |= kWatchFired;
      else if ((w.events & EPOLLET) == 0)
        again = true;  // level-triggered: look again next time
      return true;
    });
    if (again) news.put_back(index);
    return true;
  });
  return n;
}

// What one thread has left is for the next sleeper.
void pass_on(uint32_t group) {
  ReadySet news = process.channel.group_news(group);
  if (!news.empty() && news.need_ring()) ring_bell(instances[group].bell);
}

// Removes the bell from events that the kernel reported.
int without_bell(epoll_event* events, int n) {
  return static_cast<int>(
      std::remove_if(events, events + std::max(n, 0),
                     [](const epoll_event& e) { return is_bell_data(e.data.u64); }) -
      events);
}

int kernel_wait(int epfd, epoll_event* out, int max, int64_t timeout_ns, const sigset_t* mask) {
  int n = 0;
  if (timeout_ns > 0 && timeout_ns % 1'000'000 != 0 && libc.epoll_pwait2 != nullptr) {
    const timespec t{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    n = libc.epoll_pwait2(epfd, out, max, &t, mask);
  } else {
    const int64_t ms = timeout_ns < 0 ? -1 : timeout_ns / 1'000'000;
    n = libc.epoll_pwait(epfd, out, max, static_cast<int>(std::min<int64_t>(ms, INT32_MAX)), mask);
  }
  return n < 0 ? -errno : n;
}

}  // namespace

bool epoll_has_events(uint32_t group) {
  bool any = false;
  ReadySet news = process.channel.group_news(group);
  if (is_nested(group)) news.clear_rung();
  news.drain([&](uint32_t index) {
    each_ready(group, index, [&](SessionWatch&, uint32_t) {
      any = true;
      news.put_back(index);
      return false;
    });
    return true;
  });
  if (!any && instances[group].bell >= 0) {
    // So that the kernel's instance is not readable for a ring that was answered.
    uint64_t rings = 0;
    const int saved = errno;
    libc.syscall(SYS_read, instances[group].bell, &rings, sizeof rings);
    errno = saved;
  }
  return any;
}

int shim_epoll_ctl(int epfd, int op, int fd, epoll_event* event) {
  const Entry e = look_up(fd);
  if (e.kind == Kind::hidden || is_hidden(epfd)) return -EBADF;
  if (e.kind != Kind::socket) {
    const int rc = libc.epoll_ctl(epfd, op, fd, event);
    if (rc < 0) return -errno;
    if (e.kind == Kind::epoll) note_nesting(epfd, op, fd, e, event);
    return rc;
  }
  const Sock s = sock_of(fd, e);
  if (op != EPOLL_CTL_DEL && !is_buffer(event, sizeof *event)) return -EFAULT;
  if ((A::load_relaxed(s.mine.flags) & kSlotListener) != 0) {
    epoll_event changed{};
    if (op != EPOLL_CTL_DEL) {
      changed = *event;
      // Its placeholder is always writable; a listener never is.
      changed.events &= ~static_cast<uint32_t>(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);
    }
    if (libc.epoll_ctl(epfd, op, fd, &changed) < 0) return -errno;
    note_listener_watch(epfd, op, s, event);
    return 0;
  }
  if (op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD && op != EPOLL_CTL_DEL) return -EINVAL;
  if (epfd == fd) return -EINVAL;
  const Entry known = instance_of(epfd);
  if (known.kind != Kind::epoll) {
    // Not known as one: let the kernel say what is wrong with it, if anything is.
    epoll_event none{};
    if (libc.epoll_ctl(epfd, EPOLL_CTL_DEL, fd, &none) < 0 && errno != ENOENT) return -errno;
  }
  constexpr uint32_t kWithExclusive =
      EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
  if (op != EPOLL_CTL_DEL && (event->events & EPOLLEXCLUSIVE) != 0 &&
      (op == EPOLL_CTL_MOD || (event->events & ~kWithExclusive) != 0))
    return -EINVAL;
  if (op != EPOLL_CTL_ADD && (known.kind != Kind::epoll || known.slot == 0)) return -ENOENT;
  const int group = group_of(epfd);
  if (group < 0) return group;
  if (any_nesting() && is_inner(epfd)) mark_nested(static_cast<uint32_t>(group));
  instances[group].used_here = true;
  return watch_ctl(s, static_cast<uint32_t>(group), op, fd, event);
}

int shim_epoll_wait(int epfd, epoll_event* out, int max, int64_t timeout_ns, const sigset_t* mask) {
  constexpr int kLook = 256;  // the place for that many events is looked at
  const int64_t deadline = timeout_ns > 0 ? monotonic_ns() + timeout_ns : 0;
  release_held();
  settle();
  for (;;) {
    const Entry e = instance_of(epfd);
    const bool ours = e.kind == Kind::epoll && e.slot != 0 && max > 0;
    const bool bad = ours && !is_room(out, sizeof *out * static_cast<size_t>(std::min(max, kLook)));
    if (bad && epoll_has_events(e.slot - 1)) return -EFAULT;
    if (!ours || bad) {
      // No protected socket in it, so far: the bell of a group that is made while we sleep ends
      // this wait.
      refresh_nested(epfd);
      int64_t left = timeout_ns;
      if (deadline != 0) left = std::max<int64_t>(0, deadline - monotonic_ns());
      const int n = kernel_wait(epfd, out, max, left, mask);
      if (n <= 0) return n;
      const int kept = corrected(epfd, out, without_bell(out, n));
      if (kept > 0 || left == 0) return kept;
      continue;
    }
    const uint32_t group = e.slot - 1;
    instances[group].used_here = true;
    refresh_nested(epfd);
    int n = harvest(group, out, max);
    if (n > 0 || timeout_ns == 0) {
      if (n < max) {
        const int more = kernel_wait(epfd, out + n, max - n, 0, mask);
        if (more < 0 && n == 0) return more;
        n += corrected(epfd, out + n, without_bell(out + n, more));
      }
      pass_on(group);
      return n;
    }
    int64_t left = timeout_ns;
    if (deadline != 0) left = std::max<int64_t>(0, deadline - monotonic_ns());
    if (!epoll_prepare_sleep(group)) continue;
    const int k = kernel_wait(epfd, out, max, left, mask);
    epoll_wake(group);
    if (k < 0) return k;
    n = corrected(epfd, out, without_bell(out, k));
    n += harvest(group, out + n, max - n);
    if (n > 0 || left == 0) {
      pass_on(group);
      return n;
    }
    if (k == 0 && deadline != 0 && monotonic_ns() >= deadline) return 0;
  }
}

bool epoll_is_readable(int epfd, const Entry& e) {
  if (e.slot != 0 && epoll_has_events(e.slot - 1)) return true;
  refresh_nested(epfd);
  return kernel_readable(epfd);  // ordinary descriptors in it, and other instances
}

bool epoll_is_ours(const Entry& e) {
  return e.kind == Kind::epoll && (e.slot != 0 || any_nesting());
}

bool epoll_prepare_sleep(uint32_t group) {
  return process.channel.group_news(group).prepare_sleep();
}
void epoll_wake(uint32_t group) {
  process.channel.group_news(group).wake();
}

void epoll_add_news(const Sock& s) {
  SharedLock lock(s.mine.watch_lock);
  for (const SessionWatch& w : watches_of(s))
    if (is_live(w)) add_news(w.group - 1, s.index);
}

void epoll_last_close(int fd, const Entry& e) {
  const Sock s = sock_of(fd, e);
  if (A::load_relaxed(s.mine.gen) != e.gen) return;
  SharedLock lock(s.mine.watch_lock);
  bool any = false;
  bool used_here = false;
  for (const SessionWatch& w : watches_of(s)) {
    if (!is_live(w)) continue;
    any = true;
    used_here |= instances[w.group - 1].used_here;
  }
  if (!any) return;
  if (!is_nobody_elses(s.index) && (!used_here || leave_witness(fd, s.index, s.gen))) return;
  remove_watches(s);
}

void epoll_closed(int epfd, const Entry& e) {
  forget_notes(epfd);
  if (e.slot != 0) group_closed(e.slot - 1);
}

void epoll_socket_became_listener(const Sock& s) {
  SharedLock lock(s.mine.watch_lock);
  bool changed = false;
  for (SessionWatch& w : watches_of(s)) {
    if (!is_live(w) || instances[w.group - 1].epfd < 0) continue;
    epoll_event e{w.events & ~static_cast<uint32_t>(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND),
                  {.u64 = w.data}};
    const int epfd = instances[w.group - 1].epfd;
    if (libc.epoll_ctl(epfd, EPOLL_CTL_ADD, w.fd, &e) == 0) {
      const Sock registered{w.fd, s.index, s.gen, s.slot, s.mine};
      e.events = w.events;
      note_listener_watch(epfd, EPOLL_CTL_ADD, registered, &e);
    }
    w = SessionWatch{};
    changed = true;
  }
  if (changed) publish_watches(s);
}

void epoll_after_fork() {
  instances_lock = 0;
  witnesses_lock = 0;
  for (Instance& i : instances) i.used_here = false;
}

}  // namespace mw::shim
