// session_end.h - when all processes of the session but the application's are gone.
//
// PROBLEM     An INS that dies is replaced, and until then whoever waits for it waits on. Killed together
//             with the driver and the front end it is replaced by nobody, and nobody says so.
// PROMISE     Then every wait ends within kLongestLeft and some seconds, and the sockets fail as those of
//             a session that is over. While one of the two lives nothing changes. Nothing is polled
//             before the first sign.
// INVARIANTS  Driver and front end hold the address at which the application attaches, and whoever comes
//             after them gets it from them: where it is refused there will be no other. An INS that has
//             lost both ends by itself in less than kLongestLeft.
// THREADS     Any. errno is preserved.
#pragma once

#include <cstdint>

#include "ring/atomics.h"

namespace mw::shim {

constexpr int64_t kLongestLeft = 12'000'000'000;  // ns

extern uint32_t session_over;
// None of the session's own processes is left, and this one has noticed.
inline bool is_session_over() {
  return StdAtomics::load_relaxed(session_over) != 0;
}

// Neither driver nor front end is left, and none will come.
bool is_deserted();
// An INS has closed its end of a placeholder or leaves a call unanswered: if nobody is left to replace
// it the session is over. Takes no lock.
void see_end_of_ins();
// The kernel says that the last holder of a group's life pipe is gone (epoll_group.h). Takes no lock.
void note_end_of_life();
// For a thread that waits for events of a group: for how many ns it may sleep, and is to look again
// then; -1: for ever. When the session is over all sockets of this process become events.
int64_t see_desertion();

}  // namespace mw::shim
