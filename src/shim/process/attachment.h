// attachment.h - who the driver is: how this process joins its session, and what it asks of it.
//
// TRUST       The driver is trusted; what it answers is checked for range. The session's secret is in
//             every request.
// INVARIANTS  The connection is that of the process that made it: a child of fork() makes its own
//             before it asks. A question of which nothing may be lost goes over a connection of its own.
// THREADS     Any; joining is serialised by a lock. errno is preserved.
#pragma once

#include <cstdint>
#include <span>

#include "abi/mw_region.h"
#include "base/result.h"
#include "shim/process/stack.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"

namespace mw::shim {

struct Attachment {
  int fd = -1;       // the connection to the driver
  uint32_t pid = 0;  // of the process that made it
};
extern Attachment attachment;

// MWCOMMS_SESSION = <abstract name>:<32 hex digits>. False: that is none, and there is no session.
bool note_session(const char* setting);
bool is_in_session();

// Joins the session; true if it is joined. The first failure is said once on stderr.
bool attach();
// Makes sure that the connection is this process's own (after fork). False if the driver is not there.
bool attach_as_this_process();
// In the child of fork().
void attachment_after_fork();

// True if the calling thread's network namespace is not the session's: the program went elsewhere
// by unshare(), setns() or clone(), so what it makes now is the kernel's own over there. The second
// form asks about a socket that the calling thread has just made.
bool is_abroad();
bool is_abroad(int socket);
// Nobody listens at the address at which the application attaches.
bool is_address_free();

// One request to the driver about these descriptors, over `connection`. Errors: sys (its answer's
// status), peer, shutdown.
Result<ReceivedMessage> ask_driver(int connection, AttachType what, std::span<const int> fds,
                                   AttachReply& reply);
// Has the driver set an option that the INS has no right to. proof: transport/local/privileged.h.
// 0 or -errno.
int set_by_driver(const SocketOption& wanted, int proof);

// A placeholder where there is a descriptor for one end only: the driver passes the other one on.
// type: as of make_placeholder(). Returns the descriptor or -errno.
int connect_placeholder(int type);
// With it the driver learns whose it is. False: it is not to be had.
bool say_whose_placeholder(int fd, const mw_drop_record& record);

// Marks the channel as broken by its other end: says so once, to the user and to the driver, which
// ends that INS.
void poison(Stack& stack, const char* where);

}  // namespace mw::shim
