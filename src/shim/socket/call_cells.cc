#include "shim/socket/call_cells.h"

#include <limits.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ring/call_cell.h"
#include "ring/order.h"
#include "shim/process/attachment.h"
#include "shim/process/process.h"
#include "shim/process/shared_lock.h"
#include "shim/process/stack.h"
#include "shim/socket/session_end.h"
#include "shim/socket/socket.h"
#include "transport/local/fd_message.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

constexpr timespec kTick{0, 100'000'000};
constexpr int kTicksToLiveness = 20;  // two seconds without an answer: is anybody there?
constexpr int kTicksForCell = 100;    // longer than it takes to replace a stack that hangs
constexpr int kTicksToGiveUp = 3000;  // the driver answers for a dead INS long before

using Cell = CallCell<SessionCall, mw_call>;

Cell cell_at(const Stack& stack, uint32_t at) {
  return {process.session.call(at), stack.call(at)};
}

// Makes a free, answered cell ours. -1: there is none. Lookups, which take seconds, have half of the
// cells among themselves.
int32_t find_cell(const Stack& stack, bool lookup) {
  const uint32_t calls = stack.geometry().calls;
  const uint32_t n = lookup ? std::max(1u, calls / 2) : calls;
  uint32_t at = this_thread() * 2654435761u % n;
  for (uint32_t tries = 0; tries < n; ++tries, at = (at + 1) % n)
    if (cell_at(stack, at).acquire(process.pid)) return static_cast<int32_t>(at);
  return -1;
}

// The same; waits until one comes free. -ENOBUFS: none did for a long time; -ENETDOWN: nobody is there
// who would free one; -ECONNRESET.
int32_t acquire_cell(Stack& stack, bool lookup) {
  int32_t at = find_cell(stack, lookup);
  if (at >= 0) return at;
  SessionHeader& header = process.session.header();
  const int saved = errno;
  int32_t failure = -ENOBUFS;
  for (int ticks = 0; at < 0 && ticks < kTicksForCell;) {
    const uint32_t seen = A::load_acquire(header.cells_freed);
    A::store_relaxed(header.cells_wanted, 1u);
    A::fence();  // pairs with that of release_cell()
    at = find_cell(stack, lookup);
    if (at >= 0) break;
    if (stack.is_poisoned()) {
      failure = -ECONNRESET;
      break;
    }
    if (raw_futex(&header.cells_freed, FUTEX_WAIT, seen, &kTick) == 0 || errno != ETIMEDOUT)
      continue;
    if (++ticks < kTicksToLiveness || stack.is_up()) continue;
    failure = -ENETDOWN;
    break;
  }
  errno = saved;
  return at >= 0 ? at : failure;
}

