// call_cells.h - control calls to the INS through the call table (docs/protocol.md 5).
//
// TRUST       The answer is the INS's: lengths are checked here, values by whoever asked.
// THREADS     Any. A cell belongs to the process whose pid stands in the session region.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "abi/mw_call.h"

namespace mw::shim {

struct Sock;

struct Bytes {
  const void* data;
  uint32_t len;
};

struct CallRequest {
  uint32_t op = MW_OP_NONE;
  uint32_t slot = 0;  // a socket's number; of no socket: Stack::first() of the one that is to do it
  uint32_t gen = 0;
  int32_t arg[4] = {0, 0, 0, 0};
  uint32_t flags = 0;
  Bytes in[3] = {{nullptr, 0}, {nullptr, 0}, {nullptr, 0}};  // put one after the other
  // MW_OP_SOCKET: the INS's end of the placeholder, sent with the announcement.
  int placeholder = -1;
  // The application's end, if only that one is here: the driver has the other (attachment.h).
  int single_placeholder = -1;
};

struct CallAnswer {
  int ret = -1;
  int err = 0;  // errno, or EAI_* for lookups
  uint32_t len = 0;
};

// A call about a socket.
CallRequest about(const Sock& s, uint32_t op);
// MW_OP_SETSOCKOPT. The value has to last until the call is made.
CallRequest about_option(const Sock& s, int level, int name, Bytes value);

// Executes a call and waits for the answer; its payload goes to `room`. A failure of the channel
// itself is an answer too: ret -1 with ENETDOWN, ECONNRESET or ENOBUFS (too many calls are unanswered).
// Not interrupted by signals, whose handlers run meanwhile.
CallAnswer call(const CallRequest& request, void* room, uint32_t room_len);

// Executes a call that cannot fail without waiting. The next call about the same socket waits for
// it, so that order is kept. Waits for a free cell; if none comes, the stack hangs and the call is lost
// with it.
void post(const CallRequest& request);

// Waits until the session has an INS, at most about two seconds. False: it has none.
bool session_up();

}  // namespace mw::shim
