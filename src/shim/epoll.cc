#include "shim/epoll.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "transport/local/control.h"
#include "transport/local/fd_message.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// What this process knows of a group.
struct Instance {
  int epfd = -1;  // the descriptor through which the group was made
  int bell = -1;
  int life = -1;  // read end of the life pipe: the driver sees when the last process has closed it
  uint32_t references = 0;
  bool used_here = false;  // false after fork until the child uses the instance itself
  bool kept = false;       // shown to the driver: the group lasts as long as the instance
  uint16_t serial = 0;  // tells the group's present instance from earlier ones of the same number
};
constinit Instance instances[MW_MAX_GROUPS];
uint32_t instances_lock = 0;

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

constexpr uint32_t kAlways = EPOLLERR | EPOLLHUP;
constexpr uint32_t kEventBits = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDNORM |
                                EPOLLRDBAND | EPOLLWRNORM | EPOLLWRBAND | EPOLLMSG | EPOLLRDHUP;

// A registration of an instance that is closed by now counts as none.
bool is_live(const SessionWatch& w) {
  return w.group != 0 && w.group <= process.channel.geometry().groups &&
         A::load_relaxed(process.session.group(w.group - 1).serial) == w.serial;
}
bool is_of(const SessionWatch& w, uint32_t group) {
  return w.group == group + 1 && is_live(w);
}

bool group_in_range(uint32_t group) {
  return group < process.channel.geometry().groups;
}

// Asks the driver about descriptors. Returns the group or -errno.
int ask_about(AttachType what, std::span<const int> fds, ReceivedMessage* got = nullptr) {
  if (!attach_as_this_process()) return -ENETDOWN;
  AttachReply reply{};
  auto answer = ask_driver(process.attach_fd, what, fds, reply);
  if (!answer) return answer.error().fault == Fault::sys ? -answer.error().err : -ENETDOWN;
  if (!group_in_range(reply.group)) return -ENETDOWN;
  if (got != nullptr) *got = std::move(*answer);
  return static_cast<int>(reply.group);
}

// The entry of an instance without a group remembers, 16 bits each, since when this process alone
// has it (0: it does not) and how many groups the session had made when it was asked about last.
Entry groupless(uint32_t since, uint32_t groups_made) {
  const uint32_t kept = since < 0xffff ? since : 0;
  return {Kind::epoll, 0, kept << 16 | (groups_made & 0xffff)};
}
uint32_t groups_made() {
  return process.attached ? A::load_acquire(process.session.header().groups_made) : 0;
}

// What an instance is now: another process that has it may have made its group.
Entry instance_of(int epfd) {
  const Entry e = look_up(epfd);
  if (e.kind != Kind::epoll || e.slot != 0 || !process.attached) return e;
  if (e.gen >> 16 == descriptor_copies() || (e.gen & 0xffff) == (groups_made() & 0xffff)) return e;
  const Entry found = epoll_find(epfd);
  if (found.kind != Kind::epoll) return e;
  set_entry(epfd, found);
  return found;
}

bool is_inner(int epfd);
void mark_nested(uint32_t group);

// The group of an epoll instance, made on its first protected socket. Returns its number or -errno.
int group_of(int epfd) {
  Entry e = instance_of(epfd);
  if (e.kind == Kind::epoll && e.slot != 0) return static_cast<int>(e.slot - 1);
  SharedLock lock(instances_lock);
  e = instance_of(epfd);
  if (e.kind == Kind::epoll && e.slot != 0) return static_cast<int>(e.slot - 1);
  int bell = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int life[2] = {-1, -1};
  if (bell < 0 || ::pipe2(life, O_CLOEXEC) < 0) {
    const int err = errno;
    if (bell >= 0) libc.close(bell);
    return -err;
  }
  bell = hide(bell);
  life[0] = hide(life[0]);
  const int fds[] = {bell, life[1]};
  int group = ask_about(AttachType::group_open, fds);
  libc.close(life[1]);
  uint16_t serial = 0;
  if (group >= 0) {
    SessionGroup& shared = process.session.group(static_cast<uint32_t>(group));
    A::store_relaxed(shared.flags, uint16_t{0});
    serial = static_cast<uint16_t>(A::fetch_add(shared.serial, uint16_t{1}) + 1);
    epoll_event on_bell{EPOLLIN | EPOLLET,
                        {.u64 = bell_data(static_cast<uint32_t>(group), serial)}};
    if (libc.epoll_ctl(epfd, EPOLL_CTL_ADD, bell, &on_bell) < 0) group = -errno;
  }
  if (group < 0) {
    unhide_and_close(bell);
    unhide_and_close(life[0]);
    return group;
  }
  instances[group] = {epfd, bell, life[0], 0, true, false, serial};
  set_entry(epfd, {Kind::epoll, static_cast<uint32_t>(group) + 1, 0});
  A::fetch_add(process.session.header().groups_made, 1u);
  // Whoever sleeps in the instance, in any process, looks again and finds the group. The ring with
  // which the INS greets a new group may have come before the count could tell.
  ring_bell(bell);
  if (is_inner(epfd)) mark_nested(static_cast<uint32_t>(group));
  return group;
}

