#include "shim/socket/socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "ring/order.h"
#include "shim/process/user_memory.h"
#include "shim/socket/call_cells.h"
#include "shim/socket/from_stack.h"
#include "shim/socket/session_end.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

constexpr uint32_t kDeadState =
    MW_ST_OPEN | MW_ST_CONNECTED | MW_ST_RCV_SHUT | MW_ST_EOF | MW_ST_SND_SHUT | MW_ST_CLOSED;

}  // namespace

bool is_dead(const Sock& s) {
  return s.stack.is_poisoned() || A::load_relaxed(s.mine.gen) != s.gen ||
         static_cast<int32_t>(s.gen - s.stack.first_gen()) < 0;
}

int broken_window(const Sock& s, const char* where) {
  if (!is_dead(s) && A::load_acquire(s.slot.gen) == s.gen) poison(s.stack, where);
  return -ECONNRESET;
}

bool is_name_of(const Sock& s, void* name, uint32_t* len) {
  if ((A::load_relaxed(s.mine.flags) & kSlotWas6) != 0)
    return follow_address_form(s.mine.domain, name, len);
  return is_address_of(s.mine.domain, name, *len);
}

bool is_still_there(const Sock& s) {
  const Entry e = peek(s.fd);
  return e.kind == Kind::socket && e.slot == s.index && e.gen == s.gen;
}

uint32_t state_of(const Sock& s) {
  return is_dead(s) ? kDeadState : A::load_acquire(s.slot.state);
}

// The state that follows from an error that was found is there too.
static bool is_published(const Sock& s) {
  return (A::load_acquire(s.slot.state) & MW_ST_FAILING) == 0;
}

bool error_pending(const Sock& s) {
  if (is_dead(s)) return (A::load_relaxed(s.mine.flags) & kSlotResetTaken) == 0;
  // In this order, as in take_error(): an older error_seq than the one that another thread has taken
  // would look like a new error.
  const uint32_t taken = A::load_acquire(s.mine.error_taken);
  return A::load_acquire(s.slot.error_seq) != taken && A::load_relaxed(s.slot.error) != 0 &&
         is_published(s);
}

bool error_told(const Sock& s) {
  // The error first: that bytes are missing is published with it.
  return error_pending(s) && (state_of(s) & MW_ST_BEHIND) == 0;
}

int take_error(const Sock& s) {
  if (is_dead(s)) {
    if (A::load_relaxed(s.mine.gen) != s.gen) return 0;
    return (A::fetch_or(s.mine.flags, kSlotResetTaken) & kSlotResetTaken) == 0 ? ECONNRESET : 0;
  }
  const uint32_t taken = A::load_acquire(s.mine.error_taken);
  const uint32_t seq = A::load_acquire(s.slot.error_seq);
  if (seq == taken || !is_published(s)) return 0;
  if (!A::compare_exchange(s.mine.error_taken, taken, seq)) return 0;
  const int error = A::load_relaxed(s.slot.error);
  return error >= 0 && error < 4096 ? error : ECONNRESET;
}

// How far the INS fills the receive ring.
static uint32_t rx_limit(const Sock& s) {
  const uint32_t capacity = s.stack.geometry().rx_ring;
  const uint32_t limit = A::load_relaxed(s.slot.rx_limit);
  return limit != 0 && limit < capacity ? limit : capacity;
}

uint32_t low_water(const Sock& s) {
  // The INS goes on once half of the limit is free: more than the other half may never be there.
  return std::clamp<uint32_t>(A::load_relaxed(s.mine.rcvlowat), 1,
                              std::max<uint32_t>(1, rx_limit(s) / 2));
}

uint32_t readable_bytes(const Sock& s) {
  const auto n =
      ring_ready(s.stack.geometry().rx_ring, A::load_relaxed(s.mine.rx_head), s.slot.rx_tail);
  // Another thread may have moved its head since; only the one that holds the lock may judge.
  return n ? *const_cast<Result<uint32_t>&>(n) : 0;
}

uint32_t unsent_bytes(const Sock& s) {
  const uint32_t n = A::load_relaxed(s.mine.tx_tail) - A::load_acquire(s.slot.tx_head);
  return n <= s.stack.geometry().tx_ring ? n : 0;
}

