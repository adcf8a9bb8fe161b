#include "shim/calls.h"

#include <limits.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ring/call_cell.h"
#include "ring/order.h"
#include "shim/process.h"
#include "shim/session_end.h"
#include "transport/local/fd_message.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

constexpr timespec kTick{0, 100'000'000};
constexpr int kTicksToLiveness = 20;  // two seconds without an answer: is anybody there?
constexpr int kTicksForCell = 100;    // longer than it takes to replace a stack that hangs
constexpr int kTicksToGiveUp = 3000;  // the driver answers for a dead INS long before

using Cell = CallCell<SessionCall, mw_call>;

Cell cell_at(uint32_t at) {
  return {process.session.call(at), process.channel.call(at)};
}

// Makes a free, answered cell ours. -1: there is none. Lookups, which take seconds, have half of the
// cells among themselves.
int32_t find_cell(bool lookup) {
  const uint32_t calls = process.channel.geometry().calls;
  const uint32_t n = lookup ? std::max(1u, calls / 2) : calls;
  uint32_t at = this_thread() * 2654435761u % n;
  for (uint32_t tries = 0; tries < n; ++tries, at = (at + 1) % n)
    if (cell_at(at).acquire(process.pid)) return static_cast<int32_t>(at);
  return -1;
}

// The same; waits until one comes free. -ENOBUFS: none did for a long time; -ENETDOWN: nobody is there
// who would free one; -ECONNRESET.
int32_t acquire_cell(bool lookup) {
  int32_t at = find_cell(lookup);
  if (at >= 0) return at;
  SessionHeader& header = process.session.header();
  const int saved = errno;
  int32_t failure = -ENOBUFS;
  for (int ticks = 0; at < 0 && ticks < kTicksForCell;) {
    const uint32_t seen = A::load_acquire(header.cells_freed);
    A::store_relaxed(header.cells_wanted, 1u);
    A::fence();  // pairs with that of release_cell()
    at = find_cell(lookup);
    if (at >= 0) break;
    if (is_poisoned()) {
      failure = -ECONNRESET;
      break;
    }
    if (raw_futex(&header.cells_freed, FUTEX_WAIT, seen, &kTick) == 0 || errno != ETIMEDOUT)
      continue;
    if (++ticks < kTicksToLiveness || is_session_up()) continue;
    failure = -ENETDOWN;
    break;
  }
  errno = saved;
  return at >= 0 ? at : failure;
}

void release_cell(uint32_t at) {
  cell_at(at).release();
  A::fence();  // pairs with that of acquire_cell()
  SessionHeader& header = process.session.header();
  if (A::load_relaxed(header.cells_wanted) == 0 || A::exchange(header.cells_wanted, 0u) == 0)
    return;
  A::fetch_add(header.cells_freed, 1u);
  const int saved = errno;
  // More than one: a lookup cannot use every cell. Not all: there may be a thousand.
  constexpr int kWoken = 4;
  if (raw_futex(&header.cells_freed, FUTEX_WAKE, kWoken, nullptr) == kWoken)
    A::store_relaxed(header.cells_wanted, 1u);  // perhaps others sleep
  errno = saved;
}

void wake_waiters(mw_call& cell) {
  const int saved = errno;
  raw_futex(&cell.done_seq, FUTEX_WAKE, INT_MAX, nullptr);
  errno = saved;
}

// Writes the request and announces it. Returns 0 or -errno.
int submit(uint32_t at, const CallRequest& r) {
  mw_call& cell = process.channel.call(at);
  if (cell_at(at).take_over_waiters()) wake_waiters(cell);
  uint32_t len = 0;
  for (const Bytes& b : r.in) {
    if (b.len > MW_CALL_PAYLOAD - len) return -EINVAL;
    if (b.len != 0) std::memcpy(cell.payload + len, b.data, b.len);
    len += b.len;
  }
  cell.op = r.op;
  cell.slot = r.slot;
  cell.gen = r.gen;
  std::memcpy(cell.arg, r.arg, sizeof cell.arg);
  cell.in_len = len;
  cell.flags2 = r.flags;
  cell.caller = this_thread();
  cell.sent_at = order_stamp();
  const uint32_t seq = cell_at(at).publish();
  if (r.placeholder >= 0 || r.single_placeholder >= 0) {
    const mw_drop_record record{MW_DROP_MAGIC, at, seq};
    if (r.single_placeholder >= 0) {
      if (say_whose_placeholder(r.single_placeholder, record)) return 0;
      cell_at(at).withdraw();
      return -EMFILE;
    }
    const int fds[] = {r.placeholder};
    if (auto sent = send_message(process.drop_fd, bytes_of(record), fds, 0); !sent) {
      cell_at(at).withdraw();
      return -ENETDOWN;
    }
    return 0;
  }
  const uint32_t worker = process.channel.worker_of(r.slot);
  if (process.channel.call_news(worker).add(at)) ring_bell(process.bells[worker]);
  return 0;
}

bool has_hung_up(int placeholder) {
  pollfd p{placeholder, 0, 0};
  return placeholder >= 0 && libc.poll(&p, 1, 0) > 0 && (p.revents & POLLHUP) != 0;
}

enum class Whose { ours, posted, lookup };

