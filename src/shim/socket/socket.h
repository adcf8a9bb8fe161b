// socket.h - a protected socket as the calls of one process see it: state, readiness, errors,
// waiting.
//
// Functions return what the system call would, with -errno for failures; interpose.cc turns that
// into -1 and errno. The calls themselves are in socket_calls.h.
//
// TRUST       Words in the slot are the INS's: loaded once, indexes checked against their window.
// THREADS     Any; see session_region.h for the locks.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstdint>

#include "base/clock.h"
#include "shim/process/attachment.h"
#include "shim/process/copies.h"
#include "shim/process/descriptors.h"
#include "shim/process/file_limit.h"
#include "shim/process/identity.h"
#include "shim/process/process.h"
#include "shim/process/shared_lock.h"
#include "shim/process/stack.h"
#include "shim/socket/taker.h"

namespace mw::shim {

struct Sock {
  int fd;
  uint32_t index;  // its number (stack.h)
  uint32_t gen;
  Stack& stack;       // of the INS that executes its calls
  mw_slot& slot;      // shared with that INS
  SessionSlot& mine;  // shared with our other processes

  bool datagram() const { return (mine.type & 0xf) != SOCK_STREAM; }
  bool nonblocking() const { return (StdAtomics::load_relaxed(mine.flags) & kSlotNonblock) != 0; }
};

// The one place that goes from a number to the socket.
// Requires: has_slot(number) was true.
inline Sock sock_of(int fd, uint32_t number, uint32_t gen) {
  Stack& stack = stack_of(number);
  return {fd, number, gen, stack, stack.slot(number), process.session.slot(number)};
}
// The socket that has the number now, without a descriptor.
inline Sock sock_of(uint32_t number) {
  return sock_of(-1, number, StdAtomics::load_relaxed(process.session.slot(number).gen));
}
// The socket behind an entry that look_up() found to be one.
inline Sock sock_of(int fd, const Entry& e) {
  return sock_of(fd, e.slot, e.gen);
}

// True if its INS is gone, or the channel is poisoned, or the slot serves somebody else by now.
bool is_dead(const Sock& s);
// The answer to a window that does not hold: -ECONNRESET. The INS lied, and the channel is poisoned,
// unless another thread has closed the socket and its slot is another connection's.
int broken_window(const Sock& s, const char* where);
// Whether an address from the INS can be one of this socket, or of its peers (from_stack.h).
bool is_name_of(const Sock& s, void* name, uint32_t* len);
// False: the program has closed it meanwhile, and number and slot may be another socket's by now.
bool is_still_there(const Sock& s);

// True if the program has closed the socket, and the INS has, under a call that still waits for it.
bool is_closed_under(const Sock& s);
// The rest of such a call's time: natively the socket lives as long as the call, and nothing comes.
// -EAGAIN or -EINTR.
int wait_out(int64_t deadline);

// The state word (MW_ST_*); a dead socket's is CONNECTED|RCV_SHUT|EOF|SND_SHUT|CLOSED.
uint32_t state_of(const Sock& s);

// The poll bits of a socket that is not a listener.
uint32_t poll_mask(const Sock& s);

// True if an asynchronous error waits to be reported.
bool error_pending(const Sock& s);
// The same for whoever reads or polls: bytes that came before the error are told first.
bool error_told(const Sock& s);
// Takes the pending error: its errno, or 0. Each is delivered once.
int take_error(const Sock& s);

// Tells the INS that there is news in the socket's rings.
void announce(const Sock& s);

// What TCP_CORK or MSG_MORE holds back stands in the ring unannounced until the program uncorks or
// sends without MSG_MORE, until there is much of it, or the thread is about to wait or turns to
// another descriptor: a program that corks, sends header and body and uncorks costs one
// announcement and no call. A close sends it too.
//
// Before bytes are put in: whether they are to be held back. `more`: MSG_MORE.
bool hold_back(const Sock& s, bool more);
// After that.
void announce_bytes(const Sock& s, bool held, bool more);
// Ends holding back, in whichever thread it began.
void announce_held(const Sock& s);
extern thread_local uint32_t
    held_slot;  // 0, or 1 + the slot whose announcement this thread holds back
void release_held_slot();
inline void release_held() {
  if (held_slot != 0) [[unlikely]]
    release_held_slot();
}

// Sleeps until the INS has news of the wanted kind (POLLIN, POLLOUT or both), the deadline passes
// (CLOCK_MONOTONIC nanoseconds, 0: none), or a signal comes. `ready` is asked after arming; when it
// says true there is no sleep. Returns 0 (look again), -EINTR, -EAGAIN (deadline). A wait without
// deadline is restarted by the kernel after a handler with SA_RESTART, as for a socket.
template <class Ready>
int wait_for(const Sock& s, short what, int64_t deadline, Ready&& ready);

// A thread that waits for a socket: counted, and its part in taking tokens. However it leaves, what
// it holds goes back.
class Waiting {
 public:
  explicit Waiting(const Sock& s) : s_(s), undo_(leave, this) {}
  ~Waiting() { leave(this); }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  // Each turn begins before the socket is looked at. False: another thread has closed it before we
  // slept for the first time.
  bool begin_turn();
  // One sleep, with which the turn ends. 0 (look again) or -errno.
  int sleep(int64_t deadline);
  // From here on the thread counts as one that waits.
  void count();

