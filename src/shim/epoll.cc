#include "shim/epoll.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
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
  bool nested = false;     // stands in another epoll instance: always rung for
  uint16_t serial = 0;  // tells the group's present instance from earlier ones of the same number
};
constinit Instance instances[MW_MAX_GROUPS];
uint32_t instances_lock = 0;

// An epoll instance with a group that stands in another one. Its kernel descriptor is readable from
// a ring until somebody has looked; whoever waits on the outer one gets it only if there really is
// an event.
struct Nesting {
  int outer = -1;
  int inner = -1;
  uint64_t data = 0;
};
constexpr size_t kMaxNestings = 16;
constinit Nesting nestings[kMaxNestings];
uint32_t nesting_count = 0;

// epoll_event.data of a bell: a value no application has by accident.
constexpr uint64_t kBellData = 0x6d77'2d62'656c'6c21ull;

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

// Asks the driver for a group. Returns its number or -errno.
int open_group(int bell, int life_write) {
  if (!attach_as_this_process()) return -ENETDOWN;
  AttachRequest request{};
  request.type = AttachType::group_open;
  request.version = MW_PROTOCOL_VERSION;
  copy_token(request.token);
  const int fds[] = {bell, life_write};
  if (auto sent = send_message(process.attach_fd, bytes_of(request), fds, 0); !sent)
    return -ENETDOWN;
  AttachReply reply{};
  auto answer = receive_message(process.attach_fd, writable_bytes_of(reply), 0);
  if (!answer || answer->bytes != sizeof reply || reply.type != AttachType::group_open)
    return -ENETDOWN;
  if (reply.status != 0) return -static_cast<int>(reply.status);
  return group_in_range(reply.group) ? static_cast<int>(reply.group) : -ENETDOWN;
}

// The group of an epoll instance, made on its first protected socket. Returns its number or -errno.
int group_of(int epfd) {
  Entry e = peek(epfd);
  if (e.kind == Kind::epoll && e.slot != 0) return static_cast<int>(e.slot - 1);
  SharedLock lock(instances_lock);
  e = peek(epfd);
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
  epoll_event on_bell{EPOLLIN | EPOLLET, {.u64 = kBellData}};
  int group = open_group(bell, life[1]);
  libc.close(life[1]);
  if (group >= 0 && libc.epoll_ctl(epfd, EPOLL_CTL_ADD, bell, &on_bell) < 0) group = -errno;
  if (group < 0) {
    unhide_and_close(bell);
    unhide_and_close(life[0]);
    return group;
  }
  const auto serial = static_cast<uint16_t>(
      A::fetch_add(process.session.group(static_cast<uint32_t>(group)).serial, 1u) + 1);
  instances[group] = {epfd, bell, life[0], 0, true, false, serial};
  set_entry(epfd, {Kind::epoll, static_cast<uint32_t>(group) + 1, 0});
  return group;
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
    *w = {group + 1, fd, event->events, 0, instances[group].serial, event->data.u64};
    publish_watches(s);
  }
  // Registered first, then asked: what becomes ready in between is announced by the INS.
  if (events_of(s, event->events) != 0) add_news(group, s.index);
  return 0;
}

// Takes the group's news and turns them into events.
int harvest(uint32_t group, epoll_event* out, int max) {
  int n = 0;
  ReadySet news = process.channel.group_news(group);
  if (instances[group].nested) news.clear_rung();
  news.drain([&](uint32_t index) {
    if (n >= max) return false;
    SessionSlot& mine = process.session.slot(index);
    const Sock s{-1, index, A::load_relaxed(mine.gen), process.channel.slot(index), mine};
    SharedLock lock(mine.watch_lock);
    bool again = false;
    for (SessionWatch& w : mine.watches) {
      if (!is_of(w, group) || (w.state & kWatchFired) != 0) continue;
      const uint32_t events = events_of(s, w.events);
      if (events == 0) continue;
      if (n >= max) {
        again = true;
        break;
      }
      out[n].events = events;
      out[n].data.u64 = w.data;
      ++n;
      if ((w.events & EPOLLONESHOT) != 0)
        w.state |= kWatchFired;
      else if ((w.events & EPOLLET) == 0)
        again = true;  // level-triggered: look again next time
    }
    if (again) news.put_back(index);
    return true;
  });
  return n;
}