void keep_group(int epfd, uint32_t group) {
  if (instances[group].kept) return;
  SharedLock lock(instances_lock);
  const int fds[] = {epfd};
  instances[group].kept = ask_about(AttachType::group_keep, fds) >= 0;
}

void publish_watches(const Sock& s) {
  uint64_t packed = 0;
  for (unsigned i = 0; i < MW_MAX_WATCHES; ++i)
    if (is_live(s.mine.watches[i]))
      packed |= static_cast<uint64_t>(s.mine.watches[i].group & 0xffff) << (16 * i);
  A::exchange(s.slot.watches, packed);
}

void add_news(uint32_t group, uint32_t slot) {
  if (process.channel.group_news(group).add(slot) && instances[group].bell >= 0)
    ring_bell(instances[group].bell);
}

// The events of one registration now; asks the INS for an OUT event where one is wanted and
// missing.
uint32_t events_of(const Sock& s, uint32_t wanted) {
  wanted = (wanted & kEventBits) | kAlways;
  uint32_t mask = poll_mask(s);
  if ((wanted & EPOLLOUT) != 0 && (mask & EPOLLOUT) == 0) {
    A::fetch_or(s.slot.want, MW_WANT_OUT_EVENT);
    A::fence();
    mask = poll_mask(s);
  }
  return mask & wanted;
}

SessionWatch* find_watch(const Sock& s, uint32_t group, int fd) {
  for (SessionWatch& w : s.mine.watches)
    if (is_of(w, group) && w.fd == fd) return &w;
  return nullptr;
}

int watch_ctl(const Sock& s, uint32_t group, int op, int fd, const epoll_event* event) {
  {
    SharedLock lock(s.mine.watch_lock);
    SessionWatch* w = find_watch(s, group, fd);
    if (op == EPOLL_CTL_ADD) {
      if (w != nullptr) return -EEXIST;
      for (SessionWatch& free : s.mine.watches)
        if (!is_live(free)) w = &free;
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
  for (SessionWatch& w : s.mine.watches) w = SessionWatch{};
  publish_watches(s);
}

// Calls visit(watch, events) for each registration in the group of the socket at `index` that has
// something to report, until it returns false.
template <class Visit>
void each_ready(uint32_t group, uint32_t index, Visit&& visit) {
  SessionSlot& mine = process.session.slot(index);
  const Sock s{-1, index, A::load_relaxed(mine.gen), process.channel.slot(index), mine};
  SharedLock lock(mine.watch_lock);
  for (SessionWatch& w : mine.watches) {
    if (!is_of(w, group) || (w.state & kWatchFired) != 0) continue;
    const uint32_t events = events_of(s, w.events);
    if (events == 0) continue;
    if (!is_open(s)) return remove_watches(s);
    if (!visit(w, events)) return;
  }
}

bool is_nested(uint32_t group) {
  return (A::load_relaxed(process.session.group(group).flags) & kGroupNested) != 0;
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

bool has_events(uint32_t group) {
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

void mark_nested(uint32_t group) {
  SessionGroup& shared = process.session.group(group);
  if ((A::fetch_or(shared.flags, kGroupNested) & kGroupNested) != 0) return;
  // The INS rings for every piece of news from now on.
  process.channel.group_news(group).stay_asleep();
  if (has_events(group)) ring_bell(instances[group].bell);
}

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

// After an ordinary epoll_ctl that put one epoll instance into another.
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

// Makes the kernel's view of the instances in `outer` true: one that has events is readable.
void refresh_nested(int outer, int depth = 0) {
  if (A::load_relaxed(nesting_count) == 0 || depth == kDeepest) return;
  for (const Nesting& n : nestings) {
    if (n.outer != outer) continue;
    refresh_nested(n.inner, depth + 1);
    const Entry inner = peek(n.inner);
    if (inner.kind != Kind::epoll || inner.slot == 0) continue;
    // An edge that was reported is not to be made again.
    if (has_events(inner.slot - 1) && (n.events & EPOLLET) == 0 && !kernel_readable(n.inner))
      ring_bell(instances[inner.slot - 1].bell);
  }
}

// Makes what the kernel reported true: drops events of nested instances that have nothing to give,
// and puts right those of sockets that are listeners no more.
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
      const Sock s{w.fd, w.slot, w.gen, process.channel.slot(w.slot), process.session.slot(w.slot)};
      if (is_dead(s) || (A::load_relaxed(s.mine.flags) & kSlotListener) != 0) continue;
      e.events = poll_mask(s) & ((w.events & kEventBits) | kAlways);
      return e.events == 0;
    }
    return false;
  };
  return static_cast<int>(std::remove_if(events, events + n, silent) - events);
}

}  // namespace

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
  if (op != EPOLL_CTL_DEL && reinterpret_cast<uintptr_t>(event) < MW_PAGE) return -EFAULT;
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
    if (bad && has_events(e.slot - 1)) return -EFAULT;
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
      ReadySet news = process.channel.group_news(group);
      // What is left is for the next sleeper.
      if (!news.empty() && news.need_ring()) ring_bell(instances[group].bell);
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
    if (n > 0) return n;
    if (left == 0) return 0;
    if (k == 0 && deadline != 0 && monotonic_ns() >= deadline) return 0;
  }
}

