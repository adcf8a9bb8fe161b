// ancillary.h - the control messages that come with a datagram: which of them the program has asked
// for by now.
//
// PURPOSE     The kernel decides that at recvmsg(). Datagrams are read ahead, so the INS has the
//             common control messages put into every record, and the shim gives out those whose
//             option is set at the time of the call (docs/protocol.md 3).
// TRUST       Control messages are the INS's bytes: from_stack.h says which may pass.
// THREADS     Any. What was asked stands in the session region.
#pragma once

#include <cstdint>

#include "shim/socket/socket.h"

namespace mw::shim {

// A datagram socket's option was set, successfully.
void note_asked(const Sock& s, int level, int name, const void* value, socklen_t len);
// The value of an option that the shim knows and the real socket does not. False: ask the INS.
bool own_answer(const Sock& s, int level, int name, int& value);
// False: the option is set on the real socket only because the INS wants it.
bool is_asked(const Sock& s, int level, int name);

// The control bytes of a record, or of an answer, are of interest.
bool wants_control(const Sock& s);
// Writes the messages that the program is to have as the kernel's put_cmsg() does: *room becomes
// what was written. `cut`: not all had room in the stack. Returns MSG_CTRUNC if not all fit, or 0; -ECONNRESET: the INS lied.
int give_control(const Sock& s, const char* from, uint32_t len, bool cut, char* to, size_t* room);

// A datagram was given to the program: what SIOCGSTAMP tells then. `from` as above.
void note_stamp(const Sock& s, const char* from, uint32_t len);
// SIOCGSTAMP and SIOCGSTAMPNS: nanoseconds since 1970, or -ENOENT.
int64_t last_stamp(const Sock& s);

// A message with descriptors is about to leave.
void note_passed(const msghdr* m);

}  // namespace mw::shim