// Removes the bell from events that the kernel reported.
int without_bell(epoll_event* events, int n) {
  return static_cast<int>(
      std::remove_if(events, events + std::max(n, 0),
                     [](const epoll_event& e) { return e.data.u64 == kBellData; }) -
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

// After an ordinary epoll_ctl that concerned an epoll instance with a group.
void note_nesting(int outer, int op, int inner, const epoll_event* event) {
  SharedLock lock(instances_lock);
  Nesting* entry = nullptr;
  for (Nesting& n : nestings)
    if ((n.outer == outer && n.inner == inner) ||
        (entry == nullptr && n.outer < 0 && op == EPOLL_CTL_ADD))
      entry = &n;
  if (entry == nullptr) return;
  if (op == EPOLL_CTL_ADD) A::fetch_add(nesting_count, 1u);
  if (op == EPOLL_CTL_DEL) {
    A::fetch_add(nesting_count, ~0u);
    *entry = Nesting{};
  } else {
    *entry = {outer, inner, event->data.u64};
  }
}

// Drops events of nested instances that have nothing to give.
int without_idle_nested(int outer, epoll_event* events, int n) {
  if (n <= 0 || A::load_relaxed(nesting_count) == 0) return n;
  const auto idle = [outer](const epoll_event& e) {
    for (const Nesting& k : nestings) {
      if (k.outer != outer || k.data != e.data.u64) continue;
      const Entry inner = peek(k.inner);
      if (inner.kind != Kind::epoll || inner.slot == 0) return false;
      if (epoll_has_events(inner.slot - 1)) return false;
      pollfd p{k.inner, POLLIN, 0};
      return libc.poll(&p, 1, 0) == 0;
    }
    return false;
  };
  return static_cast<int>(std::remove_if(events, events + n, idle) - events);
}

void mark_nested(uint32_t group) {
  Instance& i = instances[group];
  if (i.nested) return;
  i.nested = true;
  // The INS rings for every piece of news from now on, and once for what is there.
  process.channel.group_news(group).stay_asleep();
  ring_bell(i.bell);
}

}  // namespace

int shim_epoll_ctl(int epfd, int op, int fd, epoll_event* event) {
  const Entry e = look_up(fd);
  if (e.kind == Kind::hidden || is_hidden(epfd)) return -EBADF;
  if (e.kind != Kind::socket) {
    const int rc = libc.epoll_ctl(epfd, op, fd, event);
    if (rc < 0) return -errno;
    if (e.kind == Kind::epoll && e.slot != 0) {
      if (op == EPOLL_CTL_ADD) mark_nested(e.slot - 1);
      note_nesting(epfd, op, fd, event);
    }
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
    return libc.epoll_ctl(epfd, op, fd, &changed) < 0 ? -errno : 0;
  }
  if (op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD && op != EPOLL_CTL_DEL) return -EINVAL;
  if (epfd == fd) return -EINVAL;
  if (peek(epfd).kind != Kind::epoll) {
    // Not known as one: let the kernel say what is wrong with it, if anything is.
    epoll_event none{};
    if (libc.epoll_ctl(epfd, EPOLL_CTL_DEL, fd, &none) < 0 && errno != ENOENT) return -errno;
  }
  if (op == EPOLL_CTL_MOD && (event->events & EPOLLEXCLUSIVE) != 0) return -EINVAL;
  if (op == EPOLL_CTL_DEL || op == EPOLL_CTL_MOD) {
    const Entry known = peek(epfd);
    if (known.kind != Kind::epoll || known.slot == 0) return -ENOENT;
  }
  const int group = group_of(epfd);
  if (group < 0) return group;
  instances[group].used_here = true;
  return watch_ctl(s, static_cast<uint32_t>(group), op, fd, event);
}

int shim_epoll_wait(int epfd, epoll_event* out, int max, int64_t timeout_ns, const sigset_t* mask) {
  const int64_t deadline = timeout_ns > 0 ? now_ns() + timeout_ns : 0;
  release_held();
  settle();
  for (;;) {
    const Entry e = peek(epfd);
    if (e.kind != Kind::epoll || e.slot == 0 || max <= 0 || !is_buffer(out, sizeof *out)) {
      // No protected socket in it, so far: the bell of a group that is made while we sleep ends
      // this wait.
      const int n = kernel_wait(epfd, out, max, timeout_ns, mask);
      if (n <= 0) return n;
      const int kept = without_idle_nested(epfd, out, without_bell(out, n));
      if (kept > 0 || timeout_ns == 0) return kept;
      if (deadline != 0 && now_ns() >= deadline) return 0;
      continue;
    }
    const uint32_t group = e.slot - 1;
    instances[group].used_here = true;
    int n = harvest(group, out, max);
    if (n > 0 || timeout_ns == 0) {
      if (n < max) {
        const int more = kernel_wait(epfd, out + n, max - n, 0, mask);
        if (more < 0 && n == 0) return more;
        n += without_idle_nested(epfd, out + n, without_bell(out + n, more));
      }
      ReadySet news = process.channel.group_news(group);
      // What is left is for the next sleeper.
      if (!news.empty() && news.need_ring()) ring_bell(instances[group].bell);
      return n;
    }
    int64_t left = timeout_ns;
    if (deadline != 0) left = std::max<int64_t>(0, deadline - now_ns());
    if (!epoll_prepare_sleep(group)) continue;
    const int k = kernel_wait(epfd, out, max, left, mask);
    epoll_wake(group);
    if (k < 0) return k;
    n = without_idle_nested(epfd, out, without_bell(out, k));
    n += harvest(group, out + n, max - n);
    if (n > 0) return n;
    if (left == 0) return 0;
    if (k == 0 && deadline != 0 && now_ns() >= deadline) return 0;
  }
}

bool epoll_has_events(uint32_t group) {
  bool any = false;
  ReadySet news = process.channel.group_news(group);
  news.drain([&](uint32_t index) {
    SessionSlot& mine = process.session.slot(index);
    const Sock s{-1, index, A::load_relaxed(mine.gen), process.channel.slot(index), mine};
    SharedLock lock(mine.watch_lock);
    for (const SessionWatch& w : mine.watches) {
      if (!is_of(w, group) || (w.state & kWatchFired) != 0) continue;
      if (events_of(s, w.events) == 0) continue;
      any = true;
      news.put_back(index);
      break;
    }
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

void epoll_forget_socket(uint32_t slot, uint32_t gen) {
  SessionSlot& mine = process.session.slot(slot);
  const Sock s{-1, slot, gen, process.channel.slot(slot), mine};
  if (A::load_relaxed(mine.gen) != gen) return;
  bool changed = false;
  SharedLock lock(mine.watch_lock);
  for (SessionWatch& w : mine.watches) {
    if (!is_live(w) || !instances[w.group - 1].used_here) continue;
    w = SessionWatch{};
    changed = true;
  }
  if (changed) publish_watches(s);
}

void epoll_forget_instance(int, uint32_t group) {
  Instance& i = instances[group];
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
    libc.epoll_ctl(instances[w.group - 1].epfd, EPOLL_CTL_ADD, w.fd, &e);
    w = SessionWatch{};
    changed = true;
  }
  if (changed) publish_watches(s);
}

void epoll_after_fork() {
  instances_lock = 0;
  for (Instance& i : instances) i.used_here = false;
}

}  // namespace mw::shim
