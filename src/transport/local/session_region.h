// session_region.h - region B: what the application's processes and the driver share, and the INS
// never sees.
//
// The rings of a socket may be used by several processes (fork, SCM_RIGHTS), so the PVM's private
// end of each - its own indexes, its locks, its epoll registrations - stands here and not in one
// process.
//
// TRUST       The application's processes share this as they share sockets, whatever their users: what
//             stands here is no pointer, and indexes are checked where they are used.
//             The driver does not trust what stands here: it only reads watches and frees calls and
//             groups.
// INVARIANTS  rx_head is changed under rx_lock, tx_tail under tx_lock. A slot's contents are valid
//             for the generation in `gen`; a process whose descriptor carries another one holds a
//             dead socket.
// THREADS     Words are accessed through std::atomic_ref (StdAtomics); locks are SharedLock.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "abi/mw_region.h"

namespace mw {

constexpr uint64_t kSessionMagic = 0x3142'5357'4d6d'636full;

enum SessionState : uint32_t {
  kSessionStarting = 0,
  kSessionUp = 1,    // an INS is attached
  kSessionDown = 2,  // the INS died, another one is on its way
  kSessionOver = 3,  // no INS will come any more
};

struct SessionHeader {
  uint64_t magic;
  mw_geometry geometry;
  uint32_t state;      // SessionState; a futex word, woken on each change
  uint32_t epoch;      // grows by one with each INS that attached
  uint32_t first_gen;  // slots with a generation below (modulo 2^32) belong to dead INSs
  uint32_t next_process;
  uint32_t groups_made;   // grows by one with each group: who shares an epoll instance looks again
  uint32_t cells_wanted;  // somebody waits for a call cell
  uint32_t cells_freed;  // a futex word: grows, and is woken, when a cell comes free that is wanted
  uint8_t pad[52];
};

// One epoll registration of a socket. It belongs to the open file, as in the kernel: it ends with
// EPOLL_CTL_DEL, or with the last descriptor of the socket in any process (src/shim/socket/news.h). Its
// events and data only those have who have the instance (src/shim/socket/registrations.h).
struct SessionWatch {
  uint32_t group;   // 0: free; else 1 + group
  int32_t fd;       // the descriptor it was registered with: part of the key, as in the kernel
  uint16_t serial;  // of the group when this was registered: another one means it is void
  uint16_t reserved;
};
// What stands in the slot itself. Few sockets are in more instances: theirs stand apart.
constexpr uint32_t kNearWatches = 4;
struct SessionFarWatches {
  SessionWatch watches[MW_MAX_WATCHES - kNearWatches];
};

// What ends later ends never: a century.
constexpr int64_t kLongestTimeoutUs = int64_t{100} * 366 * 86'400 * 1'000'000;

struct alignas(64) SessionSlot {
  uint32_t gen;
  uint16_t domain;
  uint16_t type;
  uint16_t protocol;
  uint16_t watch_end;  // under watch_lock: registrations from this one on are free
  uint32_t flags;      // kSlot*
  uint32_t rx_lock;
  uint32_t tx_lock;
  uint32_t watch_lock;
  uint32_t rx_head;
  uint32_t tx_tail;
  uint32_t error_taken;  // the error_seq that was delivered last
  uint32_t rcvlowat;
  uint32_t waiter;      // pid of the process whose thread began to wait for this socket last
  int64_t rcvtimeo_us;  // 0: none; negative: over at once
  int64_t sndtimeo_us;
  uint64_t posted;  // the last call that nobody waited for: posted_call(), or 0
  uint32_t taker;   // the thread that takes the tokens (src/shim/socket/taker.h)
  mw_addr local;    // len 0: not known
  SessionWatch watches[kNearWatches];
  uint32_t
      sndbuf;  // SO_SNDBUF if the program set it: the send ring takes no more than that; 0: not set
  uint32_t owner;  // pid of the process that made or accepted it
  // What it costs in threads that wait for it (begin_wait()): how many do now, in the low 16 bits,
  // and since when the first of them does; and the time that is over, less the beginnings of the
  // waits that are not.
  uint64_t waits;
  uint64_t waited_us;
  uint32_t queued_at;  // since when it waits for its turn in epoll instances (src/ring/order.h)
  uint32_t lock_lost;  // rx_lock or tx_lock was taken from a living thread: it may still copy
  int64_t stamp_ns;    // datagrams: what SIOCGSTAMP says (src/shim/calls/ancillary.cc)
  uint32_t asked;      // datagrams: control messages that the program wants (the same)
  uint32_t linger_s;   // SO_LINGER: how long close() waits for the peer; 0: not at all
};
static_assert(sizeof(SessionSlot) == 256);

// As new, but for the two locks of the rings: a thread may be in a copy of an earlier socket's
// bytes, and gives its lock back when it leaves (src/shim/process/ring_window.h).
inline void renew(SessionSlot& s) {
  auto* const bytes = reinterpret_cast<std::byte*>(&s);
  constexpr size_t kLocks = offsetof(SessionSlot, rx_lock);
  constexpr size_t kBehind = offsetof(SessionSlot, watch_lock);
  std::memset(bytes, 0, kLocks);
  std::memset(bytes + kBehind, 0, offsetof(SessionSlot, lock_lost) - kBehind);
  constexpr size_t kRest = offsetof(SessionSlot, lock_lost) + sizeof s.lock_lost;
  std::memset(bytes + kRest, 0, sizeof s - kRest);
}

// A thread goes to sleep until this socket has news, and wakes. Times are CLOCK_MONOTONIC. The
// order of the two words is such that whoever reads in between finds too little, and not too much.
inline void begin_wait(SessionSlot& s, uint32_t pid, int64_t now_ns) {
  const auto us = static_cast<uint64_t>(now_ns / 1000);
  std::atomic_ref(s.waiter).store(pid, std::memory_order_relaxed);
  std::atomic_ref(s.waited_us).fetch_sub(us);
  std::atomic_ref waits(s.waits);
  uint64_t now = waits.load(std::memory_order_relaxed);
  uint64_t next = 0;
  do {
    next = (now & 0xffff) == 0 ? (us / 1000) << 16 | 1 : now + 1;
  } while (!waits.compare_exchange_weak(now, next));
}
inline void end_wait(SessionSlot& s, int64_t now_ns) {
  std::atomic_ref(s.waits).fetch_sub(1);
  std::atomic_ref(s.waited_us).fetch_add(static_cast<uint64_t>(now_ns / 1000));
}
struct SessionWait {
  uint32_t threads;
  uint32_t since_ms;  // how long the first of them has been waiting
  uint64_t total_us;  // too little, or more than can be, if somebody slept or woke meanwhile
};
inline SessionWait wait_of(SessionSlot& s, int64_t now_ns) {
  std::atomic_ref waited(s.waited_us);
  uint64_t done = waited.load();
  uint64_t waits = std::atomic_ref(s.waits).load();
  for (int k = 0; k < 4 && waited.load() != done; ++k) {
    done = waited.load();
    waits = std::atomic_ref(s.waits).load();
  }
  const auto us = static_cast<uint64_t>(now_ns / 1000);
  const auto threads = static_cast<uint32_t>(waits & 0xffff);
  const uint64_t since = us / 1000 - (waits >> 16);
  return {threads, threads == 0 || since > UINT32_MAX ? 0 : static_cast<uint32_t>(since),
          done + threads * us};
}

constexpr uint32_t kSlotListener = 1;
constexpr uint32_t kSlotShutRd = 2;
constexpr uint32_t kSlotShutWr = 4;
constexpr uint32_t kSlotNonblock = 8;      // O_NONBLOCK of the open file, kept here to save asking
constexpr uint32_t kSlotResetTaken = 16;   // the death of its INS was reported once
constexpr uint32_t kSlotCorked = 32;       // TCP_CORK, which the shim does itself
constexpr uint32_t kSlotCorkedBelow = 64;  // ... and the real socket is corked too
constexpr uint32_t kSlotArmed = 128;       // its placeholder may have got tokens
constexpr uint32_t kSlotOdd = 256;         // its placeholder is no longer as the INS made it
constexpr uint32_t kSlotResets = 512;      // SO_LINGER with a time of 0
constexpr uint32_t kSlotHasPort = 1024;    // bound by the program; a datagram socket: in any way
constexpr uint32_t kSlotInq = 2048;        // TCP_INQ
constexpr uint32_t kSlotWas6 = 4096;       // IPV6_ADDRFORM makes, or has made, it one of IPv4

// Who made or accepted the socket of a generation. It stands in the entry of gen % slots until so many
// more sockets were made: longer than its slot may be without another one.
struct SessionOwner {
  uint32_t gen;
  uint32_t pid;
};

// A call: its cell and its number there. The number is part of it, because the cell may serve
// another call before somebody waits for this one.
constexpr uint64_t posted_call(uint32_t cell, uint32_t seq) {
  return uint64_t{cell} << 32 | seq;  // seq is never 0
}
constexpr uint32_t posted_cell(uint64_t call) {
  return static_cast<uint32_t>(call >> 32);
}
constexpr uint32_t posted_seq(uint64_t call) {
  return static_cast<uint32_t>(call);
}

// Who holds a call cell. pid 0: free.
struct SessionCall {
  uint32_t pid;
  uint32_t seq;
};

// A group is an epoll instance whose sockets announce themselves in group_news. The driver hands
// out ids and frees a group when the read end of its life pipe is gone from every process, and with
// it, if the instance was passed on, the instance itself.
struct SessionGroup {
  uint32_t in_use;
  uint16_t serial;  // counts the instances that had this number
  uint16_t flags;   // kGroup*
  uint32_t cursor;  // the socket with which the next look at a crowd begins
  uint32_t reserved;
};
constexpr uint16_t kGroupNested = 1;  // stands in another epoll instance: always rung for

// What a group's doorbell is registered with in the kernel's epoll instance: so the instance itself
// tells which group it is, to whoever has it by exec, fork or SCM_RIGHTS. No application has such
// data by accident.
constexpr uint64_t kBellMark = 0x6d77'6265ull << 32;
constexpr uint64_t bell_data(uint32_t group, uint16_t serial) {
  return kBellMark | uint64_t{serial} << 16 | group;
}
constexpr bool is_bell_data(uint64_t data) {
  return data >> 32 == kBellMark >> 32;
}
constexpr uint32_t bell_group(uint64_t data) {
  return static_cast<uint32_t>(data & 0xffff);
}
constexpr uint16_t bell_serial(uint64_t data) {
  return static_cast<uint16_t>(data >> 16 & 0xffff);
}
static_assert(MW_MAX_GROUPS <= 0xffff);

struct SessionLayout {
  uint64_t slots, calls, groups, owners, far_watches, bytes;
};

inline SessionLayout session_layout_of(const mw_geometry& g) {
  SessionLayout l{};
  l.calls = MW_PAGE;
  l.groups = l.calls + sizeof(SessionCall) * uint64_t{g.calls};
  l.slots =
      (l.groups + sizeof(SessionGroup) * uint64_t{g.groups} + MW_PAGE - 1) / MW_PAGE * MW_PAGE;
  l.owners = l.slots + sizeof(SessionSlot) * uint64_t{g.slots};
  l.far_watches = l.owners + sizeof(SessionOwner) * uint64_t{g.slots};
  l.bytes = (l.far_watches + sizeof(SessionFarWatches) * uint64_t{g.slots} + MW_PAGE - 1) /
            MW_PAGE * MW_PAGE;
  return l;
}

// The registrations of a socket that may be in use.
class SessionWatches {
 public:
  class Iterator {
   public:
    Iterator(const SessionWatches& all, uint32_t i) : all_(all), i_(i) {}
    SessionWatch& operator*() const { return all_[i_]; }
    Iterator& operator++() {
      ++i_;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return i_ != other.i_; }

