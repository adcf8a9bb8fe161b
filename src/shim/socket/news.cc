#include "shim/socket/news.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "ring/order.h"
#include "shim/socket/epoll_group.h"
#include "shim/socket/registrations.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// A socket that this process has closed while others may have it, and that is registered in an
// instance which we use. `set` holds its placeholder; see news.h.
struct Witness {
  uint32_t slot = 0;
  uint32_t gen = 0;
  int set = -1;
};
constexpr size_t kMaxWitnesses = 256;
constinit Witness witnesses[kMaxWitnesses];
uint32_t witness_count = 0;
uint32_t witnesses_lock = 0;

bool is_live(const SessionWatch& w) {
  return watching_group(w) != kNoGroup;
}

// Under witnesses_lock: false if the socket of a witness is gone; the witness is dismissed then.
bool is_there(Witness& w) {
  epoll_event e{};
  const int saved = errno;
  const int n = libc.epoll_wait(w.set, &e, 1, 0);
  errno = saved;
  if (n != 0) return true;
  unhide_and_close(w.set);
  forget_registrations(w.slot, w.gen);
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

}  // namespace

uint32_t watching_group(const SessionWatch& w) {
  const uint32_t group = A::load_relaxed(const_cast<uint32_t&>(w.group)) - 1;
  const bool live = group < stack_of_group().geometry().groups &&
                    A::load_relaxed(process.session.group(group).serial) == w.serial;
  return live ? group : kNoGroup;
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
    if (const uint32_t group = watching_group(w); group != kNoGroup)
      packed[i / MW_WATCHES_IN_WORD] |= uint64_t{(group + 1) & 0xffff} << shift;
    ++i;
  }
  // Without memory for the far ones the words that tell of them stay as they are.
  const uint32_t words = watches_of(s).most() / MW_WATCHES_IN_WORD;
  for (uint32_t word = 0; word < words; ++word)
    if (A::load_relaxed(s.slot.watches[word]) != packed[word])
      A::exchange(s.slot.watches[word], packed[word]);
  A::fence();  // pairs with the INS's fence between publication and its look at watches
}

uint32_t free_watch(const Sock& s) {
  const SessionWatches all = watches_of(s);
  uint32_t i = 0;
  while (i < all.size() && is_live(all[i])) ++i;
  if (i == all.most()) return kNoWatch;
  if (i == all.size()) A::store_relaxed(s.mine.watch_end, static_cast<uint16_t>(i + 1));
  return i;
}

void remove_watches(const Sock& s) {
  for (SessionWatch& w : watches_of(s)) w = SessionWatch{};
  publish_watches(s);
  A::store_relaxed(s.mine.watch_end, uint16_t{0});
}

void add_news(uint32_t group, const Sock& s) {
  // Another process's, and no memory for it: the INS tells of the next change.
  if (!s.stack.has_group(group)) return;
  ReadySet news = s.stack.group_news(group);
  const uint32_t place = s.stack.place_of(s.index);
  if (!news.has(place)) A::store_relaxed(s.mine.queued_at, order_stamp());
  if (news.add(place) && instances[group].bell >= 0) ring_bell(instances[group].bell);
}

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

void epoll_add_news(const Sock& s) {
  SharedLock lock(s.mine.watch_lock);
  for (const SessionWatch& w : watches_of(s))
    if (const uint32_t group = watching_group(w); group != kNoGroup) add_news(group, s);
}

void epoll_last_close(int fd, const Entry& e) {
  const Sock s = sock_of(fd, e);
  if (A::load_relaxed(s.mine.gen) != e.gen) return;
  SharedLock lock(s.mine.watch_lock);
  bool any = false;
  bool used_here = false;
  for (const SessionWatch& w : watches_of(s)) {
    const uint32_t group = watching_group(w);
    if (group == kNoGroup) continue;
    any = true;
    used_here |= instances[group].used_here;
  }
  if (!is_nobody_elses(s.index) && (!any || !used_here || leave_witness(fd, s.index, s.gen)))
    return;
  forget_registrations(s.index, s.gen);
  if (any) remove_watches(s);
}

void epoll_after_fork() {
  groups_after_fork();
  witnesses_lock = 0;
  registrations_after_fork();
}

}  // namespace mw::shim