void release_cell(const Stack& stack, uint32_t at) {
  cell_at(stack, at).release();
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
int submit(const Stack& stack, uint32_t at, const CallRequest& r) {
  mw_call& cell = stack.call(at);
  if (cell_at(stack, at).take_over_waiters()) wake_waiters(cell);
  uint32_t len = 0;
  for (const Bytes& b : r.in) {
    if (b.len > MW_CALL_PAYLOAD - len) return -EINVAL;
    if (b.len != 0) std::memcpy(cell.payload + len, b.data, b.len);
    len += b.len;
  }
  cell.op = r.op;
  cell.slot = stack.place_of(r.slot);
  cell.gen = r.gen;
  std::memcpy(cell.arg, r.arg, sizeof cell.arg);
  cell.in_len = len;
  cell.flags2 = r.flags;
  cell.caller = this_thread();
  cell.sent_at = order_stamp();
  const uint32_t seq = cell_at(stack, at).publish();
  if (r.placeholder >= 0 || r.single_placeholder >= 0) {
    const mw_drop_record record{MW_DROP_MAGIC, at, seq};
    if (r.single_placeholder >= 0) {
      if (say_whose_placeholder(r.single_placeholder, record)) return 0;
      cell_at(stack, at).withdraw();
      return -EMFILE;
    }
    const int fds[] = {r.placeholder};
    if (auto sent = send_message(stack.drop_fd(), bytes_of(record), fds, 0); !sent) {
      cell_at(stack, at).withdraw();
      return -ENETDOWN;
    }
    return 0;
  }
  const uint32_t worker = stack.worker_of(r.slot);
  if (stack.call_news(worker).add(at)) stack.ring(worker);
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
bool await(Stack& stack, uint32_t at, uint32_t seq, Whose whose, int single = -1) {
  mw_call& cell = stack.call(at);
  bool slept = false;
  const int saved = errno;
  bool answered = false;
  for (int ticks = 0; ticks < kTicksToGiveUp;) {
    answered = cell_at(stack, at).is_answered(seq);
    if (answered) break;
    slept = true;
    uint32_t done = 0;
    if (!cell_at(stack, at).prepare_sleep(seq, done)) continue;
    if (raw_futex(&cell.done_seq, FUTEX_WAIT, done, &kTick) < 0 && errno == ETIMEDOUT) {
      ++ticks;
      if (has_hung_up(single) && !cell_at(stack, at).is_answered(seq)) {
        cell_at(stack, at).withdraw();  // it went no further
        break;
      }
      if (ticks < kTicksToLiveness) continue;
      if (whose != Whose::lookup) see_end_of_ins();
      if (whose == Whose::lookup ? is_deserted() : !stack.is_up() || stack.is_poisoned()) break;
    }
  }
  if (answered && slept && whose != Whose::posted) cell_at(stack, at).forget_waiters();
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

CallAnswer take_answer(Stack& stack, uint32_t at, const CallRequest& request, void* room,
                       uint32_t room_len) {
  const mw_call& cell = stack.call(at);
  CallAnswer a;
  a.ret = *const_cast<const volatile int32_t*>(&cell.ret);
  a.err = *const_cast<const volatile int32_t*>(&cell.err);
  a.len = *const_cast<const volatile uint32_t*>(&cell.out_len);
  if (!possible(request, a)) {
    poison(stack, "answer to a call");
    return {-1, ECONNRESET, 0};
  }
  a.len = std::min(a.len, room_len);
  if (a.len != 0) std::memcpy(room, cell.payload, a.len);
  return a;
}

void await_posted(Stack& stack, uint32_t slot) {
  SessionSlot& s = process.session.slot(slot);
  const uint64_t posted = A::load_acquire(s.posted);
  if (posted == 0) return;
  const uint32_t at = posted_cell(posted);
  if (at < stack.geometry().calls) await(stack, at, posted_seq(posted), Whose::posted);
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

CallRequest about(const Sock& s, uint32_t op) {
  CallRequest r;
  r.op = op;
  r.slot = s.index;
  r.gen = s.gen;
  return r;
}

CallRequest about_option(const Sock& s, int level, int name, Bytes value) {
  CallRequest r = about(s, MW_OP_SETSOCKOPT);
  r.arg[0] = level;
  r.arg[1] = name;
  r.in[0] = value;
  return r;
}

CallAnswer call(const CallRequest& request, void* room, uint32_t room_len) {
  if (is_session_over() && (request.op == MW_OP_SOCKET || mw_is_lookup(request.op)))
    return {-1, ENETDOWN, 0};
  Stack& stack = stack_of(request.slot);
  if (stack.is_poisoned()) return {-1, ECONNRESET, 0};
  if (!session_up()) return {-1, ENETDOWN, 0};
  const bool has_slot = request.placeholder < 0 && request.single_placeholder < 0;
  if (!mw_is_lookup(request.op) && has_slot) await_posted(stack, request.slot);
  if (process.talks_to_itself) process.unsettled = true;
  const bool lookup = mw_is_lookup(request.op) != 0;
  const int32_t cell = acquire_cell(stack, lookup);
  if (cell < 0) return {-1, -cell, 0};
  const auto at = static_cast<uint32_t>(cell);
  CallAnswer a;
  if (const int rc = submit(stack, at, request); rc < 0)
    a.err = -rc;
  else if (await(stack, at, process.session.call(at).seq, lookup ? Whose::lookup : Whose::ours,
                 request.single_placeholder))
    a = take_answer(stack, at, request, room, room_len);
  else
    a.err = request.op == MW_OP_SOCKET ? ENETDOWN : ECONNRESET;
  release_cell(stack, at);
  return a;
}

void post(const CallRequest& request) {
  Stack& stack = stack_of(request.slot);
  if (stack.is_poisoned() || !session_up()) return;
  if (process.talks_to_itself) process.unsettled = true;
  await_posted(stack, request.slot);
  const int32_t cell = acquire_cell(stack, false);
  if (cell < 0) return;
  const auto at = static_cast<uint32_t>(cell);
  SessionSlot& s = process.session.slot(request.slot);
  if (submit(stack, at, request) == 0) {
    const uint32_t seq = process.session.call(at).seq;
    uint64_t none = 0;
    // Another thread has posted meanwhile, and a slot remembers one call: this one is awaited.
    if (!std::atomic_ref(s.posted).compare_exchange_strong(none, posted_call(at, seq)))
      await(stack, at, seq, Whose::ours);
  }
  release_cell(stack, at);
}

}  // namespace mw::shim