   private:
    const SessionWatches& all_;
    uint32_t i_;
  };
  // far: null if it is not there; then the near ones are all that are seen.
  SessionWatches(SessionSlot& slot, SessionFarWatches* far)
      : near_(slot.watches),
        far_(far == nullptr ? nullptr : far->watches),
        end_(std::min<uint32_t>(std::atomic_ref(slot.watch_end).load(std::memory_order_relaxed),
                                most())) {}
  // How many there may be.
  uint32_t most() const { return far_ == nullptr ? kNearWatches : MW_MAX_WATCHES; }
  SessionWatch& operator[](uint32_t i) const {
    return i < kNearWatches ? near_[i] : far_[i - kNearWatches];
  }
  uint32_t size() const { return end_; }
  Iterator begin() const { return {*this, 0}; }
  Iterator end() const { return {*this, end_}; }

 private:
  SessionWatch* near_;
  SessionWatch* far_;
  uint32_t end_;
};

// Typed access to a mapped session region; indexes are range-checked by the caller.
class SessionRegion {
 public:
  SessionRegion() = default;
  SessionRegion(std::byte* base, const mw_geometry& g)
      : base_(base), l_(session_layout_of(g)), slots_(g.slots) {}
  SessionHeader& header() const { return *at<SessionHeader>(0); }
  SessionSlot& slot(uint32_t i) const { return at<SessionSlot>(l_.slots)[i]; }
  SessionWatches watches(uint32_t i) const {
    return {slot(i), at<SessionFarWatches>(l_.far_watches) + i};
  }
  SessionOwner& owner(uint32_t gen) const { return at<SessionOwner>(l_.owners)[gen % slots_]; }
  SessionCall& call(uint32_t i) const { return at<SessionCall>(l_.calls)[i]; }
  SessionGroup& group(uint32_t i) const { return at<SessionGroup>(l_.groups)[i]; }
  std::byte* base() const { return base_; }

 private:
  template <class T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  std::byte* base_ = nullptr;
  SessionLayout l_{};
  uint32_t slots_ = 1;
};

}  // namespace mw
