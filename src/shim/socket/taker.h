// taker.h - which of the threads that wait for a socket sleeps on its placeholder.
//
// PURPOSE     The INS writes one token for all who wait, and whoever reads it has taken it from the
//             others. So one thread, in whichever process, is the taker: it sleeps on the placeholder
//             and reads what comes there. The others follow: they sleep on the word, and look again
//             each time the taker wakes or leaves (docs/decisions/0015).
// INVARIANTS  The word holds the taker's thread id (0: nobody), how often there was one, kPollers and
//             kWaiters, if others sleep on it. Whoever sleeps on it has armed the socket and looked
//             at it after he found it taken.
//             A wait in a signal handler is neither taker nor follower if the wait that it
//             interrupted is the taker.
// THREADS     Any of any process that maps the word. A taker leaves on its way out when its thread is
//             cancelled, ends, or jumps out of the wait (OnUnwind); that it was killed is noticed by
//             other processes after some time. Processes of several pid namespaces must not share a
//             socket.
#pragma once

#include <pthread.h>

#include <cstdint>

#include "shim/process/shared_lock.h"

namespace mw::shim {

// Whoever can neither take the tokens nor follow looks again after this.
constexpr int64_t kSliceNs = kPatienceNs;

// Somebody polls who cannot follow: a taker that polls too gives him a moment to see a token.
constexpr uint32_t kPollers = 1u << 30;

enum class Part : uint8_t { follower, taker, neither };

constexpr uint32_t taker_of(uint32_t word) {
  return word & 0x3f'ffff;  // Linux numbers threads with 22 bits
}

// Makes us the taker if there is none. Else: whether another one is, or we are already (neither).
Part become_taker(uint32_t& word);
// The same; a follower finds in `seen` what to sleep on.
Part take_part(uint32_t& word, uint32_t& seen);
// If we are the taker: nobody is, and who follows wakes.
void leave_taker(uint32_t& word);
// Ends the turn of a thread of which it is known that it does not wait.
void end_turn_of(uint32_t& word, uint32_t tid);
// Sleeps until the taker woke or left, or the deadline passes. 0, -EINTR or -EAGAIN (deadline), as
// wait_for(). A wait without deadline is restarted after a handler with SA_RESTART if the taker is of
// this process. The thread may be cancelled here.
int follow_taker(uint32_t& word, uint32_t seen, int64_t deadline);
// A socket has come to this program, which does not know it yet: our first thread cannot be waiting for
// it. It was when it became this program by exec, and has kept its number. IdentityHooks::on_found.
void end_turn_before_exec(uint32_t slot);
// A taker that was killed is removed.
void bury_dead_taker(uint32_t& word);

// Runs `undo` when the thread ends, is cancelled or jumps out of the scope. The C library's macros
// for it would leave it a pointer into this frame after a jump.
class OnUnwind {
 public:
  OnUnwind(void (*undo)(void*), void* argument);
  ~OnUnwind();
  OnUnwind(const OnUnwind&) = delete;
  OnUnwind& operator=(const OnUnwind&) = delete;

 private:
  _pthread_cleanup_buffer buffer_;
};

}  // namespace mw::shim