uint32_t send_capacity(const Sock& s) {
  const uint32_t ring = s.stack.geometry().tx_ring;
  const uint32_t wish = A::load_relaxed(s.mine.sndbuf);
  return wish != 0 && wish < ring ? wish : ring;
}

uint32_t poll_mask(const Sock& s) {
  uint32_t state = state_of(s);
  const bool error = error_told(s);
  if (error) state = state_of(s);  // what follows from it comes after it
  const uint32_t flags = A::load_relaxed(s.mine.flags);
  uint32_t mask = error || (state & MW_ST_ERRQ) != 0 ? POLLERR : 0;
  const bool closed = (state & MW_ST_CLOSED) != 0;
  const bool rcv_shut = closed || (state & MW_ST_RCV_SHUT) != 0 ||
                        ((flags & kSlotShutRd) != 0 && (state & MW_ST_BEHIND) == 0);
  const bool snd_shut = closed || (state & MW_ST_SND_SHUT) != 0 || (flags & kSlotShutWr) != 0;
  const bool stream = !s.datagram();
  if (rcv_shut) mask |= POLLIN | POLLRDNORM | POLLRDHUP;
  if (rcv_shut && snd_shut) mask |= POLLHUP;
  // Urgent data is news until it was read past.
  const bool past_mark =
      (state & MW_ST_AT_MARK) != 0 &&
      static_cast<int32_t>(A::load_relaxed(s.mine.rx_head) - A::load_relaxed(s.slot.oob_mark)) > 0;
  if ((state & MW_ST_PRI) != 0 && !past_mark) mask |= POLLPRI;
  if (!stream) {
    if (readable_bytes(s) != 0) mask |= POLLIN | POLLRDNORM;
    return mask | POLLOUT | POLLWRNORM | POLLWRBAND;
  }
  if ((state & (MW_ST_CONNECTED | MW_ST_CONNECTING | MW_ST_LISTENING)) == 0) mask |= POLLHUP;
  if ((state & MW_ST_CONNECTING) != 0) return mask;
  if (readable_bytes(s) >= low_water(s)) mask |= POLLIN | POLLRDNORM;
  if (snd_shut || is_writable(s)) mask |= POLLOUT | POLLWRNORM;
  return mask;
}

void announce(const Sock& s) {
  if (process.talks_to_itself) process.unsettled = true;
  const uint32_t place = s.stack.place_of(s.index);
  const uint32_t worker = s.stack.worker_of(s.index);
  ReadySet news = s.stack.sock_news(worker);
  if (!news.has(place) && (A::load_relaxed(s.mine.flags) & kSlotListener) == 0)
    A::store_relaxed(s.slot.sent_at, order_stamp());
  if (news.add(place)) s.stack.ring(worker);
}

void offer_room(const Sock& s) {
  A::fence();  // pairs with the INS's fence between setting MW_WANT_RX_ROOM and looking again
  if ((A::load_relaxed(s.slot.want) & MW_WANT_RX_ROOM) == 0) return;
  if (readable_bytes(s) > rx_limit(s) / 2) return;
  if ((A::fetch_and(s.slot.want, ~MW_WANT_RX_ROOM) & MW_WANT_RX_ROOM) != 0) announce(s);
}

thread_local uint32_t held_slot = 0;

namespace {

constexpr uint32_t kMostHeld = 16384;

bool is_held(const Sock& s) {
  return (A::load_relaxed(s.slot.want) & MW_WANT_HOLD) != 0;
}

void set_cork_below(const Sock& s, int on) {
  if (on != 0)
    A::fetch_or(s.mine.flags, kSlotCorkedBelow);
  else
    A::fetch_and(s.mine.flags, ~kSlotCorkedBelow);
  const int saved = errno;
  post(about_option(s, IPPROTO_TCP, TCP_CORK, {&on, sizeof on}));
  errno = saved;
}

}  // namespace

