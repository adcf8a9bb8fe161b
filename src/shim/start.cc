// start.cc - what happens when the library is loaded: the one place that knows all parts, and tells the
// lower rooms what the upper ones do for them.
//
// THREADS     Runs before the program's own constructors, in one thread.
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "shim/calls/epoll.h"
#include "shim/process/attachment.h"
#include "shim/process/copies.h"
#include "shim/process/descriptors.h"
#include "shim/process/exec.h"
#include "shim/process/identity.h"
#include "shim/process/libc_calls.h"
#include "shim/process/process.h"
#include "shim/process/shared_lock.h"
#include "shim/process/stack.h"
#include "shim/process/stdio.h"
#include "shim/socket/epoll_group.h"
#include "shim/socket/news.h"
#include "shim/socket/stock.h"
#include "shim/socket/taker.h"

namespace mw::shim {
namespace {

void process_after_fork() {
  process.pid = static_cast<uint32_t>(::getpid());
  process.locks_memory = false;
  cached_tid = 0;
}

void connect_rooms() {
  set_hooks(DescriptorHooks{.on_last_close = epoll_last_close,
                            .on_unnamed = trim_rings,
                            .on_epoll_close = epoll_closed,
                            .on_group_reference = group_count_reference});
  set_hooks(IdentityHooks{.find_other = epoll_look_up, .on_found = end_turn_before_exec});
  for (const auto run :
       {process_after_fork, attachment_after_fork, stock_after_fork, epoll_after_fork})
    after_fork(run);
  ::pthread_atfork(begin_copying, end_copying, after_fork_in_child);
}

[[gnu::constructor(101)]] void start() {
  resolve_libc_calls();
  process.pid = static_cast<uint32_t>(::getpid());
  if (!open_copies() || !open_descriptors()) {
    log_line("mwshim", "no memory for the descriptor table; the program is not protected");
    ::_exit(126);  // never fall back to the host's stack
  }
  const char* const session = ::getenv("MWCOMMS_SESSION");
  keep_settings(session != nullptr && note_session(session) ? session : nullptr);
  connect_rooms();
  adopt_standard_streams();
}

}  // namespace
}  // namespace mw::shim