 private:
  static void leave(void* waiting);
  int sleep_as_taker(int64_t left);

  const Sock& s_;
  Part part_ = Part::follower;
  uint32_t seen_ = 0;  // a follower's: the word to sleep on
  bool gone_ = false;  // the descriptor is not to be touched any more: its number may be another's
  bool counted_ = false;
  OnUnwind undo_;
};
// A counted wait ends, unless the slot serves another socket by now, which was never counted in.
void end_wait_for(SessionSlot& mine, uint32_t gen);
void arm(const Sock& s, short what);
// Removes tokens that turned out to be stale. Only for the taker that did not read them.
void discard_tokens(const Sock& s);

// A timeout of 0 is none, a negative one is over at once.
inline int64_t deadline_after_us(int64_t us) {
  if (us == 0 || us > kLongestTimeoutUs) return 0;
  return us < 0 ? 1 : monotonic_ns() + us * 1000;
}

// When a blocked call gives up. A timeout that somebody changes while the call waits counts from
// then.
class Timeout {
 public:
  explicit Timeout(int64_t& shared_us) : shared_us_(shared_us) {}
  int64_t deadline() {
    if (changed()) {
      us_ = StdAtomics::load_relaxed(shared_us_);
      deadline_ = deadline_after_us(us_);
    }
    return deadline_;
  }
  // Since deadline() was asked. It belongs to what the call waits for.
  bool changed() const { return StdAtomics::load_relaxed(shared_us_) != us_; }

 private:
  int64_t& shared_us_;
  int64_t us_ = 0;
  int64_t deadline_ = 0;
};

// Initialises region B's part of a new socket and its placeholder's identity, and enters it in the
// table. `then`: see note_origin().
int adopt_socket(int fd, uint32_t slot, uint32_t gen, int domain, int type, int protocol,
                 uint32_t flags, uint32_t then);

// After the reader made room: the INS may have stopped reading because the ring was full.
void offer_room(const Sock& s);

// Space for reading and writing.
uint32_t readable_bytes(const Sock& s);
// SO_RCVLOWAT: as many readable bytes make the socket readable.
uint32_t low_water(const Sock& s);
uint32_t unsent_bytes(const Sock& s);
// What the send ring may hold for this socket, and what it still takes of that.
uint32_t send_capacity(const Sock& s);
inline uint32_t send_room(const Sock& s) {
  const uint32_t used = unsent_bytes(s);
  const uint32_t capacity = send_capacity(s);
  return used < capacity ? capacity - used : 0;
}
inline bool is_writable(const Sock& s) {
  return ring_writable(send_capacity(s), send_room(s));
}

template <class Ready>
int wait_for(const Sock& s, short what, int64_t deadline, Ready&& ready) {
  release_held();
  Waiting waiting(s);
  for (;;) {
    if (!waiting.begin_turn()) return -EBADF;
    arm(s, what);
    if (ready()) return 0;
    if (const int rc = waiting.sleep(deadline); rc < 0) return rc;
    if (ready()) return 0;
  }
}

}  // namespace mw::shim
