// poll.h - poll() and select() over protected and ordinary descriptors together.
//
// Protected sockets are judged from the session's memory; to sleep, their placeholders stand in the
// kernel's own poll() for the token that the INS sends (socket.h).
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/select.h>

#include <cstdint>

namespace mw::shim {

// True if one of the descriptors needs us.
bool poll_concerns_us(const pollfd* fds, nfds_t n);
// timeout_ns < 0: no limit. Returns the count or -errno.
int shim_poll(pollfd* fds, nfds_t n, int64_t timeout_ns, const sigset_t* mask);

bool select_concerns_us(int n, const fd_set* r, const fd_set* w, const fd_set* x);
int shim_select(int n, fd_set* r, fd_set* w, fd_set* x, int64_t timeout_ns, const sigset_t* mask);

}  // namespace mw::shim
