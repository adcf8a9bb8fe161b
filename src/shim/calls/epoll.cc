#include "shim/calls/epoll.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>

#include "ring/order.h"
#include "shim/calls/epoll_nesting.h"
#include "shim/calls/loopback_order.h"
#include "shim/process/user_memory.h"
#include "shim/socket/epoll_group.h"
#include "shim/socket/news.h"
#include "shim/socket/session_end.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

bool is_of(const SessionWatch& w, uint32_t group) {
  return watching_group(w) == group;
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

// Where the registration stands; kNoWatch: there is none.
uint32_t find_watch(const Sock& s, uint32_t group, int fd) {
  const SessionWatches all = watches_of(s);
  uint32_t i = 0;
  while (i < all.size() && !(is_of(all[i], group) && all[i].fd == fd)) ++i;
  return i == all.size() ? kNoWatch : i;
}

int watch_ctl(const Sock& s, uint32_t group, int op, int fd, const epoll_event* event) {
  {
    const InRegistrations own(registrations_of(group));
    if (!own) return -EBADF;
    SharedLock lock(s.mine.watch_lock);
    uint32_t i = find_watch(s, group, fd);
    if (op == EPOLL_CTL_ADD && i != kNoWatch) return -EEXIST;
    if (op != EPOLL_CTL_ADD && i == kNoWatch) return -ENOENT;
    if (op == EPOLL_CTL_ADD && (i = free_watch(s)) == kNoWatch)
      return watches_of(s).most() == MW_MAX_WATCHES ? -ENOSPC : -ENOMEM;
    Registration* const r = own.at(s.index, i);
    if (r == nullptr) return -ENOMEM;
    SessionWatch& w = watches_of(s)[i];
    if (op == EPOLL_CTL_DEL) {
      *r = Registration{};
      w = SessionWatch{};
      publish_watches(s);
      return 0;
    }
    if (op == EPOLL_CTL_MOD && (r->events & EPOLLEXCLUSIVE) != 0) return -EINVAL;
    *r = {s.gen, fd, event->events, 0, event->data.u64};
    w = {group + 1, fd, instances[group].serial, 0};
    publish_watches(s);
  }
  // Registered first, then asked: what becomes ready in between is announced by the INS.
  if (events_of(s, event->events) != 0) add_news(group, s);
  return 0;
}

// Calls visit(registration, events) for each registration in the group of the socket at `index`
// that has something to report, until it returns false. False: for want of memory not all were seen.
template <class Visit>
bool each_ready(uint32_t group, const Sock& s, Visit&& visit) {
  const InRegistrations own(registrations_of(group));
  if (!own) return true;
  SharedLock lock(s.mine.watch_lock);
  bool all = true;
  uint32_t i = 0;
  for (SessionWatch& w : watches_of(s)) {
    const uint32_t at = i++;
    if (!is_of(w, group)) continue;
    Registration* const r = own.at(s.index, at);
    all &= r != nullptr;
    if (r == nullptr || !is_record_of(*r, s.gen, w.fd) || r->fired != 0) continue;
    const uint32_t events = events_of(s, r->events);
    if (events == 0) continue;
    if (!is_open(s)) {
      forget_registrations(s.index, s.gen);
      remove_watches(s);
      return true;
    }
    if (!visit(*r, events)) break;
  }
  return all;
}

// Walks once round the sockets of a group, beginning where the last walk was interrupted.
class Round {
 public:
  Round(const SessionGroup& group, uint32_t sockets)
      : at_(A::load_relaxed(const_cast<uint32_t&>(group.cursor)) % sockets),
        left_(sockets),
        sockets_(sockets) {}
  // The next members of the set, at most `most`. Less than that: there are no more.
  uint32_t next(ReadySet& news, OrderedMember* out, uint32_t most) {
    uint32_t found = 0;
    while (left_ != 0 && found < most) {
      const uint32_t to = std::min(at_ + left_, sockets_);
      uint32_t end = to;
      news.look(at_, to, most - found, [&](uint32_t i) {
        out[found++].index = i;
        if (found == most) end = i + 1;
      });
      left_ -= end - at_;
      at_ = end == sockets_ ? 0 : end;
    }
    return found;
  }
  bool is_over() const { return left_ == 0; }
  void interrupt(SessionGroup& group) const { A::store_relaxed(group.cursor, at_); }

 private:
  uint32_t at_;
  uint32_t left_;
  const uint32_t sockets_;
};

// Turns one member of the group's news into events, at most `room`. Returns how many, or -ENOMEM.
int report(uint32_t group, ReadySet& news, uint32_t place, epoll_event* out, int room) {
  int n = 0;
  bool again = false;
  if (!news.take(place)) return 0;
  const Sock s = sock_of(stack_of_group().number_of(place));
  const bool all = each_ready(group, s, [&](Registration& r, uint32_t events) {
    if (n >= room) {
      again = true;
      return false;
    }
    out[n].events = events;
    out[n].data.u64 = r.data;
    ++n;
    if ((r.events & EPOLLONESHOT) != 0)
      r.fired = 1;
    else if ((r.events & EPOLLET) == 0)
      again = true;  // level-triggered: look again next time
    return true;
  });
  if (again || !all) {
    A::store_relaxed(s.mine.queued_at, order_stamp());
    news.put_back(place);
  }
  return n == 0 && !all ? -ENOMEM : n;
}

// Turns the group's news into events. Sockets take turns as in the kernel's list: who has waited
// longest comes first, and one that stays ready goes to the end. Of a crowd only a part is sorted
// at a time, and the next call begins with the next part. -ENOMEM if there is no memory to look at
// the first.
int harvest(uint32_t group, epoll_event* out, int max) {
  constexpr uint32_t kCrowd = 128;
  if (max <= 0) return 0;
  const Stack& stack = stack_of_group();
  ReadySet news = stack.group_news(group);
  if (is_nested(group)) news.clear_rung();
  if (news.empty()) return 0;
  SessionGroup& shared = process.session.group(group);
  const uint32_t now = order_stamp();
  OrderedMember members[kCrowd];
  Round round(shared, news.bits());
  int n = 0;
  bool any = false;
  bool no_memory = false;
  while (n < max && !round.is_over()) {
    const uint32_t found = round.next(news, members, kCrowd);
    any |= found != 0;
    uint32_t count = 0;
    for (uint32_t k = 0; k < found; ++k) {
      const uint32_t i = members[k].index;
      if (!has_slot(stack.number_of(i))) {
        no_memory = true;
        continue;
      }
      const Sock s = sock_of(stack.number_of(i));
      const uint32_t told = A::load_relaxed(s.slot.told_at);
      // How long it has been waiting for its turn: since its news came, or since it was
      // reported or registered.
      const uint32_t queued = A::load_relaxed(s.mine.queued_at);
      // Also one that another thread puts back during this walk.
      if (came_later(told, now) || came_later(queued, now)) continue;
      members[count++] = {std::min(now - told, now - queued), i};
    }
    sort_by_age(members, count);
    for (uint32_t k = 0; k < count && n < max; ++k) {
      const int told_now = report(group, news, members[k].index, out + n, max - n);
      no_memory |= told_now < 0;
      n += std::max(told_now, 0);
    }
  }
  if (!round.is_over()) round.interrupt(shared);
  // Bits that stand for no socket at all: only a stack that lies sets them.
  if (!any && !news.empty())
    news.drain([&](uint32_t index) {
      news.put_back(index);
      return true;
    });
  return n == 0 && no_memory ? -ENOMEM : n;
}

// What one thread has left is for the next sleeper.
void pass_on(uint32_t group) {
  if (stack_of_group().group_news(group).pass_on()) ring_bell(instances[group].bell);
}

// This thread was not asleep and has taken a ring that another one may sleep for: it counts as none,
// so that pass_on() rings again.
void give_ring_back(uint32_t group) {
  stack_of_group().group_news(group).clear_rung();
}

// Removes the bell from events that the kernel reported.
int without_bell(epoll_event* events, int n) {
  return static_cast<int>(std::remove_if(events, events + std::max(n, 0),
                                         [](const epoll_event& e) {
                                           if (!is_bell_data(e.data.u64)) return false;
                                           if ((e.events & EPOLLHUP) != 0) note_end_of_life();
                                           return true;
                                         }) -
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

// Asks for ordinary descriptors without waiting. Returns how many, or -errno. pass_on() has to
// follow.
int kernel_look(int epfd, uint32_t group, epoll_event* out, int max, const sigset_t* mask) {
  const int n = kernel_wait(epfd, out, max, 0, mask);
  if (n <= 0) return n;
  const int kept = without_bell(out, n);
  if (kept != n) give_ring_back(group);
  return corrected(epfd, out, kept);
}

}  // namespace

bool epoll_has_events(uint32_t group) {
  bool any = false;
  ReadySet news = stack_of_group().group_news(group);
  if (is_nested(group)) news.clear_rung();
  for (uint32_t at = 0; !any && at < news.bits();) {
    uint32_t index = news.bits();
    news.look(at, news.bits(), 1, [&](uint32_t i) { index = i; });
    at = index + 1;
    const uint32_t number = stack_of_group().number_of(index);
    if (index == news.bits() || !has_slot(number) || !news.take(index)) continue;
    const bool all = each_ready(group, sock_of(number), [&](const Registration&, uint32_t) {
      any = true;
      return false;
    });
    if (!all) news.put_back(index);
    if (!any) continue;
    news.put_back(index);
    pass_on(group);  // another thread may have found the set without it, and sleep
  }
  if (!any && instances[group].bell >= 0) {
    // So that the kernel's instance is not readable for a ring that was answered.
    uint64_t rings = 0;
    const int saved = errno;
    libc.syscall(SYS_read, instances[group].bell, &rings, sizeof rings);
    errno = saved;
    // It may have been for a thread that sleeps, and for what came since we looked.
    if (rings != 0) give_ring_back(group);
    pass_on(group);
  }
  return any;
}

int shim_epoll_ctl(int epfd, int op, int fd, epoll_event* event) {
  const Entry e = look_up(fd);
  if (e.kind == Kind::hidden || is_hidden(epfd)) return -EBADF;
  if (e.kind == Kind::lost && op != EPOLL_CTL_DEL) return -ENETDOWN;
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
    const bool grouped = e.kind == Kind::epoll && e.slot != 0 && max > 0;
    const bool bad =
        grouped && !is_room(out, sizeof *out * static_cast<size_t>(std::min(max, kLook)));
    if (bad && epoll_has_events(e.slot - 1)) return -EFAULT;
    if (!grouped || bad) {
      // No protected socket in it, so far: the bell of a group that is made while we sleep ends
      // this wait.
      refresh_nested(epfd);
      int64_t left = timeout_ns;
      if (deadline != 0) left = std::max<int64_t>(0, deadline - monotonic_ns());
      const int n = kernel_wait(epfd, out, max, left, mask);
      if (n <= 0) return n;
      const int others = without_bell(out, n);
      const int kept = corrected(epfd, out, others);
      if (kept <= 0 && left != 0) continue;
      if (const Entry now = instance_of(epfd);
          others != n && now.kind == Kind::epoll && now.slot != 0) {
        give_ring_back(now.slot - 1);
        pass_on(now.slot - 1);
      }
      return kept;
    }
    const uint32_t group = e.slot - 1;
    instances[group].used_here = true;
    const int64_t longest = see_desertion();
    refresh_nested(epfd);
    // Ordinary descriptors take turns with protected sockets: whenever these alone filled the room,
    // those come first next time.
    const bool kernel_first = A::load_relaxed(instances[group].kernel_first) != 0 &&
                              A::exchange(instances[group].kernel_first, uint8_t{0}) != 0;
    int n = 0;
    if (kernel_first) n = std::max(0, kernel_look(epfd, group, out, max, mask));
    const int ours = harvest(group, out + n, max - n);
    if (ours < 0 && n == 0) return ours;
    n += std::max(ours, 0);
    if (n > 0 || timeout_ns == 0) {
      if (!kernel_first && n == max) {
        A::store_relaxed(instances[group].kernel_first, uint8_t{1});
      } else if (!kernel_first) {
        const int more = kernel_look(epfd, group, out + n, max - n, mask);
        n = n == 0 ? more : n + std::max(0, more);
      }
      pass_on(group);
      return n;
    }
    int64_t left = timeout_ns;
    if (deadline != 0) left = std::max<int64_t>(0, deadline - monotonic_ns());
    if (!epoll_prepare_sleep(group)) {
      if (deadline != 0 && left == 0) return 0;
      continue;
    }
    const bool in_parts = longest >= 0 && (left < 0 || left > longest);
    const int k = kernel_wait(epfd, out, max, in_parts ? longest : left, mask);
    epoll_wake(group);
    if (k < 0) return k;
    n = corrected(epfd, out, without_bell(out, k));
    const int news = harvest(group, out + n, max - n);
    if (news < 0 && n == 0) return news;
    n += std::max(news, 0);
    if (n > 0 || left == 0) {
      pass_on(group);
      return n;
    }
    if (k == 0 && deadline != 0 && monotonic_ns() >= deadline) {
      pass_on(group);
      return 0;
    }
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
  return stack_of_group().group_news(group).prepare_sleep();
}
void epoll_wake(uint32_t group) {
  stack_of_group().group_news(group).wake();
}

void epoll_closed(int epfd, const Entry& e) {
  forget_notes(epfd);
  if (e.slot != 0) group_closed(e.slot - 1);
}

void epoll_socket_became_listener(const Sock& s) {
  SharedLock lock(s.mine.watch_lock);
  bool changed = false;
  uint32_t i = 0;
  for (SessionWatch& w : watches_of(s)) {
    const uint32_t at = i++;
    const uint32_t group = watching_group(w);
    if (group == kNoGroup || instances[group].epfd < 0) continue;
    const InRegistrations own(registrations_of(group));
    Registration* const r = own ? own.at(s.index, at) : nullptr;
    if (r == nullptr || !is_record_of(*r, s.gen, w.fd)) continue;
    epoll_event e{r->events & ~static_cast<uint32_t>(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND),
                  {.u64 = r->data}};
    const int epfd = instances[group].epfd;
    if (libc.epoll_ctl(epfd, EPOLL_CTL_ADD, r->fd, &e) == 0) {
      const Sock registered = sock_of(r->fd, s.index, s.gen);
      e.events = r->events;
      note_listener_watch(epfd, EPOLL_CTL_ADD, registered, &e);
    }
    *r = Registration{};
    w = SessionWatch{};
    changed = true;
  }
  if (changed) publish_watches(s);
}

}  // namespace mw::shim
