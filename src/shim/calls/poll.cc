#include "shim/calls/poll.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "shim/calls/epoll.h"
#include "shim/calls/loopback_order.h"
#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// What the kernel has to watch for an entry while we sleep.
enum class Watch : uint8_t { kernel, token, group, lost };

struct Item {
  Watch watch = Watch::kernel;
  Part part = Part::follower;  // in taking the socket's tokens (taker.h)
  bool gone = false;   // another thread has closed it: the descriptor is not to be touched any more
  bool stale = false;  // there was a token, and nothing was ready
  Entry entry;
};

// Room for the usual handful on the stack, else from the heap.
template <class T, size_t N>
class Scratch {
 public:
  explicit Scratch(size_t n) : p_(n <= N ? local_ : static_cast<T*>(::calloc(n, sizeof(T)))) {}
  ~Scratch() {
    if (p_ != local_) ::free(p_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() { return p_; }
  T& operator[](size_t i) { return p_[i]; }

 private:
  T local_[N];
  T* p_;
};

bool is_ours(const Entry& e) {
  return is_protected(e) || epoll_is_ours(e);
}

Item classify(int fd) {
  Item item;
  if (fd < 0) return item;
  item.entry = look_up(fd);
  if (item.entry.kind == Kind::socket) {
    const Sock s = sock_of(fd, item.entry);
    if ((A::load_relaxed(s.mine.flags) & kSlotListener) == 0) item.watch = Watch::token;
  } else if (epoll_is_ours(item.entry)) {
    item.watch = Watch::group;
  } else if (item.entry.kind == Kind::lost) {
    item.watch = Watch::lost;
  }
  return item;
}

constexpr short kAlways = POLLERR | POLLHUP | POLLNVAL;
constexpr int64_t kFirstPauseNs = 100'000;

// Pauses of one call that double: what comes soon is seen soon.
struct Pauses {
  int64_t tokens_ns = 0;  // for another taker who is about to read his tokens
  int64_t slice_ns = 0;   // between looks at what another taker may have taken the token of
  static int64_t next(int64_t& ns) { return ns = std::clamp(2 * ns, kFirstPauseNs, kSliceNs); }
};

// Judges the protected entries from memory; true if one is ready.
bool judge(pollfd* fds, Item* items, nfds_t n) {
  bool any = false;
  for (nfds_t i = 0; i < n; ++i) {
    if (items[i].watch == Watch::kernel) continue;
    uint32_t mask = 0;
    // A lost listener never has a connection for this process; another socket has an error.
    if (items[i].watch == Watch::lost)
      mask = items[i].entry.slot != 0 ? 0 : POLLIN | POLLRDNORM | POLLERR | POLLHUP;
    else if (items[i].watch == Watch::token)
      mask = poll_mask(sock_of(fds[i].fd, items[i].entry));
    else if (epoll_is_readable(fds[i].fd, items[i].entry))
      mask = POLLIN | POLLRDNORM;
    fds[i].revents = static_cast<short>(mask & static_cast<uint16_t>(fds[i].events | kAlways));
    any |= fds[i].revents != 0;
  }
  return any;
}

// The array for the kernel. While we only look, protected entries are left out; to sleep they stand
// for their token or their group's bell.
void fill_native(pollfd* native, const pollfd* fds, const Item* items, nfds_t n, bool sleep) {
  for (nfds_t i = 0; i < n; ++i) {
    native[i] = {fds[i].fd, fds[i].events, 0};
    if (items[i].entry.kind == Kind::socket && items[i].watch == Watch::kernel)
      native[i].events &= ~(POLLOUT | POLLWRNORM | POLLWRBAND);  // a listener is never writable
    if (items[i].watch == Watch::token) native[i].events = POLLIN;
    if ((items[i].watch != Watch::kernel && !sleep) || items[i].gone) native[i].fd = -1;
    if (items[i].watch == Watch::lost) native[i].fd = -1;
    if (items[i].entry.kind == Kind::hidden) native[i].fd = kTableSize + 1;  // EBADF: POLLNVAL
  }
}

void take_kernel_answers(pollfd* fds, const pollfd* native, const Item* items, nfds_t n) {
  for (nfds_t i = 0; i < n; ++i)
    if (items[i].watch == Watch::kernel) fds[i].revents = native[i].revents;
}

int count_ready(const pollfd* fds, nfds_t n) {
  return static_cast<int>(
      std::count_if(fds, fds + n, [](const pollfd& p) { return p.revents != 0; }));
}

// One sleep of a thread: what it has announced, and has to take back when it wakes.
struct Sleep {
  const pollfd* fds;
  Item* items;
  nfds_t n;
  int64_t deadline;      // 0: none
  bool alone = true;     // nobody else is the taker of one of its sockets
  nfds_t announced = 0;  // entries that it has announced itself to
  SessionSlot* waits_for = nullptr;

  int64_t left() const {
    return deadline != 0 ? std::max<int64_t>(0, deadline - monotonic_ns()) : -1;
  }
};

// Programs name a socket twice, for reading and for writing: whether we are its taker already.
bool is_taker_by_another_name(const Item* items, nfds_t i) {
  return items[i].part == Part::neither && std::any_of(items, items + i, [&](const Item& one) {
           return one.part == Part::taker && one.entry.slot == items[i].entry.slot;
         });
}

void take_tokens(Sleep& sleep, const Sock& s, nfds_t i) {
  Item& item = sleep.items[i];
  item.part = become_taker(s.mine.taker);
  item.stale = false;
  item.gone = !is_still_there(s);
  if (item.gone && item.part == Part::taker) leave_taker(s.mine.taker);
  if (item.gone) item.part = Part::follower;
  if (item.part == Part::taker || is_taker_by_another_name(sleep.items, i)) return;
  // We cannot follow (taker.h), and may miss a token.
  sleep.alone = false;
  if (!item.gone) A::fetch_or(s.mine.taker, kPollers);
}

// Asks for tokens and announces the sleep to groups. False: something came meanwhile.
bool prepare(Sleep& sleep, pollfd* fds) {
  Item* const items = sleep.items;
  for (nfds_t i = 0; i < sleep.n; ++i) {
    if (items[i].watch == Watch::group && items[i].entry.slot != 0 &&
        !epoll_prepare_sleep(items[i].entry.slot - 1))
      return false;
    sleep.announced = i + 1;
    if (items[i].watch == Watch::token) {
      const Sock s = sock_of(fds[i].fd, items[i].entry);
      take_tokens(sleep, s, i);
      short what = 0;
      if ((fds[i].events & (POLLIN | POLLRDNORM | POLLPRI | POLLRDHUP)) != 0) what |= POLLIN;
      if ((fds[i].events & (POLLOUT | POLLWRNORM)) != 0) what |= POLLOUT;
      arm(s, what != 0 ? what : POLLIN);
    }
  }
  return !judge(fds, items, sleep.n);
}

// May be interrupted by a jump out of it, and is then done once more: a group may then count a
// sleeper too many, and never one too few.
void wake(void* p) {
  Sleep& sleep = *static_cast<Sleep*>(p);
  while (sleep.announced != 0) {
    const nfds_t i = --sleep.announced;
    const Item& item = sleep.items[i];
    if (item.watch == Watch::group && item.entry.slot != 0) epoll_wake(item.entry.slot - 1);
    if (item.watch == Watch::token && item.part != Part::neither)
      leave_taker(sock_of(sleep.fds[i].fd, item.entry).mine.taker);
  }
  if (SessionSlot* const mine = std::exchange(sleep.waits_for, nullptr); mine != nullptr)
    end_wait_for(*mine, sleep.items[0].entry.gen);
}

// The socket that a thread waits for if it waits for nothing else; else null. A thread that looks
// at many is not any one's.
SessionSlot* only_socket(const pollfd* fds, const Item* items, nfds_t n) {
  return n == 1 && items[0].watch == Watch::token ? &sock_of(fds[0].fd, items[0].entry).mine
                                                  : nullptr;
}

int native_poll(pollfd* native, nfds_t n, int64_t timeout_ns, const sigset_t* mask) {
  const timespec t{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  const int k = libc.ppoll(native, n, timeout_ns < 0 ? nullptr : &t, mask);
  return k < 0 ? -errno : k;
}

// Tokens woke us, and nothing is ready. Those of another taker, who is about to read them, we leave
// alone, and watch the rest meanwhile. Ours were stale, or are about what somebody else polls for,
// who needs a moment to see them; then they go. `k` is what the kernel answered.
int after_vain_wake(const Sleep& sleep, pollfd* native, int k, Pauses& pauses,
                    const sigset_t* mask) {
  constexpr int64_t kMomentNs = 200'000;
  int64_t pause = 0;
  for (nfds_t i = 0; i < sleep.n; ++i) {
    Item& item = sleep.items[i];
    if (item.watch != Watch::token || native[i].revents == 0) continue;
    const Sock s = sock_of(sleep.fds[i].fd, item.entry);
    item.stale = item.part == Part::taker;
    native[i].fd = -1;
    if (!item.stale && !is_taker_by_another_name(sleep.items, i))
      pause = Pauses::next(pauses.tokens_ns);
    else if ((A::load_relaxed(s.mine.taker) & kPollers) != 0 &&
             (A::fetch_and(s.mine.taker, ~kPollers) & kPollers) != 0)
      pause = std::max(pause, kMomentNs);
  }
  if (pause != 0) {
    const int64_t left = sleep.left();
    k = native_poll(native, sleep.n, left < 0 ? pause : std::min(left, pause), mask);
  }
  for (nfds_t i = 0; i < sleep.n; ++i)
    if (sleep.items[i].stale) discard_tokens(sock_of(sleep.fds[i].fd, sleep.items[i].entry));
  return k;
}

int sleep_announced(Sleep& sleep, pollfd* fds, pollfd* native, Pauses& pauses,
                    const sigset_t* mask) {
  if (!prepare(sleep, fds)) return 0;
  int64_t left = sleep.left();
  if (!sleep.alone) {
    const int64_t slice = Pauses::next(pauses.slice_ns);
    left = left < 0 ? slice : std::min(left, slice);
  }
  fill_native(native, fds, sleep.items, sleep.n, true);
  sleep.waits_for = only_socket(fds, sleep.items, sleep.n);
  if (sleep.waits_for != nullptr) begin_wait(*sleep.waits_for, process.pid, monotonic_ns());
  const int k = native_poll(native, sleep.n, left, mask);
  if (k == 0 && !sleep.alone)
    for (nfds_t i = 0; i < sleep.n; ++i)
      if (sleep.items[i].watch == Watch::token && sleep.items[i].part == Part::follower)
        bury_dead_taker(sock_of(fds[i].fd, sleep.items[i].entry).mine.taker);
  if (k <= 0 || judge(fds, sleep.items, sleep.n)) return k;
  return after_vain_wake(sleep, native, k, pauses, mask);
}

// Sleeps until something may be ready. Returns what the kernel's poll() did for the entries that
// are its own, in `native`; ours are judged then.
int sleep_once(Sleep& sleep, pollfd* fds, pollfd* native, Pauses& pauses, const sigset_t* mask) {
  const OnUnwind undo(wake, &sleep);
  const int k = sleep_announced(sleep, fds, native, pauses, mask);
  wake(&sleep);
  return k;
}

}  // namespace

bool poll_concerns_us(const pollfd* fds, nfds_t n) {
  for (nfds_t i = 0; i < n; ++i)
    if (fds[i].fd >= 0) {
      const Entry e = look_up(fds[i].fd);
      if (is_ours(e) || e.kind == Kind::hidden) return true;
    }
  return false;
}

int shim_poll(pollfd* fds, nfds_t n, int64_t timeout_ns, const sigset_t* mask) {
  Scratch<Item, 64> items(n);
  Scratch<pollfd, 64> native(n);
  if (items.get() == nullptr || native.get() == nullptr) return -ENOMEM;
  bool ordinary = false;
  for (nfds_t i = 0; i < n; ++i) {
    items[i] = classify(fds[i].fd);
    ordinary |= items[i].watch == Watch::kernel && fds[i].fd >= 0;
    fds[i].revents = 0;
  }
  const int64_t deadline = timeout_ns > 0 ? monotonic_ns() + timeout_ns : 0;
  Pauses pauses;
  release_held();
  settle();
  for (bool over = timeout_ns == 0;; over = deadline != 0 && monotonic_ns() >= deadline) {
    const bool ready = judge(fds, items.get(), n);
    if (ready || over) {
      // A signal that the mask lets through comes first, unless there is something to report.
      if (ordinary || (!ready && mask != nullptr)) {
        fill_native(native.get(), fds, items.get(), n, false);
        const int k = native_poll(native.get(), n, 0, ready ? nullptr : mask);
        if (k < 0) return k;
        take_kernel_answers(fds, native.get(), items.get(), n);
      }
      return count_ready(fds, n);
    }
    Sleep sleep{fds, items.get(), n, deadline};
    const int k = sleep_once(sleep, fds, native.get(), pauses, mask);
    if (k < 0) return k;
    if (k > 0) {
      take_kernel_answers(fds, native.get(), items.get(), n);
      if (const int ready_now = count_ready(fds, n); ready_now > 0) return ready_now;
    }
  }
}

bool select_concerns_us(int n, const fd_set* r, const fd_set* w, const fd_set* x) {
  constexpr int kBits = 8 * sizeof(unsigned long);
  if (n > kTableSize) return false;
  for (const fd_set* s : {r, w, x})  // what is not there the kernel refuses
    if (n > 0 && s != nullptr &&
        !is_room(const_cast<fd_set*>(s), static_cast<size_t>(n + kBits - 1) / kBits * sizeof(long)))
      return false;
  const auto words = [](const fd_set* s) { return reinterpret_cast<const unsigned long*>(s); };
  for (int i = 0; i * kBits < n; ++i) {
    unsigned long bits = 0;
    for (const fd_set* s : {r, w, x})
      if (s != nullptr) bits |= words(s)[i];
    while (bits != 0) {
      const int fd = i * kBits + __builtin_ctzl(bits);
      bits &= bits - 1;
      if (fd < n && is_ours(look_up(fd))) return true;
    }
  }
  return false;
}

namespace {

// fd_set beyond FD_SETSIZE: programs allocate larger ones, so no FD_ISSET with its bounds check.
bool test(const fd_set* s, int fd) {
  return s != nullptr && (reinterpret_cast<const unsigned long*>(s)[fd / 64] >> (fd % 64) & 1) != 0;
}
void clear_all(fd_set* s, int n) {
  if (s != nullptr) memset(s, 0, static_cast<size_t>((n + 63) / 64) * 8);
}
bool put(fd_set* s, int fd, bool on) {
  if (s == nullptr || !on) return false;
  reinterpret_cast<unsigned long*>(s)[fd / 64] |= 1ul << (fd % 64);
  return true;
}

constexpr short kReadable = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR;
constexpr short kWritable = POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR;

}  // namespace

int shim_select(int n, fd_set* r, fd_set* w, fd_set* x, int64_t timeout_ns, const sigset_t* mask) {
  if (n < 0) return -EINVAL;
  Scratch<pollfd, 64> fds(static_cast<size_t>(n));
  if (fds.get() == nullptr) return -ENOMEM;
  nfds_t count = 0;
  for (int fd = 0; fd < n; ++fd) {
    short events = 0;
    if (test(r, fd)) events |= POLLRDNORM | POLLRDBAND | POLLIN;
    if (test(w, fd)) events |= POLLWRBAND | POLLWRNORM | POLLOUT;
    if (test(x, fd)) events |= POLLPRI;
    if (events != 0) fds[count++] = {fd, events, 0};
  }
  const int k = shim_poll(fds.get(), count, timeout_ns, mask);
  if (k < 0) return k;
  for (nfds_t i = 0; i < count; ++i)
    if ((fds[i].revents & POLLNVAL) != 0) return -EBADF;
  clear_all(r, n);
  clear_all(w, n);
  clear_all(x, n);
  int ready = 0;
  for (nfds_t i = 0; i < count; ++i) {
    const pollfd& p = fds[i];
    ready += put(r, p.fd, (p.events & POLLIN) != 0 && (p.revents & kReadable) != 0);
    ready += put(w, p.fd, (p.events & POLLOUT) != 0 && (p.revents & kWritable) != 0);
    ready += put(x, p.fd, (p.events & POLLPRI) != 0 && (p.revents & POLLPRI) != 0);
  }
  return ready;
}

}  // namespace mw::shim