void release_held_slot() {
  const uint32_t index = held_slot - 1;
  held_slot = 0;
  const Sock s = sock_of(index);
  if (!is_held(s)) {
    // Another thread has announced what was there then; ours may have come after that.
    if (unsent_bytes(s) != 0) announce(s);
    return;
  }
  // The program waits and has more to send: from here on the kernel holds the bytes, with its own
  // time limit. The bit goes first: if the INS's kernel has no room when the call comes, its next
  // EPOLLOUT must not find the bytes still held, because nothing announces them again.
  A::fetch_and(s.slot.want, ~MW_WANT_HOLD);
  set_cork_below(s, 1);
}

bool hold_back(const Sock& s, bool more) {
  const uint32_t corks = A::load_relaxed(s.mine.flags) & (kSlotCorked | kSlotCorkedBelow);
  if ((corks & kSlotCorkedBelow) != 0 || (corks == 0 && !more)) return false;
  if (held_slot != s.index + 1) release_held();
  held_slot = s.index + 1;
  if (!is_held(s)) A::fetch_or(s.slot.want, MW_WANT_HOLD);
  return true;
}

void announce_bytes(const Sock& s, bool held, bool more) {
  if (held && unsent_bytes(s) <= kMostHeld) {
    // Unless another thread has announced what was held, before ours were there.
    A::fence();
    if (is_held(s)) return;
  }
  const uint32_t corks = A::load_relaxed(s.mine.flags) & (kSlotCorked | kSlotCorkedBelow);
  // It was MSG_MORE that corked the real socket, and there is no more.
  if (corks == kSlotCorkedBelow && !more) [[unlikely]]
    return set_cork_below(s, 0);
  announce_held(s);
}

void announce_held(const Sock& s) {
  if (held_slot == s.index + 1) held_slot = 0;
  if (is_held(s)) A::fetch_and(s.slot.want, ~MW_WANT_HOLD);
  announce(s);
}

void arm(const Sock& s, short what) {
  uint32_t bits = 0;
  if ((what & POLLIN) != 0) bits |= MW_WANT_TOKEN_IN;
  if ((what & POLLOUT) != 0) bits |= MW_WANT_TOKEN_OUT;
  if ((A::load_relaxed(s.mine.flags) & kSlotArmed) == 0) A::fetch_or(s.mine.flags, kSlotArmed);
  A::fetch_or(s.slot.want, bits);
  A::fence();  // pairs with the INS's fence between publication and its look at want
}

namespace {

// Sleeps in poll(). Returns what it returned.
int poll_placeholder(int fd, int64_t ns) {
  pollfd p{fd, POLLIN, 0};
  const timespec t{ns / 1'000'000'000, ns % 1'000'000'000};
  return libc.ppoll(&p, 1, ns < 0 ? nullptr : &t, nullptr);
}

// A sleep that has nothing to do with tokens. 0 or -EINTR.
int doze(int64_t ns) {
  return poll_placeholder(-1, ns) < 0 && errno == EINTR ? -EINTR : 0;
}

}  // namespace

bool is_closed_under(const Sock& s) {
  if (is_still_there(s)) return false;
  return A::load_relaxed(s.mine.gen) != s.gen || A::load_acquire(s.slot.gen) != s.gen ||
         (A::load_acquire(s.slot.state) & (MW_ST_OPEN | MW_ST_EOF)) == 0;
}

int wait_out(int64_t deadline) {
  for (;;) {
    const int64_t left = deadline - monotonic_ns();
    if (left <= 0) return -EAGAIN;
    if (const int rc = doze(left); rc < 0) return rc;
  }
}

bool Waiting::begin_turn() {
  part_ = take_part(s_.mine.taker, seen_);
  // Looked at after the word was taken: sock_close() looks at the word after the entry is gone.
  gone_ = !is_still_there(s_);
  if (gone_ && part_ == Part::taker) leave_taker(s_.mine.taker);
  return !gone_ || counted_;
}

void Waiting::count() {
  if (counted_) return;
  begin_wait(s_.mine, process.pid, monotonic_ns());
  counted_ = true;
}

