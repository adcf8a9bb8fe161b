// taker.h - which of the threads that wait for a socket sleeps on its placeholder.
//
// PURPOSE     The INS writes one token for all who wait, and whoever reads it has taken it from the
//             others. So one thread, in whichever process, is the taker: it sleeps on the placeholder
//             and reads what comes there. The others sleep on the word, and look again each time the
//             taker wakes or leaves.
// INVARIANTS  The word is 0 (nobody) or the taker's thread id, with kWaiters if others sleep on it.
//             Whoever sleeps has armed the socket and looked at it after he found the word taken.
//             A thread that is the taker already may become it again: a signal handler that waits
//             for the same socket, or one that left an earlier wait with longjmp.
// THREADS     Any of any process that maps the word. A taker whose thread is cancelled must leave()
//             on its way out; that it was killed is noticed by other processes after some time.
#pragma once

#include <cstdint>

namespace mw::shim {

// True if we are the taker now.
bool become_taker(uint32_t& word);
// The same; else the others' bit is set and `seen` is the word to sleep on.
bool become_taker_or_follow(uint32_t& word, uint32_t& seen);
// If we are the taker: nobody is, and who sleeps on the word wakes.
void leave_taker(uint32_t& word);
// Sleeps until the taker woke or left, or the deadline passes. 0, -EINTR or -EAGAIN (deadline), as
// wait_for(). A wait without deadline is restarted after a handler with SA_RESTART if the taker is of this
// process. The thread may be cancelled here.
int follow_taker(uint32_t& word, uint32_t seen, int64_t deadline);

}  // namespace mw::shim