// Waits until call `seq` of the cell is answered. False: nobody will answer it. A lookup may take
// its time; who waits for a posted call does not hold the cell. `single`: a placeholder that the
// driver would have closed then.
bool await(uint32_t at, uint32_t seq, Whose whose, int single = -1) {
  mw_call& cell = process.channel.call(at);
  bool slept = false;
  const int saved = errno;
  bool answered = false;
  for (int ticks = 0; ticks < kTicksToGiveUp;) {
    answered = cell_at(at).is_answered(seq);
    if (answered) break;
    slept = true;
    uint32_t done = 0;
    if (!cell_at(at).prepare_sleep(seq, done)) continue;
    if (raw_futex(&cell.done_seq, FUTEX_WAIT, done, &kTick) < 0 && errno == ETIMEDOUT) {
      ++ticks;
      if (has_hung_up(single) && !cell_at(at).is_answered(seq)) {
        cell_at(at).withdraw();  // it went no further
        break;
      }
      if (ticks < kTicksToLiveness) continue;
      if (whose != Whose::lookup) see_end_of_ins();
      if (whose == Whose::lookup ? is_deserted() : !is_session_up() || is_poisoned()) break;
    }
  }
  if (answered && slept && whose != Whose::posted) cell_at(at).forget_waiters();
  errno = saved;
  return answered;
}

// Could a stack that tells the truth answer so? What passes here reaches the application as the
// result of a system call: a count that is too large, or an error that turns into a count, would
// have it read what is not there.
bool possible(const CallRequest& r, const CallAnswer& a) {
  if (a.len > MW_CALL_PAYLOAD) return false;
  const bool lookup = mw_is_lookup(r.op) != 0;
  if (a.ret < 0) return lookup ? a.err > -4096 && a.err < 4096 : a.err > 0 && a.err < 4096;
  if (lookup || r.op == MW_OP_IOCTL || r.op == MW_OP_RECVMSG) return true;
  return a.ret <= (r.op == MW_OP_SENDMSG ? r.arg[3] : 0);
}

CallAnswer take_answer(uint32_t at, const CallRequest& request, void* room, uint32_t room_len) {
  const mw_call& cell = process.channel.call(at);
  CallAnswer a;
  a.ret = *const_cast<const volatile int32_t*>(&cell.ret);
  a.err = *const_cast<const volatile int32_t*>(&cell.err);
  a.len = *const_cast<const volatile uint32_t*>(&cell.out_len);
  if (!possible(request, a)) {
    poison("answer to a call");
    return {-1, ECONNRESET, 0};
  }
  a.len = std::min(a.len, room_len);
  if (a.len != 0) std::memcpy(room, cell.payload, a.len);
  return a;
}

void await_posted(uint32_t slot) {
  SessionSlot& s = process.session.slot(slot);
  const uint64_t posted = A::load_acquire(s.posted);
  if (posted == 0) return;
  const uint32_t at = posted_cell(posted);
  if (at < process.channel.geometry().calls) await(at, posted_seq(posted), Whose::posted);
  uint64_t same = posted;
  std::atomic_ref(s.posted).compare_exchange_strong(same, uint64_t{0});
}

}  // namespace

bool session_up() {
  uint32_t& state = process.session.header().state;
  for (int ticks = 0; ticks < kTicksToLiveness; ++ticks) {
    const uint32_t s = A::load_acquire(state);
    if (s == kSessionUp) return true;
    if (s == kSessionOver) return false;
    const int saved = errno;
    raw_futex(&state, FUTEX_WAIT, s, &kTick);
    errno = saved;
  }
  return A::load_acquire(state) == kSessionUp;
}

CallAnswer call(const CallRequest& request, void* room, uint32_t room_len) {
  if (process.over != 0 && (request.op == MW_OP_SOCKET || mw_is_lookup(request.op)))
    return {-1, ENETDOWN, 0};
  if (is_poisoned()) return {-1, ECONNRESET, 0};
  if (!session_up()) return {-1, ENETDOWN, 0};
  const bool has_slot = request.placeholder < 0 && request.single_placeholder < 0;
  if (!mw_is_lookup(request.op) && has_slot) await_posted(request.slot);
  if (process.talks_to_itself) process.unsettled = true;
  const bool lookup = mw_is_lookup(request.op) != 0;
  const int32_t cell = acquire_cell(lookup);
  if (cell < 0) return {-1, -cell, 0};
  const auto at = static_cast<uint32_t>(cell);
  CallAnswer a;
  if (const int rc = submit(at, request); rc < 0)
    a.err = -rc;
  else if (await(at, process.session.call(at).seq, lookup ? Whose::lookup : Whose::ours,
                 request.single_placeholder))
    a = take_answer(at, request, room, room_len);
  else
    a.err = request.op == MW_OP_SOCKET ? ENETDOWN : ECONNRESET;
  release_cell(at);
  return a;
}

void post(const CallRequest& request) {
  if (is_poisoned() || !session_up()) return;
  if (process.talks_to_itself) process.unsettled = true;
  await_posted(request.slot);
  const int32_t cell = acquire_cell(false);
  if (cell < 0) return;
  const auto at = static_cast<uint32_t>(cell);
  SessionSlot& s = process.session.slot(request.slot);
  if (submit(at, request) == 0) {
    const uint32_t seq = process.session.call(at).seq;
    uint64_t none = 0;
    // Another thread has posted meanwhile, and a slot remembers one call: this one is awaited.
    if (!std::atomic_ref(s.posted).compare_exchange_strong(none, posted_call(at, seq)))
      await(at, seq, Whose::ours);
  }
  release_cell(at);
}

}  // namespace mw::shim