int Waiting::sleep(int64_t deadline) {
  count();
  if (part_ == Part::follower && !gone_) return follow_taker(s_.mine.taker, seen_, deadline);
  const int64_t left = deadline != 0 ? deadline - monotonic_ns() : -1;
  if (deadline != 0 && left <= 0) return -EAGAIN;
  if (part_ != Part::taker || gone_) return doze(left < 0 ? kSliceNs : std::min(left, kSliceNs));
  const int rc = sleep_as_taker(left);
  leave_taker(s_.mine.taker);
  return rc;
}

int Waiting::sleep_as_taker(int64_t left) {
  int n = 0;
  if (left < 0 && !process.confined) {
    // The kernel's own receive gives us EINTR, SA_RESTART and cancellation as on any socket, and
    // takes the tokens in the same call.
    char tokens[64];
    const ssize_t got = libc.recv(s_.fd, tokens, sizeof tokens, 0);
    if (got > 0) return 0;
    if (got < 0 && errno == EINTR) return -EINTR;
    if (got == 0) see_end_of_ins();
    // The end (the INS died), or the open file is non-blocking behind our back.
    n = poll_placeholder(s_.fd, got == 0 ? 1'000'000 : -1);
  } else {
    n = poll_placeholder(s_.fd, left);
  }
  if (n < 0 && errno == EINTR) return -EINTR;
  if (n > 0) discard_tokens(s_);
  return 0;
}

void Waiting::leave(void* waiting) {
  Waiting& w = *static_cast<Waiting*>(waiting);
  // What a handler's wait has found taken by its own thread is the interrupted wait's.
  if (w.part_ != Part::neither) leave_taker(w.s_.mine.taker);
  if (std::exchange(w.counted_, false)) end_wait_for(w.s_.mine, w.s_.gen);
}

void end_wait_for(SessionSlot& mine, uint32_t gen) {
  if (A::load_relaxed(mine.gen) == gen) end_wait(mine, monotonic_ns());
}

void discard_tokens(const Sock& s) {
  char tokens[64];
  const int saved = errno;
  ssize_t n = -1;
  errno = EBADF;
  // A program that confined itself may have nothing but poll() and read().
  if (is_still_there(s) && !process.confined)
    n = libc.recv(s.fd, tokens, sizeof tokens, MSG_DONTWAIT);
  if (is_still_there(s) && process.confined && poll_placeholder(s.fd, 0) > 0)
    n = libc.read(s.fd, tokens, sizeof tokens);
  if (n == 0) see_end_of_ins();
  // The other end is closed although the driver has not said so yet, or our own: do not spin.
  if (n == 0 || (n < 0 && errno != EAGAIN)) doze(1'000'000);
  errno = saved;
}

int adopt_socket(int fd, uint32_t slot, uint32_t gen, int domain, int type, int protocol,
                 uint32_t flags, uint32_t then) {
  if (!has_slot(slot)) return -ENOMEM;
  SessionSlot& mine = process.session.slot(slot);
  // Threads that still sleep over an earlier socket of the slot.
  if (const uint32_t taker = taker_of(A::load_seq(mine.taker)); taker != 0)
    end_turn_of(mine.taker, taker);
  free_left_lock(mine.rx_lock, mine.lock_lost);
  free_left_lock(mine.tx_lock, mine.lock_lost);
  renew(mine);
  mine.domain = static_cast<uint16_t>(domain);
  mine.type = static_cast<uint16_t>(type);
  mine.protocol = static_cast<uint16_t>(protocol);
  mine.flags = flags;
  mine.owner = process.pid;
  mine.rx_head = MW_INDEX_START;
  mine.tx_tail = MW_INDEX_START;
  A::store_release(mine.gen, gen);
  SessionOwner& owner = process.session.owner(gen);
  A::store_relaxed(owner.pid, process.pid);
  A::store_release(owner.gen, gen);
  // The PVM's line of the slot is ours to set, and what an earlier user left there is not ours.
  mw_slot& shared = stack_of(slot).slot(slot);
  A::store_relaxed(shared.rx_head, MW_INDEX_START);
  A::store_relaxed(shared.tx_tail, MW_INDEX_START);
  if (const int rc = identify(fd, slot, gen); rc < 0) return rc;
  note_origin(slot, then);
  set_entry(fd, {Kind::socket, slot, gen});
  return 0;
}

}  // namespace mw::shim