bool epoll_is_readable(int epfd, const Entry& e) {
  if (e.slot != 0 && has_events(e.slot - 1)) return true;
  refresh_nested(epfd);
  return kernel_readable(epfd);  // ordinary descriptors in it, and other instances
}

bool epoll_is_ours(const Entry& e) {
  return e.kind == Kind::epoll && (e.slot != 0 || A::load_relaxed(nesting_count) != 0);
}

bool epoll_prepare_sleep(uint32_t group) {
  return process.channel.group_news(group).prepare_sleep();
}
void epoll_wake(uint32_t group) {
  process.channel.group_news(group).wake();
}

void epoll_add_news(const Sock& s) {
  SharedLock lock(s.mine.watch_lock);
  for (const SessionWatch& w : s.mine.watches)
    if (is_live(w)) add_news(w.group - 1, s.index);
}

void epoll_last_close(int fd, const Entry& e) {
  const Sock s = sock_of(fd, e);
  if (A::load_relaxed(s.mine.gen) != e.gen) return;
  SharedLock lock(s.mine.watch_lock);
  bool any = false;
  bool used_here = false;
  for (const SessionWatch& w : s.mine.watches) {
    if (!is_live(w)) continue;
    any = true;
    used_here |= instances[w.group - 1].used_here;
  }
  if (!any) return;
  if (!is_nobody_elses(s.index) && (!used_here || leave_witness(fd, s.index, s.gen))) return;
  remove_watches(s);
}

void epoll_closed(int epfd, const Entry& e) {
  {
    SharedLock lock(instances_lock);
    if (A::load_relaxed(nesting_count) != 0)
      for (Nesting& n : nestings)
        if (n.outer == epfd || n.inner == epfd) put_in(&n, Nesting{}, nesting_count);
    if (A::load_relaxed(listener_watch_count) != 0)
      for (ListenerWatch& w : listener_watches)
        if (w.epfd == epfd) put_in(&w, ListenerWatch{}, listener_watch_count);
  }
  if (e.slot == 0) return;
  Instance& i = instances[e.slot - 1];
  if (i.references > 1) return;
  if (i.bell >= 0) unhide_and_close(i.bell);
  if (i.life >= 0) unhide_and_close(i.life);
  i = Instance{};
}

void epoll_count_reference(uint32_t group, int delta) {
  instances[group].references += static_cast<uint32_t>(delta);
}

void epoll_socket_became_listener(const Sock& s) {
  SharedLock lock(s.mine.watch_lock);
  bool changed = false;
  for (SessionWatch& w : s.mine.watches) {
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

void epoll_created(int epfd) {
  set_entry(epfd, groupless(descriptor_copies(), groups_made()));
}

bool epoll_is_instance(int fd) {
  if (process.confined) return false;
  struct stat st {};
  if (libc.syscall(SYS_fstat, fd, &st) < 0 || (st.st_mode & S_IFMT) != 0) return false;
  // One of the kernel's anonymous files. Only an epoll instance can say what it does not watch.
  const int other = ::eventfd(0, EFD_CLOEXEC);
  if (other < 0) return false;
  epoll_event none{};
  const bool is = libc.epoll_ctl(fd, EPOLL_CTL_DEL, other, &none) < 0 && errno == ENOENT;
  libc.close(other);
  return is;
}

Entry epoll_find(int epfd) {
  // What a child of vfork() opened would be closed with it, and we would remember it.
  if (in_vfork_child() || !attach()) return {};
  const uint32_t made = groups_made();
  SharedLock lock(instances_lock);
  ReceivedMessage got;
  const int fds[] = {epfd};
  const int group = ask_about(AttachType::group_find, fds, &got);
  if (group < 0 || got.fd_count != 2) return groupless(0, made);
  process.found_instance = true;
  Instance& i = instances[group];
  const uint16_t serial = A::load_relaxed(process.session.group(group).serial);
  if (i.bell < 0 || i.serial != serial)
    i = {epfd, hide(got.fds[0].release()), hide(got.fds[1].release()), 0, false, true, serial};
  return {Kind::epoll, static_cast<uint32_t>(group) + 1, 0};
}

void epoll_leaves(int epfd, const Entry& e) {
  if (e.slot != 0)
    keep_group(epfd, e.slot - 1);
  else
    set_entry(epfd, groupless(0, e.gen));
}

void epoll_before_exec() {
  if (!process.attached) return;
  const int saved = errno;
  for (int fd = 0; fd <= highest_epoll_fd(); ++fd) {
    const Entry e = peek(fd);
    if (e.kind != Kind::epoll || e.slot == 0 || instances[e.slot - 1].kept) continue;
    const int flags = libc.fcntl(fd, F_GETFD);
    if (flags >= 0 && (flags & FD_CLOEXEC) == 0) keep_group(fd, e.slot - 1);
  }
  errno = saved;
}

}  // namespace mw::shim
